// What a half step does with its sums: bias, temperature, probability, draw, state.
#pragma once
#include "activations.h"
#include "philox_lanes.h"
#include "rbm.h"
#include "rbm_product.h"
#include "transpose.h"

namespace EVIDENS_NAMESPACE {
namespace {

// cos(2 pi t) for |t| <= 1: the turn is reduced exactly, and the series of the sine is short.
template <class T> EVIDENS_INLINE Vec<T> cosine_of_turns(Vec<T> t) {
  constexpr double terms[] = {6.2831853071795864769,    -41.341702240399760234,   81.605249276075054203,
                              -76.705859753061385842,   42.058693944897653144,    -15.094642576822990392,
                              3.8199525848482821277,    -0.71812230177850051223,  0.10422916220813984117,
                              -0.012031585942120627262, 0.0011309237482517961879, -0.000088235335992430051345};
  constexpr int last = sizeof(T) == 8 ? 11 : 7;
  Vec<Int<T>> whole;
  const Vec<T> z = T(0.25) - abs<T>(t - round_to_integer<T>(t, whole)), z2 = z * z;
  Vec<T> q = broadcast<T>(T(terms[last]));
#pragma GCC unroll 16
  for (int i = last - 1; i >= 0; --i) q = q * z2 + T(terms[i]);
  return q * z;
}

// Normals of adjacent columns from the uniforms of the same columns (Box and Muller).
template <class T> EVIDENS_INLINE Vec<T> normal(Vec<T> u) {
  const auto indices = typename MakeIndices<width<T>>::type();
  const Vec<Int<T>> odd = (lane_numbers<T>() & Int<T>(1)) != Int<T>(0);
  const Vec<T> other = exchange_<T, 1>(u, indices);
  const Vec<T> r = sqrt<T>(T(-2) * log_normal<T>(T(1) - (odd ? other : u)));
  return r * cosine_of_turns<T>(odd ? u - T(0.25) : other);
}

// The units of a layer, drawn or at their means, row by row and panel by panel.
template <class T> struct Units {
  const evidens::RbmLayer &layer;
  const T *bias, *scale;  // padded to whole panels
  T *state, *mean;        // out (rows of the block, U), or null
  const T *beta;          // (rows of the block,), or null
  uint64_t row0;          // of the stream
  PhiloxColumns<T> stream;

  Units(const evidens::RbmParams &p, const evidens::RbmLayer &l, const T *padded, int64_t first, T *state_, T *mean_,
        uint64_t step)
      : layer(l),
        bias(padded),
        scale(padded + panels_of(l.units, kPanel<T>) * kPanel<T>),
        state(state_ == nullptr ? nullptr : state_ + first * l.units),
        mean(mean_ == nullptr ? nullptr : mean_ + first * l.units),
        beta(p.beta == nullptr ? nullptr : static_cast<const T *>(p.beta) + first),
        row0(uint64_t(p.row0 + first)),
        stream(p.seed, uint32_t(step)) {}

  static EVIDENS_METHOD void put(T *out, Vec<T> x, int64_t count) {
    if (count >= width<T>) return store(out, x);
    T lanes[width<T>];
    store(lanes, x);
    for (int64_t l = 0; l < count; ++l) out[l] = lanes[l];
  }

  // Sums of the panel of units that begins at `first`.  Softmax groups cross panels: their inputs wait
  // in the states for `finish`.
  template <int Kind> EVIDENS_METHOD void panel(int64_t n, int64_t first, const T *sums) const {
    using namespace evidens;
    constexpr int W = width<T>;
    const int64_t left = layer.units - first;
    if constexpr (Kind == kBernoulliUnits || Kind == kSpinUnits) {
      if (left >= kPanel<T>) return coins<Kind, kOuterVectors>(n, first, sums, left);
      for (int64_t c = 0; c < left; c += 2 * W) coins<Kind, 2>(n, first + c, sums + c, left - c);
    } else {
      for (int64_t c = 0; c < kPanel<T> && c < left; c += 2 * W) numbers<Kind>(n, first + c, sums + c, left - c);
    }
  }

  // Units of two values, vectors enough at a time that they wait for one another no more.
  template <int Kind, int NV> EVIDENS_METHOD void coins(int64_t n, int64_t at, const T *sums, int64_t left) const {
    constexpr int W = width<T>;
    constexpr bool spin = Kind == evidens::kSpinUnits;
    constexpr T scale = T(spin ? -2 : -1) * Float<T>::log2e, low = T(1 - Float<T>::bias), high = T(Float<T>::bias + 1);
    const T b = beta == nullptr ? T(1) : beta[n];
    const Vec<T> one = broadcast<T>(T(1)), off = broadcast<T>(spin ? T(-1) : T(0));
    const int64_t to = n * layer.units + at;
    Vec<T> x[NV], e[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      x[v] = (load(sums + v * W) + load(bias + at + v * W)) * b;
      // At 2^high, infinity.
      e[v] = exp2_normal<T>(min<T>(max<T>(broadcast<T>(low), x[v] * scale), broadcast<T>(high)));
    }
    if (state != nullptr) {
      Vec<T> u[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; v += 2) {
        stream.uniforms(row0 + uint64_t(n), at + v * W, *reinterpret_cast<Vec<T>(*)[2]>(u + v));
      }
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        // u < 1 / (1 + e); with e infinite and u = 0 the product is NaN, and the unit is off.
        const Vec<T> s = u[v] + u[v] * e[v] < T(1) ? one : off;
        put(state + to + v * W, x[v] == x[v] ? s : x[v], left - v * W);
      }
    }
    if (mean == nullptr) return;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const Vec<T> m = spin ? tanh<T>(x[v]) : T(1) / (T(1) + e[v]);
      put(mean + to + v * W, x[v] == x[v] ? m : x[v], left - v * W);
    }
  }

  template <int Kind> EVIDENS_METHOD void numbers(int64_t n, int64_t at, const T *sums, int64_t left) const {
    constexpr int W = width<T>;
    const T b = beta == nullptr ? T(1) : beta[n];
    const T spread = beta == nullptr ? T(1) : T(1) / (sizeof(T) == 8 ? T(__builtin_sqrt(b)) : __builtin_sqrtf(b));
    Vec<T> u[2] = {};
    if (Kind == evidens::kGaussianUnits && state != nullptr) stream.uniforms(row0 + uint64_t(n), at, u);
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const int64_t to = n * layer.units + at + v * W, here = left - v * W;
      const Vec<T> a = load(sums + v * W) + load(bias + at + v * W);
      if constexpr (Kind == evidens::kSoftmaxUnits) {
        put((state != nullptr ? state : mean) + to, a * b, here);
      } else {
        if (mean != nullptr) put(mean + to, a, here);
        if (state != nullptr) put(state + to, a + normal<T>(u[v]) * (load(scale + at + v * W) * spread), here);
      }
    }
  }

  // One vector of rows at a time, lanes are rows: the draw of every softmax group.
  static int64_t scratch_elements(const evidens::RbmLayer &l) {
    return l.kind == evidens::kSoftmaxUnits ? width<T> * (l.units / l.levels + 4 + l.levels) : 0;
  }
  void finish(int64_t rows, T *scratch) const {
    if (layer.kind != evidens::kSoftmaxUnits) return;
    constexpr int W = width<T>;
    const int64_t levels = layer.levels, groups = layer.units / levels;
    T *const uniforms = scratch + levels * W;
    for (int64_t n = 0; n < rows; n += W) {
      const int64_t count = rows - n < W ? rows - n : W;
      for (int64_t l = 0; l < count && state != nullptr; ++l) fill(row0 + uint64_t(n + l), groups, uniforms + l);
      for (int64_t g = 0; g < groups; ++g) {
        const auto group = [&](T *base) {
          return [=, this](int l) { return base + (n + (l < count ? l : count - 1)) * layer.units + g * levels; };
        };
        gather_rows(levels, scratch, W, 0, group(state != nullptr ? state : mean));
        Vec<T> most = load(scratch), sum = {};
        for (int64_t k = 1; k < levels; ++k) most = max<T>(most, load(scratch + k * W));
        for (int64_t k = 0; k < levels; ++k) {
          const Vec<T> e = exp_nonpositive<T>(load(scratch + k * W) - most);
          store(scratch + k * W, e);
          sum += e;
        }
        if (state != nullptr) pick(levels, load(uniforms + g * W) * sum, scratch, group(state), count);
        if (mean != nullptr) {
          for (int64_t k = 0; k < levels; ++k) store(scratch + k * W, load(scratch + k * W) / sum);
          scatter_rows(levels, scratch, W, count, group(mean));
        }
      }
    }
  }

 private:
  // The level is the first whose cumulative weight exceeds the limit.
  template <class Row>
  static void pick(int64_t levels, Vec<T> limit, const T *weights, Row &&row, int64_t count) {
    constexpr int W = width<T>;
    Vec<T> sum = {}, level = {};
    for (int64_t k = 0; k + 1 < levels; ++k) {
      sum += load(weights + k * W);
      level += sum <= limit ? broadcast<T>(T(1)) : Vec<T>{};
    }
    for (int64_t l = 0; l < count; ++l) {
      T *const out = row(int(l));
      const bool number = limit[l] == limit[l];
      for (int64_t k = 0; k < levels; ++k) out[k] = number ? T(0) : limit[l];
      if (number) out[int64_t(level[l])] = T(1);
    }
  }
  void fill(uint64_t row, int64_t groups, T *out) const {
    constexpr int W = width<T>;
    T lanes[2 * W];
    for (int64_t g = 0; g < groups; g += 2 * W) {
      Vec<T> u[2];
      stream.uniforms(row, g, u);
      store(lanes, u[0]), store(lanes + W, u[1]);
      for (int64_t i = 0; i < 2 * W && g + i < groups; ++i) out[(g + i) * W] = lanes[i];
    }
  }
};

}  // namespace
}  // namespace EVIDENS_NAMESPACE
