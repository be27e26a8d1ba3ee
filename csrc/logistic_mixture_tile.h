// Vectors of pixels through the discretized mixture of logistics; lanes are pixels.
//
// The mass of an inner bin with the ends a < b, in units of the scale, is
//   (1 - exp(a - b)) / ((1 + exp(a)) (1 + exp(-b))),
// and by symmetry the pixel may be taken as right of the mean.  Only what is not positive is
// exponentiated: where a > 0, it goes to the logarithm and leaves 1 + exp(-a).  A term of the mixture
// is then 2^linear * factor, whose factor lies within 2^-80 and 1 (double 2^-165) for three channels,
// so that logarithms are taken once a pixel, not once a bin.  A bin at the end of the levels is the
// same without the open end.
#pragma once
#include "logistic_mixture.h"
#include "simd.h"
#include "stream.h"

namespace EVIDENS_NAMESPACE {
namespace {

using namespace evidens;

template <class T> struct Limit;
template <> struct Limit<float> { static constexpr float bits = 125, small = 0x1p-24f; };
template <> struct Limit<double> { static constexpr double bits = 1021, small = 0x1p-53; };
constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.69314718055994530942;

// 2^t = scale (1 + excess) for t within the exponents of normal numbers; keeps NaN.
template <class T> struct Power { Vec<T> scale, excess; };
template <class T> EVIDENS_INLINE Power<T> power(Vec<T> t) {
  constexpr int last = Float<T>::exp_terms + 2;
  const Vec<T> shifted = t + magic<T>, r = t - (shifted - magic<T>);
  Vec<T> q = broadcast<T>(binary<T>.of[last]);
#pragma GCC unroll 16
  for (int i = last - 1; i >= 1; --i) q = q * r + binary<T>.of[i];
  const Vec<Int<T>> one = (Vec<Int<T>>)broadcast<T>(T(1));
  return {(Vec<T>)(one + ((Vec<Int<T>>)shifted << Float<T>::mantissa)), q * r};
}

// 2^-t and 1 - 2^-t of any t >= 0; 2^-t is never below the normal numbers.
template <class T> struct Decay { Vec<T> left, lost; };
template <class T> EVIDENS_INLINE Decay<T> decay(Vec<T> t) {
  const Power<T> p = power<T>(-min<T>(broadcast<T>(Limit<T>::bits), t));
  const Vec<T> part = p.scale * p.excess;
  return {p.scale + part, (T(1) - p.scale) - part};
}
template <class T> EVIDENS_INLINE Vec<T> decayed(Vec<T> t) { return decay<T>(t).left; }
// 0 below the normal numbers: a logit of -inf is no weight.
template <class T> EVIDENS_INLINE Vec<T> weight(Vec<T> t) { return t > Limit<T>::bits ? Vec<T>{} : decayed<T>(t); }

template <class T> EVIDENS_INLINE Vec<T> where(Vec<Int<T>> mask, Vec<T> v) {  // else 0
  return (Vec<T>)((Vec<Int<T>>)v & mask);
}

template <class T> struct Constants {
  T half;            // a bin
  T log2_step;       // its binary logarithm
  T last;            // the greatest level
  T least;           // log scale
  Vec<Int<T>> sign;  // bit
};
template <class T> EVIDENS_INLINE Constants<T> constants(const LogisticMixtureParams &p) {
  const double step = 2. / (p.levels - 1);
  return {T(step / 2), T(__builtin_log(step) * kLog2E), T(p.levels - 1), T(p.min_log_scale),
          (Vec<Int<T>>)broadcast<T>(T(-0.0))};
}

template <class T> EVIDENS_INLINE Vec<Int<T>> is_level(Vec<T> x, const Constants<T> &k) {
  return (x >= T(0)) & (x <= k.last) & ((x + magic<T>)-magic<T> == x);
}

// One channel of a vector of pixels.
template <class T> struct Level {
  Vec<T> v;           // value in [-1, 1]
  Vec<Int<T>> inner;  // whether it is neither the first nor the last level
  Vec<Int<T>> turns;  // sign bit: turned about the mean where it lies left of it
  Vec<Int<T>> first;  // sign bit: turned wherever it lies, so that the open end is on the right
};
template <class T> EVIDENS_INLINE Level<T> level(Vec<T> x, const Constants<T> &k) {
  const Vec<Int<T>> first = x == T(0), inner = ~(first | (x == k.last));
  return {((x + x) - k.last) / k.last, inner, inner & k.sign, first & k.sign};
}

// A bin under a logistic: its mass is 2^linear factor / divisor.
template <class T> struct Bin {
  Vec<T> linear, factor, divisor;
  Vec<T> mean, log_scale;  // derivatives of log(mass)
};
template <class T, bool Gradient>
EVIDENS_INLINE Bin<T> bin(const Level<T> &x, Vec<T> mean, Vec<T> raw_log_scale, const Constants<T> &k) {
  const T big = Float<T>::largest / 16;
  const Vec<T> one = broadcast<T>(T(1)), zero = {};
  const Vec<T> exponent = max<T>(broadcast<T>(k.least), raw_log_scale) * T(kLog2E);
  const Power<T> scale = power<T>(max<T>(broadcast<T>(-Limit<T>::bits), -exponent));
  const Vec<T> inverse = scale.scale + scale.scale * scale.excess;
  const Vec<T> bits = inverse * T(kLog2E), q = bits * k.half, c = x.v - mean;
  const Vec<Int<T>> turn = ((Vec<Int<T>>)c & x.turns) | x.first;
  const Vec<T> turned = (Vec<T>)((Vec<Int<T>>)c ^ turn) * bits;
  const Vec<T> p = max<T>(broadcast<T>(-big), min<T>(broadcast<T>(big), turned));
  // Of the ends a = p - q and b = p + q only a is there at the last level.
  const Vec<T> a = p - q, b = p + q, width = q + q;
  const Vec<T> ea = decayed<T>(abs<T>(a)), eb = where<T>(x.inner, decayed<T>(b));
  const Decay<T> between = decay<T>(width);
  // A width that is nothing beside 1 goes to the logarithm.
  const Vec<Int<T>> small = x.inner & (width < Limit<T>::small);
  const Vec<T> factor = x.inner & ~small ? between.lost : one;
  Bin<T> r;
  r.linear = where<T>(small, k.log2_step - exponent) - max<T>(zero, a);
  r.factor = factor;
  r.divisor = (T(1) + ea) * (T(1) + eb);
  if constexpr (Gradient) {
    const Vec<T> all = T(1) / (r.divisor * factor), rest = all * factor;
    const Vec<T> lower = (a >= zero ? one : ea) * (T(1) + eb) * rest;  // sigmoid(a)
    const Vec<T> upper = eb * (T(1) + ea) * rest;                      // sigmoid(-b)
    const Vec<T> by_width = small ? one : where<T>(x.inner, width * T(kLn2) * between.left * (all * r.divisor));
    r.mean = (Vec<T>)((Vec<Int<T>>)(inverse * (lower - upper)) ^ turn);
    r.log_scale = (a * lower - b * upper) * T(kLn2) - by_width;
    r.log_scale = raw_log_scale < k.least ? zero : r.log_scale;
    r.factor = factor * rest;
    r.divisor = one;
  }
  return r;
}

// Where a block of pixels lies; distances are between planes, pixels are adjacent.
template <class T> struct Pixels {
  const T *x;
  int64_t x_plane;
  const T *params;
  int64_t plane;
  T *log_prob;
  const T *grad;
  T *grad_params;
  int64_t grad_plane;
  bool past_cache;  // whether grad_params is stored so
};

constexpr int kMaxVectors = 8;  // of a block

// A block, a multiple of the width.  Scratch: a plane of the block for the greatest logits, 2 M for
// the terms, and backward P - M for derivatives.
template <class T, int C, bool Gradient>
static void block_of_pixels(const Pixels<T> &at, int64_t pixels, const LogisticMixtureParams &p, T *scratch) {
  constexpr int W = width<T>;
  constexpr int Kinds = C == 1 ? 2 : 3;
  const Constants<T> k = constants<T>(p);
  const int64_t mixtures = p.mixtures;
  T *greatest = scratch, *linears = greatest + pixels, *factors = linears + mixtures * pixels,
    *slopes = factors + mixtures * pixels;
  Level<T> levels[kMaxVectors][C];
  for (int64_t i = 0; i < pixels; i += W) {
    for (int c = 0; c < C; ++c) levels[i / W][c] = level<T>(load(at.x + c * at.x_plane + i), k);
    Vec<T> z = load(at.params + i);
    for (int64_t m = 1; m < mixtures; ++m) z = max<T>(z, load(at.params + m * at.plane + i));
    store(greatest + i, z);
  }
  for (int64_t m = 0; m < mixtures; ++m) {
    for (int64_t i = 0; i < pixels; i += W) {
      const Level<T> *x = levels[i / W];
      const T *from = at.params + m * at.plane + i;
      const int64_t next = mixtures * at.plane;  // from one kind of parameter to the next
      Vec<T> linear = (load(from) - load(greatest + i)) * T(kLog2E), t[3], slope[3];
      if constexpr (C == 3) {
        for (int j = 0; j < 3; ++j) {  // tanh
          const Vec<T> raw = load(from + (Kinds * (j + 1)) * next);
          const Decay<T> d = decay<T>(abs<T>(raw) * T(2 * kLog2E));
          const Vec<T> part = T(1) / (T(1) + d.left);
          t[j] = (Vec<T>)((Vec<Int<T>>)(d.lost * part) | ((Vec<Int<T>>)raw & k.sign));
          if constexpr (Gradient) slope[j] = d.left * T(4) * part * part;
        }
      }
      Vec<T> factor = broadcast<T>(T(1)), divisor = factor;
#pragma GCC unroll 3
      for (int c = 0; c < C; ++c) {
        const T *own = from + (1 + Kinds * c) * next;
        Vec<T> mean = load(own);
        if (c == 1) mean += t[0] * x[0].v;
        if (c == 2) mean += t[1] * x[0].v + t[2] * x[1].v;
        const Bin<T> b = bin<T, Gradient>(x[c], mean, load(own + next), k);
        linear += b.linear;
        factor *= b.factor;
        if constexpr (!Gradient) divisor *= b.divisor;
        if constexpr (Gradient) {
          T *to = slopes + (Kinds * c * mixtures + m) * pixels + i;
          store(to, b.mean);
          store(to + mixtures * pixels, b.log_scale);
          if (c == 1) store(slopes + (2 * mixtures + m) * pixels + i, b.mean * x[0].v * slope[0]);
          if (c == 2) {
            store(slopes + (5 * mixtures + m) * pixels + i, b.mean * x[0].v * slope[1]);
            store(slopes + (8 * mixtures + m) * pixels + i, b.mean * x[1].v * slope[2]);
          }
        }
      }
      store(linears + m * pixels + i, linear);
      store(factors + m * pixels + i, Gradient ? factor : factor / divisor);
    }
  }
  for (int64_t i = 0; i < pixels; i += W) {
    // Where no term is possible, their sum is 0 and not NaN.
    Vec<T> top = broadcast<T>(-Float<T>::largest), sum = {}, prior = {};
    for (int64_t m = 0; m < mixtures; ++m) top = max<T>(top, load(linears + m * pixels + i));
    const Vec<T> z = load(greatest + i);
    for (int64_t m = 0; m < mixtures; ++m) {
      T *linear = linears + m * pixels + i, *factor = factors + m * pixels + i;
      const Vec<T> e = load(factor) * weight<T>(top - load(linear));
      const Vec<T> own = weight<T>((z - load(at.params + m * at.plane + i)) * T(kLog2E));
      sum += e;
      prior += own;
      if constexpr (Gradient) {
        store(factor, e);
        store(linear, own);
      }
    }
    if constexpr (!Gradient) {
      store(at.log_prob + i, top * T(kLn2) + log<T>(sum / prior));
    } else {
      const Vec<T> g = load(at.grad + i), by_prior = g / prior;
      const Vec<T> by_sum = sum == T(0) ? Vec<T>{} : g / sum;
      for (int64_t m = 0; m < mixtures; ++m) {
        const Vec<T> share = load(factors + m * pixels + i) * by_sum;
        T *to = at.grad_params + m * at.grad_plane + i;
        put(to, share - load(linears + m * pixels + i) * by_prior, at.past_cache);
        for (int64_t j = 0; j < Kinds * C; ++j) {
          const Vec<T> d = load(slopes + (j * mixtures + m) * pixels + i);
          put(to + (1 + j) * mixtures * at.grad_plane, d * share, at.past_cache);
        }
      }
    }
  }
}

}  // namespace
}  // namespace EVIDENS_NAMESPACE
