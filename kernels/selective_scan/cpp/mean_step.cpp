// One step of the running weighted mean of an innovation block, see ../mean_step.py; compiled by ../build.py.
//
// Decay and gain of a head are the same for all its channels: computed once per token, they leave the state's way
// through the cache as all that takes time.
#include "arguments.h"
#include "lanes.h"

struct MeanStepArguments {
  int64_t batch, channels, heads, states, threads;
  Rows x, controls, y;     // [T, 1, D], [T, 1, 2 H + 2 N], [T, 1, D]
  const S* rates;          // [H, N], < 0
  const S* initial_state;  // [T, D + H, N]
  S *final_state, *summary;  // [T, D + H, N]; [T, N]
};

#ifdef HAVE_TABLES
namespace {

constexpr int64_t kStreamedBytes = 8 << 20;  // a larger final state is written around the cache

// What one token needs. Decay and gain: one vector per head, lane i for state i % N; inverse and gate: one per channel.
struct Scratch {
  std::vector<S> rates, positive, gates, decay, gain, inverse, gate;
  std::vector<int64_t> head_of;  // offset of the head's vector, by vector of the state
  Scratch(const MeanStepArguments& a)
      : rates(a.heads * W), positive(controls_of(a) + W), gates(controls_of(a) + W), decay(a.heads * W),
        gain(a.heads * W), inverse(a.channels + W), gate(a.channels + W), head_of(a.channels * a.states / W) {
    for (int64_t i = 0; i < a.heads * W; ++i) rates[i] = kLog2e * a.rates[i / W * a.states + i % W % a.states];
    for (size_t v = 0; v < head_of.size(); ++v) head_of[v] = v * W / a.states / (a.channels / a.heads) * W;
  }
  static int64_t controls_of(const MeanStepArguments& a) { return 2 * a.heads + 2 * a.states; }
};

void read_controls(const MeanStepArguments& a, int64_t t, Scratch& s) {
  const int64_t count = Scratch::controls_of(a), offset = row(a.controls, t, 0);
  for (int64_t i = 0; i < count; i += W) {
    const V x = load_as(a.controls.data, offset + i, count - i < W ? count - i : W, a.controls.dtype);
    store(&s.positive[i], softplus(x));
    store(&s.gates[i], sigmoid(x));
  }
}

// Weights [N], repeated to fill a vector.
template <int N>
INLINE V repeated(const S* weights) {
  S x[W];
  for (int i = 0; i < W; ++i) x[i] = weights[i % N];
  return load(x);
}

// Decay and gain of every head, its weights' sums in the state, and what its channels are multiplied with.
template <int N>
INLINE void advance_weights(const MeanStepArguments& a, const S* in, S* out, Scratch& s, V B, const S* C, S* total) {
  const int64_t per_head = a.channels / a.heads;
  for (int64_t h = 0; h < a.heads; ++h) {
    const V decay = vexp2(s.positive[h] * load(&s.rates[h * W])), gain = s.positive[h] * B;
    store(&s.decay[h * W], decay);
    store(&s.gain[h * W], gain);
    S mass = 0;
    for (int n = 0; n < N; ++n) {
      const S sum = s.decay[h * W + n] * in[h * N + n] + s.gain[h * W + n];
      out[h * N + n] = sum;
      total[n] += sum;
      mass += C[n] * sum;
    }
    // Ascending, so that what is written beyond a head's channels is overwritten by the next one.
    const V inverse = broadcast(S(1) / mass), gate = broadcast(s.gates[a.heads + h]);
    for (int64_t c = h * per_head; c < (h + 1) * per_head; c += W) {
      store(&s.inverse[c], inverse);
      store(&s.gate[c], gate);
    }
  }
}

template <int N, bool kStream>
void mean_step(const MeanStepArguments& a, int64_t first, int64_t last) {
  const int64_t D = a.channels, H = a.heads, row_size = (D + H) * N;
  Scratch s(a);
  for (int64_t t = first; t < last; ++t) {
    const S* in = a.initial_state + t * row_size;
    S* out = a.final_state + t * row_size;
    read_controls(a, t, s);
    const S* read_weights = &s.positive[2 * H + N];
    const V B = repeated<N>(&s.positive[2 * H]), C = repeated<N>(read_weights);
    S total[N] = {};
    advance_weights<N>(a, in + D * N, out + D * N, s, B, read_weights, total);
    V all = {};
    for (int64_t d = 0; d < D; d += W) {
      // Further ahead than the end of the state does no harm: a prefetch never faults.
      prefetch(in + d * N + kBlocksAhead * W * N, W * N * sizeof(S));
      const V x = load_as(a.x.data, row(a.x, t, 0) + d, W, a.x.dtype);
      S by_channel[W];
      store(by_channel, x);
      const V y = add_all<N>(0, [&](int j) INLINE_LAMBDA {
        const int64_t at_j = d * N + j * W, head = s.head_of[at_j / W];
        const V h = load(&s.decay[head]) * load(in + at_j) + load(&s.gain[head]) * spread<N>(by_channel, j);
        store_line(out + at_j, h, kStream);
        all += h;
        return h * C;
      });
      const V mean = in_order<N>(y, Lanes{}) * load(&s.inverse[d]);
      store_as(a.y.data, row(a.y, t, 0) + d, W, a.y.dtype, (mean - x) * load(&s.gate[d]));
    }
    for (int n = 0; n < N; ++n) {
      S sum = 0;
      for (int i = n; i < W; i += N) sum += all[i];
      a.summary[t * N + n] = sum / S(D) / (total[n] / S(H));
    }
  }
  if (kStream) fence();
}

template <int N>
void run(const MeanStepArguments& a) {
  const int64_t row_bytes = (a.channels + a.heads) * N * sizeof(S);
  const bool stream = is_aligned(a.final_state) && row_bytes % 64 == 0 && a.batch * row_bytes > kStreamedBytes;
  parallel(a.batch, a.threads, [&](int64_t first, int64_t last) {
    if (stream) mean_step<N, true>(a, first, last);
    else mean_step<N, false>(a, first, last);
  });
}

}  // namespace
#endif

extern "C" int mean_step_works() {
#ifdef HAVE_TABLES
  return 1;
#else
  return 0;
#endif
}

// 0: done; 1: not for these shapes, or not on this machine.
extern "C" int64_t mean_step_forward(const MeanStepArguments* a) {
#ifdef HAVE_TABLES
  const bool fits = a->channels % W == 0 && a->channels / a->heads * a->states % W == 0;
  if (fits && a->states == 4) return run<4>(*a), 0;
  if (fits && a->states == 8) return run<8>(*a), 0;
  if (fits && a->states == 16) return run<16>(*a), 0;
#endif
  return 1;
}
