// What crosses the C boundary; ../cpp_backend.py mirrors these structs field by field.
#pragma once

#include <vector>

#include "simd.h"

struct Rows {  // [T, L, *], last dimension contiguous; strides in elements
  void* data;  // null: the argument was not given
  int64_t batch_stride, time_stride, dtype;
};

struct ScanArguments {
  int64_t batch, length, channels, states, softplus, threads;
  Rows u, delta, z, B, C, y;
  const S *A, *D, *delta_bias;  // [D, N], [D], [D]; the last two may be null
  const S* initial_state;       // contiguous, null for zeros
  S* final_state;               // contiguous; may be initial_state itself
  S* summary;                   // [T, L, N] or null
};

struct ScanGradients {
  Rows y, u, delta, z;             // y is read, the others are written
  const S *final_state, *summary;  // read; may be null
  S* initial_state;                // may be null
  S *A, *B, *C, *D, *delta_bias;   // B and C contiguous [T, L, N]; the last two may be null
};

struct ConvArguments {
  int64_t batch, length, channels, width, silu, threads;
  Rows x, y;
  const S *weight, *bias, *initial_state;  // [D, K], [D] or null, [T, D, K] or null
  S* final_state;                          // [T, D, K]; may be initial_state itself
};

struct ConvGradients {
  Rows y, x;  // y is read, x is written
  const S* final_state;
  S *weight, *bias, *initial_state;  // the last two may be null
};

INLINE const S* at(const S* p, int64_t offset) { return p ? p + offset : nullptr; }
INLINE V load_or(const S* p, int64_t offset, int lanes, S otherwise) {
  if (!p) return broadcast(otherwise);
  return lanes == W ? load(p + offset) : load_lanes(p + offset, lanes);
}
INLINE int64_t row(const Rows& x, int64_t t, int64_t l) { return t * x.batch_stride + l * x.time_stride; }
INLINE void prefetch_row(const Rows& x, int64_t offset) {
  const int64_t size = x.dtype == kScalar ? sizeof(S) : 2;
  __builtin_prefetch(static_cast<const char*>(x.data) + offset * size);
}
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Gradients of parameters are summed over a number of token groups that depends on the batch alone, so that any number
// of threads gives the same bits.
inline int64_t token_groups(int64_t batch) { return batch < 64 ? batch : 64; }

// out[d, n] = sum over groups of sums [groups, blocks, columns], in a fixed order.
inline void reduce_groups(const std::vector<V>& sums, int64_t groups, int64_t channels, int64_t columns, S* out) {
  if (!out) return;
  const int64_t blocks = ceil_div(channels, W);
  for (int64_t d = 0; d < channels; ++d)
    for (int64_t n = 0; n < columns; ++n) {
      S total = 0;
      for (int64_t group = 0; group < groups; ++group) total += sums[(group * blocks + d / W) * columns + n][d % W];
      out[d * columns + n] = total;
    }
}

// body(begin, end) over parts of [0, count). One thread never enters OpenMP, whose threads do not survive a fork.
template <class Body>
void parallel(int64_t count, int64_t threads, const Body& body) {
  if (threads > count) threads = count;
  if (threads <= 1) return body(0, count);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t i = 0; i < threads; ++i) body(count * i / threads, count * (i + 1) / threads);
}
