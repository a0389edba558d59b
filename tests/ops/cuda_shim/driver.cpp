// Runs the CUDA kernels on the CPU: driver {forward|backward} {float32|float64|float16|bfloat16} INPUT OUTPUT.
//
// INPUT: int64 B, S, M, D, Q, L, P; int64 [L, 3] height, width and start of every level; then the arrays, as they lie
// in memory: value, locations, weights and, for the backward pass, the gradient of the output. OUTPUT: the output, or
// the gradients of value (in the type it is summed in), locations and weights.
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "../../../ops/src/cuda/kernels.cuh"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, size)
#define ASAN_UNPOISON_MEMORY_REGION(begin, size)
#endif

namespace {

using namespace msda::cuda;

// An array of NaN, for the kernels to overwrite, between two zones that nobody may touch: the sanitizer sees to it;
// without it, what is written there is noticed, and what is read from there is NaN.
template <typename T>
class Guarded {
 public:
  explicit Guarded(size_t size) : bytes_(size * sizeof(T)), storage_(bytes_ + 2 * kZone, kGuard) {
    begin_ = storage_.data() + kZone;
    begin_ += (kAlignment - reinterpret_cast<uintptr_t>(begin_) % kAlignment) % kAlignment;
    ASAN_POISON_MEMORY_REGION(begin_ - kPoisoned, kPoisoned);
    ASAN_POISON_MEMORY_REGION(begin_ + bytes_, kPoisoned);
  }

  ~Guarded() {
    ASAN_UNPOISON_MEMORY_REGION(storage_.data(), storage_.size());
    const auto untouched = [](const char* from, const char* to) {
      return std::all_of(from, to, [](char byte) { return byte == kGuard; });
    };
    if (!untouched(storage_.data(), begin_) || !untouched(begin_ + bytes_, storage_.data() + storage_.size())) {
      cuda_shim::fail("a kernel wrote outside an array");
    }
  }

  Guarded(const Guarded&) = delete;

  void zero() { std::memset(begin_, 0, bytes_); }
  T* data() { return reinterpret_cast<T*>(begin_); }
  void read(std::istream& from) { from.read(begin_, static_cast<std::streamsize>(bytes_)); }
  void write(std::ostream& to) const { to.write(begin_, static_cast<std::streamsize>(bytes_)); }

 private:
  static constexpr size_t kZone = 4096, kPoisoned = 2048, kAlignment = 16;
  static constexpr char kGuard = '\xff';  // NaN in every type

  size_t bytes_;
  std::vector<char> storage_;
  char* begin_;
};

Problem read_problem(std::istream& from) {
  int64_t sizes[7];
  from.read(reinterpret_cast<char*>(sizes), sizeof(sizes));
  Problem problem{};
  problem.batch = sizes[0];
  problem.positions = sizes[1];
  problem.heads = static_cast<int32_t>(sizes[2]);
  problem.channels = static_cast<int32_t>(sizes[3]);
  problem.queries = static_cast<int32_t>(sizes[4]);
  problem.levels = static_cast<int32_t>(sizes[5]);
  problem.points = static_cast<int32_t>(sizes[6]);
  for (int level = 0; level < problem.levels; ++level) {
    int64_t line[3];
    from.read(reinterpret_cast<char*>(line), sizeof(line));
    problem.level[level] = {static_cast<int32_t>(line[0]), static_cast<int32_t>(line[1]),
                            static_cast<int32_t>(line[2])};
  }
  return problem;
}

template <typename T>
void run(bool is_backward, std::istream& from, std::ostream& to) {
  const Problem problem = read_problem(from);
  const size_t items = problem.batch * problem.queries * problem.heads, points = problem.levels * problem.points;
  const size_t values = problem.batch * problem.positions * problem.heads * problem.channels;
  Guarded<T> value(values), locations(items * points * 2), weights(items * points);
  Guarded<T> output(items * problem.channels);  // or its gradient
  value.read(from);
  locations.read(from);
  weights.read(from);
  if (!is_backward) {
    with_channels(problem.channels, [&](auto channels) {
      const auto blocks = problem.batch * blocks_per_image<ForwardLayout<T, channels>>(problem);
      cuda_shim::launch(blocks, kThreads, [&] {
        forward<T, channels>(problem, value.data(), locations.data(), weights.data(), output.data());
      });
    });
    output.write(to);
    return;
  }
  output.read(from);
  Guarded<Wide<T>> grad_value(values);
  grad_value.zero();
  Guarded<T> grad_locations(items * points * 2), grad_weights(items * points);
  with_channels(problem.channels, [&](auto channels) {
    const auto blocks = problem.batch * blocks_per_image<BackwardLayout<T, channels>>(problem);
    cuda_shim::launch(blocks, kThreads, [&] {
      backward<T, channels>(problem, output.data(), value.data(), locations.data(), weights.data(), grad_value.data(),
                            grad_locations.data(), grad_weights.data());
    });
  });
  grad_value.write(to);
  grad_locations.write(to);
  grad_weights.write(to);
}

}  // namespace

int main(int, char** argv) {
  const bool is_backward = std::string(argv[1]) == "backward";
  const std::string dtype = argv[2];
  std::ifstream from(argv[3], std::ios::binary);
  std::ofstream to(argv[4], std::ios::binary);
  from.exceptions(std::ios::failbit | std::ios::badbit);
  to.exceptions(std::ios::failbit | std::ios::badbit);
  if (dtype == "float32") run<float>(is_backward, from, to);
  if (dtype == "float64") run<double>(is_backward, from, to);
  if (dtype == "float16") run<__half>(is_backward, from, to);
  if (dtype == "bfloat16") run<__nv_bfloat16>(is_backward, from, to);
  return 0;
}
