// Where a sampling location falls among the cells of a level, and with what weights: the arithmetic that the CPU and the
// CUDA kernels share. It is that of grid_sample(mode="bilinear", padding_mode="zeros", align_corners=False).
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MSDA_INLINE __host__ __device__ __forceinline__
#else
#define MSDA_INLINE inline __attribute__((always_inline))
#endif

namespace msda {

// Corners are numbered 0: top left, 1: top right, 2: bottom left, 3: bottom right.
constexpr int kCorners = 4;

// A point among the centres of a level's cells: (x, y) is the cell at its top left, possibly outside the level;
// (fx, fy) in [0, 1) is how far the point is from that cell's centre to the next one's.
template <typename T>
struct Point {
  int32_t x, y;
  T fx, fy;
};

// One coordinate of a location (0 and 1 are the edges of a level of `size` cells) in cells. Far outside it is moved to
// where all corners are outside, too, so that the conversion to an integer is defined; so is NaN, which samples zeros.
template <typename T>
MSDA_INLINE T to_cells(T location, int32_t size) {
  T cells = location * T(size) - T(0.5);
  cells = cells > T(-2) ? cells : T(-2);  // false for NaN
  return cells < T(size) + T(1) ? cells : T(size) + T(1);
}

// Largest integer not above `cells`; conversion and comparison vectorise where std::floor does not.
template <typename T>
MSDA_INLINE int32_t floor_to_int(T cells) {
  const int32_t truncated = static_cast<int32_t>(cells);
  return truncated - static_cast<int32_t>(cells < T(truncated));
}

template <typename T>
MSDA_INLINE Point<T> locate(T location_x, T location_y, int32_t height, int32_t width) {
  const T x = to_cells(location_x, width), y = to_cells(location_y, height);
  const int32_t left = floor_to_int(x), top = floor_to_int(y);
  return {left, top, x - T(left), y - T(top)};
}

MSDA_INLINE bool is_inside(int32_t x, int32_t y, int32_t height, int32_t width) {
  return (x >= 0) & (y >= 0) & (x < width) & (y < height);
}

template <typename T>
MSDA_INLINE void corner_weights(T fx, T fy, T (&weights)[kCorners]) {
  weights[0] = (T(1) - fy) * (T(1) - fx);
  weights[1] = (T(1) - fy) * fx;
  weights[2] = fy * (T(1) - fx);
  weights[3] = fy * fx;
}

// Backward pass of one point, from dots[i] = <gradient of the output, value at corner i> (0 outside): what comes to its
// attention weight and, times that weight, to its location.
template <typename T>
struct PointGradient {
  T weight, location_x, location_y;
};

template <typename T>
MSDA_INLINE PointGradient<T> point_gradient(T fx, T fy, const T (&dots)[kCorners], int32_t height, int32_t width) {
  T weights[kCorners];
  corner_weights(fx, fy, weights);
  return {
      weights[0] * dots[0] + weights[1] * dots[1] + weights[2] * dots[2] + weights[3] * dots[3],
      T(width) * ((T(1) - fy) * (dots[1] - dots[0]) + fy * (dots[3] - dots[2])),
      T(height) * ((T(1) - fx) * (dots[2] - dots[0]) + fx * (dots[3] - dots[1])),
  };
}

}  // namespace msda
