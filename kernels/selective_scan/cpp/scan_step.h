// One step of one-tap methods where the state needs no transposition: a block of W channels is N whole vectors in
// memory, lane i of vector j belonging to channel (j W + i) / N and state (j W + i) % N. Streaming lives on this.
#pragma once

#include "lanes.h"
#include "scan_common.h"

#ifdef HAVE_TABLES
#define HAVE_FLAT_STEP 1

template <class M>
bool flat_step_fits(const ScanArguments& a) {
  return !M::kTwoTaps && a.length == 1 && (a.states == W || a.states == W / 2) && a.channels % W == 0 &&
         !a.summary;
}

// What one sequence needs, [D]. Three loops over the channels, since in one loop everything would wait for the long
// chain of softplus before it and leave the silu after it waiting.
struct FlatStep {
  std::vector<S> delta, source, y;  // source: u, times c0 where that is the same for all states
  V B, C;
  FlatStep(const ScanArguments& a) : delta(a.channels), source(a.channels), y(a.channels) {}
};

template <class M, int N>
INLINE void read_flat(const ScanArguments& a, int64_t t, bool prefetch_next, FlatStep& s) {
  S weights[2 * W];
  for (int i = 0; i < W; i += N) {
    read_weights(a.B, row(a.B, t, 0), N, weights + i);
    read_weights(a.C, row(a.C, t, 0), N, weights + W + i);
  }
  s.B = load(weights), s.C = load(weights + W);
  for (int64_t d = 0; d < a.channels; d += W) {
    const int64_t at_u = row(a.u, t, 0) + d, at_delta = row(a.delta, t, 0) + d;
    if (prefetch_next) {
      prefetch_row(a.u, at_u + a.u.batch_stride);
      prefetch_row(a.delta, at_delta + a.delta.batch_stride);
    }
    const V u = load_as(a.u.data, at_u, W, a.u.dtype);
    V delta = load_as(a.delta.data, at_delta, W, a.delta.dtype);
    if (a.delta_bias) delta += load(a.delta_bias + d);
    if (a.softplus) delta = softplus(delta);
    store(&s.delta[d], delta);
    store(&s.source[d], M::kInputDependsOnA ? u : M::taps({delta, V{}, V{}}, V{}).c0 * u);
  }
}

INLINE void write_flat(const ScanArguments& a, int64_t t, bool prefetch_next, const FlatStep& s) {
  for (int64_t d = 0; d < a.channels; d += W) {
    const int64_t at_z = row(a.z, t, 0) + d;
    V y = load(&s.y[d]);
    if (a.D) y += load(a.D + d) * load_as(a.u.data, row(a.u, t, 0) + d, W, a.u.dtype);
    if (a.z.data) y = gated(y, load_as(a.z.data, at_z, W, a.z.dtype));
    if (a.z.data && prefetch_next) prefetch_row(a.z, at_z + a.z.batch_stride);
    store_as(a.y.data, row(a.y, t, 0) + d, W, a.y.dtype, y);
  }
}

// The state is fetched twice: long before its turn into the second cache, which keeps many more requests in flight than
// the first, and shortly before it into the first, which A needs almost whole. In vectors, each of them a cache line.
// Further ahead than the end does no harm: a prefetch never faults.
constexpr int kFarAhead = 512, kNearAhead = 64;

template <int N>
INLINE void prefetch_state(const S* in) {
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) __builtin_prefetch(in + (kFarAhead + j) * W, 0, 2);
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) __builtin_prefetch(in + (kNearAhead + j) * W, 0, 3);
}

// One block of W channels of one sequence.
template <class M, int N, bool kStream>
INLINE void flat_block(const ScanArguments& a, const S* A_log2e, int64_t d, const S* in, S* out, FlatStep& s) {
  prefetch_state<N>(in);
  const V y = add_all<N>(0, [&](int j) INLINE_LAMBDA {
    const int64_t at_j = d * N + j * W;
    const Inputs x = {spread<N>(&s.delta[d], j), load(a.A + at_j), load(A_log2e + at_j)};
    const Taps taps = M::taps(x, M::core(x));
    V source = spread<N>(&s.source[d], j);
    if constexpr (M::kInputDependsOnA) source *= taps.c0;
    const V h = taps.a * load(in + j * W) + source * s.B;
    store_line(out + j * W, h, kStream);
    return h * s.C;
  });
  store(&s.y[d], in_order<N>(y, Lanes{}));
}

template <class M, int N, bool kStream>
void flat_step(const ScanArguments& a, const S* A_log2e, int64_t first, int64_t last) {
  FlatStep s(a);
  const std::vector<S> zeros(a.initial_state ? 0 : W * N);  // what a sequence without an initial state starts from
  for (int64_t t = first; t < last; ++t) {
    read_flat<M, N>(a, t, t + 1 < last, s);
    for (int64_t d = 0; d < a.channels; d += W) {
      const int64_t at = (t * a.channels + d) * N;
      const S* in = a.initial_state ? a.initial_state + at : zeros.data();
      flat_block<M, N, kStream>(a, A_log2e, d, in, a.final_state + at, s);
    }
    write_flat(a, t, t + 1 < last, s);
  }
  if (kStream) fence();
}

template <class M>
void scan_flat_step(const ScanArguments& a) {
  const int64_t elements = a.batch * a.channels * a.states;
  const bool stream = a.final_state != a.initial_state && is_aligned(a.final_state) &&
                      elements * int64_t(sizeof(S)) > kStreamedBytes;
  std::vector<S> A_log2e(a.A, a.A + a.channels * a.states);
  for (S& x : A_log2e) x *= kLog2e;
  parallel(a.batch, a.threads, [&](int64_t first, int64_t last) {
    if (a.states == W && stream) flat_step<M, W, true>(a, A_log2e.data(), first, last);
    else if (a.states == W) flat_step<M, W, false>(a, A_log2e.data(), first, last);
    else flat_step<M, W / 2, false>(a, A_log2e.data(), first, last);
  });
}
#endif
