// Vectors of pixels through the discretized mixture of logistics; lanes are pixels.
//
// Let P be the distance from the mean and q half the bin, in units of the scale, X = exp(-P) and
// Q = exp(-q).  The logistic function at the near end a = P - q and the far end b = P + q of a bin is
//   sigmoid(a) = Q / (Q + X),   sigmoid(-b) = X Q / (1 + X Q),
// and the mass of the bin
//   exp(-max(a, 0)) max(X, Q) (1 - Q^2) / ((Q + X) (1 + X Q)).
// The first and the last bin lack one end.  So a term of the mixture is 2^linear * factor, where no
// factor can overflow or underflow: logarithms are taken once a pixel, not once a bin.
#pragma once
#include "logistic_mixture.h"
#include "simd.h"
#include "stream.h"

namespace EVIDENS_NAMESPACE {
namespace {

using namespace evidens;

template <class T> struct Limit;
// 2^-bits is normal, 1 + small is 1, and 2^-far is nothing beside 1.
template <> struct Limit<float> { static constexpr float bits = 125, small = 0x1p-24f, far = 36; };
template <> struct Limit<double> { static constexpr double bits = 1021, small = 0x1p-53, far = 300; };
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

// One channel of a vector of pixels: its value in [-1, 1], and which of the levels it is.
template <class T> struct Level {
  Vec<T> v;
  Vec<Int<T>> inner, last;
};
template <class T> EVIDENS_INLINE Level<T> level(Vec<T> x, const Constants<T> &k) {
  const Vec<Int<T>> first = x == T(0), last = x == k.last;
  return {((x + x) - k.last) / k.last, ~(first | last), last};
}

// A bin under a logistic: its mass is 2^linear factor / (near far), and what its slopes need.
template <class T> struct Bin {
  Vec<T> linear, factor, near, far;
  Vec<T> whole;                      // factor without max(X, Q)
  Vec<T> inverse, p, q, big_q, x_q;  // P, q in bits; Q and X Q
  Vec<Int<T>> sign, inner, small, left, right;
};
template <class T> EVIDENS_INLINE Bin<T> bin(const Level<T> &x, Vec<T> mean, Vec<T> raw_log_scale,
                                             const Constants<T> &k) {
  typedef Limit<T> L;
  const Vec<T> one = broadcast<T>(T(1)), zero = {};
  const Vec<T> exponent = max<T>(broadcast<T>(k.least), raw_log_scale) * T(kLog2E);
  const Power<T> scale = power<T>(max<T>(broadcast<T>(-L::bits), -exponent));
  const Vec<T> c = x.v - mean;
  const Vec<Int<T>> mirrored = ((Vec<Int<T>>)c >> (8 * sizeof(T) - 1)) ^ x.last;
  Bin<T> r;
  r.inverse = scale.scale + scale.scale * scale.excess;
  const Vec<T> bits = r.inverse * T(kLog2E);
  r.p = min<T>(broadcast<T>(Float<T>::largest / 16), abs<T>(c) * bits);
  r.q = bits * k.half;
  r.sign = (Vec<Int<T>>)c & k.sign;
  r.inner = x.inner;
  // Of a bin far wider than the scale at most one end counts: P and q are taken less by the same.
  const Vec<T> q = min<T>(broadcast<T>(L::far), r.q), t = r.p - (r.q - q);
  r.left = (x.inner | mirrored), r.right = x.inner | ~mirrored;
  const Vec<T> big_x = weight<T>(max<T>(zero, t));
  const Decay<T> half = decay<T>(q);
  r.big_q = half.left;
  r.x_q = big_x * half.left;
  // A width that is nothing beside 1 goes to the logarithm.
  r.small = x.inner & (r.q < L::small / 2);
  r.whole = x.inner & ~r.small ? half.lost * (T(1) + half.left) : one;
  r.factor = r.left ? r.whole * max<T>(half.left, big_x) : r.whole;
  r.near = r.left ? half.left + big_x : one;
  r.far = r.right ? T(1) + r.x_q : one;
  r.linear = where<T>(r.small, k.log2_step - exponent) - where<T>(r.left, max<T>(zero, r.p - r.q));
  r.left &= t >= zero;
  const Vec<Int<T>> narrow = r.q <= L::far;
  r.right &= narrow;
  r.inner &= narrow;
  return r;
}

// Derivatives of log(mass) in mean and log scale.
template <class T> struct Slopes { Vec<T> mean, log_scale; };
template <class T>
EVIDENS_INLINE Slopes<T> slopes(const Bin<T> &b, Vec<T> raw_log_scale, const Constants<T> &k) {
  const Vec<T> one = broadcast<T>(T(1)), ends = b.near * b.far, all = one / (ends * b.whole), rest = b.whole * all;
  const Vec<T> lower = where<T>(b.left, b.big_q * b.far * rest), upper = where<T>(b.right, b.x_q * b.near * rest);
  const Vec<T> width = where<T>(b.inner, b.q * T(2 * kLn2) * b.big_q * b.big_q * (ends * all));
  const Vec<T> log_scale = ((b.p - b.q) * lower - (b.p + b.q) * upper) * T(kLn2) - (b.small ? one : width);
  return {(Vec<T>)((Vec<Int<T>>)(b.inverse * (lower - upper)) ^ b.sign),
          raw_log_scale < k.least ? Vec<T>{} : log_scale};
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

// The coefficients of a term: what they add to the means of green and blue, and what the slopes of
// these means are multiplied by for their own.
template <class T, bool Gradient>
EVIDENS_INLINE void couple(const T *raw, int64_t step, int64_t ahead, Vec<T> red, Vec<T> green, const Constants<T> &k,
                           T *shifts, int64_t pixels, T *slopes, int64_t slope_step) {
  Vec<T> t[3];
#pragma GCC unroll 3
  for (int j = 0; j < 3; ++j) {
    const Vec<T> r = load(raw + j * step);
    __builtin_prefetch(raw + j * step + ahead);
    const Decay<T> d = decay<T>(abs<T>(r) * T(2 * kLog2E));
    const Vec<T> part = T(1) / (T(1) + d.left);
    t[j] = (Vec<T>)((Vec<Int<T>>)(d.lost * part) | ((Vec<Int<T>>)r & k.sign));  // tanh
    if constexpr (Gradient) store(slopes + j * slope_step, (j == 2 ? green : red) * (d.left * T(4) * part * part));
  }
  store(shifts + pixels, t[0] * red);
  store(shifts + 2 * pixels, t[1] * red + t[2] * green);
}

// Planes of the block that the tile keeps: five, two for each term, and backward the derivatives.
constexpr int64_t kPlanes = 5;

// A block, a multiple of the width.  Loops are over pixels within, so that what one vector waits for
// is filled by the next.
template <class T, int C, bool Gradient>
static void block_of_pixels(const Pixels<T> &at, int64_t pixels, const LogisticMixtureParams &p, T *scratch) {
  constexpr int W = width<T>;
  constexpr int Kinds = C == 1 ? 2 : 3;
  const Constants<T> k = constants<T>(p);
  const int64_t mixtures = p.mixtures, next = mixtures * at.plane;  // from one kind of parameter to the next
  T *greatest = scratch, *divisors = greatest + pixels, *shifts = divisors + pixels,
    *linears = scratch + kPlanes * pixels, *factors = linears + mixtures * pixels,
    *derivatives = factors + mixtures * pixels;
  Level<T> levels[C][kMaxVectors];
  for (int64_t i = 0; i < pixels; i += W) {
    for (int c = 0; c < C; ++c) levels[c][i / W] = level<T>(load(at.x + c * at.x_plane + i), k);
    Vec<T> z = load(at.params + i);
    for (int64_t m = 1; m < mixtures; ++m) z = max<T>(z, load(at.params + m * at.plane + i));
    store(greatest + i, z);
  }
  for (int64_t m = 0; m < mixtures; ++m) {
    const T *logits = at.params + m * at.plane;
    T *linear = linears + m * pixels, *factor = factors + m * pixels, *derivative = derivatives + m * pixels;
    const int64_t step = mixtures * pixels;
    // The next term, or the first of the next block: more streams than the hardware follows.
    const int64_t ahead = m + 1 < mixtures ? at.plane : pixels - m * at.plane;
    if constexpr (C == 3)
      for (int64_t i = 0; i < pixels; i += W)
        couple<T, Gradient>(logits + 3 * next + i, 3 * next, ahead, levels[0][i / W].v, levels[1][i / W].v, k,
                            shifts + i, pixels, derivative + 2 * step + i, 3 * step);
    for (int c = 0; c < C; ++c) {
      const T *own = logits + (1 + Kinds * c) * next;
      T *slope = derivative + Kinds * c * step;
      for (int64_t i = 0; i < pixels; i += W) {
        const Vec<T> mean = load(own + i), raw = load(own + next + i);
        __builtin_prefetch(own + ahead + i);
        __builtin_prefetch(own + next + ahead + i);
        const Bin<T> b = bin<T>(levels[c][i / W], c == 0 ? mean : mean + load(shifts + c * pixels + i), raw, k);
        const Vec<T> first = (load(logits + i) - load(greatest + i)) * T(kLog2E), one = broadcast<T>(T(1));
        store(linear + i, b.linear + (c == 0 ? first : load(linear + i)));
        const Vec<T> divisor = b.near * b.far * (c == 0 ? one : load(divisors + i));
        const Vec<T> product = b.factor * (c == 0 ? one : load(factor + i));
        store(divisors + i, divisor);
        store(factor + i, c == C - 1 ? product / divisor : product);
        if constexpr (Gradient) {
          const Slopes<T> d = slopes<T>(b, raw, k);
          store(slope + i, d.mean);
          store(slope + step + i, d.log_scale);
          if (c == 1) store(derivative + 2 * step + i, d.mean * load(derivative + 2 * step + i));
          if (c == 2) {
            store(derivative + 5 * step + i, d.mean * load(derivative + 5 * step + i));
            store(derivative + 8 * step + i, d.mean * load(derivative + 8 * step + i));
          }
        }
      }
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
          const Vec<T> d = load(derivatives + (j * mixtures + m) * pixels + i);
          put(to + (1 + j) * mixtures * at.grad_plane, d * share, at.past_cache);
        }
      }
    }
  }
}

}  // namespace
}  // namespace EVIDENS_NAMESPACE
