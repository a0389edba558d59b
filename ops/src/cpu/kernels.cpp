// The kernels of kernels.inl for two instruction sets, and the choice between them at run time: a build made on one
// machine runs on any other of its family.
#include "kernels.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "../sampling.h"

#define MSDA_SET baseline
#define MSDA_TARGET
#include "kernels.inl"
#undef MSDA_SET
#undef MSDA_TARGET

#if defined(__x86_64__)
#define MSDA_HAS_AVX2
#define MSDA_SET avx2
#define MSDA_TARGET __attribute__((target("avx2,fma")))
#include "kernels.inl"
#undef MSDA_SET
#undef MSDA_TARGET
#endif

namespace msda {

bool uses_avx2() {
#if defined(MSDA_HAS_AVX2)
  static const bool answer = [] {
    const char* limit = std::getenv("ATEN_CPU_CAPABILITY");
    const bool allowed = limit == nullptr || std::strcmp(limit, "default") != 0;
    return allowed && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }();
  return answer;
#else
  return false;
#endif
}

template <typename T>
void forward(const Problem& problem, const Rows& rows, const T* values, const T* locations, const T* weights, T* output, int64_t begin,
             int64_t end) {
#if defined(MSDA_HAS_AVX2)
  if (uses_avx2()) return avx2::forward(problem, rows, values, locations, weights, output, begin, end);
#endif
  baseline::forward(problem, rows, values, locations, weights, output, begin, end);
}

template <typename T>
void backward(const Problem& problem, const Rows& rows, const T* values, const T* locations, const T* weights, const T* grad_output,
              T* grad_values, T* grad_locations, T* grad_weights, int64_t begin, int64_t end) {
#if defined(MSDA_HAS_AVX2)
  if (uses_avx2()) {
    return avx2::backward(problem, rows, values, locations, weights, grad_output, grad_values, grad_locations, grad_weights,
                          begin, end);
  }
#endif
  baseline::backward(problem, rows, values, locations, weights, grad_output, grad_values, grad_locations, grad_weights, begin,
                     end);
}

#define MSDA_INSTANTIATE(T)                                                                                        \
  template void forward<T>(const Problem&, const Rows&, const T*, const T*, const T*, T*, int64_t, int64_t);                    \
  template void backward<T>(const Problem&, const Rows&, const T*, const T*, const T*, const T*, T*, T*, T*, int64_t, int64_t);
MSDA_INSTANTIATE(float)
MSDA_INSTANTIATE(double)
#undef MSDA_INSTANTIATE

}  // namespace msda
