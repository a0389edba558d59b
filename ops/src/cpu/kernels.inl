// The CPU kernels, included once for every instruction set: MSDA_SET names its namespace, MSDA_TARGET the attribute that
// lets functions use it.
//
// What bounds them (encoder of a 800 x 1066 image: 17,767 queries, 8 heads of 32 channels, 16 points; one thread of a Zen 3
// at 2.45 GHz): every point reads four rows of 128 bytes, 1.16 GB in all for 18 MB of values. Two vectors loaded a cycle
// would allow 9 ms; with all rows and arguments in the first level of cache the forward pass takes 20 ms (positions,
// weights and addresses are the rest), with the rows where they are, in the second and third level, about 35 ms, and with
// locations read and outputs written, 45 MB that no level holds, 50 to 60 ms. The backward pass reads, adds to and writes
// as many rows again: about 110 ms. Blocks of queries (kBlock) gain a tenth, prefetching nothing.

#define MSDA_FN MSDA_TARGET inline __attribute__((always_inline))

// The same of both compilers; GCC has Clang's name for it only from version 12 on.
#ifdef __clang__
#define MSDA_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MSDA_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype((a) < (b)){__VA_ARGS__})
#endif

namespace msda::MSDA_SET {

template <typename T>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(32)));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(32)));
};

// Points are located this many at a time: first all positions and weights, which vectorises over the points, then the
// rows, which vectorises over the channels.
constexpr int64_t kChunk = 32;
constexpr int32_t kOutside = -1;

template <typename T>
struct Chunk {
  int32_t positions[kCorners][kChunk];  // in S; kOutside where the level ends before the corner
  T weights[kCorners][kChunk];  // corner weight times attention weight
  T fx[kChunk], fy[kChunk];
};

template <typename T>
MSDA_FN typename Vector<T>::type load(const T* from) {
  typename Vector<T>::type vector;
  __builtin_memcpy(&vector, from, sizeof(vector));
  return vector;
}

template <typename T>
MSDA_FN void store(T* to, typename Vector<T>::type vector) {
  __builtin_memcpy(to, &vector, sizeof(vector));
}

template <typename T>
MSDA_FN void locate_points(const Problem& problem, int64_t first, int64_t count, const T* locations, const T* weights,
                           Chunk<T>& chunk) {
  const int32_t* heights = problem.heights.data() + first;
  const int32_t* widths = problem.widths.data() + first;
  const int32_t* starts = problem.starts.data() + first;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t height = heights[i], width = widths[i];
    const Point<T> point = locate(locations[2 * i], locations[2 * i + 1], height, width);
    chunk.fx[i] = point.fx;
    chunk.fy[i] = point.fy;
    T corners[kCorners];
    corner_weights(point.fx, point.fy, corners);
    const int32_t position = starts[i] + point.y * width + point.x;
    const int32_t offsets[kCorners] = {0, 1, width, width + 1};
    for (int c = 0; c < kCorners; ++c) {
      // Masks, since a compiler makes branches of conditions, and these cannot be predicted.
      const int32_t inside = -static_cast<int32_t>(is_inside(point.x + (c & 1), point.y + (c >> 1), height, width));
      chunk.positions[c][i] = ((position + offsets[c]) & inside) | (kOutside & ~inside);
      chunk.weights[c][i] = corners[c] * weights[i];
    }
  }
}

// The row at a position of S, or `zeros` for kOutside, without a branch.
template <typename T>
MSDA_FN T* row_at(T* values, int64_t position, int64_t stride, T* zeros) {
  const uintptr_t row = reinterpret_cast<uintptr_t>(values + position * stride);
  const uintptr_t instead = reinterpret_cast<uintptr_t>(zeros);
  const uintptr_t outside = static_cast<uintptr_t>(position >> 63);
  return reinterpret_cast<T*>(row ^ ((row ^ instead) & outside));
}

// sums[c] += all lanes of vectors[c] together, by exchanging halves rather than lane by lane.
MSDA_FN void add_sums(const Vector<float>::type (&vectors)[kCorners], float* sums) {
  using V = Vector<float>::type;
  const V ab = MSDA_SHUFFLE(vectors[0], vectors[1], 0, 8, 1, 9, 4, 12, 5, 13) +
               MSDA_SHUFFLE(vectors[0], vectors[1], 2, 10, 3, 11, 6, 14, 7, 15);
  const V cd = MSDA_SHUFFLE(vectors[2], vectors[3], 0, 8, 1, 9, 4, 12, 5, 13) +
               MSDA_SHUFFLE(vectors[2], vectors[3], 2, 10, 3, 11, 6, 14, 7, 15);
  const V abcd = MSDA_SHUFFLE(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) +
                 MSDA_SHUFFLE(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
  for (int c = 0; c < kCorners; ++c) sums[c] += abcd[c] + abcd[c + 4];
}

MSDA_FN void add_sums(const Vector<double>::type (&vectors)[kCorners], double* sums) {
  using V = Vector<double>::type;
  const V ab = MSDA_SHUFFLE(vectors[0], vectors[1], 0, 4, 2, 6) +
               MSDA_SHUFFLE(vectors[0], vectors[1], 1, 5, 3, 7);
  const V cd = MSDA_SHUFFLE(vectors[2], vectors[3], 0, 4, 2, 6) +
               MSDA_SHUFFLE(vectors[2], vectors[3], 1, 5, 3, 7);
  const V abcd = MSDA_SHUFFLE(ab, cd, 0, 1, 4, 5) + MSDA_SHUFFLE(ab, cd, 2, 3, 6, 7);
  for (int c = 0; c < kCorners; ++c) sums[c] += abcd[c];
}

// sums[0 .. kVectors * lanes) += weighted rows of the chunk's corners.
template <typename T, int kVectors>
MSDA_FN void add_rows(const Chunk<T>& chunk, int64_t count, const T* values, int64_t stride, const T* zeros, T* sums) {
  using V = typename Vector<T>::type;
  // Additions wait for each other: corners on the left and on the right have sums of their own.
  V left[kVectors], right[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    left[v] = load(sums + v * kLanes<T>);
    right[v] = V{};
  }
  for (int64_t i = 0; i < count; ++i) {
    const T* rows[kCorners];
    for (int c = 0; c < kCorners; ++c) rows[c] = row_at(values, chunk.positions[c][i], stride, zeros);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      left[v] += chunk.weights[0][i] * load(rows[0] + v * kLanes<T>);
      right[v] += chunk.weights[1][i] * load(rows[1] + v * kLanes<T>);
      left[v] += chunk.weights[2][i] * load(rows[2] + v * kLanes<T>);
      right[v] += chunk.weights[3][i] * load(rows[3] + v * kLanes<T>);
    }
  }
  for (int v = 0; v < kVectors; ++v) store(sums + v * kLanes<T>, left[v] + right[v]);
}

// Adds one query's share to the gradients of the rows, and the dots of its output gradient with the rows to `dots`.
template <typename T, int kVectors>
MSDA_FN void scatter_rows(const Chunk<T>& chunk, int64_t count, const T* values, const T* grad_output, int64_t stride,
                          const T* zeros, T* nowhere, T* grad_values, T (*dots)[kCorners]) {
  using V = typename Vector<T>::type;
  V gradient[kVectors];
  for (int v = 0; v < kVectors; ++v) gradient[v] = load(grad_output + v * kLanes<T>);
  for (int64_t i = 0; i < count; ++i) {
    V products[kCorners];
#pragma GCC unroll 4
    for (int c = 0; c < kCorners; ++c) {
      const int64_t position = chunk.positions[c][i];
      const T* value = row_at(values, position, stride, zeros);
      T* grad_value = row_at(grad_values, position, stride, nowhere);
      const T weight = chunk.weights[c][i];
      products[c] = gradient[0] * load(value);
      store(grad_value, load(grad_value) + weight * gradient[0]);
#pragma GCC unroll 8
      for (int v = 1; v < kVectors; ++v) {
        products[c] += gradient[v] * load(value + v * kLanes<T>);
        T* to = grad_value + v * kLanes<T>;
        store(to, load(to) + weight * gradient[v]);
      }
    }
    add_sums(products, dots[i]);
  }
}

template <typename T>
MSDA_FN void finish_points(const Problem& problem, int64_t first, int64_t count, const Chunk<T>& chunk,
                           const T (*dots)[kCorners], const T* weights, T* grad_locations, T* grad_weights) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t height = problem.heights[first + i], width = problem.widths[first + i];
    const PointGradient<T> gradient = point_gradient(chunk.fx[i], chunk.fy[i], dots[i], height, width);
    grad_weights[i] = gradient.weight;
    grad_locations[2 * i] = weights[i] * gradient.location_x;
    grad_locations[2 * i + 1] = weights[i] * gradient.location_y;
  }
}

// How many vectors of a row to take at once when so many are left: pieces of four fill the registers.
MSDA_FN int64_t piece_of(int64_t vectors_left) { return vectors_left >= 4 ? 4 : vectors_left >= 2 ? 2 : 1; }

template <typename T>
MSDA_TARGET void forward(const Problem& problem, const Rows& rows, const T* values, const T* locations, const T* weights,
                         T* output, int64_t begin, int64_t end) {
  const int64_t length = rows.length, points = problem.points;
  std::vector<T> sums(length), zeros(length, T(0));
  Chunk<T> chunk;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t head = item % problem.heads, block = item / problem.heads % problem.blocks();
    const int64_t batch = item / problem.heads / problem.blocks();
    const T* head_values = values + batch * rows.batch + head * rows.head;
    for (int64_t query = block * kBlock; query < std::min((block + 1) * kBlock, problem.queries); ++query) {
      const int64_t place = (batch * problem.queries + query) * problem.heads + head;
      std::fill(sums.begin(), sums.end(), T(0));
      for (int64_t first = 0; first < points; first += kChunk) {
        const int64_t count = std::min(kChunk, points - first), at = place * points + first;
        locate_points(problem, first, count, locations + 2 * at, weights + at, chunk);
        for (int64_t offset = 0, piece; offset < length; offset += piece * kLanes<T>) {
          const T* from = head_values + offset;
          piece = piece_of((length - offset) / kLanes<T>);
          if (piece == 4) add_rows<T, 4>(chunk, count, from, rows.position, zeros.data(), &sums[offset]);
          if (piece == 2) add_rows<T, 2>(chunk, count, from, rows.position, zeros.data(), &sums[offset]);
          if (piece == 1) add_rows<T, 1>(chunk, count, from, rows.position, zeros.data(), &sums[offset]);
        }
      }
      std::memcpy(output + place * problem.channels, sums.data(), problem.channels * sizeof(T));
    }
  }
}

template <typename T>
MSDA_TARGET void backward(const Problem& problem, const Rows& rows, const T* values, const T* locations,
                          const T* weights, const T* grad_output, T* grad_values, T* grad_locations, T* grad_weights,
                          int64_t begin, int64_t end) {
  const int64_t length = rows.length, points = problem.points, queries = problem.queries;
  std::vector<T> gradient(length, T(0)), zeros(length, T(0)), nowhere(length);
  Chunk<T> chunk;
  T dots[kChunk][kCorners];
  const auto one_query = [&](int64_t place, int64_t head_rows) MSDA_TARGET {
    std::memcpy(gradient.data(), grad_output + place * problem.channels, problem.channels * sizeof(T));
    for (int64_t first = 0; first < points; first += kChunk) {
      const int64_t count = std::min(kChunk, points - first), at = place * points + first;
      locate_points(problem, first, count, locations + 2 * at, weights + at, chunk);
      std::fill(&dots[0][0], &dots[0][0] + count * kCorners, T(0));
      for (int64_t offset = 0, piece; offset < length; offset += piece * kLanes<T>) {
        const T *from = values + head_rows + offset, *grad = &gradient[offset];
        T* to = grad_values + head_rows + offset;
        piece = piece_of((length - offset) / kLanes<T>);
        if (piece == 4)
          scatter_rows<T, 4>(chunk, count, from, grad, rows.position, zeros.data(), nowhere.data(), to, dots);
        if (piece == 2)
          scatter_rows<T, 2>(chunk, count, from, grad, rows.position, zeros.data(), nowhere.data(), to, dots);
        if (piece == 1)
          scatter_rows<T, 1>(chunk, count, from, grad, rows.position, zeros.data(), nowhere.data(), to, dots);
      }
      finish_points(problem, first, count, chunk, dots, weights + at, grad_locations + 2 * at, grad_weights + at);
    }
  };
  for (int64_t block = 0; block < problem.blocks(); ++block) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t batch = item / problem.heads, head = item % problem.heads;
      for (int64_t query = block * kBlock; query < std::min((block + 1) * kBlock, queries); ++query) {
        one_query((batch * queries + query) * problem.heads + head, batch * rows.batch + head * rows.head);
      }
    }
  }
}

}  // namespace msda::MSDA_SET

#undef MSDA_SHUFFLE
#undef MSDA_FN
