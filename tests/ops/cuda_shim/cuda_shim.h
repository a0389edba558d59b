// As much of CUDA as ops/src/cuda/kernels.cuh uses, for a C++ compiler: runs the kernels on the CPU.
//
// Blocks and warps run one after the other; the 32 lanes of a warp are coroutines. A lane runs until it has to wait for
// the others (__syncwarp, a shuffle), then the next lane does. A shuffle or barrier that some lane of the warp does not
// reach, or a missing barrier between a write to shared memory and its reading, thus comes to light.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __CUDA_ARCH__ 900  // the kernels' code for vectorised atomics; other atomics are used for other vectors
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static  // one block at a time

using std::min;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline dim3 blockIdx, threadIdx;

template <typename T>
void atomicAdd(T* to, T value) {
  *to += value;
}

inline void atomicAdd(float4* to, float4 value) {
  to->x += value.x;
  to->y += value.y;
  to->z += value.z;
  to->w += value.w;
}

namespace cuda_shim {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 256 * 1024;

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "block %u, thread %u: %s\n", blockIdx.x, threadIdx.x, message);
  std::exit(1);
}

// A stack that is left for another one; the address sanitizer wants to know.
struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  const void* bottom = nullptr;
  size_t size = 0;
};

inline void switch_fiber(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, to.bottom, to.size);
#endif
  swapcontext(&from.context, &to.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

class Warp {
 public:
  static Warp& current() {
    static Warp warp;
    return warp;
  }

  // Runs threads first_thread .. first_thread + 31 of a block.
  void run(unsigned first_thread, const std::function<void()>& kernel) {
    kernel_ = &kernel;
    for (int lane = 0; lane < kWarp; ++lane) start(lane);
    while (true) {
      for (lane_ = 0; lane_ < kWarp; ++lane_) {
        threadIdx.x = first_thread + lane_;
        if (!finished_[lane_]) switch_fiber(scheduler_, lanes_[lane_]);
      }
      const int finished = static_cast<int>(std::count(finished_, finished_ + kWarp, true));
      if (finished == kWarp) return;
      if (finished > 0) fail("some lanes returned while others wait for them");
      if (std::any_of(operation_, operation_ + kWarp, [this](const char* name) { return name != operation_[0]; })) {
        fail("lanes wait for each other in different operations");
      }
      std::memcpy(offered_, own_, sizeof(own_));
    }
  }

  // Waits for all lanes; they have then seen each other's values.
  template <typename T>
  T exchange(const char* operation, unsigned mask, T value, int source_lane) {
    if (mask != 0xffffffffu) fail("only whole warps are provided for");
    if (source_lane < 0 || source_lane >= kWarp) fail("shuffle from a lane that does not exist");
    std::memcpy(&own_[lane_], &value, sizeof(T));
    operation_[lane_] = operation;
    switch_fiber(lanes_[lane_], scheduler_);
    std::memcpy(&value, &offered_[source_lane], sizeof(T));
    return value;
  }

  int lane() const { return lane_; }

 private:
  void start(int lane) {
    Fiber& fiber = lanes_[lane];
    fiber.stack.resize(kStackBytes);
    fiber.bottom = fiber.stack.data();
    fiber.size = fiber.stack.size();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Warp::enter, 0);
    finished_[lane] = false;
  }

  static void enter() {
    Warp& warp = current();
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &warp.scheduler_.bottom, &warp.scheduler_.size);
#endif
    (*warp.kernel_)();
    warp.finished_[warp.lane_] = true;
    switch_fiber(warp.lanes_[warp.lane_], warp.scheduler_);
  }

  Fiber scheduler_, lanes_[kWarp];
  const std::function<void()>* kernel_ = nullptr;
  int lane_ = 0;
  bool finished_[kWarp] = {};
  const char* operation_[kWarp] = {};
  uint64_t own_[kWarp] = {}, offered_[kWarp] = {};
};

// kernel<<<blocks, threads>>>, `kernel` being bound to its arguments.
inline void launch(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (unsigned first = 0; first < threads; first += kWarp) Warp::current().run(first, kernel);
  }
}

}  // namespace cuda_shim

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  cuda_shim::Warp::current().exchange("__syncwarp", mask, 0, 0);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  cuda_shim::Warp& warp = cuda_shim::Warp::current();
  return warp.exchange("__shfl_xor_sync", mask, value, warp.lane() ^ distance);
}
