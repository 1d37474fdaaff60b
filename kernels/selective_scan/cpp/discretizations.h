// The discretizations of ../discretization.py, in the same order: value and derivatives of the three coefficients of
//   h_t = a h_{t-1} + c0 B_t u_t + c1 B_{t-1} u_{t-1},   z = A delta.
// To add one: write a struct here and give it its number at the end of the file; everything else is a template over the
// struct.
//
// `core` is the one expensive part (e^z, or 1 / (1 - z/2)); the backward stores it and rebuilds the rest from it.
#pragma once

#include "simd.h"

struct Inputs {
  V delta;    // step size, after softplus
  V A;        // diagonal of the state matrix
  V A_log2e;  // A log2(e), so that e^z = 2^(delta A_log2e)
};
struct Taps {
  V a, c0, c1;
};
struct TapGradients {  // by delta, by A
  V a_delta = {}, a_A = {}, c0_delta = {}, c0_A = {}, c1_delta = {}, c1_A = {};
};

struct OneTap {
  static constexpr bool kTwoTaps = false;
  static constexpr bool kInputDependsOnA = true;  // is c0_A different from 0
};
struct TwoTaps : OneTap {
  static constexpr bool kTwoTaps = true;
};

// phi[k] for k = 1..P, see ../phi.py. Below |z| = kSmall a Taylor polynomial that is exact to rounding, upward beyond.
template <int P>
INLINE void phi_functions(V z, V e, V (&phi)[P + 1]) {
  constexpr bool wide = sizeof(S) == 8;
  constexpr double kSmall = P >= 4 && !wide ? 2 : 1;
  constexpr int kDegree = wide ? 16 : (P >= 4 ? 10 : 8);
  constexpr double factorial[] = {1.,
                                  1.,
                                  2.,
                                  6.,
                                  24.,
                                  120.,
                                  720.,
                                  5040.,
                                  40320.,
                                  362880.,
                                  3628800.,
                                  39916800.,
                                  479001600.,
                                  6227020800.,
                                  87178291200.,
                                  1307674368000.,
                                  20922789888000.,
                                  355687428096000.,
                                  6402373705728000.,
                                  121645100408832000.,
                                  2432902008176640000.};
  V small = broadcast(S(1 / factorial[P + kDegree]));
#pragma GCC unroll 20
  for (int k = kDegree - 1; k >= 0; --k) small = small * z + S(1 / factorial[P + k]);
  const V reciprocal = S(1) / z;
  const auto is_small = vabs(z) <= S(kSmall);
  V down[P + 1], up = e;
  down[P] = small;
#pragma GCC unroll 4
  for (int k = P - 1; k >= 1; --k) down[k] = z * down[k + 1] + S(1 / factorial[k]);
#pragma GCC unroll 4
  for (int k = 1; k <= P; ++k) {
    up = (up - S(1 / factorial[k - 1])) * reciprocal;
    phi[k] = is_small ? down[k] : up;
  }
  phi[0] = e;
}

// kBounded: the caller knows that |delta A_log2e| <= kExp2Bound.
struct Exponential {
  template <bool kBounded = false>
  static INLINE V core(const Inputs& x) {
    return vexp2<kBounded>(x.delta * x.A_log2e);
  }
};
struct Rational {
  template <bool kBounded = false>
  static INLINE V core(const Inputs& x) { return S(1) / (S(1) - S(0.5) * x.delta * x.A); }
  // (1 + z/2) / (1 - z/2), rounded once where it is close to 1.
  static INLINE V decay(const Inputs& x, V r) { return S(1) + x.delta * x.A * r; }
};

struct Zoh : OneTap, Exponential {
  static constexpr bool kInputDependsOnA = false;
  static INLINE Taps taps(const Inputs& x, V e) { return {e, x.delta, V{}}; }
  static INLINE TapGradients gradients(const Inputs& x, V e) {
    return {.a_delta = x.A * e, .a_A = x.delta * e, .c0_delta = broadcast(1)};
  }
};

struct Foh : OneTap, Exponential {
  static INLINE Taps taps(const Inputs& x, V e) {
    V phi[3];
    phi_functions<2>(x.delta * x.A, e, phi);
    return {e, x.delta * x.delta * phi[2], V{}};
  }
  static INLINE TapGradients gradients(const Inputs& x, V e) {
    V phi[4];
    phi_functions<3>(x.delta * x.A, e, phi);
    const V d = x.delta;
    return {.a_delta = x.A * e, .a_A = d * e, .c0_delta = d * phi[1], .c0_A = d * d * d * (phi[2] - S(2) * phi[3])};
  }
};

struct Bilinear : OneTap, Rational {
  static INLINE Taps taps(const Inputs& x, V r) { return {decay(x, r), x.delta * r, V{}}; }
  static INLINE TapGradients gradients(const Inputs& x, V r) {
    const V r2 = r * r, dr2 = x.delta * r2;
    return {.a_delta = x.A * r2, .a_A = dr2, .c0_delta = r2, .c0_A = S(0.5) * x.delta * dr2};
  }
};

struct Poly : OneTap, Exponential {
  static INLINE Taps taps(const Inputs& x, V e) {
    V phi[3];
    phi_functions<2>(x.delta * x.A, e, phi);
    return {e, x.delta * (phi[1] + S(0.5) * x.delta * phi[2]), V{}};
  }
  static INLINE TapGradients gradients(const Inputs& x, V e) {
    V phi[4];
    phi_functions<3>(x.delta * x.A, e, phi);
    const V d = x.delta;
    return {.a_delta = x.A * e,
            .a_A = d * e,
            .c0_delta = e + S(0.5) * d * phi[1],
            .c0_A = d * d * (phi[1] - phi[2] + S(0.5) * d * (phi[2] - S(2) * phi[3]))};
  }
};

struct HighOrder : OneTap, Exponential {
  static INLINE Taps taps(const Inputs& x, V e) {
    V phi[4];
    phi_functions<3>(x.delta * x.A, e, phi);
    return {e, x.delta * (phi[1] + x.delta * (phi[2] + S(0.5) * x.delta * phi[3])), V{}};
  }
  static INLINE TapGradients gradients(const Inputs& x, V e) {
    V phi[5];
    phi_functions<4>(x.delta * x.A, e, phi);
    const V d = x.delta;
    return {.a_delta = x.A * e,
            .a_A = d * e,
            .c0_delta = e + d * (phi[1] + S(0.5) * d * phi[2]),
            .c0_A = d * d * (phi[1] - phi[2] + d * (phi[2] - S(2) * phi[3] + S(0.5) * d * (phi[3] - S(3) * phi[4])))};
  }
};

struct Rk4 : OneTap, Exponential {
  static constexpr double kScale = 0.375 * 2.718281828459045235;  // see _rk4 in ../discretization.py
  static INLINE Taps taps(const Inputs& x, V e) {
    const V z = x.delta * x.A;
    const V polynomial = S(1) + z * (S(0.5) + z * (S(1. / 6) + z * S(1. / 24)));
    const V beyond = (S(kScale) * e - S(1)) / z;
    return {e, x.delta * (z >= S(-1) ? polynomial : beyond), V{}};
  }
  static INLINE TapGradients gradients(const Inputs& x, V e) {
    const V z = x.delta * x.A, d = x.delta, scaled = S(kScale) * e;
    const V polynomial = S(1) + z * (S(0.5) + z * (S(1. / 6) + z * S(1. / 24)));
    const V slope = S(0.5) + z * (S(1. / 3) + z * S(0.125));
    const V reciprocal = S(1) / z;
    const V beyond = (scaled - S(1)) * reciprocal;
    const auto is_small = z >= S(-1);
    return {.a_delta = x.A * e,
            .a_A = d * e,
            .c0_delta = is_small ? polynomial + z * slope : scaled,
            .c0_A = d * d * (is_small ? slope : (scaled - beyond) * reciprocal)};
  }
};

struct ZohExact : OneTap, Exponential {
  static INLINE Taps taps(const Inputs& x, V e) {
    V phi[2];
    phi_functions<1>(x.delta * x.A, e, phi);
    return {e, x.delta * phi[1], V{}};
  }
  static INLINE TapGradients gradients(const Inputs& x, V e) {
    V phi[3];
    phi_functions<2>(x.delta * x.A, e, phi);
    const V d = x.delta;
    return {.a_delta = x.A * e, .a_A = d * e, .c0_delta = e, .c0_A = d * d * (phi[1] - phi[2])};
  }
};

struct FohExact : TwoTaps, Exponential {
  static INLINE Taps taps(const Inputs& x, V e) {
    V phi[3];
    phi_functions<2>(x.delta * x.A, e, phi);
    return {e, x.delta * phi[2], x.delta * (phi[1] - phi[2])};
  }
  static INLINE TapGradients gradients(const Inputs& x, V e) {
    V phi[4];
    phi_functions<3>(x.delta * x.A, e, phi);
    const V d2 = x.delta * x.delta, slope = phi[2] - S(2) * phi[3], difference = phi[1] - phi[2];
    return {.a_delta = x.A * e,
            .a_A = x.delta * e,
            .c0_delta = difference,
            .c0_A = d2 * slope,
            .c1_delta = e - difference,
            .c1_A = d2 * (difference - slope)};
  }
};

struct Tustin : TwoTaps, Rational {
  static INLINE Taps taps(const Inputs& x, V r) {
    const V half = S(0.5) * x.delta * r;
    return {decay(x, r), half, half};
  }
  static INLINE TapGradients gradients(const Inputs& x, V r) {
    const V r2 = r * r, dr2 = x.delta * r2, by_delta = S(0.5) * r2, by_A = S(0.25) * x.delta * dr2;
    return {.a_delta = x.A * r2, .a_A = dr2, .c0_delta = by_delta, .c0_A = by_A, .c1_delta = by_delta, .c1_A = by_A};
  }
};

struct Trapezoid : TwoTaps, Exponential {
  static constexpr bool kInputDependsOnA = false;
  static INLINE Taps taps(const Inputs& x, V e) { const V half = S(0.5) * x.delta;
    return {e, half, half * e}; }
  static INLINE TapGradients gradients(const Inputs& x, V e) {
    const V old = S(0.5) * e;
    return {.a_delta = x.A * e,
            .a_A = x.delta * e,
            .c0_delta = broadcast(S(0.5)),
            .c1_delta = old * (S(1) + x.A * x.delta),
            .c1_A = old * x.delta * x.delta};
  }
};

template <int index>
struct Method;
#define METHOD_NUMBER(index, type) \
  template <>                      \
  struct Method<index> {           \
    typedef type Type;             \
  };
METHOD_NUMBER(0, Zoh)
METHOD_NUMBER(1, Foh)
METHOD_NUMBER(2, Bilinear)
METHOD_NUMBER(3, Poly)
METHOD_NUMBER(4, HighOrder)
METHOD_NUMBER(5, Rk4)
METHOD_NUMBER(6, ZohExact)
METHOD_NUMBER(7, FohExact)
METHOD_NUMBER(8, Tustin)
METHOD_NUMBER(9, Trapezoid)
