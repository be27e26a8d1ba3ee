// Affine coupling of a run of elements that lie together in every array, forward and backward.
#pragma once
#include "coupling_maps.h"
#include "stream.h"

namespace EVIDENS_NAMESPACE {
namespace {

// What one call of a dense function reads and writes; null where there is none.
template <class T> struct Dense {
  bool past_cache;  // results are written past the cache; then they are aligned
  const T *x, *r, *t;
  T *y, *l;
  const T *gy, *gl;  // gl: one per element, where `gl_row` is not for all
  T gl_row;
  T *gx, *gr, *gt;
};

template <class T, class P> EVIDENS_INLINE P *past(P *p, int64_t i) { return p == nullptr ? p : p + i; }

template <class T> EVIDENS_INLINE Vec<T> load_or_zero(const T *p, int64_t i) {
  return p == nullptr ? Vec<T>{} : load(p + i);
}

// Whether a difference x - t has a result that may overflow beside a factor.
template <int Map, bool Inverse> constexpr bool has_difference = Inverse && Map != kCouplingAdditive;

// `bad` becomes NaN where a result that a difference has gone into is not finite.
template <class T, int Map, bool Inverse>
EVIDENS_INLINE Vec<T> forward_step(const Dense<T> &d, int64_t i, const MapConstants<T> &k, Vec<T> &bad) {
  const Vec<T> x = load(d.x + i), t = load_or_zero(d.t, i);
  const Factor<T> f = factor<T, Map, Inverse, false>(Map == kCouplingAdditive ? Vec<T>{} : load(d.r + i), k);
  const Vec<T> y = Map == kCouplingAdditive ? (Inverse ? x - t : x + t) : Inverse ? (x - t) * f.m : x * f.m + t;
  put(d.y + i, y, d.past_cache);
  if constexpr (has_difference<Map, Inverse>) bad += y * T(0);
  if (d.l != nullptr) store(d.l + i, f.l);
  return f.l;
}

template <class T, int Map, bool Inverse>
EVIDENS_INLINE void backward_step(const Dense<T> &d, int64_t i, const MapConstants<T> &k, Vec<T> &bad) {
  const Vec<T> x = load(d.x + i), t = load_or_zero(d.t, i), gy = load_or_zero(d.gy, i);
  const Vec<T> gl = d.gl == nullptr ? broadcast<T>(d.gl_row) : load(d.gl + i);
  const Factor<T> f = factor<T, Map, Inverse, true>(Map == kCouplingAdditive ? Vec<T>{} : load(d.r + i), k);
  const Vec<T> gx = Map == kCouplingAdditive ? gy : gy * f.m;
  if (d.gx != nullptr) put(d.gx + i, gx, d.past_cache);
  if (d.gt != nullptr) put(d.gt + i, Inverse ? -gx : gy, d.past_cache);
  if (d.gr == nullptr) return;
  // x dm before gy: of the size of y, it overflows only where y does.
  const Vec<T> gr = Inverse ? (x - t) * f.dm * gy - gl * f.dl : x * f.dm * gy + gl * f.dl;
  put(d.gr + i, gr, d.past_cache);
  if constexpr (has_difference<Map, Inverse>) bad += gr * T(0);
}

// Copies what is narrower than a vector into `lanes`, so that whole vectors can be read.
template <class T> struct Narrow {
  T lanes[10][width<T>] = {};
  Dense<T> dense;
  template <class P> P *take(int slot, P *from, int64_t n, bool read) {
    if (from == nullptr) return nullptr;
    if (read)
      for (int64_t i = 0; i < n; ++i) lanes[slot][i] = from[i];
    return lanes[slot];
  }
  Narrow(const Dense<T> &d, int64_t n)
      : dense{false,
              take(0, d.x, n, true),
              take(1, d.r, n, true),
              take(2, d.t, n, true),
              take(3, d.y, n, false),
              take(4, d.l, n, false),
              take(5, d.gy, n, true),
              take(6, d.gl, n, true),
              d.gl_row,
              take(7, d.gx, n, false),
              take(8, d.gr, n, false),
              take(9, d.gt, n, false)} {}
  void give(int slot, T *to, int64_t n) const {
    if (to == nullptr) return;
    for (int64_t i = 0; i < n; ++i) to[i] = lanes[slot][i];
  }
};

// Once for every short row, so it has to be cheaper than a sum over lanes.
EVIDENS_INLINE bool any_nan(Vec<float> v) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)(v != v)) != 0;
#elif defined(__x86_64__)
  return _mm_movemask_ps((__m128)(v != v)) != 0;
#else
  return !(sum<float>(v * 0.f) == 0.f);
#endif
}
EVIDENS_INLINE bool any_nan(Vec<double> v) {
#if defined(__AVX512F__)
  return _mm512_cmp_pd_mask((__m512d)v, (__m512d)v, _CMP_UNORD_Q) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_pd((__m256d)(v != v)) != 0;
#elif defined(__x86_64__)
  return _mm_movemask_pd((__m128d)(v != v)) != 0;
#else
  return !(sum<double>(v * 0.) == 0.);
#endif
}

// A difference of finite numbers that overflows is the largest number: a factor of 0 then gives 0, not
// NaN.  That is seen in the results, which costs next to nothing, and then all is done once more, from
// differences.
template <class T> using DenseFunction = double (*)(int64_t, const Dense<T> &, const MapConstants<T> &);
template <class T>
void hold_differences(int64_t n, const Dense<T> &d, const MapConstants<T> &k, DenseFunction<T> run) {
  constexpr int64_t kPiece = 256;
  constexpr T large = Float<T>::largest;
  T difference[kPiece];
  finish_stream();
  for (int64_t b = 0; b < n; b += kPiece) {
    const int64_t count = n - b < kPiece ? n - b : kPiece;
    for (int64_t i = 0; i < count; ++i) {
      const T x = d.x[b + i], t = d.t[b + i], v = x - t;
      const bool finite = __builtin_fabs(x) <= large && __builtin_fabs(t) <= large;
      difference[i] = !finite ? v : v > large ? large : v < -large ? -large : v;
    }
    const Dense<T> piece = {false,           difference,       past<T>(d.r, b),  nullptr,
                            past<T>(d.y, b), past<T>(d.l, b),  past<T>(d.gy, b), past<T>(d.gl, b),
                            d.gl_row,        past<T>(d.gx, b), past<T>(d.gr, b), past<T>(d.gt, b)};
    run(count, piece, k);
  }
}

// The sum of log s over n elements.  The last vector overlaps the one before it.
template <class T, int Map, bool Inverse>
double dense_forward(int64_t n, const Dense<T> &given, const MapConstants<T> &constants) {
  constexpr int W = width<T>;
  Dense<T> d = given;  // in registers: a store to y might change what a reference names
  const MapConstants<T> k = constants;
  Total total;
  Vec<T> bad = {};
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    const Vec<T> l = forward_step<T, Map, Inverse>(d, i, k, bad);
    if constexpr (Map != kCouplingAdditive) add(total, l);
  }
  if (i < n) {
    const Vec<Int<T>> lane = lane_numbers<T>();
    if (n >= W) {
      d.past_cache = false;  // not aligned
      const Vec<T> l = forward_step<T, Map, Inverse>(d, n - W, k, bad);
      if constexpr (Map != kCouplingAdditive) add(total, lane >= Int<T>(i - (n - W)) ? l : Vec<T>{});
    } else {
      const Narrow<T> narrow(d, n);
      const Vec<T> l = forward_step<T, Map, Inverse>(narrow.dense, 0, k, bad);
      narrow.give(3, d.y, n);
      narrow.give(4, d.l, n);
      if constexpr (Map != kCouplingAdditive) add(total, lane < Int<T>(n) ? l : Vec<T>{});
    }
  }
  if constexpr (has_difference<Map, Inverse>)
    if (d.t != nullptr && any_nan(bad)) hold_differences<T>(n, given, k, dense_forward<T, Map, Inverse>);
  return sum(total);
}

template <class T, int Map, bool Inverse>
double dense_backward(int64_t n, const Dense<T> &given, const MapConstants<T> &constants) {
  constexpr int W = width<T>;
  Dense<T> d = given;
  const MapConstants<T> k = constants;
  Vec<T> bad = {};
  int64_t i = 0;
  for (; i + W <= n; i += W) backward_step<T, Map, Inverse>(d, i, k, bad);
  if (i < n && n >= W) {
    d.past_cache = false;
    backward_step<T, Map, Inverse>(d, n - W, k, bad);
  } else if (i < n) {
    const Narrow<T> narrow(d, n);
    backward_step<T, Map, Inverse>(narrow.dense, 0, k, bad);
    narrow.give(7, d.gx, n);
    narrow.give(8, d.gr, n);
    narrow.give(9, d.gt, n);
  }
  if constexpr (has_difference<Map, Inverse>)
    if (d.t != nullptr && any_nan(bad)) hold_differences<T>(n, given, k, dense_backward<T, Map, Inverse>);
  return 0;
}

template <class T> struct Functions { DenseFunction<T> of[2][2][9]; };  // [backward][inverse][map]
template <class T, int Map> constexpr void fill(Functions<T> &f) {
  f.of[0][0][Map] = dense_forward<T, Map, false>;
  f.of[0][1][Map] = dense_forward<T, Map, true>;
  f.of[1][0][Map] = dense_backward<T, Map, false>;
  f.of[1][1][Map] = dense_backward<T, Map, true>;
  if constexpr (Map > 0) fill<T, Map - 1>(f);
}
template <class T> constexpr Functions<T> make_functions() {
  Functions<T> f{};
  fill<T, kCouplingAdditive>(f);
  return f;
}
template <class T> constexpr Functions<T> functions = make_functions<T>();

}  // namespace
}  // namespace EVIDENS_NAMESPACE
