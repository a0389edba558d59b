// The operators on CUDA tensors: arguments for the kernels of kernels.cuh, and their launches.
#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cstdint>
#include <limits>
#include <string>
#include <tuple>

#include "../check.h"
#include "kernels.cuh"

namespace msda::cuda {
namespace {

using at::Tensor;

// CUDA's types for PyTorch's.
template <typename T>
struct Native {
  using type = T;
};
template <>
struct Native<at::Half> {
  using type = __half;
};
template <>
struct Native<at::BFloat16> {
  using type = __nv_bfloat16;
};

template <typename T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* write(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Contiguous, and readable by vectors: a view may begin anywhere.
Tensor aligned(const Tensor& tensor) {
  const Tensor contiguous = tensor.contiguous();
  return reinterpret_cast<uintptr_t>(contiguous.const_data_ptr()) % kVectorBytes == 0 ? contiguous : contiguous.clone();
}

int32_t checked_size(int64_t size, const char* argument, const char* what) {
  constexpr int64_t limit = std::numeric_limits<int32_t>::max() - kThreads;  // so that a whole block can be added
  TORCH_CHECK_VALUE(size <= limit, argument, ": expected at most ", std::to_string(limit), " ", what, ", got ",
                    std::to_string(size));
  return static_cast<int32_t>(size);
}

Problem make_problem(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                     const Tensor& sampling_locations) {
  const Tensor shapes = spatial_shapes.cpu().contiguous(), starts = level_start_index.cpu().contiguous();
  const int64_t levels = shapes.size(0), queries = sampling_locations.size(1), points = sampling_locations.size(4);
  const int64_t heads = value.size(2), channels = value.size(3);
  TORCH_CHECK_VALUE(levels <= kMaxLevels, "spatial_shapes: expected at most ", std::to_string(kMaxLevels),
                    " levels, got ", std::to_string(levels));
  checked_size(heads * channels, "value", "heads * channels");
  checked_size(heads * queries, "sampling_locations", "queries * heads");
  checked_size(levels * points, "sampling_locations", "levels * points");
  Problem problem{};
  problem.batch = value.size(0);
  problem.positions = value.size(1);
  problem.heads = static_cast<int32_t>(heads);
  problem.channels = static_cast<int32_t>(channels);
  problem.queries = static_cast<int32_t>(queries);
  problem.levels = static_cast<int32_t>(levels);
  problem.points = static_cast<int32_t>(points);
  const int64_t *shape = shapes.const_data_ptr<int64_t>(), *start = starts.const_data_ptr<int64_t>();
  for (int64_t level = 0; level < levels; ++level) {
    problem.level[level] = {static_cast<int32_t>(shape[2 * level]), static_cast<int32_t>(shape[2 * level + 1]),
                            static_cast<int32_t>(start[level])};
  }
  return problem;
}

template <typename SomeLayout>
unsigned grid_size(const Problem& problem) {
  const int64_t blocks = problem.batch * blocks_per_image<SomeLayout>(problem);
  return checked_size(blocks, "sampling_locations", "blocks of queries and heads on the GPU");
}

Tensor ms_deform_attn(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                      const Tensor& sampling_locations, const Tensor& attention_weights) {
  check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
  const c10::cuda::CUDAGuard guard(value.device());
  const Problem problem = make_problem(value, spatial_shapes, level_start_index, sampling_locations);
  const Tensor output =
      at::empty({problem.batch, problem.queries, value.size(2) * value.size(3)}, value.options());
  if (output.numel() == 0) return output;

  const Tensor values = aligned(value), locations = aligned(sampling_locations), weights = aligned(attention_weights);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn", [&] {
    using T = typename Native<scalar_t>::type;
    with_channels(problem.channels, [&](auto channels) {
      constexpr int kChannels = decltype(channels)::value;
      const unsigned blocks = grid_size<ForwardLayout<T, kChannels>>(problem);
      forward<T, kChannels><<<blocks, kThreads, 0, stream>>>(problem, read<T>(values), read<T>(locations),
                                                             read<T>(weights), write<T>(output));
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(const Tensor& grad_output, const Tensor& value,
                                                           const Tensor& spatial_shapes,
                                                           const Tensor& level_start_index,
                                                           const Tensor& sampling_locations,
                                                           const Tensor& attention_weights) {
  at::globalContext().alertNotDeterministic("ms_deform_attn_backward_cuda");  // the order of the atomic additions
  check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
  check_grad_output(grad_output, value, sampling_locations);
  const c10::cuda::CUDAGuard guard(value.device());
  const Problem problem = make_problem(value, spatial_shapes, level_start_index, sampling_locations);
  const auto wide = value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor grad_value = at::zeros(value.sizes(), value.options().dtype(wide));
  const Tensor grad_locations = at::empty(sampling_locations.sizes(), value.options());
  const Tensor grad_weights = at::empty(attention_weights.sizes(), value.options());
  if (grad_weights.numel() == 0) return {grad_value.to(value.scalar_type()), grad_locations, grad_weights};

  const Tensor grads = aligned(grad_output), values = aligned(value);
  const Tensor locations = aligned(sampling_locations), weights = aligned(attention_weights);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn_backward", [&] {
    using T = typename Native<scalar_t>::type;
    with_channels(problem.channels, [&](auto channels) {
      constexpr int kChannels = decltype(channels)::value;
      const unsigned blocks = grid_size<BackwardLayout<T, kChannels>>(problem);
      backward<T, kChannels><<<blocks, kThreads, 0, stream>>>(
          problem, read<T>(grads), read<T>(values), read<T>(locations), read<T>(weights), write<Wide<T>>(grad_value),
          write<T>(grad_locations), write<T>(grad_weights));
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
  return {grad_value.to(value.scalar_type()), grad_locations, grad_weights};
}

}  // namespace
}  // namespace msda::cuda

TORCH_LIBRARY_IMPL(siamese_detr, CUDA, m) {
  m.impl("ms_deform_attn", &msda::cuda::ms_deform_attn);
  m.impl("ms_deform_attn_backward", &msda::cuda::ms_deform_attn_backward);
}
