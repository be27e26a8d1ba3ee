// Annealed importance sampling of restricted Boltzmann machines.
//
// A rung is a half step for the hidden units, whose inputs also give the weight, and one for the
// visible ones.  Chains do not meet, so a block of them goes through all rungs while its states are
// in the cache.
#include "rbm_partition.h"

#include "kernels.h"
#include "rbm_product.h"
#include "rbm_units.h"

namespace EVIDENS_NAMESPACE {
namespace {

using evidens::RbmAnnealing;
using evidens::RbmLayer;
using evidens::RbmParams;

template <class T> constexpr int64_t whole(int64_t units) { return panels_of(units, kPanel<T>) * kPanel<T>; }

// softplus(after x) - softplus(before x), summed over a panel, and q = sigmoid(after x).  With s =
// (before - after) x a term is -log(1 + q (exp(s) - 1)), in which nothing cancels; while all s are
// small, one logarithm serves the panel.  Where one is large it is the difference of the parts of
// softplus.
template <class T> EVIDENS_INLINE Vec<T> gain(const Vec<T> (&x)[kOuterVectors], T before, T after, Vec<T> *q) {
  constexpr T near = T(0.34);  // within it 1 + q (exp(s) - 1) has no exponent to split off
  const T step = before - after;
  Vec<T> most = {}, rest = {};  // 1 + rest is the product
#pragma GCC unroll 4
  for (int v = 0; v < kOuterVectors; ++v) {
    const Vec<T> s = x[v] * step;
    q[v] = sigmoid<T>(x[v] * after);
    const Vec<T> factor = q[v] * expm1_reduced<T>(s);
    rest = rest + (factor + factor * rest);
    most = max<T>(most, abs<T>(s));
  }
  if (greatest<T>(most) < near / kOuterVectors) return -log_reduced<T>(rest, Vec<T>{});
  Vec<T> sum = {};
  for (int v = 0; v < kOuterVectors; ++v) {
    const Vec<T> a = abs<T>(x[v]), s = x[v] * step;
    const Vec<T> close = -log_reduced<T>(q[v] * expm1_reduced<T>(s), Vec<T>{});
    const Vec<T> far = log1p_unit<T>(exp<T>(-a * after)) - log1p_unit<T>(exp<T>(-a * before));
    sum += abs<T>(s) < near ? close : far - max<T>(x[v], Vec<T>{}) * step;
  }
  return sum;
}

template <class T> struct Chains {
  const RbmParams &p;
  const RbmAnnealing &a;
  int64_t first, rows;
  ProductScratch<T> product;
  RbmParams stream;   // of this block: rows from 0
  T *v, *h;           // (rows, V), (rows, J)
  T *field;           // (V, whole panels) bias of the rung, then as many ones
  T *slope, *middle;  // (V,) of the weight's part that is linear in v
  T *lanes;           // (rows, width) sums of gains
  T *groups;          // scratch of softmax groups

  static int64_t most(const RbmParams &p) {
    return p.visible.units > p.hidden.units ? p.visible.units : p.hidden.units;
  }
  static int64_t elements(const RbmParams &p, int64_t rows) {
    const int64_t visible = p.visible.units, hidden = p.hidden.units;
    const int64_t of_chain = visible + hidden + width<T>;
    return rows * of_chain + 2 * (whole<T>(visible) + visible) + Units<T>::scratch_elements(p.visible);
  }
  static int64_t product_bytes(const RbmParams &p, int64_t rows) {
    return (ProductScratch<T>::bytes(rows, most(p)) + 63) / 64 * 64;
  }
  static int64_t bytes(const RbmParams &p, int64_t rows) {
    return product_bytes(p, rows) + elements(p, rows) * int64_t(sizeof(T));
  }

  Chains(int64_t begin, int64_t end, const RbmParams &params, const RbmAnnealing &annealing, void *scratch)
      : p(params), a(annealing), first(begin), rows(end - begin), product(scratch, rows, most(p)), stream(p) {
    const int64_t visible = p.visible.units;
    T *next = reinterpret_cast<T *>(static_cast<char *>(scratch) + product_bytes(p, rows));
    const auto take = [&next](int64_t count) { return (next += count) - count; };
    lanes = take(rows * width<T>), field = take(2 * whole<T>(visible));
    v = take(rows * visible), h = take(rows * p.hidden.units), slope = take(visible), middle = take(visible);
    groups = next;
    stream.row0 += first;
    const T *const b = static_cast<const T *>(p.visible.bias), *const start = static_cast<const T *>(a.base_bias);
    const bool gaussian = p.visible.kind == evidens::kGaussianUnits;
    for (int64_t i = 0; i < visible; ++i) {
      slope[i] = b[i] - start[i];
      middle[i] = gaussian ? T(0.5) * (b[i] + start[i]) : T(0);
    }
    for (int64_t i = 0; i < 2 * whole<T>(visible); ++i) field[i] = i < whole<T>(visible) ? T(0) : T(1);
  }

  // Visible units of the model at `at`; from the base model, at 0, without a look at the hidden units.
  template <int Kind> void draw_visible(double at, uint32_t step) {
    constexpr int W = width<T>;
    const T now = T(at), before = T(1 - at);
    const T *const b = static_cast<const T *>(p.visible.bias), *const start = static_cast<const T *>(a.base_bias);
    for (int64_t i = 0; i < p.visible.units; ++i) field[i] = before * start[i] + now * b[i];
    const Units<T> units(stream, p.visible, field, 0, v, nullptr, step);
    T scaled[kPanel<T>] = {};
    if (at == 0) {
      for (int64_t n = 0; n < rows; ++n)
        for (int64_t unit = 0; unit < p.visible.units; unit += kPanel<T>) units.template panel<Kind>(n, unit, scaled);
    } else {
      multiply(h, p.hidden.units, rows, p.hidden.units, static_cast<const T *>(p.visible.packed),
               p.hidden.units * kPanel<T>, p.visible.units, product, [&](int64_t n, int64_t unit, const T *sums) {
                 for (int c = 0; c < kPanel<T>; c += W) store(scaled + c, load(sums + c) * now);
                 units.template panel<Kind>(n, unit, scaled);
               });
    }
    if constexpr (Kind == evidens::kSoftmaxUnits) units.finish(rows, groups);
  }

  // What p_after gains on p_before at v, and hidden units of the model at `after`.
  void draw_hidden(double before, double after, uint32_t step) {
    constexpr int W = width<T>;
    const T *const bias = static_cast<const T *>(p.hidden.packed) + whole<T>(p.hidden.units) * p.visible.units;
    for (int64_t i = 0; i < rows * W; ++i) lanes[i] = T(0);
    const PhiloxColumns<T> columns(p.seed, step);
    multiply(v, p.visible.units, rows, p.visible.units, static_cast<const T *>(p.hidden.packed),
             p.visible.units * kPanel<T>, p.hidden.units, product, [&](int64_t n, int64_t unit, const T *sums) {
               Vec<T> x[kOuterVectors], q[kOuterVectors], u[2];
#pragma GCC unroll 4
               for (int c = 0; c < kOuterVectors; ++c) x[c] = load(sums + c * W) + load(bias + unit + c * W);
               T *const lane = lanes + n * W;
               store(lane, load(lane) + gain<T>(x, T(before), T(after), q));
#pragma GCC unroll 2
               for (int c = 0; c < kOuterVectors; c += 2) {
                 const int64_t at = unit + c * W, left = p.hidden.units - at;
                 if (left <= 0) break;
                 columns.uniforms(uint64_t(stream.row0 + n), at, u);
                 for (int i = 0; i < 2 && left > i * W; ++i)
                   Units<T>::put(h + n * p.hidden.units + at + i * W, u[i] < q[c + i] ? broadcast<T>(T(1)) : Vec<T>{},
                                 left - i * W);
               }
             });
    for (int64_t n = 0; n < rows; ++n)
      a.log_weights[first + n] += sum_in_double(lanes + n * W, W) + (after - before) * linear(v + n * p.visible.units);
  }

  double linear(const T *state) const {
    constexpr int W = width<T>;
    const int64_t units = p.visible.units;
    Vec<T> sum = {};
    int64_t i = 0;
    for (; i + W <= units; i += W) sum += (load(state + i) - load(middle + i)) * load(slope + i);
    T ends[W];
    store(ends, sum);
    double total = sum_in_double(ends, W);
    for (; i < units; ++i) total += double((state[i] - middle[i]) * slope[i]);
    return total;
  }

  template <int Kind> void run() {
    for (int64_t n = 0; n < rows; ++n) a.log_weights[first + n] = 0;
    draw_visible<Kind>(0, 1);
    for (int64_t k = 1; k <= a.rungs; ++k) {
      draw_hidden(a.beta[k - 1], a.beta[k], uint32_t(2 * k));
      if (k < a.rungs) draw_visible<Kind>(a.beta[k], uint32_t(2 * k + 1));
    }
  }
};

template <class T> int64_t scratch_bytes(const RbmParams &p, int64_t rows) { return Chains<T>::bytes(p, rows); }

template <class T>
void run(int64_t begin, int64_t end, const RbmParams &p, const RbmAnnealing &a, void *scratch) {
  using namespace evidens;
  Chains<T> chains(begin, end, p, a, scratch);
  if (p.visible.kind == kGaussianUnits) chains.template run<kGaussianUnits>();
  else if (p.visible.kind == kSoftmaxUnits) chains.template run<kSoftmaxUnits>();
  else chains.template run<kBernoulliUnits>();
}

}  // namespace

extern const evidens::RbmAnnealingKernel rbm_annealing[2];
constexpr evidens::RbmAnnealingKernel rbm_annealing[2] = {{scratch_bytes<float>, run<float>},
                                                          {scratch_bytes<double>, run<double>}};

}  // namespace EVIDENS_NAMESPACE
