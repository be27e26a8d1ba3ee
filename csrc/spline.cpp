// Monotone rational-quadratic splines (Durkan et al. 2019, Neural Spline Flows, eq. 4-8): value and
// log-slope in one pass over the parameters, forward or inverse, and their gradients.
//
// A vector's lanes are elements (row, feature) in the order of memory.  The parameters of one
// element lie together, so a few of them for all lanes are transposed in registers; then the knots
// are summed up one after the other, and each lane keeps those of its own bin by a select: no branch
// and no gather.  Nothing is kept for the gradient, which starts from the inputs again.
#include "spline.h"

#include "kernels.h"
#include "spline_bins.h"
#include "transpose.h"

namespace EVIDENS_NAMESPACE {
namespace {

template <class T, int Map> struct Spline : SplineBins<T, Map> {
  typedef SplineBins<T, Map> Bins;
  typedef typename Bins::V V;
  typedef typename Bins::I I;
  typedef typename Bins::Inside Inside;
  using Bins::Bins;
  using Bins::p, Bins::W, Bins::knots, Bins::softmax, Bins::width_span, Bins::height_span;
  using Bins::slope_gradient;

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
    gather_lanes(record ? 2 * w.count + d.count : w.count, lanes, b.widths, W);
    if (record) return;
    pointers(h.values, h.row, h.feature, place, lanes);
    gather_lanes(h.count, lanes, b.heights, W);
    if (d.count == 0) return;
    pointers(d.values, d.row, d.feature, place, lanes);
    gather_lanes(d.count, lanes, b.slopes, W);
  }
  EVIDENS_METHOD void write(const Place &place, const Buffers &b) const {
    const SplineGroup &w = p.widths, &h = p.heights, &d = p.derivatives;
    T *first = static_cast<T *>(w.gradient), *lanes[W];
    pointers(first, w.to_row, w.to_feature, place, lanes);
    const bool record = w.to_feature == h.to_feature && first + w.count == h.gradient;
    scatter_lanes(record ? 2 * w.count + d.count : w.count, b.widths, W, lanes);
    if (record) return;
    pointers(h.gradient, h.to_row, h.to_feature, place, lanes);
    scatter_lanes(h.count, b.heights, W, lanes);
    if (d.count == 0) return;
    pointers(d.gradient, d.to_row, d.to_feature, place, lanes);
    scatter_lanes(d.count, b.slopes, W, lanes);
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
    const Inside e = this->template evaluate<Inverse>(z);
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
    by_d0 = (z.one0 | (e.d0 >= held)) ? V{} : slope_gradient(z.raw0, e.d0, by_d0);
    by_d1 = (z.one1 | (e.d1 >= held)) ? V{} : slope_gradient(z.raw1, e.d1, by_d1);
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
