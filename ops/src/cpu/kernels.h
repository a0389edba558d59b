// The CPU kernels' interface: plain pointers, nothing of PyTorch.
#pragma once

#include <cstdint>
#include <vector>

namespace msda {

// Rows of the packed values are padded with zeros to whole vectors of 32 bytes.
template <typename T>
constexpr int64_t kLanes = 32 / sizeof(T);

// One call's sizes and, for each of the N = L * P points of a query and head, its level.
struct Problem {
  int64_t batch, positions, heads, channels, queries, points;  // B, S, M, D, Q, N
  int64_t row;                                                 // D padded to whole vectors
  std::vector<int32_t> heights, widths, starts;                // [N] each
};

// Packed values are [B, M, S + 1, row]: head by head, so that neighbours lie close together (a head's rows of [B, S, M, D]
// lie M * D apart, four to a page), and behind each head a row of zeros, which stands for everything outside.
// Locations [B, Q, M, N, 2], weights [B, Q, M, N] and outputs [B, Q, M, D] are contiguous.

// Outputs of items begin..end, an item being a query of a head: (b * M + m) * Q + q.
template <typename T>
void forward(const Problem& problem, const T* values, const T* locations, const T* weights, T* output, int64_t begin,
             int64_t end);

// Gradients of heads begin..end, b * M + m; each writes to its own part of every result, query by query, so that sums
// do not depend on the number of threads. `grad_values` is packed like the values and zero at the beginning; its row
// of zeros collects what belongs to no position.
template <typename T>
void backward(const Problem& problem, const T* values, const T* locations, const T* weights, const T* grad_output,
              T* grad_values, T* grad_locations, T* grad_weights, int64_t begin, int64_t end);

// Whether this processor runs the AVX2 kernels; ATEN_CPU_CAPABILITY=default forbids them, as it does PyTorch's own.
bool uses_avx2();

}  // namespace msda
