// Every kernel that the operator launches, without PyTorch: for the compiler's report on registers and spills.
#include "../../../ops/src/cuda/kernels.cuh"

namespace msda::cuda {

#define MSDA_INSTANTIATE(T, CHANNELS)                                                                      \
  template __global__ void forward<T, CHANNELS>(const __grid_constant__ Problem, const T*, const T*,       \
                                                const T*, T*);                                             \
  template __global__ void backward<T, CHANNELS>(const __grid_constant__ Problem, const T*, const T*,      \
                                                 const T*, const T*, Wide<T>*, T*, T*);
#define MSDA_INSTANTIATE_ALL(T) \
  MSDA_INSTANTIATE(T, 0)        \
  MSDA_INSTANTIATE(T, 16)       \
  MSDA_INSTANTIATE(T, 32)       \
  MSDA_INSTANTIATE(T, 64)

MSDA_INSTANTIATE_ALL(float)
MSDA_INSTANTIATE_ALL(double)
MSDA_INSTANTIATE_ALL(__half)
MSDA_INSTANTIATE_ALL(__nv_bfloat16)

}  // namespace msda::cuda
