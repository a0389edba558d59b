// CUDA kernels of multi-scale deformable attention; nothing of PyTorch: tests/ops/cuda_shim runs them on a CPU.
//
// A query of a head is an item. A group of neighbouring lanes serves it, each lane with 16 bytes of the channels, so
// that a corner's row is read in one coalesced access. Points are taken in chunks of as many as the group has lanes:
// each lane locates one of them and leaves its corners in shared memory for the whole group.
//
// What bounds them, as Nsight Compute has it for float32 on an H200 in the encoder of four images of 800 x 1066, where
// four rows per point are 4.7 GB for 73 MB of values: the forward pass (0.29 ms) the path from L1, at 78 % of its peak. A
// block takes consecutive queries of one head, which sample neighbouring cells, so that 65 % of the rows are found in L1
// and 82 % of the others in L2. The backward pass (1.26 ms) reads as many rows and adds as many by atomics, whose
// throughput in L2, at 88 % of its peak, limits it; everything else is reduced in registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "../sampling.h"

namespace msda::cuda {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
// Blocks at once on a multiprocessor, which limits registers to 48 and 80: more warps hide the latency of the gather,
// but none of the kernels may spill.
constexpr int kForwardBlocks = 5;
constexpr int kBackwardBlocks = 3;
constexpr int kMaxLevels = 64;
constexpr int kVectorBytes = 16;
constexpr unsigned kAllLanes = 0xffffffffu;

struct Level {
  int32_t height, width, start;
};

// One call's sizes. Values are [B, S, M, D], locations [B, Q, M, L, P, 2], weights [B, Q, M, L, P] and outputs
// [B, Q, M, D], all contiguous and aligned to 16 bytes. S, M * D, Q * M and L * P fit int32.
struct Problem {
  int64_t batch, positions;  // B, S
  int32_t heads, channels;   // M, D
  int32_t queries;           // Q
  int32_t levels, points;    // L, P
  Level level[kMaxLevels];
};

// Type that values of type T are computed and summed in.
template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// How a row of kChannels (0: any number) is shared out: a group of lanes, a vector of channels each. Where the number
// is not known beforehand, a whole warp goes over the row channel by channel.
template <int kChannels, int kWidest>
struct Layout {
  static constexpr int kVector = kChannels > 0 ? kWidest : 1;
  static constexpr int kGroup = kChannels > 0 ? kChannels / kWidest : kWarp;
  static constexpr int kItems = kThreads / kGroup;  // per block
  static_assert(kGroup > 0 && kWarp % kGroup == 0);
};

template <typename T, int kChannels>
using ForwardLayout = Layout<kChannels, kVectorBytes / static_cast<int>(sizeof(T))>;

// In the backward pass the 16 bytes are those that an atomic operation adds: for 16-bit values, whose gradients are
// summed in float32, neighbouring lanes would otherwise touch every second half of a sector, twice.
template <typename T, int kChannels>
using BackwardLayout = Layout<kChannels, kVectorBytes / static_cast<int>(sizeof(Wide<T>))>;

// Blocks of one image; the grid is these, image by image.
template <typename SomeLayout>
__host__ __device__ __forceinline__ int32_t blocks_per_image(const Problem& problem) {
  return (problem.queries * problem.heads + SomeLayout::kItems - 1) / SomeLayout::kItems;
}

// Calls use(std::integral_constant<int, kChannels>) for the kernels' parameter that serves this many channels.
template <typename Use>
void with_channels(int32_t channels, const Use& use) {
  switch (channels) {
    case 16:
      return use(std::integral_constant<int, 16>{});
    case 32:
      return use(std::integral_constant<int, 32>{});
    case 64:
      return use(std::integral_constant<int, 64>{});
    default:
      return use(std::integral_constant<int, 0>{});
  }
}

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void narrow(float value, float& to) { to = value; }
__device__ __forceinline__ void narrow(double value, double& to) { to = value; }
__device__ __forceinline__ void narrow(float value, __half& to) { to = __float2half_rn(value); }
__device__ __forceinline__ void narrow(float value, __nv_bfloat16& to) { to = __float2bfloat16_rn(value); }

// Values that are read and written by one instruction.
template <typename T, int kVector>
struct alignas(kVector * sizeof(T)) Pack {
  T at[kVector];
};

// Zeros unless `exists`; then nothing is read.
template <int kVector, typename T>
__device__ __forceinline__ Pack<T, kVector> load(const T* from, bool exists) {
  Pack<T, kVector> pack{};
  if (exists) pack = *reinterpret_cast<const Pack<T, kVector>*>(from);
  return pack;
}

template <typename T, int kVector>
__device__ __forceinline__ void store(T* to, const Wide<T> (&values)[kVector]) {
  Pack<T, kVector> pack;
#pragma unroll
  for (int v = 0; v < kVector; ++v) narrow(values[v], pack.at[v]);
  *reinterpret_cast<Pack<T, kVector>*>(to) = pack;
}

template <typename A>
__device__ __forceinline__ void add_atomically(A* to, const A (&values)[1]) {
  atomicAdd(to, values[0]);
}

__device__ __forceinline__ void add_atomically(double* to, const double (&values)[2]) {
  atomicAdd(to, values[0]);
  atomicAdd(to + 1, values[1]);
}

__device__ __forceinline__ void add_atomically(float* to, const float (&values)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  atomicAdd(reinterpret_cast<float4*>(to), make_float4(values[0], values[1], values[2], values[3]));
#else
#pragma unroll
  for (int v = 0; v < 4; ++v) atomicAdd(to + v, values[v]);
#endif
}

struct Item {
  bool exists;  // false for the surplus of an image's last block, which goes along since lanes wait for each other
  int32_t batch, head;
  int64_t index;  // [B, Q, M]
};

template <typename SomeLayout>
__device__ __forceinline__ Item find_item(const Problem& problem) {
  const uint32_t blocks = blocks_per_image<SomeLayout>(problem);
  const uint32_t batch = blockIdx.x / blocks;
  const uint32_t place = (blockIdx.x - batch * blocks) * SomeLayout::kItems + threadIdx.x / SomeLayout::kGroup;
  const uint32_t queries = problem.queries, heads = problem.heads;
  const bool exists = place < queries * heads;
  const uint32_t head = exists ? place / queries : 0;
  const uint32_t query = exists ? place - head * queries : 0;
  const int64_t index = (int64_t(batch) * queries + query) * heads + head;
  return {exists, int32_t(batch), int32_t(head), index};
}

// Beginning of a head's rows, which lie M * D apart.
__device__ __forceinline__ int64_t head_offset(const Problem& problem, const Item& item) {
  return (item.batch * problem.positions * problem.heads + item.head) * problem.channels;
}

// What a group needs to know of a point: its corners' rows, -1 outside, and weights times the attention weight.
template <typename A>
struct alignas(16) Corners {
  int32_t rows[kCorners];
  A weights[kCorners];
};

// What only the lane that located a point needs, for the gradients.
template <typename A>
struct Located {
  A fx, fy, attention;
  int32_t height, width;
};

// `n` counts the points of an item over all levels.
template <typename T>
__device__ __forceinline__ Located<Wide<T>> locate_point(const Problem& problem, const T* locations, const T* weights,
                                                         int64_t item, int32_t n, Corners<Wide<T>>& corners) {
  using A = Wide<T>;
  const int64_t at = item * (problem.levels * problem.points) + n;
  const Level level = problem.level[uint32_t(n) / uint32_t(problem.points)];
  const Pack<T, 2> location = load<2>(locations + 2 * at, true);
  const A attention = widen(weights[at]);
  const Point<A> point = locate(widen(location.at[0]), widen(location.at[1]), level.height, level.width);
  A factors[kCorners];
  corner_weights(point.fx, point.fy, factors);
#pragma unroll
  for (int c = 0; c < kCorners; ++c) {
    const int32_t x = point.x + (c & 1), y = point.y + (c >> 1);
    const bool inside = is_inside(x, y, level.height, level.width);
    corners.rows[c] = inside ? level.start + y * level.width + x : -1;
    corners.weights[c] = factors[c] * attention;
  }
  return {point.fx, point.fy, attention, level.height, level.width};
}

template <typename T, int kChannels>
__global__ void __launch_bounds__(kThreads, kForwardBlocks)
    forward(const __grid_constant__ Problem problem, const T* __restrict__ value, const T* __restrict__ locations,
            const T* __restrict__ weights, T* __restrict__ output) {
  using A = Wide<T>;
  using L = ForwardLayout<T, kChannels>;
  __shared__ Corners<A> located[kThreads];
  const int lane = threadIdx.x % L::kGroup;
  Corners<A>* const group = located + (threadIdx.x - lane);
  const Item item = find_item<L>(problem);
  const int32_t channels = kChannels > 0 ? kChannels : problem.channels;
  const int32_t stride = problem.heads * channels, points = problem.levels * problem.points;
  const T* const head_value = value + head_offset(problem, item);

  for (int32_t first_channel = 0; first_channel < channels; first_channel += L::kGroup * L::kVector) {
    const int32_t channel = first_channel + lane * L::kVector;
    const bool used = item.exists && (kChannels > 0 || channel < channels);
    A sums[L::kVector] = {};
    for (int32_t first = 0; first < points; first += L::kGroup) {
      if (item.exists && first + lane < points) {
        locate_point(problem, locations, weights, item.index, first + lane, group[lane]);
      }
      __syncwarp();
      const int32_t count = min(L::kGroup, points - first);
#pragma unroll 1  // two points at once would take the registers of other warps
      for (int32_t i = 0; i < count; ++i) {
        const Corners<A> corners = group[i];
        Pack<T, L::kVector> rows[kCorners];
#pragma unroll
        for (int c = 0; c < kCorners; ++c) {
          const T* const row = head_value + int64_t(corners.rows[c]) * stride + channel;
          rows[c] = load<L::kVector>(row, used && corners.rows[c] >= 0);
        }
#pragma unroll
        for (int c = 0; c < kCorners; ++c) {
#pragma unroll
          for (int v = 0; v < L::kVector; ++v) sums[v] += corners.weights[c] * widen(rows[c].at[v]);
        }
      }
      __syncwarp();  // before the next chunk takes the place of this one
    }
    if (used) store(output + item.index * channels + channel, sums);
  }
}

// One point of an item in the backward pass: adds to the gradient of the values and returns to every lane of the group
// the dots of its corners' rows with the gradient of the output, of which `first_grad` are the lane's first channels.
template <typename T, int kChannels>
__device__ __forceinline__ void backward_point(const Corners<Wide<T>>& corners, const T* head_value,
                                               Wide<T>* head_grad_value, const T* item_grad_output,
                                               const Pack<T, BackwardLayout<T, kChannels>::kVector>& first_grad,
                                               int lane, int32_t stride, int32_t channels, bool exists,
                                               Wide<T> (&dots)[kCorners]) {
  using A = Wide<T>;
  using L = BackwardLayout<T, kChannels>;
  for (int32_t first_channel = 0; first_channel < channels; first_channel += L::kGroup * L::kVector) {
    const int32_t channel = first_channel + lane * L::kVector;
    const bool used = exists && (kChannels > 0 || channel < channels);
    const Pack<T, L::kVector> grad =
        first_channel == 0 ? first_grad : load<L::kVector>(item_grad_output + channel, used);
    Pack<T, L::kVector> rows[kCorners];
#pragma unroll
    for (int c = 0; c < kCorners; ++c) {
      const T* const row = head_value + int64_t(corners.rows[c]) * stride + channel;
      rows[c] = load<L::kVector>(row, used && corners.rows[c] >= 0);
    }
#pragma unroll
    for (int c = 0; c < kCorners; ++c) {
      A products[L::kVector];
#pragma unroll
      for (int v = 0; v < L::kVector; ++v) {
        dots[c] += widen(grad.at[v]) * widen(rows[c].at[v]);
        products[v] = corners.weights[c] * widen(grad.at[v]);
      }
      if (used && corners.rows[c] >= 0) {
        add_atomically(head_grad_value + int64_t(corners.rows[c]) * stride + channel, products);
      }
    }
  }
#pragma unroll
  for (int distance = L::kGroup / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int c = 0; c < kCorners; ++c) dots[c] += __shfl_xor_sync(kAllLanes, dots[c], distance);
  }
}

// grad_value, zero at the beginning, is of the type that values are summed in.
template <typename T, int kChannels>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks)
    backward(const __grid_constant__ Problem problem, const T* __restrict__ grad_output, const T* __restrict__ value,
             const T* __restrict__ locations, const T* __restrict__ weights, Wide<T>* __restrict__ grad_value,
             T* __restrict__ grad_locations, T* __restrict__ grad_weights) {
  using A = Wide<T>;
  using L = BackwardLayout<T, kChannels>;
  __shared__ Corners<A> located[kThreads];
  const int lane = threadIdx.x % L::kGroup;
  Corners<A>* const group = located + (threadIdx.x - lane);
  const Item item = find_item<L>(problem);
  const int32_t channels = kChannels > 0 ? kChannels : problem.channels;
  const int32_t stride = problem.heads * channels, points = problem.levels * problem.points;
  const int64_t head = head_offset(problem, item);
  const T* const item_grad = grad_output + item.index * channels;
  const bool used = item.exists && (kChannels > 0 || lane * L::kVector < channels);
  const Pack<T, L::kVector> first_grad = load<L::kVector>(item_grad + lane * L::kVector, used);

  for (int32_t first = 0; first < points; first += L::kGroup) {
    const int32_t own = first + lane;
    const bool owns = item.exists && own < points;
    Located<A> point{};
    if (owns) point = locate_point(problem, locations, weights, item.index, own, group[lane]);
    __syncwarp();
    A own_dots[kCorners] = {};
    const int32_t count = min(L::kGroup, points - first);
    for (int32_t i = 0; i < count; ++i) {
      A dots[kCorners] = {};
      backward_point<T, kChannels>(group[i], value + head, grad_value + head, item_grad, first_grad, lane, stride,
                                   channels, item.exists, dots);
#pragma unroll
      for (int c = 0; c < kCorners; ++c) own_dots[c] = lane == i ? dots[c] : own_dots[c];
    }
    if (owns) {
      const PointGradient<A> grad = point_gradient(point.fx, point.fy, own_dots, point.height, point.width);
      const A grad_location[2] = {point.attention * grad.location_x, point.attention * grad.location_y};
      const int64_t at = item.index * points + own;
      store(grad_locations + 2 * at, grad_location);
      narrow(grad.weight, grad_weights[at]);
    }
    __syncwarp();  // before the next chunk takes the place of this one
  }
}

}  // namespace msda::cuda
