// Backward scan: per sequence and block of W channels, run the states forward again from the nearest checkpoint (the
// initial state when the sequence is one segment), keep them, and sweep back through time with the adjoint g of h.
//
//   g_t = dL/dh_t = dy_t C_t + dsummary_t / D + a_{t+1} g_{t+1}
#pragma once

#include "scan_forward.h"

struct Adjoint {  // of one block; row 0 of u and B collects the gradient of the step before the segment
  std::vector<V> y, y_scan, u, delta;  // y: gradient of the scan's own y; y_scan: its value, for the gate's gradient
  std::vector<V> B, C;                 // per lane, summed over blocks and then over lanes
  std::vector<S> summary;              // [steps, N] / D
  std::vector<V> h, core;              // what the forward pass keeps, [steps + 1, kStatesPerPass]
  Adjoint(const ScanArguments& a, int64_t most)
      : y(most),
        y_scan(most),
        u(most + 1),
        delta(most),
        B((most + 1) * a.states),
        C(most * a.states),
        summary(most * a.states),
        h((most + 1) * kStatesPerPass),
        core(most * kStatesPerPass) {}
};

struct ParameterSums {  // of one group of sequences
  V *A, *D, *delta_bias;
};

template <class M, int kCount>
INLINE void sweep_states(const Segment& s, Adjoint& g, const V* A, const V* A_log2e, int64_t n,
                         int64_t states, const V* h_start, V* h_adjoint, bool gated, V* dA) {
  V h[kCount];
#pragma GCC unroll 4
  for (int j = 0; j < kCount; ++j) g.h[j] = h[j] = h_start[n + j];
  for (int64_t l = 0; l < s.steps; ++l) {
    const V delta = s.delta[l], u = s.u[l + 1];
    const S* B = &s.B[(l + 1) * states + n];
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) {
      const Inputs x = {delta, A[n + j], A_log2e[n + j]};
      const V core = M::core(x);
      const Taps taps = M::taps(x, core);
      h[j] = taps.a * h[j] + (taps.c0 * u) * B[j];
      if constexpr (M::kTwoTaps) h[j] += (taps.c1 * s.u[l]) * B[j - states];
      g.core[l * kCount + j] = core;
      g.h[(l + 1) * kCount + j] = h[j];
    }
    if (gated)
#pragma GCC unroll 4
      for (int j = 0; j < kCount; ++j) g.y_scan[l] += h[j] * s.C[l * states + n + j];
  }

  V adjoint[kCount], dA_sum[kCount] = {};
#pragma GCC unroll 4
  for (int j = 0; j < kCount; ++j) adjoint[j] = h_adjoint[n + j];
  for (int64_t l = s.steps - 1; l >= 0; --l) {
    const V delta = s.delta[l], u = s.u[l + 1], dy = g.y[l];
    const S* B = &s.B[(l + 1) * states + n];
    const S* C = &s.C[l * states + n];
    V* dB = &g.B[(l + 1) * states + n];
    V* dC = &g.C[l * states + n];
    V du = {}, ddelta = {}, du_previous = {};
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) {
      const Inputs x = {delta, A[n + j], A_log2e[n + j]};
      const V core = g.core[l * kCount + j];
      const Taps taps = M::taps(x, core);
      const TapGradients by = M::gradients(x, core);
      const V grad = adjoint[j] + dy * C[j] + g.summary[l * states + n + j];
      dC[j] += dy * g.h[(l + 1) * kCount + j];
      const V grad_a = grad * g.h[l * kCount + j], grad_B = grad * B[j], grad_c0 = grad_B * u;
      ddelta += grad_a * by.a_delta + grad_c0 * by.c0_delta;
      dA_sum[j] += grad_a * by.a_A;
      if constexpr (M::kInputDependsOnA) dA_sum[j] += grad_c0 * by.c0_A;
      du += grad_B * taps.c0;
      dB[j] += grad * (taps.c0 * u);
      if constexpr (M::kTwoTaps) {
        const V u_previous = s.u[l], grad_B1 = grad * B[j - states], grad_c1 = grad_B1 * u_previous;
        ddelta += grad_c1 * by.c1_delta;
        dA_sum[j] += grad_c1 * by.c1_A;
        du_previous += grad_B1 * taps.c1;
        dB[j - states] += grad * (taps.c1 * u_previous);
      }
      adjoint[j] = grad * taps.a;
    }
    g.u[l + 1] += du;
    g.delta[l] += ddelta;
    if constexpr (M::kTwoTaps) g.u[l] += du_previous;
  }
#pragma GCC unroll 4
  for (int j = 0; j < kCount; ++j) {
    h_adjoint[n + j] = adjoint[j];
    dA[n + j] += dA_sum[j];
  }
}

// Gradient of the scan's own y, from that of the gated y.
INLINE void read_adjoint(const ScanArguments& a, const ScanGradients& grads, int64_t t, int64_t d, int lanes,
                         bool prefetch_next, const Segment& s, Adjoint& g) {
  for (int64_t l = 0; l < s.steps; ++l) {
    const int64_t at_y = row(grads.y, t, s.begin + l) + d;
    V dy = load_as(grads.y.data, at_y, lanes, grads.y.dtype);
    if (prefetch_next) prefetch_row(grads.y, at_y + grads.y.batch_stride);
    if (a.z.data) {
      const V z = load_as(a.z.data, row(a.z, t, s.begin + l) + d, lanes, a.z.dtype);
      dy *= z * sigmoid(z);
    }
    g.y[l] = dy;
    g.u[l] = g.delta[l] = g.y_scan[l] = V{};
  }
}

INLINE void write_adjoint(const ScanArguments& a, const ScanGradients& grads, int64_t t, int64_t d, int lanes,
                          const Segment& s, const Adjoint& g, V* dD, V* dbias) {
  const V skip = load_or(a.D, d, lanes, 0), bias = load_or(a.delta_bias, d, lanes, 0);
  for (int64_t l = 0; l < s.steps; ++l) {
    const int64_t step = s.begin + l;
    const V u = s.u[l + 1];
    store_as(grads.u.data, row(grads.u, t, step) + d, lanes, grads.u.dtype, g.u[l + 1] + skip * g.y[l]);
    *dD += g.y[l] * u;
    V ddelta = g.delta[l];
    if (a.softplus) ddelta *= sigmoid(load_as(a.delta.data, row(a.delta, t, step) + d, lanes, a.delta.dtype) + bias);
    store_as(grads.delta.data, row(grads.delta, t, step) + d, lanes, grads.delta.dtype, ddelta);
    *dbias += ddelta;
    if (a.z.data) {
      const V z = load_as(a.z.data, row(a.z, t, step) + d, lanes, a.z.dtype), gate = sigmoid(z);
      const V dy = load_as(grads.y.data, row(grads.y, t, step) + d, lanes, grads.y.dtype);
      const V dz = dy * (g.y_scan[l] + skip * u) * gate * (S(1) + z * (S(1) - gate));
      store_as(grads.z.data, row(grads.z, t, step) + d, lanes, grads.z.dtype, dz);
    }
  }
}

template <class M>
struct Backward {
  const ScanArguments& a;
  const ScanGradients& grads;
  const PreparedA& A;
  const StateLayout<M> layout;
  const int64_t N, blocks, segments;
  Segment s;
  Adjoint g;
  std::vector<V> checkpoints;  // [segments, blocks, N] when there are several segments, else [1, 1, N]
  std::vector<V> h_adjoint;    // [blocks, N], carried from a segment to the one before it
  std::vector<V> u_carry, y;   // [blocks]: gradient that a segment leaves to the last input of the one before it

  Backward(const ScanArguments& a, const ScanGradients& grads, const PreparedA& A)
      : a(a),
        grads(grads),
        A(A),
        layout(a),
        N(a.states),
        blocks(ceil_div(a.channels, W)),
        segments(ceil_div(a.length, kSegment)),
        s(a),
        g(a, s.delta.size()),
        checkpoints(segments > 1 ? segments * blocks * N : N),
        h_adjoint(blocks * N),
        u_carry(blocks),
        y(s.delta.size()) {}

  int lanes_at(int64_t d) const { return a.channels - d < W ? a.channels - d : W; }
  V* start_of(int64_t segment, int64_t block) {
    return &checkpoints[segments > 1 ? (segment * blocks + block) * N : 0];
  }

  void read_initial_state(int64_t t, int64_t block, V* h) {
    const int64_t d = block * W, offset = t * layout.batch_stride + d * layout.row_stride;
    if (!a.initial_state) {
      std::memset(h, 0, N * sizeof(V));
      return;
    }
    load_columns(a.initial_state + offset, layout.row_stride, lanes_at(d), N, h);
    if (t + 1 < a.batch) prefetch(a.initial_state + offset + layout.batch_stride, lanes_at(d) * N * int64_t(sizeof(S)));
  }

  void read_inputs(int64_t t, int64_t block, int64_t begin) {
    const int64_t d = block * W;
    if constexpr (M::kTwoTaps) s.u[0] = previous_u(a, layout, t, begin, d, lanes_at(d));
    read_block(a, t, d, lanes_at(d), t + 1 < a.batch, s, y.data());
  }

  // The states at the start of every segment but the first.
  void make_checkpoints(int64_t t) {
    for (int64_t segment = 0; segment + 1 < segments; ++segment) {
      begin_segment(a, layout, t, segment * kSegment, s);
      for (int64_t block = 0; block < blocks; ++block) {
        if (segment == 0) read_initial_state(t, block, start_of(0, block));
        read_inputs(t, block, s.begin);
        V* next = start_of(segment + 1, block);
        std::memcpy(next, start_of(segment, block), N * sizeof(V));
        advance_block<M, false>(s, A, block, N, next, y.data(), nullptr);
      }
    }
  }

  // Gradients that arrive through the final state.
  void begin_sequence(int64_t t) {
    const S* last = at(grads.final_state, t * layout.batch_stride);
    for (int64_t block = 0; block < blocks; ++block) {
      V* h = &h_adjoint[block * N];
      const S* rows = at(last, block * W * layout.row_stride);
      u_carry[block] = V{};
      if (!last) {
        std::memset(h, 0, N * sizeof(V));
        continue;
      }
      load_columns(rows, layout.row_stride, lanes_at(block * W), N, h);
      if (t + 1 < a.batch) prefetch(rows + layout.batch_stride, lanes_at(block * W) * N * int64_t(sizeof(S)));
      if constexpr (M::kTwoTaps)
        for (int i = 0; i < lanes_at(block * W); ++i) u_carry[block][i] = rows[i * layout.row_stride + N];
    }
    std::memset(g.B.data(), 0, N * sizeof(V));
    if constexpr (M::kTwoTaps)
      if (last)
        for (int64_t n = 0; n < N; ++n) g.B[n][0] = last[a.channels * layout.row_stride + n];
  }

  void sweep_segment(int64_t t, int64_t segment, const ParameterSums& sums) {
    begin_segment(a, layout, t, segment * kSegment, s);
    // Row 0 holds what the later segment owes to this one's last step.
    V* last_B = &g.B[s.steps * N];
    std::memmove(last_B, g.B.data(), N * sizeof(V));
    std::memset(g.B.data(), 0, s.steps * N * sizeof(V));
    std::memset(g.C.data(), 0, s.steps * N * sizeof(V));
    for (int64_t i = 0; i < s.steps * N; ++i)
      g.summary[i] = grads.summary ? grads.summary[(t * a.length + s.begin) * N + i] / S(a.channels) : S(0);

    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t d = block * W;
      const int lanes = lanes_at(d);
      if (segments == 1) read_initial_state(t, block, start_of(0, block));
      read_inputs(t, block, s.begin);
      read_adjoint(a, grads, t, d, lanes, t + 1 < a.batch, s, g);
      g.u[s.steps] = u_carry[block];
      sweep_block(block, start_of(segment, block), sums);
      u_carry[block] = g.u[0];
      write_adjoint(a, grads, t, d, lanes, s, g, &sums.D[block], &sums.delta_bias[block]);
    }
    S* dB = grads.B + (t * a.length + s.begin) * N;
    S* dC = grads.C + (t * a.length + s.begin) * N;
    for (int64_t i = 0; i < s.steps * N; ++i) {
      dB[i] = sum_lanes(g.B[N + i]);
      dC[i] = sum_lanes(g.C[i]);
    }
  }

  void sweep_block(int64_t block, const V* start, const ParameterSums& sums) {
    const V *plain = &A.plain[block * N], *log2e = &A.log2e[block * N];
    V *h = &h_adjoint[block * N], *dA = &sums.A[block * N];
    const bool gated = a.z.data;
    int64_t n = 0;
    for (; n + kStatesPerPass <= N; n += kStatesPerPass)
      sweep_states<M, kStatesPerPass>(s, g, plain, log2e, n, N, start, h, gated, dA);
    for (; n < N; ++n) sweep_states<M, 1>(s, g, plain, log2e, n, N, start, h, gated, dA);
  }

  void end_sequence(int64_t t) {
    if (!grads.initial_state) return;
    S* first = grads.initial_state + t * layout.batch_stride;
    for (int64_t block = 0; block < blocks; ++block) {
      S* rows = first + block * W * layout.row_stride;
      store_columns(rows, layout.row_stride, lanes_at(block * W), N, &h_adjoint[block * N], false);
      if constexpr (M::kTwoTaps)
        for (int i = 0; i < lanes_at(block * W); ++i) rows[i * layout.row_stride + N] = u_carry[block][i];
    }
    if constexpr (M::kTwoTaps) {
      S* last_row = first + a.channels * layout.row_stride;
      for (int64_t n = 0; n < N; ++n) last_row[n] = sum_lanes(g.B[n]);
      last_row[N] = 0;
    }
  }

  void run(int64_t t, const ParameterSums& sums) {
    make_checkpoints(t);
    begin_sequence(t);
    for (int64_t segment = segments - 1; segment >= 0; --segment) sweep_segment(t, segment, sums);
    end_sequence(t);
  }
};

template <class M>
void scan_backward(const ScanArguments& a, const ScanGradients& grads) {
  const PreparedA A(a);
  const int64_t groups = token_groups(a.batch), blocks = ceil_div(a.channels, W);
  std::vector<V> dA(groups * blocks * a.states), dD(groups * blocks), dbias(groups * blocks);
  parallel(groups, a.threads, [&](int64_t first, int64_t last) {
    Backward<M> backward(a, grads, A);
    for (int64_t group = first; group < last; ++group) {
      const ParameterSums sums = {&dA[group * blocks * a.states], &dD[group * blocks], &dbias[group * blocks]};
      const int64_t end = a.batch * (group + 1) / groups;
      for (int64_t t = a.batch * group / groups; t < end; ++t) backward.run(t, sums);
    }
  });
  reduce_groups(dA, groups, a.channels, a.states, grads.A);
  reduce_groups(dD, groups, a.channels, 1, grads.D);
  reduce_groups(dbias, groups, a.channels, 1, grads.delta_bias);
}
