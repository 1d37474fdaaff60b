// One step of one-tap methods where the state needs no transposition: a block of W channels is N whole vectors in
// memory, lane i of vector j belonging to channel (j W + i) / N and state (j W + i) % N. Streaming lives on this.
#pragma once

#include "scan_common.h"

#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__) && !defined(SCALAR_IS_DOUBLE)
#define HAVE_FLAT_STEP 1

typedef int32_t VI __attribute__((vector_size(kVectorBytes)));

// Sums of neighbours, of x in the lower half and of y in the upper one.
INLINE V add_pairs(V x, V y) {
  return SHUFFLE(x, y, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         SHUFFLE(x, y, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

template <class M>
bool flat_step_fits(const ScanArguments& a) {
  const bool power_of_two = (a.states & (a.states - 1)) == 0 && a.states <= W;
  return !M::kTwoTaps && a.length == 1 && power_of_two && a.channels % W == 0 && !a.summary;
}

template <class M, int N>
void flat_step(const ScanArguments& a, const S* A_log2e, int64_t first, int64_t last) {
  const int64_t row_size = a.channels * N;
  const bool stream = a.final_state != a.initial_state && is_aligned(a.final_state) &&
                      a.batch * row_size * int64_t(sizeof(S)) > (8 << 20);
  VI first_channels;
  for (int i = 0; i < W; ++i) first_channels[i] = i / N;
  for (int64_t t = first; t < last; ++t) {
    S weights[2 * W];
    read_weights(a.B, row(a.B, t, 0), N, weights);
    read_weights(a.C, row(a.C, t, 0), N, weights + W);
    V B, C;
    for (int i = 0; i < W; ++i) {
      B[i] = weights[i % N];
      C[i] = weights[W + i % N];
    }
    const S* state_in = at(a.initial_state, t * row_size);
    S* state_out = a.final_state + t * row_size;
    for (int64_t d = 0; d < a.channels; d += W) {
      const int64_t at_u = row(a.u, t, 0) + d, at_delta = row(a.delta, t, 0) + d, at_z = row(a.z, t, 0) + d;
      if (t + 1 < last) {
        if (state_in) prefetch(state_in + row_size + d * N, W * N * sizeof(S));
        prefetch_row(a.u, at_u + a.u.batch_stride);
        prefetch_row(a.delta, at_delta + a.delta.batch_stride);
        if (a.z.data) prefetch_row(a.z, at_z + a.z.batch_stride);
      }
      const V u = load_as(a.u.data, at_u, W, a.u.dtype);
      V delta = load_as(a.delta.data, at_delta, W, a.delta.dtype);
      if (a.delta_bias) delta += load(a.delta_bias + d);
      if (a.softplus) delta = softplus(delta);

      V product[N];
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        const VI channel = first_channels + j * (W / N);
        const int64_t at_j = d * N + j * W;
        const Inputs x = {__builtin_shuffle(delta, channel), load(a.A + at_j), load(A_log2e + at_j), V{}};
        const Taps taps = M::taps(x, M::core(x));
        V h = (taps.c0 * __builtin_shuffle(u, channel)) * B;
        if (state_in) h += taps.a * load(state_in + at_j);
        store_line(state_out + at_j, h, stream);
        product[j] = h * C;
      }
#pragma GCC unroll 4
      for (int width = N; width > 1; width /= 2)
#pragma GCC unroll 8
        for (int j = 0; j < width / 2; ++j) product[j] = add_pairs(product[2 * j], product[2 * j + 1]);
      V y = product[0];
      if (a.D) y += load(a.D + d) * u;
      if (a.z.data) {
        const V z = load_as(a.z.data, at_z, W, a.z.dtype);
        y *= z * sigmoid(z);
      }
      store_as(a.y.data, row(a.y, t, 0) + d, W, a.y.dtype, y);
    }
  }
  if (stream) fence();
}

template <class M>
void scan_flat_step(const ScanArguments& a) {
  std::vector<S> A_log2e(a.A, a.A + a.channels * a.states);
  for (S& x : A_log2e) x *= kLog2e;
  parallel(a.batch, a.threads, [&](int64_t first, int64_t last) {
    switch (a.states) {
      case 16:
        return flat_step<M, 16>(a, A_log2e.data(), first, last);
      case 8:
        return flat_step<M, 8>(a, A_log2e.data(), first, last);
      case 4:
        return flat_step<M, 4>(a, A_log2e.data(), first, last);
      case 2:
        return flat_step<M, 2>(a, A_log2e.data(), first, last);
      default:
        return flat_step<M, 1>(a, A_log2e.data(), first, last);
    }
  });
}
#endif
