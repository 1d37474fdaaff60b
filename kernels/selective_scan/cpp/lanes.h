// Sums within a vector, for states that are read as they lie in memory: a block of W channels of N columns each is N
// whole vectors, lane i of vector j belonging to channel (j W + i) / N and column (j W + i) % N.
#pragma once

#include "simd.h"

#ifdef HAVE_TABLES
#include <utility>

constexpr int kBlocksAhead = 8;  // blocks that are fetched ahead
typedef std::make_index_sequence<W> Lanes;

// Add up neighbors at distance kDistance: lane i holds sums of x where bit kDistance of i is 0, of y where it is 1.
template <int kDistance, size_t... i>
INLINE V add_across(V x, V y, std::index_sequence<i...>) {
  return SHUFFLE(x, y, ((i & kDistance) ? W + i : i)...) +
         SHUFFLE(x, y, ((i & kDistance) ? W + (i ^ kDistance) : (i ^ kDistance))...);
}

// Channel c of the block from where `add_all` leaves it.
template <int N, size_t... c>
INLINE V in_order(V x, std::index_sequence<c...>) {
  return SHUFFLE(x, x, (c % (W / N) * N + c / (W / N))...);
}

// Vector j of a block: every lane gets the element of its channel.
template <int N>
INLINE V spread(const S* by_channel, int j) {
  if constexpr (N == W) return broadcast(by_channel[j]);
  VI channel;
  for (int i = 0; i < W; ++i) channel[i] = j * (W / N) + i / N;
  return __builtin_shuffle(load(by_channel), channel);
}

// Sums over the states, of vectors first .. first + kCount - 1; depth first, so that few are alive at a time.
template <int kCount, class Product>
INLINE V add_all(int first, const Product& product) {
  if constexpr (kCount == 1) {
    return product(first);
  } else {
    const V x = add_all<kCount / 2>(first, product);
    const V y = add_all<kCount / 2>(first + kCount / 2, product);
    return add_across<kCount / 2>(x, y, Lanes{});
  }
}
#endif
