// Vectors in the compiler's own vector extension: the same source gives AVX-512, AVX2 or NEON code.
#pragma once

#include <cstdint>
#include <cstring>

// As wide as the registers: a wider vector would be lowered well for arithmetic but element by element for shuffles.
#ifdef __AVX512F__
#define VECTOR_BYTES 64
#else
#define VECTOR_BYTES 32
#endif
constexpr int kVectorBytes = VECTOR_BYTES;

#ifdef SCALAR_IS_DOUBLE
typedef double S;
#else
typedef float S;  // scalar of all arithmetic and of the state
#endif
constexpr int W = kVectorBytes / sizeof(S);                                              // lanes
typedef S V __attribute__((vector_size(kVectorBytes)));                                  // W lanes
typedef S VU __attribute__((vector_size(kVectorBytes), aligned(sizeof(S)), may_alias));  // the same, at any address
#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

INLINE V broadcast(S x) { return x - V{}; }  // x + 0 would not be x for x = -0, and so not be left out
INLINE V load(const S* p) { return *reinterpret_cast<const VU*>(p); }
INLINE void store(S* p, V x) { *reinterpret_cast<VU*>(p) = x; }
INLINE V load_lanes(const S* p, int lanes) {  // lanes beyond `lanes` are 0
  V x = {};
  std::memcpy(&x, p, lanes * sizeof(S));
  return x;
}
// NaN in a is kept. Compilers do not find the one instruction for these in 512 bits.
#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__) && !defined(SCALAR_IS_DOUBLE)
INLINE V vmax(V a, V b) { return __builtin_ia32_maxps512_mask(b, a, a, -1, 4); }
INLINE V vmin(V a, V b) { return __builtin_ia32_minps512_mask(b, a, a, -1, 4); }
#else
INLINE V vmax(V a, V b) { return a < b ? b : a; }
INLINE V vmin(V a, V b) { return b < a ? b : a; }
#endif
INLINE V vabs(V a) { return a < S(0) ? -a : a; }
INLINE bool all_within(V x, S bound) {  // false where x is NaN
  bool within = true;
  for (int i = 0; i < W; ++i) within &= x[i] <= bound;
  return within;
}
INLINE S sum_lanes(V x) {
  S partial[W];
  store(partial, x);
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) partial[i] += partial[i + half];
  return partial[0];
}

constexpr S kLog2e = S(1.44269504088896340736);

inline V by_lane(double (*function)(double), V x) {
  for (int i = 0; i < W; ++i) x[i] = S(function(x[i]));
  return x;
}

#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__) && !defined(SCALAR_IS_DOUBLE)
#define HAVE_TABLES 1  // one instruction looks up 16 lanes in a table of 32
#endif
typedef int32_t VI __attribute__((vector_size(kVectorBytes)));

#ifdef HAVE_TABLES
// Entry j: the bits of 2^(j / 32) less j << 18, so that adding (32 k + j) << 18 multiplies by 2^k.
alignas(64) constexpr uint32_t kExp2Table[32] = {
    0x3f800000u, 0x3f7ecd87u, 0x3f7daac3u, 0x3f7c980fu, 0x3f7b95c2u, 0x3f7aa43au, 0x3f79c3d3u, 0x3f78f4f0u,
    0x3f7837f0u, 0x3f778d3au, 0x3f76f532u, 0x3f767043u, 0x3f75fed7u, 0x3f75a15bu, 0x3f75583fu, 0x3f7523f6u,
    0x3f7504f3u, 0x3f74fbafu, 0x3f7508a4u, 0x3f752c4du, 0x3f75672au, 0x3f75b9beu, 0x3f76248cu, 0x3f76a81eu,
    0x3f7744fdu, 0x3f77fbb8u, 0x3f78ccdfu, 0x3f79b907u, 0x3f7ac0c7u, 0x3f7be4bau, 0x3f7d257du, 0x3f7e83b3u};
#endif

// 2^x for |x| <= 126, float. With a table: x = k + j/32 + f, |f| <= 1/64, and 2^f = 1 + f q(f), q of degree 1 fitted
// to a relative error of 5.4e-8. Without: x = k + f, |f| <= 1/2, q of degree 4, 1.1e-7. The constant term is exactly 1,
// so that decays near 1 carry no bias.
INLINE V vexp2_bounded(V x) {
#ifdef HAVE_TABLES
  asm("" : "+v"(x));  // Not to be fused with the addition: multiplications are the bottleneck, additions are free.
  const V shifted = x + S(393216);  // 1.5 * 2^23 / 32: rounds to a multiple of 1/32, left in the low bits
  const V f = x - (shifted - S(393216));
  const VI low = *reinterpret_cast<const VI*>(kExp2Table), high = *reinterpret_cast<const VI*>(kExp2Table + 16);
  const VI scale = __builtin_shuffle(low, high, (VI)shifted) + ((VI)shifted << 18);
  return ((S(0.2402265) * f + S(0.69315733)) * f + S(1)) * (V)scale;
#else
  const V shifted = x + S(12582912);  // 1.5 * 2^23: rounds to an integer, left in the low bits
  const V f = x - (shifted - S(12582912));
  V p = broadcast(S(0.0013264727));
  p = p * f + S(0.0096715130);
  p = p * f + S(0.0555073358);
  p = p * f + S(0.2402224243);
  p = p * f + S(0.6931470037);
  p = p * f + S(1);
  return (V)((VI)p + ((VI)shifted << 23));
#endif
}
// 2^x, in float clamped to normal numbers. `kBounded`: the caller knows that |x| <= kExp2Bound.
constexpr S kExp2Bound = 126;
template <bool kBounded = false>
INLINE V vexp2(V x) {
  if constexpr (sizeof(S) == 8) return by_lane([](double t) { return __builtin_exp2(t); }, x);
  if constexpr (!kBounded) x = vmin(vmax(x, broadcast(-kExp2Bound)), broadcast(kExp2Bound));
  return vexp2_bounded(x);
}
INLINE V vexp(V x) {
  if constexpr (sizeof(S) == 8) return by_lane([](double t) { return __builtin_exp(t); }, x);
  return vexp2(x * kLog2e);
}

// log(1 + x) for x in [0, 1]: 2 artanh(s), s = x / (2 + x) <= 1/3; odd polynomial fitted to a relative error of 4e-09.
INLINE V vlog1p(V x) {
  if constexpr (sizeof(S) == 8) return by_lane([](double t) { return __builtin_log1p(t); }, x);
  const V s = x / (x + S(2)), q = s * s;
  V p = broadcast(S(0.280119824));
  p = p * q + S(0.280018062);
  p = p * q + S(0.400215272);
  p = p * q + S(0.666664163);
  return (p * q + S(2)) * s;
}

INLINE V sigmoid(V x) { return S(1) / (S(1) + vexp(-x)); }
INLINE V gated(V y, V z) { return y * z / (S(1) + vexp(-z)); }  // y silu(z)
INLINE V softplus(V x) { return vmax(x, V{}) + vlog1p(vexp(-vabs(x))); }

// ---- elements in memory: scalars of arithmetic or bfloat16 -------------------------------------------------------
enum Dtype : int32_t { kScalar = 0, kBfloat16 = 1 };

INLINE S from_bfloat16(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return S(y);
}
INLINE uint16_t to_bfloat16(S x) {  // to nearest even
  const float y = float(x);
  uint32_t bits;
  std::memcpy(&bits, &y, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40);
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

INLINE V load_as(const void* base, int64_t offset, int lanes, int32_t dtype) {
  if (dtype == kScalar) {
    const S* p = static_cast<const S*>(base) + offset;
    return lanes == W ? load(p) : load_lanes(p, lanes);
  }
  const uint16_t* p = static_cast<const uint16_t*>(base) + offset;
  S x[W] = {};
  if (lanes == W)
    for (int i = 0; i < W; ++i) x[i] = from_bfloat16(p[i]);
  else
    for (int i = 0; i < lanes; ++i) x[i] = from_bfloat16(p[i]);
  return load(x);
}
INLINE void store_as(void* base, int64_t offset, int lanes, int32_t dtype, V x) {
  if (dtype == kScalar) {
    S* p = static_cast<S*>(base) + offset;
    if (lanes == W) store(p, x);
    else std::memcpy(p, &x, lanes * sizeof(S));
    return;
  }
  uint16_t* p = static_cast<uint16_t*>(base) + offset;
  S y[W];
  store(y, x);
  if (lanes == W)
    for (int i = 0; i < W; ++i) p[i] = to_bfloat16(y[i]);
  else
    for (int i = 0; i < lanes; ++i) p[i] = to_bfloat16(y[i]);
}

// ---- [rows, columns] in memory <-> one vector per column, lane = row ------------------------------------------------
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (decltype(a < b)){__VA_ARGS__})
#endif

#if VECTOR_BYTES == 64
#define INTERLEAVE_LOW(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define INTERLEAVE_HIGH(a, b) SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#else
#define INTERLEAVE_LOW(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define INTERLEAVE_HIGH(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#endif

// In place. A stage interleaves rows i and i + W/2; log2(W) stages rotate the index bits (row, column) by half a turn.
INLINE void transpose(V (&x)[W]) {
#ifndef SCALAR_IS_DOUBLE
#pragma GCC unroll 4
  for (int stage = 1; stage < W; stage *= 2) {
    V y[W];
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; ++i) {
      y[2 * i] = INTERLEAVE_LOW(x[i], x[i + W / 2]);
      y[2 * i + 1] = INTERLEAVE_HIGH(x[i], x[i + W / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) x[i] = y[i];
  }
#else
  V y[W] = {};
  for (int i = 0; i < W; ++i)
    for (int j = 0; j < W; ++j) y[j][i] = x[i][j];
  for (int i = 0; i < W; ++i) x[i] = y[i];
#endif
}

INLINE void load_square(const S* p, int64_t row_stride, V* out) {
  V x[W];
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) x[i] = load(p + i * row_stride);
  transpose(x);
#pragma GCC unroll 16
  for (int j = 0; j < W; ++j) out[j] = x[j];
}
inline void load_columns(const S* p, int64_t row_stride, int rows, int columns, V* out) {
  for (int c0 = 0; c0 < columns; c0 += W) {
    const int width = columns - c0 < W ? columns - c0 : W;
    if (rows == W && width == W) {
      load_square(p + c0, row_stride, out + c0);
      continue;
    }
    V x[W] = {};
    if (rows == W && width == W / 2)
      for (int i = 0; i < W; ++i) std::memcpy(&x[i], p + c0 + i * row_stride, sizeof(V) / 2);
    else
      for (int i = 0; i < rows; ++i) std::memcpy(&x[i], p + c0 + i * row_stride, width * sizeof(S));
    transpose(x);
    for (int j = 0; j < width; ++j) out[c0 + j] = x[j];
  }
}

// `stream` writes around the cache: for outputs larger than it, in rows of whole cache lines.
INLINE void store_line(S* p, V x, bool stream) {
#if defined(__clang__)
  if (stream) return __builtin_nontemporal_store(x, reinterpret_cast<V*>(p));
#elif defined(__AVX512F__) && !defined(SCALAR_IS_DOUBLE)
  if (stream) return __builtin_ia32_movntps512(reinterpret_cast<float*>(p), x);
#endif
  store(p, x);
}
INLINE void store_square(S* p, int64_t row_stride, const V* in, bool stream) {
  V x[W];
#pragma GCC unroll 16
  for (int j = 0; j < W; ++j) x[j] = in[j];
  transpose(x);
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) store_line(p + i * row_stride, x[i], stream);
}
inline void store_columns(S* p, int64_t row_stride, int rows, int columns, const V* in, bool stream) {
  for (int c0 = 0; c0 < columns; c0 += W) {
    const int width = columns - c0 < W ? columns - c0 : W;
    if (rows == W && width == W) {
      store_square(p + c0, row_stride, in + c0, stream);
      continue;
    }
    V x[W] = {};
    for (int j = 0; j < width; ++j) x[j] = in[c0 + j];
    transpose(x);
    if (rows == W && width == W / 2)
      for (int i = 0; i < W; ++i) std::memcpy(p + c0 + i * row_stride, &x[i], sizeof(V) / 2);
    else
      for (int i = 0; i < rows; ++i) std::memcpy(p + c0 + i * row_stride, &x[i], width * sizeof(S));
  }
}
inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }
inline void fence() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}
inline void prefetch(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i);
}
