// The bins of rational-quadratic splines in lanes: from parameters to the bin of every lane, and the
// value and log-slope inside and outside of it.
#pragma once
#include "simd.h"
#include "spline.h"

namespace EVIDENS_NAMESPACE {
namespace {

using evidens::SplineGroup;
using evidens::SplineParams;

// Slopes are held to where their squares and quotients stay finite.
template <class T> constexpr T steepest = sizeof(T) == 8 ? T(0x1p255) : T(0x1p31);
template <class T> constexpr T thinnest = sizeof(T) == 8 ? T(0x1p-340) : T(0x1p-42);  // size of a bin

// `max` and `min` give their second argument where the first compares false: NaN stays there.
template <class T> EVIDENS_INLINE Vec<T> clamp(Vec<T> x, Vec<T> low, Vec<T> high) {
  return min<T>(high, max<T>(low, x));
}

// The parameters of one vector of elements, and the bin of each lane.
template <class T> struct Lanes {
  Vec<T> left, right, bottom, top;
  Vec<Int<T>> tails;
  Vec<T> given;                   // x, or y when inverse
  T *widths, *heights, *slopes;   // (count, lanes): as they are stored, then exponentials, gradients
  T *kept_widths, *kept_heights;  // (M, lanes) for the gradient of the soft clip, or null
  Vec<T> width_sum, height_sum;   // of the exponentials
  Vec<T> x0, x1, y0, y1, raw0, raw1;
  Vec<Int<T>> bin;
  Vec<Int<T>> below, above;
  Vec<Int<T>> one0, one1;  // the slope at this end of the bin is 1, not a parameter
};

template <class T, int Map> struct SplineBins {
  typedef Vec<T> V;
  typedef Vec<Int<T>> I;
  static constexpr int W = width<T>;
  static constexpr bool knots = Map == evidens::kKnots, softmax = Map == evidens::kSoftmax;

  const SplineParams &p;
  T width_span, height_span;  // what the floors leave of a softmax

  explicit EVIDENS_METHOD SplineBins(const SplineParams &params) : p(params) {
    width_span = T(1 - p.min_width * double(p.bins));
    height_span = T(1 - p.min_height * double(p.bins));
  }

  // --- parameters to bins ------------------------------------------------------------------------

  // Logits become exponentials in place; their sum is returned.  `kept`, where given, gets the square
  // root of the slope of the soft clip.
  EVIDENS_METHOD V exponentials(T *v, T *kept) const {
    V sum = {};
    if (softmax) {
      const T scale = T(p.logit_scale) * Float<T>::log2e;
      const V lowest = broadcast<T>(T(1 - Float<T>::bias));
      V most = load(v);
      for (int64_t j = 1; j < p.bins; ++j) most = max<T>(most, load(v + j * W));
      for (int64_t j = 0; j < p.bins; ++j) {
        const V e = exp2_normal<T>(max<T>(lowest, (load(v + j * W) - most) * scale));
        store(v + j * W, e);
        sum += e;
      }
    } else {
      const T scale = T(p.logit_scale), bend = T(-2 / p.log_slope);  // the clip keeps within 1 / bend
      for (int64_t j = 0; j < p.bins; ++j) {
        const V l = load(v + j * W) * scale;
        const V share = T(1) / (T(1) + abs<T>(l) * bend), e = exp2_normal<T>(l * share * Float<T>::log2e);
        store(v + j * W, e);
        if (kept != nullptr) store(kept + j * W, share);
        sum += e;
      }
    }
    return sum;
  }

  EVIDENS_METHOD V slope_of(V raw) const {
    if (knots) return clamp<T>(raw, broadcast<T>(1 / steepest<T>), broadcast<T>(steepest<T>));
    V d;
    if (softmax) {
      // softplus, whose tail below 2^-bias does not count beside a floor
      const V z = raw * T(p.beta), t = max<T>(broadcast<T>(T(1 - Float<T>::bias)), -abs<T>(z) * Float<T>::log2e);
      d = T(p.min_derivative) + (max<T>(z, V{}) + log1p_unit<T>(exp2_normal<T>(t))) * T(1 / p.beta);
    } else d = exp<T>(raw / (T(1) + abs<T>(raw) * T(-1 / p.log_slope)));
    return clamp<T>(d, broadcast<T>(1 / steepest<T>), broadcast<T>(steepest<T>));
  }
  // Its derivative by the parameter, times g.
  EVIDENS_METHOD V slope_gradient(V raw, V d, V g) const {
    if (knots) return g;
    if (softmax) return g / (T(1) + exp<T>(-raw * T(p.beta)));
    const V bent = T(1) + abs<T>(raw) * T(-1 / p.log_slope);
    return g * d / (bent * bent);
  }

  EVIDENS_METHOD V edge(const T *stored, V from, V step, V floor, V end, int64_t k) const {  // knot k
    if (knots) return load(stored + k * W);
    return k == p.bins ? end : from + (floor + step * load(stored + (k - 1) * W));
  }

  EVIDENS_METHOD V slope_at(const Lanes<T> &z, int64_t knot) const {  // as stored; 0 where it is not
    const int64_t at = knot - p.first_slope;
    return at < 0 || at >= p.derivatives.count ? V{} : load(z.slopes + at * W);
  }

  // Finds the bin of every lane.
  template <bool Inverse> EVIDENS_METHOD void find(Lanes<T> &z) const {
    const int64_t m = p.bins;
    V wide = {}, high = {}, wide_floor = {}, high_floor = {};
    if (!knots) {
      z.width_sum = exponentials(z.widths, z.kept_widths);
      z.height_sum = exponentials(z.heights, z.kept_heights);
      const V range_x = z.right - z.left, range_y = z.top - z.bottom;
      wide = range_x * (softmax ? width_span : T(1)) / z.width_sum;
      high = range_y * (softmax ? height_span : T(1)) / z.height_sum;
      if (softmax) wide_floor = range_x * T(p.min_width), high_floor = range_y * T(p.min_height);
    } else {
      z.left = load(z.widths), z.right = load(z.widths + m * W);
      z.bottom = load(z.heights), z.top = load(z.heights + m * W);
    }
    const V low = Inverse ? z.bottom : z.left, up = Inverse ? z.top : z.right;
    z.below = z.given < low;
    z.above = z.given > up;
    const V given = clamp<T>(z.given == z.given ? z.given : low, low, up);
    const V first = slope_at(z, 0);
    const V last = knots ? slope_at(z, m) : z.tails == Int<T>(evidens::kCircular) ? first : slope_at(z, m);
    V x = z.left, y = z.bottom, raw = m == 1 ? last : slope_at(z, 1);
    V next_x = edge(z.widths, x, wide, wide_floor, z.right, 1), next_y = edge(z.heights, y, high, high_floor, z.top, 1);
    z.x0 = x, z.y0 = y, z.x1 = next_x, z.y1 = next_y, z.raw0 = first, z.raw1 = raw;
    z.bin = I{};
    for (int64_t k = 1; k < m; ++k) {
      x = next_x, y = next_y;
      next_x = edge(z.widths, x, wide, wide_floor, z.right, k + 1);
      next_y = edge(z.heights, y, high, high_floor, z.top, k + 1);
      const V next = k + 1 == m ? last : slope_at(z, k + 1);
      const I here = Inverse ? given >= y : given >= x;
      z.x0 = here ? x : z.x0, z.x1 = here ? next_x : z.x1;
      z.y0 = here ? y : z.y0, z.y1 = here ? next_y : z.y1;
      z.raw0 = here ? raw : z.raw0, z.raw1 = here ? next : z.raw1;
      z.bin -= here;
      raw = next;
    }
    const I linear = z.tails == Int<T>(evidens::kLinear), none = {};
    z.one0 = knots ? none : linear & (z.bin == Int<T>(0));
    z.one1 = knots || p.last_stored ? none : linear & (z.bin == Int<T>(m - 1));
    z.given = given;
  }

  // --- inside a bin ------------------------------------------------------------------------------

  struct Inside {
    V theta, rest;  // where in the bin, from its lower and from its upper end
    V w, h, s, d0, d1;
    V below, den, q;  // y = y0 + h below / den, slope = (s / den)^2 q; sums of positive terms
    V per_w, per_den;
    V value, slope;  // of the way taken; of the spline
  };
  template <bool Inverse> EVIDENS_METHOD Inside evaluate(const Lanes<T> &z) const {
    Inside e;
    const V steep = broadcast<T>(steepest<T>), flat = broadcast<T>(1 / steepest<T>), one = broadcast<T>(T(1));
    const V thin = broadcast<T>(thinnest<T>);
    e.w = max<T>(thin, z.x1 - z.x0);
    e.h = max<T>(thin, z.y1 - z.y0);
    e.per_w = one / e.w;
    e.s = clamp<T>(e.h * e.per_w, flat, steep);
    e.d0 = z.one0 ? one : slope_of(z.raw0);
    e.d1 = z.one1 ? one : slope_of(z.raw1);
    if (Inverse) {
      // The root of a parabola; where it lies in the upper half it is taken from the other end, so
      // that nothing cancels.
      const V up = min<T>(one, (z.given - z.y0) / e.h), down = one - up, p = e.d0 * down - e.d1 * up;
      const V q = abs<T>(p) + sqrt<T>(p * p + T(4) * e.s * e.s * (up * down));
      const I rising = p >= T(0);
      const V near = T(2) * e.s * (rising ? up : down);
      e.theta = (rising ? near : q) / (near + q);
      e.rest = (rising ? q : near) / (near + q);
    } else {
      e.theta = min<T>(one, (z.given - z.x0) / e.w);  // 1 at the upper knot
      e.rest = one - e.theta;
    }
    const V both = e.theta * e.rest;
    e.below = e.s * e.theta * e.theta + e.d0 * both;
    e.den = e.below + (e.s * e.rest * e.rest + e.d1 * both);
    e.q = e.d1 * e.theta * e.theta + T(2) * e.s * both + e.d0 * e.rest * e.rest;
    e.per_den = one / e.den;
    const V ratio = e.s * e.per_den;
    e.slope = ratio * (ratio * e.q);
    const V end = Inverse ? z.x1 : z.y1;
    const V inner = Inverse ? z.x0 + e.theta * (z.x1 - z.x0) : z.y0 + (z.y1 - z.y0) * (e.below * e.per_den);
    e.value = e.theta >= one ? end : min<T>(end, inner);
    return e;
  }

  // Value and log-slope of the direction taken, tails included.
  template <bool Inverse> EVIDENS_METHOD V value(const Lanes<T> &z, V original, const Inside &e, V &logdet) const {
    V out = e.value;
    const V log_slope = log_normal<T>(e.slope);
    logdet = Inverse ? -log_slope : log_slope;
    const I outside = z.below | z.above, bounded = z.tails == Int<T>(evidens::kNoTails);
    if (knots) {
      const V slope = z.below ? e.d0 : e.d1, step = original - z.given;  // infinite where x is
      const V ends = Inverse ? (z.below ? z.left : z.right) : (z.below ? z.bottom : z.top);
      const V line = ends + (Inverse ? step / slope : step * slope), log_end = log<T>(slope);
      out = outside & ~bounded ? line : out;
      logdet = outside & ~bounded ? (Inverse ? -log_end : log_end) : logdet;
    } else {
      out = outside & ~bounded ? original : out;
      logdet = outside & ~bounded ? V{} : logdet;
    }
    if (p.mixed || p.tails[0] == evidens::kNoTails) {
      // Nothing lies outside but what rounding has moved there.
      const V range = Inverse ? z.top - z.bottom : z.right - z.left;
      const I far = abs<T>(original - z.given) > range * T(sizeof(T) == 8 ? 1e-12 : 1e-5);
      logdet = outside & bounded & far ? broadcast<T>(T(-__builtin_inf())) : logdet;
    }
    logdet = original == original ? logdet : original;
    return original == original ? out : original;
  }
};

}  // namespace
}  // namespace EVIDENS_NAMESPACE
