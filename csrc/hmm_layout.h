// Hidden Markov models: the choice of lanes, packed transitions, scratch, and frames of observations.
//
// All recursions but Viterbi run in linear space: a frame's log-densities are shifted by their
// maximum before exp, messages are rescaled at every frame, and logarithms are taken of the scales
// only.  A sequence whose messages leave the range of the type is marked and done again in log space.
#pragma once
#include "hmm.h"
#include "tile.h"

namespace EVIDENS_NAMESPACE {
namespace {

using namespace evidens;

constexpr int64_t kAlign = 64;
constexpr int64_t align(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
constexpr int64_t kHalfFirstLevel = 16 << 10;
constexpr int64_t kSlotRows = 320;  // most frames of one product of messages (sums in T)

template <class T> struct Reach;
// Below `scale` the smaller terms of a sum have been lost; below `tiny` a message itself.  Where all
// transitions lie above `mixing` (of the greatest), a lost message is regained at the next frame, and
// dwarfed; where not, messages are watched.
template <> struct Reach<float> { static constexpr float scale = 1e-18f, tiny = 2e-38f, mixing = 1e-12f; };
template <> struct Reach<double> { static constexpr double scale = 1e-150, tiny = 3e-308, mixing = 1e-20; };
// NaN is out of reach too: it comes of infinities, where potentials are huge.
template <class T> EVIDENS_INLINE bool reached(T sum) { return sum >= Reach<T>::scale && sum <= Float<T>::largest; }

struct Carver {
  char *at;
  char *begin;
  explicit Carver(void *base) : at(static_cast<char *>(base)), begin(at) {}
  template <class U> U *take(int64_t n) {
    U *r = reinterpret_cast<U *>(at);
    at += align(n * int64_t(sizeof(U)));
    return r;
  }
  int64_t bytes() const { return at - begin; }
};

// The logarithm of a product of positive normal numbers, of which some stand in registers still.
template <class T> struct LogProduct {
  static constexpr int64_t kMost = 32;  // factors between two calls of settle
  Vec<T> product = broadcast<T>(T(1));
  Vec<Int<T>> exponent = {};

  EVIDENS_METHOD void times(Vec<T> x) { product *= mantissa(x); }
  // Adds to total (lanes,).
  EVIDENS_METHOD void settle(double *total) {
    constexpr int W = width<T>, WD = width<double>;
    T logs[W], exponents[W];
    store(logs, log_reduced<T>(mantissa(product) - T(1), Vec<T>{}));
    store(exponents, to_real<T>(exponent));
    for (int l = 0; l < W; l += WD)
      store(total + l,
            load(total + l) + load_as<double>(logs + l) + 0.69314718055994530942 * load_as<double>(exponents + l));
    product = broadcast<T>(T(1)), exponent = Vec<Int<T>>{};
  }

 private:
  EVIDENS_METHOD Vec<T> mantissa(Vec<T> x) {  // its power of two is counted
    Vec<Int<T>> own;
    const Vec<T> y = mantissa_of<T>(x, own);
    exponent += own;
    return y;
  }
};

// Gaussians as their densities take them: log N(x) = constant - sum of ((x - mean) * root)^2.
template <class U> struct HmmScaled { U *means, *roots, *constants; };

template <class T> struct HmmLayout {
  static constexpr int W = width<T>, WD = width<double>;
  static constexpr int kVectors = EVIDENS_REGISTERS == 32 ? 3 : 2;  // of sequences in a group, at most
  static constexpr int kRows = EVIDENS_REGISTERS == 32 ? 8 : 6;     // states of a tile

  // Packed transitions: in tiles for lanes of sequences, by padded rows for lanes of states.
  struct Shared {
    T *forward, *backward;            // to state j from all i; from state i to all j
    double *log_forward;              // the same in logs, for the best path
    double *log_columns;              // (K, K): row j holds log A[:, j]
    T *zeros;                         // (K,) or (D,) what a sequence that has ended observes
    T *limit;                         // below it a message may be lost here or in the next product; 0: unwatched
    HmmScaled<T> scaled;              // of the emissions
    HmmScaled<double> scaled_double;  // the same for the best path
  };

  static int64_t lanes_wide(const HmmParams &p) { return p.task == kHmmBestPath ? WD : W; }
  static int64_t padded(int64_t k, int64_t w) { return (k + w - 1) / w * w; }
  static int64_t features(const HmmParams &p) { return p.gaussians != nullptr ? p.gaussians->features : 0; }
  static bool varying(const HmmParams &p) { return p.first_transition != nullptr; }
  static bool sums(const HmmParams &p) { return p.task == kHmmPosteriors && p.second != nullptr && !p.per_step; }

  static void carve_shared(const HmmParams &p, void *base, Shared &s, int64_t &bytes) {
    Carver c(base);
    const int64_t K = p.states, Kp = padded(K, W), Kd = padded(K, WD);
    const bool best = p.task == kHmmBestPath, shared = !varying(p);
    s.limit = c.take<T>(1);
    s.zeros = c.take<T>(Kp > features(p) ? Kp : features(p));
    s.forward = c.take<T>(!best && shared ? Kp * Kp : 0);
    s.backward = c.take<T>(p.task == kHmmPosteriors && shared ? Kp * Kp : 0);
    s.log_forward = c.take<double>(best && shared ? K * Kd : 0);
    s.log_columns = c.take<double>(best && shared ? K * K : 0);
    carve_scaled(c, best ? 0 : K, features(p), s.scaled);
    carve_scaled(c, best ? K : 0, features(p), s.scaled_double);
    bytes = c.bytes();
  }
  template <class U> static void carve_scaled(Carver &c, int64_t K, int64_t D, HmmScaled<U> &s) {
    s.means = c.take<U>(K * D);
    s.roots = c.take<U>(K * D);
    s.constants = c.take<U>(D > 0 ? K : 0);
  }
  template <class U> static void scale_emissions(const HmmParams &p, const HmmScaled<U> &s) {
    const int64_t D = features(p);
    const T *means = static_cast<const T *>(p.gaussians->means),
            *roots = static_cast<const T *>(p.gaussians->precisions);
    for (int64_t k = 0; k < p.states; ++k) {
      double constant = double(D) * -0.91893853320467274178;  // log sqrt(2 pi)
      for (int64_t i = k * D; i < (k + 1) * D; ++i) {
        s.means[i] = U(means[i]);
        s.roots[i] = U(double(roots[i]) * 0.70710678118654752440);
        constant += log_of(roots[i]);
      }
      s.constants[k] = U(constant);
    }
  }

  // Numbers that a unit sums: of pairs of states, and moments.
  static int64_t pairs_of(const HmmParams &p) { return p.states * padded(p.states, W); }
  static int64_t moments_of(const HmmParams &p) { return features(p) > 0 ? p.states * (1 + 2 * features(p)) : 0; }
  static int64_t sums_of(const HmmParams &p) { return pairs_of(p) + moments_of(p); }

  // States in tiles of nearly equal height: f(first state, height).
  template <class F> EVIDENS_INLINE void each_tile(int64_t K, F &&f) {
    const int64_t tiles = (K + kRows - 1) / kRows, height = K / tiles, taller = K % tiles;
    int64_t j = 0;
    for (int64_t i = 0; i < tiles; ++i) {
      const int rows = int(height + (i < taller));
      f(j, rows);
      j += rows;
    }
  }

  static void plan(const HmmParams &p, int64_t threads, HmmPlan &plan) {
    const int64_t K = p.states, B = p.sequences, w = lanes_wide(p);
    const int64_t in_lanes = (B + w - 1) / w * (K * K + 20 * K);
    const int64_t in_states = B * ((K + 20) * ((K + w - 1) / w) + 60);
    plan.by_lanes = p.last != nullptr || (!varying(p) && !p.per_step && in_lanes < in_states);
    const int64_t all = (B + w - 1) / w;
    // Sums must not depend on the threads: of a few sequences about four groups, which leave none idle.
    // Of many, groups that just fill the pipes, whose messages stay in the first-level cache; two vectors
    // or three share the transitions where these have to come from the second level.
    const bool shares = EVIDENS_REGISTERS == 16 || K * K * int64_t(sizeof(T)) > kHalfFirstLevel;
    int64_t groups = threads;
    if (p.task == kHmmBestPath) groups = all;  // nothing is fused, so an operand may as well come from memory
    else if (sums(p)) groups = all < 8 ? 4 : all / (shares ? 2 : 1);
    const int64_t least = (all + kVectors - 1) / kVectors;
    plan.vectors = all;
    plan.groups = !plan.by_lanes ? B : groups < least ? least : groups < all ? groups : all;
    plan.units = !sums(p) ? plan.groups : plan.groups > 32 ? 32 : plan.groups < 1 ? 1 : plan.groups;
    plan.unit_bytes = sums(p) ? align(sums_of(p) * int64_t(sizeof(double))) : 0;
    Shared s;
    carve_shared(p, nullptr, s, plan.shared_bytes);
  }

  // Vectors of sequences before group g: groups of nearly equal size, the larger ones first.
  static int64_t vectors_before(const HmmPlan &plan, int64_t g) {
    const int64_t size = plan.vectors / plan.groups, larger = plan.vectors % plan.groups;
    return g * size + (g < larger ? g : larger);
  }

  // A[i][j] -> tiles of columns (forward) and of rows (backward).
  static void prepare(const HmmParams &p, const HmmPlan &plan, void *base) {
    const int64_t K = p.states;
    Shared s;
    int64_t bytes;
    carve_shared(p, base, s, bytes);
    for (int64_t k = 0; k < padded(K, W) || k < features(p); ++k) s.zeros[k] = T(0);
    if (features(p) > 0) {
      if (p.task == kHmmBestPath) scale_emissions(p, s.scaled_double);
      else scale_emissions(p, s.scaled);
    }
    *s.limit = Reach<T>::tiny;
    if (varying(p)) return;
    const T *A = static_cast<const T *>(p.transition);
    *s.limit = limit_of(A, K);
    if (p.task == kHmmBestPath) return pack_logs(p, plan, A, s);
    const bool both = p.task == kHmmPosteriors;
    if (plan.by_lanes) {
      T *forward = s.forward, *backward = s.backward;
      each_tile(K, [&](int64_t j, int rows) {
        for (int64_t i = 0; i < K; ++i)
          for (int m = 0; m < rows; ++m) *forward++ = A[i * K + j + m];
        for (int64_t i = 0; both && i < K; ++i)
          for (int m = 0; m < rows; ++m) *backward++ = A[(j + m) * K + i];
      });
    } else {
      pad_matrix(A, K, s.forward, both ? s.backward : nullptr);
    }
  }
  static void pack_logs(const HmmParams &p, const HmmPlan &plan, const T *A, const Shared &s) {
    const int64_t K = p.states, Kd = padded(K, WD);
    for (int64_t i = 0; i < K; ++i)
      for (int64_t j = 0; j < K; ++j) s.log_columns[j * K + i] = log_of(A[i * K + j]);
    double *out = s.log_forward;
    if (plan.by_lanes) {
      each_tile(K, [&](int64_t j, int rows) {
        for (int64_t i = 0; i < K; ++i)
          for (int m = 0; m < rows; ++m) *out++ = s.log_columns[(j + m) * K + i];
      });
    } else {
      for (int64_t i = 0; i < K; ++i)
        for (int64_t j = 0; j < Kd; ++j) *out++ = j < K ? s.log_columns[j * K + i] : -__builtin_inf();
    }
  }
  // What a message has to reach so that its product with any transition is not lost.
  static T limit_of(const T *A, int64_t K) {
    T least = T(1), greatest = T(1), positive = T(1);
    for (int64_t i = 0; i < K * K; ++i) {
      least = A[i] < least ? A[i] : least;
      greatest = A[i] > greatest ? A[i] : greatest;
      positive = A[i] > T(0) && A[i] < positive ? A[i] : positive;
    }
    return least >= Reach<T>::mixing * greatest ? T(0) : Reach<T>::tiny / positive;
  }
  // Whether y = x b, of positive x and b, may have been lost; so small a b is no density but a floor.
  EVIDENS_INLINE Vec<Int<T>> lost_of(Vec<T> y, Vec<T> x, Vec<T> b, T limit) {
    return ((y < limit) | (b <= Float<T>::smallest)) & (x > T(0)) & (b > T(0));
  }
  static double log_of(T x) {
    return x > T(0) ? __builtin_log(double(x)) : x == T(0) ? -__builtin_inf() : __builtin_nan("");
  }
  // Rows padded to whole vectors by zeros, and the same of the transpose; rows beyond K are zero.
  static void pad_matrix(const T *A, int64_t K, T *rows, T *columns) {
    const int64_t Kp = padded(K, W);
    for (int64_t i = 0; i < Kp; ++i)
      for (int64_t j = 0; j < Kp; ++j) {
        if (rows != nullptr) rows[i * Kp + j] = i < K && j < K ? A[i * K + j] : T(0);
        if (columns != nullptr) columns[i * Kp + j] = i < K && j < K ? A[j * K + i] : T(0);
      }
  }

  static const T *initial_of(const HmmParams &p, int64_t b) {
    return static_cast<const T *>(p.initial) + b * p.initial_stride;
  }
  static const T *frame(const HmmParams &p, int64_t b, int64_t t) {
    return static_cast<const T *>(p.log_obs) + (p.starts[b] + t) * p.states;
  }
  static const T *values(const HmmParams &p, int64_t b, int64_t t) {
    return static_cast<const T *>(p.gaussians->frames) + (p.starts[b] + t) * p.gaussians->features;
  }
  static T weight_of(const HmmParams &p, int64_t b) { return p.weight ? static_cast<const T *>(p.weight)[b] : T(1); }

  // exp of a shifted log-density; with `watch`, a possible state never becomes an impossible one.
  EVIDENS_INLINE Vec<T> density(Vec<T> shifted, bool watch) {
    const Vec<T> b = exp_nonpositive<T>(shifted);
    if (!watch) return b;
    const Vec<T> least = broadcast<T>(Float<T>::smallest);
    return shifted > -T(__builtin_inf()) ? max<T>(least, b) : b;
  }
};

}  // namespace
}  // namespace EVIDENS_NAMESPACE
