// Causal depthwise convolution with silu and carried state, in float or double; compiled by ../build.py.
#include "arguments.h"
#include "lanes.h"

namespace {

// What one sequence and block of W channels needs: row i of history is input i - K, rows below 0 are the state's.
struct Scratch {
  std::vector<V> history, weight, pre, grad;
  V bias;
  Scratch(const ConvArguments& a)
      : history(a.length + a.width), weight(a.width), pre(a.length), grad(a.length + a.width) {}
};

void read_block(const ConvArguments& a, int64_t t, int64_t d, int lanes, bool prefetch_next, Scratch& s) {
  const int64_t K = a.width, offset = (t * a.channels + d) * K;
  if (a.initial_state) {
    load_columns(a.initial_state + offset, K, lanes, K, s.history.data());
    if (prefetch_next) prefetch(a.initial_state + offset + a.channels * K, lanes * K * int64_t(sizeof(S)));
  } else {
    std::memset(s.history.data(), 0, K * sizeof(V));
  }
  for (int64_t l = 0; l < a.length; ++l) {
    s.history[K + l] = load_as(a.x.data, row(a.x, t, l) + d, lanes, a.x.dtype);
    if (prefetch_next) prefetch_row(a.x, row(a.x, t + 1, l) + d);
  }
}

INLINE V filter(const Scratch& s, int64_t width, int64_t l) {
  V sum = s.bias;
  for (int64_t k = 0; k < width; ++k) sum += s.weight[k] * s.history[l + 1 + k];
  return sum;
}

void read_filter(const ConvArguments& a, int64_t d, int lanes, Scratch& s) {
  load_columns(a.weight + d * a.width, a.width, lanes, a.width, s.weight.data());
  s.bias = load_or(a.bias, d, lanes, 0);
}

void forward(const ConvArguments& a, int64_t first, int64_t last) {
  Scratch s(a);
  for (int64_t t = first; t < last; ++t)
    for (int64_t d = 0; d < a.channels; d += W) {
      const int lanes = a.channels - d < W ? a.channels - d : W;
      read_filter(a, d, lanes, s);
      read_block(a, t, d, lanes, t + 1 < last, s);
      for (int64_t l = 0; l < a.length; ++l) {
        V y = filter(s, a.width, l);
        if (a.silu) y *= sigmoid(y);
        store_as(a.y.data, row(a.y, t, l) + d, lanes, a.y.dtype, y);
      }
      store_columns(a.final_state + (t * a.channels + d) * a.width, a.width, lanes, a.width, &s.history[a.length],
                    false);
    }
}

#ifdef HAVE_TABLES
template <size_t... i>
INLINE V shift_in(V old, V x, std::index_sequence<i...>) {  // per channel: drop the oldest of 4 inputs, append x
  return SHUFFLE(old, x, (i % 4 == 3 ? W + i : i + 1)...);
}

// One step of width 4, the state as it lies in memory. Streaming lives on this.
void step_of_four(const ConvArguments& a, int64_t first, int64_t last) {
  for (int64_t t = first; t < last; ++t)
    for (int64_t d = 0; d < a.channels; d += W) {
      const int lanes = a.channels - d < W ? a.channels - d : W;
      const int64_t offset = (t * a.channels + d) * 4;
      if (a.initial_state) prefetch(a.initial_state + offset + kBlocksAhead * W * 4, W * 4 * sizeof(S));
      S by_channel[W];
      store(by_channel, load_as(a.x.data, row(a.x, t, 0) + d, lanes, a.x.dtype));
      const V sum = add_all<4>(0, [&](int j) INLINE_LAMBDA {
        if (j * W >= lanes * 4) return V{};
        const V old = a.initial_state ? load(a.initial_state + offset + j * W) : V{};
        const V now = shift_in(old, spread<4>(by_channel, j), Lanes{});
        store(a.final_state + offset + j * W, now);
        return now * load(a.weight + d * 4 + j * W);
      });
      V y = in_order<4>(sum, Lanes{}) + load_or(a.bias, d, lanes, 0);
      if (a.silu) y *= sigmoid(y);
      store_as(a.y.data, row(a.y, t, 0) + d, lanes, a.y.dtype, y);
    }
}
#endif

// dweight [blocks, K] and dbias [blocks] collect over the sequences of one group.
void backward(const ConvArguments& a, const ConvGradients& grads, int64_t t, Scratch& s, V* dweight, V* dbias) {
  const int64_t K = a.width;
  for (int64_t d = 0; d < a.channels; d += W) {
    const int lanes = a.channels - d < W ? a.channels - d : W;
    const int64_t block = d / W, offset = (t * a.channels + d) * K;
    read_filter(a, d, lanes, s);
    read_block(a, t, d, lanes, t + 1 < a.batch, s);
    std::memset(s.grad.data(), 0, s.grad.size() * sizeof(V));
    if (grads.final_state) load_columns(grads.final_state + offset, K, lanes, K, &s.grad[a.length]);
    for (int64_t l = 0; l < a.length; ++l) {
      V g = load_as(grads.y.data, row(grads.y, t, l) + d, lanes, grads.y.dtype);
      if (a.silu) {
        const V y = filter(s, K, l), gate = sigmoid(y);
        g *= gate * (S(1) + y * (S(1) - gate));
      }
      dbias[block] += g;
      for (int64_t k = 0; k < K; ++k) {
        s.grad[l + 1 + k] += g * s.weight[k];
        dweight[block * K + k] += g * s.history[l + 1 + k];
      }
    }
    for (int64_t l = 0; l < a.length; ++l)
      store_as(grads.x.data, row(grads.x, t, l) + d, lanes, grads.x.dtype, s.grad[K + l]);
    if (grads.initial_state) store_columns(grads.initial_state + offset, K, lanes, K, s.grad.data(), false);
  }
}

}  // namespace

extern "C" void causal_conv1d_forward(const ConvArguments* a) {
#ifdef HAVE_TABLES
  if (a->length == 1 && a->width == 4 && a->channels % 4 == 0)
    return parallel(a->batch, a->threads, [&](int64_t first, int64_t last) { step_of_four(*a, first, last); });
#endif
  parallel(a->batch, a->threads, [&](int64_t first, int64_t last) { forward(*a, first, last); });
}

extern "C" void causal_conv1d_backward(const ConvArguments* a, const ConvGradients* grads) {
  const int64_t groups = token_groups(a->batch), blocks = ceil_div(a->channels, W);
  std::vector<V> dweight(groups * blocks * a->width), dbias(groups * blocks);
  parallel(groups, a->threads, [&](int64_t first, int64_t last) {
    Scratch s(*a);
    for (int64_t group = first; group < last; ++group)
      for (int64_t t = a->batch * group / groups; t < a->batch * (group + 1) / groups; ++t)
        backward(*a, *grads, t, s, &dweight[group * blocks * a->width], &dbias[group * blocks]);
  });
  reduce_groups(dweight, groups, a->channels, a->width, grads->weight);
  reduce_groups(dbias, groups, a->channels, 1, grads->bias);
}
