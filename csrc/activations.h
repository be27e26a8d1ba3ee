// Activations of hidden units.
#pragma once
#include "autoregress.h"
#include "simd.h"

namespace EVIDENS_NAMESPACE {
namespace {

template <class T> EVIDENS_INLINE Vec<T> sigmoid(Vec<T> x) { return T(1) / (T(1) + exp<T>(-x)); }

// exp(x) - 1 for x <= 0 without cancellation: m / (1 + m) with m = exp(-x) - 1.
template <class T> EVIDENS_INLINE Vec<T> expm1_nonpositive(Vec<T> x) {
  const Vec<T> m = expm1_positive<T>(max<T>(Vec<T>{}, min<T>(broadcast<T>(T(40)), -x)));
  return -(m / (T(1) + m));
}

template <class T, int A> EVIDENS_INLINE Vec<T> activation(Vec<T> x) {
  using namespace evidens;
  if constexpr (A == kRelu) return max<T>(Vec<T>{}, x);  // keeps NaN
  else if constexpr (A == kLeakyRelu) return x > T(0) ? x : x * T(0.01);
  else if constexpr (A == kElu) return x <= T(0) ? expm1_nonpositive<T>(x) : x;
  else if constexpr (A == kTanhUnit) return tanh<T>(x);
  else if constexpr (A == kSigmoidUnit) return sigmoid<T>(x);
  else if constexpr (A == kSilu) return x * sigmoid<T>(x);
  else if constexpr (A == kSoftplusUnit) return softplus<T>(x);
  else return x;
}

template <class T, int A> static void activate_as(int64_t n, T *x) {  // n: multiple of the width
  for (int64_t i = 0; i < n; i += width<T>) store(x + i, activation<T, A>(load(x + i)));
}
template <class T> static void activate(int32_t kind, int64_t n, T *x) {
  using namespace evidens;
  switch (kind) {
    case kRelu: return activate_as<T, kRelu>(n, x);
    case kLeakyRelu: return activate_as<T, kLeakyRelu>(n, x);
    case kElu: return activate_as<T, kElu>(n, x);
    case kTanhUnit: return activate_as<T, kTanhUnit>(n, x);
    case kSigmoidUnit: return activate_as<T, kSigmoidUnit>(n, x);
    case kSilu: return activate_as<T, kSilu>(n, x);
    case kSoftplusUnit: return activate_as<T, kSoftplusUnit>(n, x);
    default: return;
  }
}

}  // namespace
}  // namespace EVIDENS_NAMESPACE
