// Forward scan: for a sequence, for a segment of it, for a block of W channels: transpose the state to one vector per
// state, run all steps with the state in registers, transpose back.
#pragma once

#include "scan_step.h"

// Advance `kCount` states of one block through a segment and add C h to y.
template <class M, int kCount, bool kSummary, bool kBounded>
INLINE void advance_states(const Segment& s, const V* A, const V* A_log2e, int64_t n, int64_t states, V* h_io,
                           V* y, V* summary) {
  V h[kCount];
#pragma GCC unroll 4
  for (int j = 0; j < kCount; ++j) h[j] = h_io[n + j];
  for (int64_t l = 0; l < s.steps; ++l) {
    const V delta = s.delta[l], u = s.u[l + 1];
    const S* B = &s.B[(l + 1) * states + n];
    const S* C = &s.C[l * states + n];
    V y_l = y[l];
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) {
      const Inputs x = {delta, A[n + j], A_log2e[n + j]};
      const Taps taps = M::taps(x, M::template core<kBounded>(x));
      h[j] = taps.a * h[j] + (taps.c0 * u) * B[j];
      if constexpr (M::kTwoTaps) h[j] += (taps.c1 * s.u[l]) * B[j - states];
      y_l += h[j] * C[j];
      if constexpr (kSummary) summary[l * states + n + j] += h[j];
    }
    y[l] = y_l;
  }
#pragma GCC unroll 4
  for (int j = 0; j < kCount; ++j) h_io[n + j] = h[j];
}

template <class M, bool kSummary, bool kBounded>
INLINE void advance_all_states(const Segment& s, const V* A, const V* A_log2e, int64_t states, V* h, V* y,
                               V* summary) {
  int64_t n = 0;
  for (; n + kStatesPerPass <= states; n += kStatesPerPass)
    advance_states<M, kStatesPerPass, kSummary, kBounded>(s, A, A_log2e, n, states, h, y, summary);
  for (; n < states; ++n)
    advance_states<M, 1, kSummary, kBounded>(s, A, A_log2e, n, states, h, y, summary);
}

template <class M, bool kSummary>
INLINE void advance_block(const Segment& s, const PreparedA& A, int64_t block, int64_t states, V* h, V* y,
                          V* summary) {
  const V *plain = &A.plain[block * states], *log2e = &A.log2e[block * states];
  if (all_within(s.largest_delta * A.largest_log2e[block], kExp2Bound))
    advance_all_states<M, kSummary, true>(s, plain, log2e, states, h, y, summary);
  else
    advance_all_states<M, kSummary, false>(s, plain, log2e, states, h, y, summary);
}

// Read u and delta, and start y with D u.
INLINE void read_block(const ScanArguments& a, int64_t t, int64_t d, int lanes, bool prefetch_next, Segment& s, V* y) {
  const V bias = load_or(a.delta_bias, d, lanes, 0), skip = load_or(a.D, d, lanes, 0);
  V largest_delta = {};
  for (int64_t l = 0; l < s.steps; ++l) {
    const int64_t at_u = row(a.u, t, s.begin + l) + d, at_delta = row(a.delta, t, s.begin + l) + d;
    const V u = load_as(a.u.data, at_u, lanes, a.u.dtype);
    s.u[l + 1] = u;
    y[l] = skip * u;
    const V raw = load_as(a.delta.data, at_delta, lanes, a.delta.dtype) + bias;
    s.delta[l] = a.softplus ? softplus(raw) : raw;
    largest_delta = vmax(vabs(s.delta[l]), largest_delta);
    if (prefetch_next) {
      prefetch_row(a.u, at_u + a.u.batch_stride);
      prefetch_row(a.delta, at_delta + a.delta.batch_stride);
      if (a.z.data) prefetch_row(a.z, row(a.z, t + 1, s.begin + l) + d);
    }
  }
  s.largest_delta = largest_delta;
}

INLINE void write_block(const ScanArguments& a, int64_t t, int64_t d, int lanes, const Segment& s, const V* y) {
  for (int64_t l = 0; l < s.steps; ++l) {
    V out = y[l];
    if (a.z.data) out = gated(out, load_as(a.z.data, row(a.z, t, s.begin + l) + d, lanes, a.z.dtype));
    store_as(a.y.data, row(a.y, t, s.begin + l) + d, lanes, a.y.dtype, out);
  }
}

template <class M>
void finish_taps(const ScanArguments& a, const StateLayout<M>& layout, int64_t t, const Segment& s) {
  S* last = a.final_state + t * layout.batch_stride + a.channels * layout.row_stride;
  std::memcpy(last, &s.B[s.steps * a.states], a.states * sizeof(S));
  last[a.states] = 0;
}

template <class M, bool kSummary>
void forward_sequences(const ScanArguments& a, const PreparedA& A, int64_t first, int64_t last) {
  const StateLayout<M> layout(a);
  const int64_t N = a.states, blocks = ceil_div(a.channels, W), line = N * sizeof(S);
  const int64_t state_bytes = a.batch * layout.batch_stride * sizeof(S);
  const bool stream = a.final_state != a.initial_state && line % 64 == 0 && layout.row_stride == N &&
                      is_aligned(a.final_state) && state_bytes > kStreamedBytes;
  const bool one_segment = a.length <= kSegment;
  Segment s(a);
  std::vector<V> h(one_segment ? N : N * blocks), y(s.delta.size()), summary(kSummary ? s.C.size() : 0);

  for (int64_t t = first; t < last; ++t)
    for (int64_t begin = 0; begin < a.length; begin += kSegment) {
      begin_segment(a, layout, t, begin, s);
      if constexpr (kSummary) std::memset(summary.data(), 0, summary.size() * sizeof(V));
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t d = block * W, offset = t * layout.batch_stride + d * layout.row_stride;
        const int lanes = a.channels - d < W ? a.channels - d : W;
        V* h_block = &h[one_segment ? 0 : block * N];
        if (begin == 0 && a.initial_state) {
          load_columns(a.initial_state + offset, layout.row_stride, lanes, N, h_block);
          if (t + 1 < last) prefetch(a.initial_state + offset + layout.batch_stride, lanes * line);
        } else if (begin == 0) {
          std::memset(h_block, 0, N * sizeof(V));
        }
        if constexpr (M::kTwoTaps) s.u[0] = previous_u(a, layout, t, begin, d, lanes);
        read_block(a, t, d, lanes, t + 1 < last, s, y.data());
        advance_block<M, kSummary>(s, A, block, N, h_block, y.data(),
                                   summary.data());
        write_block(a, t, d, lanes, s, y.data());
        if (begin + s.steps == a.length) {
          store_columns(a.final_state + offset, layout.row_stride, lanes, N, h_block, stream);
          if constexpr (M::kTwoTaps)
            for (int i = 0; i < lanes; ++i) a.final_state[offset + i * layout.row_stride + N] = s.u[s.steps][i];
        }
      }
      if constexpr (kSummary)
        for (int64_t i = 0; i < s.steps * N; ++i)
          a.summary[(t * a.length + begin) * N + i] = sum_lanes(summary[i]) / S(a.channels);
      if constexpr (M::kTwoTaps)
        if (begin + s.steps == a.length) finish_taps(a, layout, t, s);
    }
  if (stream) fence();
}

template <class M>
void scan_forward(const ScanArguments& a) {
#ifdef HAVE_FLAT_STEP
  if constexpr (!M::kTwoTaps)
    if (flat_step_fits<M>(a)) return scan_flat_step<M>(a);
#endif
  const PreparedA A(a);
  parallel(a.batch, a.threads, [&](int64_t first, int64_t last) {
    if (a.summary) forward_sequences<M, true>(a, A, first, last);
    else forward_sequences<M, false>(a, A, first, last);
  });
}
