// The scale maps of affine coupling, and one dense run of elements through them.
#pragma once
#include "coupling.h"
#include "simd.h"

namespace EVIDENS_NAMESPACE {
namespace {

using namespace evidens;

// exp of these is finite: beyond, a factor stays what it is there and has no gradient.
template <class T> constexpr T log_largest = sizeof(T) == 8 ? T(709.78) : T(88.72);

template <class T> struct MapConstants {
  T c;       // clamp, or what takes its place: a factor, a bound
  T linear;  // softplus: below, log s is r
};

template <class T> struct Factor {
  Vec<T> m;   // s, or 1 / s for the inverse
  Vec<T> l;   // log s
  Vec<T> dm;  // derivatives in r
  Vec<T> dl;
};

// Factor from log s and its derivative.
template <class T, bool Inverse, bool Gradient> EVIDENS_INLINE void from_log(Factor<T> &f) {
  const Vec<T> power = Inverse ? -f.l : f.l;
  f.m = exp<T>(min<T>(broadcast<T>(log_largest<T>), power));
  if constexpr (Gradient) {
    const Vec<T> d = Inverse ? -f.m * f.dl : f.m * f.dl;
    f.dm = power > log_largest<T> ? Vec<T>{} : d;
  }
}

// 1 / s of an s that does not vanish.
template <class T, bool Gradient> EVIDENS_INLINE void invert(Factor<T> &f) {
  f.m = T(1) / f.m;
  if constexpr (Gradient) f.dm = -f.m * f.dl;
}

template <class T, int Map, bool Inverse, bool Gradient>
EVIDENS_INLINE Factor<T> factor(Vec<T> r, const MapConstants<T> &k) {
  const Vec<T> one = broadcast<T>(T(1)), zero = {};
  Factor<T> f;
  if constexpr (Map == kCouplingExp) {
    f.l = r;
    f.dl = one;
    from_log<T, Inverse, Gradient>(f);
  } else if constexpr (Map == kCouplingExpClamped) {
    f.l = max<T>(broadcast<T>(-k.c), min<T>(broadcast<T>(k.c), r));  // keeps NaN
    f.dl = abs<T>(r) <= k.c ? one : zero;
    from_log<T, Inverse, Gradient>(f);
  } else if constexpr (Map == kCouplingTanh) {
    const Vec<T> h = tanh<T>(r);
    f.l = k.c * h;
    f.dl = k.c * (T(1) - h * h);
    from_log<T, Inverse, Gradient>(f);
  } else if constexpr (Map == kCouplingAtan) {
    f.l = k.c * atan<T>(r);
    f.dl = k.c / (T(1) + r * r);
    from_log<T, Inverse, Gradient>(f);
  } else if constexpr (Map == kCouplingBoundedExp) {
    const T large = Float<T>::largest;
    const Vec<T> finite = max<T>(broadcast<T>(-large), min<T>(broadcast<T>(large), r));
    const Vec<T> u = T(1) + abs<T>(finite) * k.c;
    f.l = finite / u;
    f.dl = T(1) / (u * u);
    from_log<T, Inverse, Gradient>(f);
  } else if constexpr (Map == kCouplingSigmoid || Map == kCouplingSigmoidZero) {
    const Vec<T> v = r + T(2);
    // Beside an offset nothing is lost where e would be subnormal.
    const Vec<T> e = Map == kCouplingSigmoid ? exp_nonpositive<T>(-abs<T>(v)) : exp<T>(-abs<T>(v));
    const Vec<T> q = T(1) / (T(1) + e), eq = e * q;
    const Vec<Int<T>> positive = v >= zero;
    const Vec<T> sigmoid = positive ? q : eq, rest = positive ? eq : q;  // of v, and 1 - it
    if constexpr (Map == kCouplingSigmoid) {
      f.m = sigmoid + k.c;
      f.l = log_normal<T>(f.m);
      if constexpr (Gradient) {
        const Vec<T> slope = sigmoid * rest;
        f.dl = slope / f.m;
        f.dm = slope;
      }
      if constexpr (Inverse) invert<T, Gradient>(f);
    } else {
      f.l = min<T>(zero, v) - log1p_unit<T>(e);
      f.dl = rest;
      if constexpr (Inverse) {
        from_log<T, Inverse, Gradient>(f);
      } else {
        f.m = sigmoid;
        f.dm = sigmoid * rest;
      }
    }
  } else if constexpr (Map == kCouplingSoftplus) {
    const Vec<T> e = exp<T>(-abs<T>(r)), q = T(1) / (T(1) + e);
    f.m = (max<T>(zero, r) + log1p_unit<T>(e)) + k.c;
    const Vec<Int<T>> exponential = r < k.linear;
    f.l = exponential || f.m > Float<T>::largest ? r : log_normal<T>(f.m);
    if constexpr (Gradient) {
      f.dm = r >= zero ? q : e * q;
      f.dl = exponential ? one : f.dm / f.m;
    }
    if constexpr (Inverse) {
      Factor<T> tail = f;
      invert<T, Gradient>(f);
      if (k.linear > -Float<T>::largest) {  // without an offset s may vanish, and 1 / s overflow
        from_log<T, Inverse, Gradient>(tail);
        f.m = exponential ? tail.m : f.m;
        if constexpr (Gradient) f.dm = exponential ? tail.dm : f.dm;
      }
    }
  } else {
    f.m = one;
    f.l = f.dm = f.dl = zero;
  }
  return f;
}

template <class T> EVIDENS_INLINE MapConstants<T> map_constants(const CouplingParams &p) {
  MapConstants<T> k = {T(p.clamp), T(-__builtin_inf())};
  if (p.map == kCouplingAtan) k.c = T(p.clamp * 0.636);  // FrEIA's factor, not 2 / pi
  if (p.map == kCouplingBoundedExp) k.c = T(1. / __builtin_fabs(__builtin_log(p.clamp)));
  if (p.map == kCouplingSoftplus && k.c < Float<T>::smallest) k.linear = T(sizeof(T) == 8 ? -40. : -20.);
  return k;
}

// --- lanes ---------------------------------------------------------------------------------------

template <int... I> EVIDENS_INLINE Vec<double> low_half(Vec<float> v, Indices<I...>) {
  return __builtin_convertvector(__builtin_shufflevector(v, v, I...), Vec<double>);
}
template <int... I> EVIDENS_INLINE Vec<double> high_half(Vec<float> v, Indices<I...>) {
  return __builtin_convertvector(__builtin_shufflevector(v, v, (I + width<double>)...), Vec<double>);
}
// A sum over lanes in double.
struct Total { Vec<double> part[2] = {}; };
EVIDENS_INLINE void add(Total &t, Vec<float> v) {
  t.part[0] += low_half(v, MakeIndices<width<double>>::type());
  t.part[1] += high_half(v, MakeIndices<width<double>>::type());
}
EVIDENS_INLINE void add(Total &t, Vec<double> v) { t.part[0] += v; }
EVIDENS_INLINE double sum(const Total &t) { return sum<double>(t.part[0] + t.part[1]); }

}  // namespace
}  // namespace EVIDENS_NAMESPACE
