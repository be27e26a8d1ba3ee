// Restricted Boltzmann machines: Gibbs chains, free energies, sums of the gradient.
//
// Rows do not meet, so a block of rows goes through all its steps while its states are in the cache.
#include "rbm.h"

#include "kernels.h"
#include "rbm_product.h"
#include "rbm_sums.h"
#include "rbm_units.h"

namespace EVIDENS_NAMESPACE {
namespace {

using evidens::RbmLayer;
using evidens::RbmParams;
using evidens::RbmSums;

// Panels, bias, scale.
template <class T> int64_t packed_elements(int64_t depth, int64_t units) { return padded<T>(units) * (depth + 2); }
template <class T> T *packed_bias(const RbmLayer &l) {
  return static_cast<T *>(l.packed) + padded<T>(l.units) * l.depth;
}

template <class T> void pack(int64_t begin, int64_t end, const RbmParams &p, bool hidden) {
  const RbmLayer &l = hidden ? p.hidden : p.visible;
  const T *const weight = static_cast<const T *>(p.weight), *const precision = static_cast<const T *>(p.precision);
  for (int64_t k = begin; k < end; ++k) {
    const int64_t first = k * kPanel<T>, units = l.units - first < kPanel<T> ? l.units - first : kPanel<T>;
    T *const out = static_cast<T *>(l.packed) + first * l.depth;
    if (hidden) {
      transpose_in(weight + first * l.depth, l.depth, int64_t(1), units, l.depth, kPanel<T>, out);
      if (precision != nullptr) pack_columns(out, kPanel<T>, kPanel<T>, l.depth, precision, out);
    } else {
      pack_columns(weight + first, l.units, units, l.depth, static_cast<const T *>(nullptr), out);
    }
    T *const bias = packed_bias<T>(l) + first, *const scale = bias + padded<T>(l.units);
    for (int64_t i = 0; i < kPanel<T>; ++i) {
      bias[i] = i < units ? static_cast<const T *>(l.bias)[first + i] : T(0);
      scale[i] = i < units && l.scale != nullptr ? static_cast<const T *>(l.scale)[first + i] : T(0);
    }
  }
}

// --- Gibbs chains --------------------------------------------------------------------------------

template <class T> struct Block {
  const RbmParams &p;
  int64_t first, rows;
  ProductScratch<T> product;
  T *groups;

  static int64_t most_depth(const RbmParams &p) {
    return p.visible.depth > p.hidden.depth ? p.visible.depth : p.hidden.depth;
  }
  static int64_t bytes(const RbmParams &p, int64_t rows) {
    return ProductScratch<T>::bytes(rows, most_depth(p)) + Units<T>::scratch_elements(p.visible) * int64_t(sizeof(T)) +
           rows * int64_t(sizeof(double));
  }
  Block(int64_t begin, int64_t end, const RbmParams &params, void *scratch)
      : p(params),
        first(begin),
        rows(end - begin),
        product(scratch, rows, most_depth(params)),
        groups(reinterpret_cast<T *>(static_cast<char *>(scratch) + ProductScratch<T>::bytes(rows, most_depth(p)))) {}

  template <int Kind>
  void half_as(const RbmLayer &l, const T *other, int64_t stride, T *state, T *mean, int64_t step) {
    const Units<T> units(p, l, packed_bias<T>(l), first, state, mean, uint64_t(step));
    multiply(other + first * stride, stride, rows, l.depth, static_cast<const T *>(l.packed), l.depth * kPanel<T>,
             l.units, product,
             [&](int64_t n, int64_t unit, const T *sums) { units.template panel<Kind>(n, unit, sums); });
    if constexpr (Kind == evidens::kSoftmaxUnits) units.finish(rows, groups);
  }
  void half(const RbmLayer &l, const T *other, int64_t stride, void *state, void *mean, int64_t step) {
    using namespace evidens;
    T *const s = static_cast<T *>(state), *const m = static_cast<T *>(mean);
    switch (l.kind) {
      case kSpinUnits: return half_as<kSpinUnits>(l, other, stride, s, m, step);
      case kGaussianUnits: return half_as<kGaussianUnits>(l, other, stride, s, m, step);
      case kSoftmaxUnits: return half_as<kSoftmaxUnits>(l, other, stride, s, m, step);
      default: return half_as<kBernoulliUnits>(l, other, stride, s, m, step);
    }
  }

  void clamp(void *out) {
    if (out == nullptr || p.clamped == nullptr) return;
    const int64_t units = p.visible.units;
    for (int64_t n = first; n < first + rows; ++n) {
      const uint8_t *const given = p.clamped + n * p.clamped_row;
      const T *const value = static_cast<const T *>(p.values) + n * p.values_row;
      T *const line = static_cast<T *>(out) + n * units;
      for (int64_t i = 0; i < units; ++i) line[i] = given[i] ? value[i] : line[i];
    }
  }

  void gibbs() {
    const T *v = static_cast<const T *>(p.v), *h = static_cast<const T *>(p.h);
    int64_t v_row = p.v_row, h_row = p.h_row;
    for (int64_t t = 0; t < p.steps; ++t) {
      const int64_t step = 2 * (p.step0 + t);
      const bool last = t + 1 == p.steps;
      for (int turn = 0; turn < 2; ++turn) {
        if ((turn == 0) == (p.from_hidden != 0)) {
          void *const mean = last ? p.v_mean : nullptr;
          half(p.visible, h, h_row, p.new_v, mean, step + 1);
          clamp(p.new_v), clamp(mean);
          v = static_cast<const T *>(p.new_v), v_row = p.visible.units;
        } else {
          half(p.hidden, v, v_row, p.new_h, last ? p.h_mean : nullptr, step);
          h = static_cast<const T *>(p.new_h), h_row = p.hidden.units;
        }
      }
    }
  }

  // Free energies: minus the sum of log(1 + exp(input)), or log(2 cosh(input)), and the visible units' own.
  void free_energy() {
    constexpr int W = width<T>;
    const bool spin = p.hidden.kind == evidens::kSpinUnits;
    const T *const v = static_cast<const T *>(p.v) + first * p.v_row, *const bias = packed_bias<T>(p.hidden);
    const T *const beta = p.beta == nullptr ? nullptr : static_cast<const T *>(p.beta) + first;
    double *const total = reinterpret_cast<double *>(groups);
    for (int64_t n = 0; n < rows; ++n) total[n] = own(v + n * p.v_row) * (beta == nullptr ? 1 : double(beta[n]));
    multiply(v, p.v_row, rows, p.hidden.depth, static_cast<const T *>(p.hidden.packed), p.hidden.depth * kPanel<T>,
             p.hidden.units, product, [&](int64_t n, int64_t unit, const T *sums) {
               const Vec<T> b = broadcast<T>(beta == nullptr ? T(1) : beta[n]);
               const int64_t left = p.hidden.units - unit;
               T terms[kPanel<T>];
               for (int64_t c = 0; c < kPanel<T>; c += W) {
                 const Vec<T> x = (load(sums + c) + load(bias + unit + c)) * b, a = abs<T>(x);
                 const Vec<T> term = spin ? a + softplus<T>(T(-2) * a) : softplus<T>(x);
                 store(terms + c,
                       lane_numbers<T>() + Int<T>(c) < Int<T>(left < kPanel<T> ? left : kPanel<T>) ? term : Vec<T>{});
               }
               total[n] -= sum_in_double(terms, kPanel<T>);
             });
    for (int64_t n = 0; n < rows; ++n) static_cast<T *>(p.free_energy)[first + n] = T(total[n]);
  }
  double own(const T *v) const {
    constexpr int W = width<double>;
    const T *const b = static_cast<const T *>(p.visible.bias), *const precision = static_cast<const T *>(p.precision);
    Vec<double> lanes[2] = {};  // so that the sum is not one chain of additions
    int64_t i = 0;
    for (; i + W <= p.visible.units; i += W) {
      const Vec<double> x = load_as<double>(v + i), bias = load_as<double>(b + i), away = x - bias;
      // A unit that is off takes no part, whatever its bias.
      lanes[i / W % 2] += precision != nullptr ? 0.5 * load_as<double>(precision + i) * away * away
                                               : (x == 0.0 ? Vec<double>{} : -x * bias);
    }
    double sum_of_rest = 0;
    for (; i < p.visible.units; ++i) {
      const double x = double(v[i]), away = x - double(b[i]);
      if (precision != nullptr) sum_of_rest += 0.5 * double(precision[i]) * away * away;
      else if (x != 0) sum_of_rest -= x * double(b[i]);
    }
    return sum<double>(lanes[0] + lanes[1]) + sum_of_rest;
  }
};

template <class T> int64_t scratch_bytes(const RbmParams &p, int64_t rows) { return Block<T>::bytes(p, rows); }
template <class T> void gibbs(int64_t begin, int64_t end, const RbmParams &p, void *scratch) {
  Block<T>(begin, end, p, scratch).gibbs();
}
template <class T> void means(int64_t begin, int64_t end, const RbmParams &p, void *scratch) {
  Block<T>(begin, end, p, scratch).half(p.hidden, static_cast<const T *>(p.v), p.v_row, nullptr, p.h_mean, 0);
}
template <class T> void free_energy(int64_t begin, int64_t end, const RbmParams &p, void *scratch) {
  Block<T>(begin, end, p, scratch).free_energy();
}

template <class T> int64_t sums_bytes(const RbmSums &p) { return Band<T>::bytes(p); }
template <class T> void sums(int64_t begin, int64_t end, const RbmSums &p, void *scratch) {
  Band<T>(begin, end, p, scratch).run();
}

template <class T> constexpr evidens::RbmKernel kernel() {
  return {kPanel<T>, packed_elements<T>, pack<T>,      scratch_bytes<T>, gibbs<T>, means<T>, free_energy<T>,
          kBand,     sums_bytes<T>,      pack_sums<T>, sums<T>};
}

}  // namespace

extern const evidens::RbmKernel rbm[2];
constexpr evidens::RbmKernel rbm[2] = {kernel<float>(), kernel<double>()};

}  // namespace EVIDENS_NAMESPACE
