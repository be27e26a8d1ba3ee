// Monotone rational-quadratic splines (Durkan et al. 2019, Neural Spline Flows, eq. 4-8): value and
// log-slope in one pass over the parameters, forward or inverse, and their gradients.
//
// A vector's lanes are elements (row, feature) in the order of memory.  The parameters of one
// element lie together, so a few of them for all lanes are transposed in registers; then the knots
// are summed up one after the other, and each lane keeps those of its own bin by a select: no branch
// and no gather.  Nothing is kept for the gradient, which starts from the inputs again.
#include "spline.h"

#include "kernels.h"
#include "transpose.h"

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

template <class T, int Map> struct Spline {
  typedef Vec<T> V;
  typedef Vec<Int<T>> I;
  static constexpr int W = width<T>;
  static constexpr bool knots = Map == evidens::kKnots, softmax = Map == evidens::kSoftmax;

  const SplineParams &p;
  T width_span, height_span;  // what the floors leave of a softmax

  explicit EVIDENS_METHOD Spline(const SplineParams &params) : p(params) {
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

  // --- blocks of rows ----------------------------------------------------------------------------

  struct Buffers {
    T *given, *out, *logdet;       // (elements), padded to whole vectors
    T *widths, *heights, *slopes;  // (count, lanes)
    T *kept;                       // (2 M, lanes)
  };
  static EVIDENS_METHOD int64_t padded(int64_t n) { return (n + W - 1) / W * W; }
  static int64_t scratch_bytes(int64_t rows, const SplineParams &p) {
    const int64_t columns = p.widths.count + p.heights.count + p.derivatives.count + 2 * p.bins;
    return int64_t(sizeof(T)) * (3 * padded(rows * p.active) + columns * W);
  }
  EVIDENS_METHOD Buffers buffers(int64_t rows, void *scratch) const {
    const int64_t n = padded(rows * p.active);
    Buffers b;
    b.given = static_cast<T *>(scratch), b.out = b.given + n, b.logdet = b.out + n;
    b.widths = b.logdet + n, b.heights = b.widths + p.widths.count * W;
    b.slopes = b.heights + p.heights.count * W, b.kept = b.slopes + p.derivatives.count * W;
    return b;
  }

  EVIDENS_METHOD bool everything() const { return p.index == nullptr && p.active == p.features; }
  // Active features of rows to a dense array, and back.
  EVIDENS_METHOD void take(const T *rows, int64_t n, T *out) const {
    if (everything()) {
      __builtin_memcpy(out, rows, uint64_t(n * p.active) * sizeof(T));
    } else {
      for (int64_t i = 0; i < n; ++i)
        for (int64_t a = 0; a < p.active; ++a) out[i * p.active + a] = rows[i * p.features + p.index[a]];
    }
    pad(n * p.active, out);
  }
  // The lanes beyond the last element repeat it: they write to its place what it writes.
  static EVIDENS_METHOD void pad(int64_t elements, T *out) {
    for (int64_t e = elements; e < padded(elements); ++e) out[e] = out[elements - 1];
  }
  EVIDENS_METHOD void put(const T *in, int64_t n, const T *others, T *rows) const {
    if (everything()) {
      __builtin_memcpy(rows, in, uint64_t(n * p.active) * sizeof(T));
      return;
    }
    if (others != nullptr) __builtin_memcpy(rows, others, uint64_t(n * p.features) * sizeof(T));
    else __builtin_memset(rows, 0, uint64_t(n * p.features) * sizeof(T));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t a = 0; a < p.active; ++a) rows[i * p.features + p.index[a]] = in[i * p.active + a];
  }

  // Where the lanes of a vector are: elements from `element` on, the last one repeated.
  struct Place { int64_t element, left; };
  EVIDENS_METHOD void pointers(const void *base, int64_t row, int64_t feature, const Place &place, T **lanes) const {
    T *first = static_cast<T *>(const_cast<void *>(base));
    if (row == p.active * feature) {  // records one after the other
      first += place.element * feature;
      for (int l = 0; l < W; ++l) lanes[l] = first + (l < place.left ? l : place.left - 1) * feature;
      return;
    }
    for (int l = 0; l < W; ++l) {
      const int64_t e = place.element + (l < place.left ? l : place.left - 1);
      lanes[l] = first + e / p.active * row + e % p.active * feature;
    }
  }
  EVIDENS_METHOD void read(const Place &place, const Buffers &b) const {
    const SplineGroup &w = p.widths, &h = p.heights, &d = p.derivatives;
    const T *first = static_cast<const T *>(w.values);
    T *lanes[W];
    pointers(first, w.row, w.feature, place, lanes);
    // Widths, heights and derivatives of an element are mostly one record.
    const bool record = w.row == h.row && w.feature == h.feature && first + w.count == h.values &&
                        (d.count == 0 || (w.row == d.row && w.feature == d.feature && first + 2 * w.count == d.values));
    gather_lanes<T>(record ? 2 * w.count + d.count : w.count, lanes, b.widths);
    if (record) return;
    pointers(h.values, h.row, h.feature, place, lanes);
    gather_lanes<T>(h.count, lanes, b.heights);
    if (d.count == 0) return;
    pointers(d.values, d.row, d.feature, place, lanes);
    gather_lanes<T>(d.count, lanes, b.slopes);
  }
  EVIDENS_METHOD void write(const Place &place, const Buffers &b) const {
    const SplineGroup &w = p.widths, &h = p.heights, &d = p.derivatives;
    T *first = static_cast<T *>(w.gradient), *lanes[W];
    pointers(first, w.to_row, w.to_feature, place, lanes);
    const bool record = w.to_feature == h.to_feature && first + w.count == h.gradient;
    scatter_lanes<T>(record ? 2 * w.count + d.count : w.count, b.widths, lanes);
    if (record) return;
    pointers(h.gradient, h.to_row, h.to_feature, place, lanes);
    scatter_lanes<T>(h.count, b.heights, lanes);
    if (d.count == 0) return;
    pointers(d.gradient, d.to_row, d.to_feature, place, lanes);
    scatter_lanes<T>(d.count, b.slopes, lanes);
  }

  EVIDENS_METHOD void describe(Lanes<T> &z, const Place &place) const {
    for (int l = 0; l < W; ++l) {
      const int64_t a = (place.element + (l < place.left ? l : place.left - 1)) % p.active;
      const int64_t f = !p.mixed ? 0 : p.index == nullptr ? a : p.index[a];
      const double *box = p.box + 4 * f;
      z.left[l] = T(box[0]), z.right[l] = T(box[1]), z.bottom[l] = T(box[2]), z.top[l] = T(box[3]);
      z.tails[l] = p.tails[f];
    }
  }

  template <bool Inverse> static void forward(int64_t begin, int64_t end, const SplineParams &p, void *scratch) {
    const Spline spline(p);
    const int64_t n = end - begin, elements = n * p.active;
    const Buffers b = spline.buffers(n, scratch);
    const T *x = static_cast<const T *>(p.x) + begin * p.features;
    spline.take(x, n, b.given);
    Lanes<T> z = {};
    z.widths = b.widths, z.heights = b.heights, z.slopes = b.slopes;
    z.kept_widths = z.kept_heights = nullptr;
    for (int64_t e = 0; e < elements; e += W) {
      const Place place = {begin * p.active + e, elements - e};
      if (e == 0 || p.mixed) spline.describe(z, place);
      spline.read(place, b);
      const V original = load(b.given + e);
      Lanes<T> here = z;
      here.given = original;
      spline.template find<Inverse>(here);
      V logdet;
      const V out = spline.template value<Inverse>(here, original, spline.template evaluate<Inverse>(here), logdet);
      store(b.out + e, out);
      store(b.logdet + e, logdet);
    }
    spline.put(b.out, n, x, static_cast<T *>(p.y) + begin * p.features);
    T *logdet = static_cast<T *>(p.logdet);
    if (!p.per_row) {
      __builtin_memcpy(logdet + begin * p.active, b.logdet, uint64_t(elements) * sizeof(T));
      return;
    }
    for (int64_t i = 0; i < n; ++i) {
      const T *terms = b.logdet + i * p.active;
      const int64_t whole = p.active / width<double> * width<double>;
      double sum = sum_in_double(terms, whole);
      for (int64_t a = whole; a < p.active; ++a) sum += double(terms[a]);
      logdet[begin + i] = T(sum);
    }
  }

  // --- gradients ---------------------------------------------------------------------------------

  static EVIDENS_METHOD V moved(int64_t j, V upper, V both, I bin) {
    return bin > Int<T>(j) ? both : (bin == Int<T>(j) ? upper : V{});
  }
  // From the gradient of the corners to that of the logits: a softmax over the bins, of which those
  // below the lane's bin move both edges and the bin itself the upper one.
  EVIDENS_METHOD void logits(T *v, const T *kept, V sum, V range, V lower, V upper, I bin) const {
    const V both = lower + upper, per_sum = T(1) / sum, scale = range * T(p.logit_scale);
    V mean = {};
    for (int64_t j = 0; j < p.bins; ++j) {
      const V share = load(v + j * W) * per_sum;
      mean += share * moved(j, upper, both, bin);
      store(v + j * W, share);
    }
    for (int64_t j = 0; j < p.bins; ++j) {
      V g = scale * load(v + j * W) * (moved(j, upper, both, bin) - mean);
      if (!softmax) g *= load(kept + j * W) * load(kept + j * W);
      store(v + j * W, g);
    }
  }

  template <bool Inverse> static void backward(int64_t begin, int64_t end, const SplineParams &p, void *scratch) {
    const Spline spline(p);
    const int64_t n = end - begin, elements = n * p.active;
    const Buffers b = spline.buffers(n, scratch);
    const T *slopes_in = static_cast<const T *>(p.grad_y), *logdets_in = static_cast<const T *>(p.grad_logdet);
    if (slopes_in != nullptr) slopes_in += begin * p.features;
    if (slopes_in != nullptr) spline.take(slopes_in, n, b.out);
    else __builtin_memset(b.out, 0, uint64_t(padded(elements)) * sizeof(T));
    spline.take(static_cast<const T *>(p.x) + begin * p.features, n, b.given);
    spline.spread(logdets_in, begin, n, b.logdet);
    Lanes<T> z = {};
    z.widths = b.widths, z.heights = b.heights, z.slopes = b.slopes;
    z.kept_widths = b.kept, z.kept_heights = b.kept + p.bins * W;
    for (int64_t e = 0; e < elements; e += W) {
      const Place place = {begin * p.active + e, elements - e};
      if (e == 0 || p.mixed) spline.describe(z, place);
      spline.read(place, b);
      const V original = load(b.given + e);
      Lanes<T> here = z;
      here.given = original;
      spline.template find<Inverse>(here);
      const V slope = spline.template gradient<Inverse>(here, original, load(b.out + e), load(b.logdet + e));
      store(b.out + e, slope);
      spline.write(place, b);
    }
    spline.put(b.out, n, slopes_in, static_cast<T *>(p.grad_x) + begin * p.features);
  }
  EVIDENS_METHOD void spread(const T *in, int64_t begin, int64_t n, T *out) const {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t a = 0; a < p.active; ++a)
        out[i * p.active + a] = in == nullptr ? T(0) : in[p.per_row ? begin + i : (begin + i) * p.active + a];
    pad(n * p.active, out);
  }

  // Gradient in what was given; those of the parameters replace them in the buffers.
  template <bool Inverse>
  EVIDENS_METHOD V gradient(Lanes<T> &z, V original, V by_value, V by_logdet) const {
    const Inside e = evaluate<Inverse>(z);
    const I outside = z.below | z.above | (original != original), bounded = z.tails == Int<T>(evidens::kNoTails);
    const V theta = e.theta, rest = e.rest, both = theta * rest, turn = rest - theta;
    const V curve = (e.d0 - e.s) + (e.d1 - e.s);
    const V per_den = e.per_den, per_q = T(1) / e.q, per_w = e.per_w;
    const V q_theta = T(2) * (e.d1 * theta + e.s * turn - e.d0 * rest);
    // a multiplies dy, l multiplies d log(slope), at fixed x
    V a = by_value, l = by_logdet, passed = by_value;
    if (Inverse) {
      const V log_slope_x = (q_theta * per_q - T(2) * curve * turn * per_den) * per_w;
      const V limit = broadcast<T>(sizeof(T) == 8 ? T(0x1p500) : T(0x1p60));  // where the slope is next to nothing
      passed = clamp<T>((by_value - by_logdet * log_slope_x) / e.slope, -limit, limit);
      a = -passed, l = -by_logdet;
    }
    a = outside ? V{} : a;
    l = outside ? V{} : l;
    const V share = e.below * per_den;
    const V by_below = a * e.h * per_den, by_den = -(by_below * share + T(2) * l * per_den), by_q = l * per_q;
    V by_s = T(2) * l / e.s + T(2) * by_q * both + by_den * (T(1) - T(2) * both) + by_below * theta * theta;
    V by_d0 = by_q * rest * rest + (by_den + by_below) * both;
    V by_d1 = by_q * theta * theta + by_den * both;
    const V by_theta = by_q * q_theta + by_den * curve * turn + by_below * (T(2) * e.s * theta + e.d0 * turn);
    const V by_h = a * share + by_s * per_w, by_w = -(by_s * e.s + by_theta * theta) * per_w;
    const V by_x = by_theta * per_w;
    V x0 = -by_x - by_w, x1 = by_w, y0 = a - by_h, y1 = by_h;
    V given = Inverse ? passed : by_x;
    given = outside ? (bounded ? V{} : by_value) : given;
    if (knots)
      lines<Inverse>(z, original, e, by_value, by_logdet, outside & ~bounded, given, x0, x1, y0, y1, by_d0, by_d1);
    // What overflows on the way is held; NaN that came in goes out.
    const I sound = abs<T>(by_value) + abs<T>(by_logdet) + e.slope <= Float<T>::largest;
    V *const all[] = {&given, &x0, &x1, &y0, &y1, &by_d0, &by_d1};
    for (V *g : all) {
      const V limit = broadcast<T>(sizeof(T) == 8 ? T(0x1p1000) : T(0x1p100)), held = clamp<T>(*g, -limit, limit);
      *g = sound ? (held == held ? held : V{}) : *g;
    }
    given = original == original ? given : original;
    slopes(z, e, by_d0, by_d1);
    corners(z, x0, x1, z.widths, z.kept_widths, z.width_sum, (z.right - z.left) * (softmax ? width_span : T(1)));
    corners(z, y0, y1, z.heights, z.kept_heights, z.height_sum, (z.top - z.bottom) * (softmax ? height_span : T(1)));
    return given;
  }
  // The straight lines outside given knots.
  template <bool Inverse>
  EVIDENS_METHOD void lines(const Lanes<T> &z, V original, const Inside &e, V by_value, V by_logdet, I here, V &given,
                            V &x0, V &x1, V &y0, V &y1, V &d0, V &d1) const {
    // An infinite excursion has no gradient in the slope.
    const V slope = z.below ? e.d0 : e.d1, way = original - z.given;
    const V step = abs<T>(way) <= Float<T>::largest ? way : V{};
    const V a = Inverse ? -by_value / slope : by_value, l = Inverse ? -by_logdet : by_logdet;
    const V x_step = Inverse ? step / slope : step;
    const V at_x = -a * slope, at_y = a, at_d = a * x_step + l / slope;
    const I low = here & z.below, high = here & z.above;
    given = here ? (Inverse ? -a : a * slope) : given;
    x0 = low ? at_x : x0, y0 = low ? at_y : y0, d0 = low ? at_d : d0;
    x1 = high ? at_x : x1, y1 = high ? at_y : y1, d1 = high ? at_d : d1;
  }
  EVIDENS_METHOD void slopes(const Lanes<T> &z, const Inside &e, V by_d0, V by_d1) const {
    const V held = broadcast<T>(steepest<T>);
    by_d0 = z.one0 | (e.d0 >= held) ? V{} : slope_gradient(z.raw0, e.d0, by_d0);
    by_d1 = z.one1 | (e.d1 >= held) ? V{} : slope_gradient(z.raw1, e.d1, by_d1);
    const I last = z.bin == Int<T>(p.bins - 1), circular = z.tails == Int<T>(evidens::kCircular);
    const I wraps = knots ? I{} : last & circular;
    for (int64_t at = 0; at < p.derivatives.count; ++at) {
      const Int<T> k = Int<T>(at + p.first_slope);
      V g = (z.bin == k ? by_d0 : V{}) + ((z.bin == k - 1) & ~wraps ? by_d1 : V{});
      if (k == 0) g += wraps ? by_d1 : V{};
      store(z.slopes + at * W, g);
    }
  }
  EVIDENS_METHOD void corners(const Lanes<T> &z, V lower, V upper, T *v, const T *kept, V sum, V range) const {
    if (knots) {
      for (int64_t k = 0; k <= p.bins; ++k)
        store(v + k * W, (z.bin == Int<T>(k) ? lower : V{}) + (z.bin == Int<T>(k - 1) ? upper : V{}));
      return;
    }
    upper = z.bin == Int<T>(p.bins - 1) ? V{} : upper;  // the ends are the bounds
    lower = z.bin == Int<T>(0) ? V{} : lower;
    logits(v, kept, sum, range, lower, upper, z.bin);
  }
};

template <class T> int64_t scratch_bytes(int64_t rows, const SplineParams &p) {
  return Spline<T, evidens::kKnots>::scratch_bytes(rows, p);
}
template <class T, int Map, bool Inverse>
void run(bool backward, int64_t begin, int64_t end, const SplineParams &p, void *scratch) {
  if (backward) Spline<T, Map>::template backward<Inverse>(begin, end, p, scratch);
  else Spline<T, Map>::template forward<Inverse>(begin, end, p, scratch);
}
template <class T, bool Backward> void run(int64_t begin, int64_t end, const SplineParams &p, void *scratch) {
  using evidens::kKnots, evidens::kSoftmax, evidens::kSoftClip;
  if (p.inverse) {
    if (p.map == kKnots) run<T, kKnots, true>(Backward, begin, end, p, scratch);
    else if (p.map == kSoftmax) run<T, kSoftmax, true>(Backward, begin, end, p, scratch);
    else run<T, kSoftClip, true>(Backward, begin, end, p, scratch);
  } else {
    if (p.map == kKnots) run<T, kKnots, false>(Backward, begin, end, p, scratch);
    else if (p.map == kSoftmax) run<T, kSoftmax, false>(Backward, begin, end, p, scratch);
    else run<T, kSoftClip, false>(Backward, begin, end, p, scratch);
  }
}

}  // namespace

extern const evidens::SplineKernel spline[2];
constexpr evidens::SplineKernel spline[2] = {
    {scratch_bytes<float>, run<float, false>, run<float, true>},
    {scratch_bytes<double>, run<double, false>, run<double, true>},
};

}  // namespace EVIDENS_NAMESPACE
