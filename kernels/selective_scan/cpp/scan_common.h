// Parts that the forward and the backward scan share: the block of W channels that all loops work on.
#pragma once

#include "arguments.h"
#include "discretizations.h"

constexpr int64_t kSegment = 64;   // steps per pass: what a pass keeps stays in the cache at any length
constexpr int64_t kStreamedBytes = 8 << 20;  // a larger final state is written around the cache
constexpr int kStatesPerPass = 4;  // recurrences in flight, to hide the latency of one

// A by blocks of W channels, one vector per state, with padding lanes 0.
struct PreparedA {
  std::vector<V> plain, log2e;
  std::vector<V> largest_log2e;  // per block, over the states, of the absolute values
  PreparedA(const ScanArguments& a) {
    const int64_t blocks = ceil_div(a.channels, W);
    plain.resize(blocks * a.states);
    log2e.resize(blocks * a.states);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t d = block * W, lanes = a.channels - d < W ? a.channels - d : W;
      load_columns(a.A + d * a.states, a.states, lanes, a.states, &plain[block * a.states]);
    }
    for (size_t i = 0; i < plain.size(); ++i) log2e[i] = plain[i] * kLog2e;
    largest_log2e.resize(blocks);
    for (size_t i = 0; i < plain.size(); ++i)
      largest_log2e[i / a.states] = vmax(vabs(log2e[i]), largest_log2e[i / a.states]);
  }
};

// Where the state of one sequence lies; two-tap methods have one more column (u) and one more row (B), see ../state.py.
template <class M>
struct StateLayout {
  int64_t row_stride, batch_stride;
  StateLayout(const ScanArguments& a)
      : row_stride(a.states + M::kTwoTaps), batch_stride((a.channels + M::kTwoTaps) * row_stride) {}
};

// Inputs of one segment of one sequence, for one block of channels, as vectors; row 0 of u and B is the step before.
struct Segment {
  std::vector<V> u, delta;
  std::vector<S> B, C;
  V largest_delta;  // over the steps, of the absolute values
  int64_t begin = 0, steps = 0;
  Segment(const ScanArguments& a) {
    const int64_t most = a.length < kSegment ? a.length : kSegment;
    u.resize(most + 1);
    delta.resize(most);
    B.resize((most + 1) * a.states);
    C.resize(most * a.states);
  }
};

INLINE void read_weights(const Rows& x, int64_t offset, int64_t states, S* out) {
  if (x.dtype == kScalar) {
    const S* p = static_cast<const S*>(x.data) + offset;
    if (states == 16)  // inline: a call for so few bytes would cost more than they do
      std::memcpy(out, p, 16 * sizeof(S));
    else std::memcpy(out, p, states * sizeof(S));
  } else {
    const uint16_t* p = static_cast<const uint16_t*>(x.data) + offset;
    for (int64_t n = 0; n < states; ++n) out[n] = from_bfloat16(p[n]);
  }
}

template <class M>
void begin_segment(const ScanArguments& a, const StateLayout<M>& layout, int64_t t, int64_t begin, Segment& s) {
  s.begin = begin;
  s.steps = a.length - begin < kSegment ? a.length - begin : kSegment;
  for (int64_t l = 0; l < s.steps; ++l) {
    read_weights(a.B, row(a.B, t, begin + l), a.states, &s.B[(l + 1) * a.states]);
    read_weights(a.C, row(a.C, t, begin + l), a.states, &s.C[l * a.states]);
  }
  if constexpr (M::kTwoTaps) {
    if (begin > 0) read_weights(a.B, row(a.B, t, begin - 1), a.states, &s.B[0]);
    else if (a.initial_state)
      std::memcpy(&s.B[0], a.initial_state + t * layout.batch_stride + a.channels * layout.row_stride,
                  a.states * sizeof(S));
    else std::memset(&s.B[0], 0, a.states * sizeof(S));
  }
}

template <class M>
INLINE V previous_u(const ScanArguments& a, const StateLayout<M>& layout, int64_t t, int64_t begin, int64_t d,
                    int lanes) {
  if (begin > 0) return load_as(a.u.data, row(a.u, t, begin - 1) + d, lanes, a.u.dtype);
  V x = {};
  if (a.initial_state) {
    const S* p = a.initial_state + t * layout.batch_stride + d * layout.row_stride + a.states;
    for (int i = 0; i < lanes; ++i) x[i] = p[i * layout.row_stride];
  }
  return x;
}
