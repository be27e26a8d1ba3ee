// ActNorm: one factor and one offset per channel, and the gradient in them, summed in double.
#include "coupling_maps.h"
#include "kernels.h"

namespace EVIDENS_NAMESPACE {
namespace {

constexpr int64_t kUnit = 1 << 15;   // elements of x that a unit aims at
constexpr int64_t kMostUnits = 64;   // sums are one row of doubles per unit
constexpr int64_t kFlatPlaces = 32;  // fewer places: factors are repeated, so that a row is one run

// Factors and offsets are given per element of a row where places are few, else per channel.
bool flat(const ActNormParams &p) { return p.places < kFlatPlaces; }
int64_t entries(const ActNormParams &p) { return flat(p) ? p.channels * p.places : p.channels; }
int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <class T> struct Parts {
  T *factor, *offset;  // (entries,)
  double *sums;        // (units, 2, entries): of grad_y and of grad_y (x - what is subtracted)
  Parts(const ActNormParams &p, void *shared) {
    char *at = static_cast<char *>(shared);
    factor = reinterpret_cast<T *>(at);
    offset = reinterpret_cast<T *>(at += aligned(entries(p) * int64_t(sizeof(T))));
    sums = reinterpret_cast<double *>(at + aligned(entries(p) * int64_t(sizeof(T))));
  }
};

template <class T> void plan(const ActNormParams &p, ActNormPlan &plan) {
  const int64_t size = p.channels * p.places;
  plan.block = size < kUnit ? kUnit / (size > 0 ? size : 1) : 1;
  if (p.rows > plan.block * kMostUnits) plan.block = (p.rows + kMostUnits - 1) / kMostUnits;
  plan.units = (p.rows + plan.block - 1) / plan.block;
  plan.shared_bytes = 2 * aligned(entries(p) * int64_t(sizeof(T)));
  if (p.grad_y != nullptr) plan.shared_bytes += plan.units * 2 * entries(p) * int64_t(sizeof(double));
}

template <class T> T factor_of(const ActNormParams &p, int64_t c, bool &saturated) {
  const T log = static_cast<const T *>(p.log_scale)[c], power = p.inverse ? -log : log;
  saturated = power > log_largest<T>;
  return exp<T>(broadcast<T>(saturated ? log_largest<T> : power))[0];
}

template <class T> void prepare(const ActNormParams &p, const ActNormPlan &, void *shared) {
  const Parts<T> s(p, shared);
  const int64_t repeat = flat(p) ? p.places : 1;
  for (int64_t c = 0; c < p.channels; ++c) {
    bool saturated;
    const T m = factor_of<T>(p, c, saturated), t = static_cast<const T *>(p.shift)[c];
    for (int64_t i = 0; i < repeat; ++i) s.factor[c * repeat + i] = m, s.offset[c * repeat + i] = t;
  }
}

template <class T> EVIDENS_INLINE T affine(T x, T m, T t, bool inverse) { return inverse ? (x - t) * m : x * m + t; }

template <class T, bool Inverse> void forward_rows(int64_t begin, int64_t end, const ActNormParams &p, void *shared) {
  constexpr int W = width<T>;
  const Parts<T> s(p, shared);
  const int64_t size = p.channels * p.places, runs = flat(p) ? 1 : p.channels, length = flat(p) ? size : p.places;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t c = 0; c < runs; ++c) {
      const T *x = static_cast<const T *>(p.x) + row * p.x_row + c * length;
      T *y = static_cast<T *>(p.y) + row * size + c * length;
      int64_t i = 0;
      if (flat(p)) {
        for (; i + W <= length; i += W) {
          const Vec<T> m = load(s.factor + i), t = load(s.offset + i), v = load(x + i);
          store(y + i, Inverse ? (v - t) * m : v * m + t);
        }
        for (; i < length; ++i) y[i] = affine(x[i], s.factor[i], s.offset[i], Inverse);
      } else {
        const T m = s.factor[c], t = s.offset[c];
        for (; i + W <= length; i += W) {
          const Vec<T> v = load(x + i);
          store(y + i, Inverse ? (v - t) * m : v * m + t);
        }
        for (; i < length; ++i) y[i] = affine(x[i], m, t, Inverse);
      }
    }
  }
}

template <class T> void forward(int64_t unit, const ActNormParams &p, const ActNormPlan &plan, void *shared) {
  const int64_t begin = unit * plan.block, end = begin + plan.block < p.rows ? begin + plan.block : p.rows;
  double total = 0;
  for (int64_t c = 0; c < p.channels; ++c) total += double(static_cast<const T *>(p.log_scale)[c]);
  total *= double(p.places);
  for (int64_t row = begin; row < end; ++row) static_cast<T *>(p.logdet)[row] = T(p.inverse ? -total : total);
  if (p.inverse) forward_rows<T, true>(begin, end, p, shared);
  else forward_rows<T, false>(begin, end, p, shared);
}

// Adds to (sum of g, sum of g (x - t)), entry by entry; t is 0 in the forward direction.
template <class T> void add_row(int64_t n, const T *x, const T *g, const T *t, double *first, double *second) {
  constexpr int W = width<double>;
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    const Vec<double> gi = load_as<double>(g + i);
    Vec<double> xi = load_as<double>(x + i);
    if (t != nullptr) xi -= load_as<double>(t + i);
    store(first + i, load(first + i) + gi);
    store(second + i, load(second + i) + gi * xi);
  }
  for (; i < n; ++i) {
    first[i] += double(g[i]);
    second[i] += double(g[i]) * (double(x[i]) - (t == nullptr ? 0. : double(t[i])));
  }
}
template <class T> void add_run(int64_t n, const T *x, const T *g, double t, double *first, double *second) {
  constexpr int W = width<double>;
  Vec<double> a = {}, b = {};
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    const Vec<double> gi = load_as<double>(g + i);
    a += gi;
    b += gi * (load_as<double>(x + i) - t);
  }
  double rest = 0, rest_x = 0;
  for (; i < n; ++i) rest += double(g[i]), rest_x += double(g[i]) * (double(x[i]) - t);
  *first += sum<double>(a) + rest;
  *second += sum<double>(b) + rest_x;
}

template <class T> void backward(int64_t unit, const ActNormParams &p, const ActNormPlan &plan, void *shared) {
  constexpr int W = width<T>;
  const Parts<T> s(p, shared);
  const int64_t begin = unit * plan.block, end = begin + plan.block < p.rows ? begin + plan.block : p.rows;
  const int64_t size = p.channels * p.places, count = entries(p);
  double *first = s.sums + unit * 2 * count, *second = first + count;
  for (int64_t i = 0; i < 2 * count; ++i) first[i] = 0;
  for (int64_t row = begin; row < end; ++row) {
    const T *x = static_cast<const T *>(p.x) + row * p.x_row;
    const T *g = static_cast<const T *>(p.grad_y) + row * p.grad_y_row;
    if (flat(p)) {
      add_row<T>(size, x, g, p.inverse ? s.offset : nullptr, first, second);
    } else {
      for (int64_t c = 0; c < p.channels; ++c)
        add_run<T>(p.places, x + c * p.places, g + c * p.places, p.inverse ? double(s.offset[c]) : 0., first + c,
                   second + c);
    }
    if (p.grad_x == nullptr) continue;
    T *to = static_cast<T *>(p.grad_x) + row * size;
    const int64_t runs = flat(p) ? 1 : p.channels, length = flat(p) ? size : p.places;
    for (int64_t c = 0; c < runs; ++c, g += length, to += length) {
      int64_t i = 0;
      if (flat(p)) {
        for (; i + W <= length; i += W) store(to + i, load(g + i) * load(s.factor + i));
        for (; i < length; ++i) to[i] = g[i] * s.factor[i];
      } else {
        for (; i + W <= length; i += W) store(to + i, load(g + i) * s.factor[c]);
        for (; i < length; ++i) to[i] = g[i] * s.factor[c];
      }
    }
  }
}

template <class T> void finish(const ActNormParams &p, const ActNormPlan &plan, const void *shared) {
  const Parts<T> s(p, const_cast<void *>(shared));
  const int64_t count = entries(p), repeat = flat(p) ? p.places : 1;
  for (int64_t c = 0; c < p.channels; ++c) {
    double first = 0, second = 0;
    for (int64_t unit = 0; unit < plan.units; ++unit) {
      const double *sums = s.sums + unit * 2 * count + c * repeat;
      for (int64_t i = 0; i < repeat; ++i) first += sums[i], second += sums[count + i];
    }
    bool saturated;
    const double m = double(factor_of<T>(p, c, saturated));
    static_cast<T *>(p.grad_shift)[c] = T(p.inverse ? -first * m : first);
    static_cast<T *>(p.grad_log_scale)[c] = saturated ? T(0) : T(p.inverse ? -second * m : second * m);
  }
}

template <class T> constexpr ActNormKernel kernel() {
  return {plan<T>, prepare<T>, forward<T>, backward<T>, finish<T>};
}

}  // namespace

extern const evidens::ActNormKernel actnorm[2];
constexpr evidens::ActNormKernel actnorm[2] = {kernel<float>(), kernel<double>()};

}  // namespace EVIDENS_NAMESPACE
