// The CPU kernels' interface: plain pointers, nothing of PyTorch.
#pragma once

#include <cstdint>
#include <vector>

namespace msda {

// Channels that a vector of 32 bytes holds.
template <typename T>
constexpr int64_t kLanes = 32 / sizeof(T);

// Queries that are taken together, head after head: what belongs to a head lies in pieces among that of the others, and
// is best read and written while its pages are at hand.
constexpr int64_t kBlock = 32;

// One call's sizes and, for each of the N = L * P points of a query and head, its level.
struct Problem {
  int64_t batch, positions, heads, channels, queries, points;  // B, S, M, D, Q, N
  std::vector<int32_t> heights, widths, starts;                // [N] each

  int64_t blocks() const { return (queries + kBlock - 1) / kBlock; }
};

// Where the rows of values lie: that of batch b, head m and position s begins at b * batch + m * head + s * position and
// has `length` channels, whole vectors, those beyond D being zeros.
struct Rows {
  int64_t batch, head, position, length;
};

// Locations [B, Q, M, N, 2], weights [B, Q, M, N] and outputs [B, Q, M, D] are contiguous.

// Outputs of items begin..end, an item being a block of queries of a head: (b * blocks + block) * M + m.
template <typename T>
void forward(const Problem& problem, const Rows& rows, const T* values, const T* locations, const T* weights, T* output,
             int64_t begin, int64_t end);

// Gradients of heads begin..end, b * M + m; each writes to its own part of every result, query after query, so that
// sums do not depend on the number of threads. `grad_values` has the rows of the values and is zero at the beginning.
template <typename T>
void backward(const Problem& problem, const Rows& rows, const T* values, const T* locations, const T* weights,
              const T* grad_output, T* grad_values, T* grad_locations, T* grad_weights, int64_t begin, int64_t end);

// Whether this processor runs the AVX2 kernels; ATEN_CPU_CAPABILITY=default forbids them, as it does PyTorch's own.
bool uses_avx2();

}  // namespace msda
