// Hidden Markov models, few sequences or transitions of their own for every step: lanes are states.
#pragma once
#include "hmm_layout.h"

namespace EVIDENS_NAMESPACE {
namespace {

template <class T> struct HmmStates : HmmLayout<T> {
  using Layout = HmmLayout<T>;
  using Layout::W, Layout::padded, Layout::frame, Layout::density, Layout::lost_of, Layout::varying, Layout::weight_of;
  using typename Layout::Shared;
  static constexpr int kColumns = EVIDENS_REGISTERS == 32 ? 8 : 4;  // most vectors of one product
  static constexpr int kSteps = 128;                                // between two products of messages
  static constexpr int kFrames = 32;                                // whose logarithms are taken at once
  static constexpr int kAhead = 2;                                  // frames that are observed before they are met

  struct Scratch {
    T *b;                          // (frames, Kp) exp(log_obs - shift)
    T *alpha[2], *beta, *message;  // (Kp,)
    T *left, *right;               // (steps, Kp) messages around the transitions
    T *matrix;                     // (Kp, Kp) this step's, where it varies
  };

  static int64_t carve(const HmmParams &p, void *base, Scratch &s) {
    Carver c(base);
    const int64_t Kp = padded(p.states, W);
    s.b = c.take<T>(kFrames * Kp);
    s.alpha[0] = c.take<T>(Kp);
    s.alpha[1] = c.take<T>(Kp);
    s.beta = c.take<T>(Kp);
    s.message = c.take<T>(Kp);
    s.left = c.take<T>(Layout::sums(p) ? kSteps * Kp : Kp);
    s.right = c.take<T>(Layout::sums(p) ? kSteps * Kp : Kp);
    s.matrix = c.take<T>(varying(p) ? Kp * Kp : 0);
    return c.bytes();
  }

  // Shifted densities of one frame, 0 beyond the states; returns their shift.  Frames are observed
  // some steps before they are met, in the shadow of the recursion's latency.
  EVIDENS_INLINE T observe(const HmmParams &p, const Shared &s, const Scratch &w, int64_t b, int64_t t) {
    const int64_t K = p.states, Kp = padded(K, W);
    const T inf = T(__builtin_inf()), *row = frame(p, b, t);
    T *out = density_of(w, Kp, t);
    Vec<T> top = broadcast<T>(-inf);
    int64_t k = 0;
    for (; k + W <= K; k += W) top = max<T>(load(row + k), top);
    if (k < K) {
      store(out + k, broadcast<T>(-inf));
      for (int64_t i = k; i < K; ++i) out[i] = row[i];
      top = max<T>(load(out + k), top);
    }
    const T most = greatest<T>(top), shift = most == -inf ? T(0) : most;
    const bool watched = *s.limit > T(0);
    for (k = 0; k + W <= K; k += W) store(out + k, density(load(row + k) - shift, watched));
    if (k < K) store(out + k, density(load(out + k) - shift, watched));
    return shift;
  }
  static T *density_of(const Scratch &w, int64_t Kp, int64_t t) { return w.b + t % kFrames * Kp; }

  // out[j] = sum_i x[i] rows[i][j], consumed vector by vector: f(j, product).  Few vectors are
  // summed in several chains, which hides the latency of each.
  template <class F> EVIDENS_INLINE void product(int64_t K, const T *x, const T *rows, F &&f) {
    const int64_t Kp = padded(K, W);
    for (int64_t j = 0; j < Kp; j += kColumns * W) {
      const int vectors = Kp - j < kColumns * W ? int((Kp - j) / W) : kColumns;
      with_constant<kColumns>(vectors, [&](auto v) {
        constexpr int V = decltype(v)::value, C = V > kColumns / 2 ? 1 : V > kColumns / 4 ? 2 : 4;
        Vec<T> acc[C][V] = {};
        const T *at = rows + j;
        int64_t i = 0;
        for (; i + C <= K; i += C, at += C * Kp) {
#pragma GCC unroll 8
          for (int c = 0; c < C; ++c) {
            const Vec<T> s = broadcast<T>(x[i + c]);
#pragma GCC unroll 8
            for (int u = 0; u < V; ++u) acc[c][u] += s * load(at + c * Kp + u * W);
          }
        }
        for (; i < K; ++i, at += Kp) {
#pragma GCC unroll 8
          for (int u = 0; u < V; ++u) acc[0][u] += x[i] * load(at + u * W);
        }
#pragma GCC unroll 8
        for (int u = 0; u < V; ++u) {
          Vec<T> sum = acc[0][u];
          if constexpr (C > 1) sum += acc[1][u];
          if constexpr (C > 2) sum += acc[2][u] + acc[3][u];
          f(j + u * W, sum);
        }
      });
    }
  }
  static T inverse(T sum) { return sum < Float<T>::smallest ? T(0) : T(1) / sum; }
  static const T *step_of(const HmmParams &p, int64_t b, int64_t t) {  // from frame t
    return static_cast<const T *>(p.transition) + (p.first_transition[b] + t) * p.states * p.states;
  }

  template <bool Watch> static bool forward(const HmmParams &p, const Shared &s, const Scratch &w, int64_t b) {
    const int64_t K = p.states, Kp = padded(K, W), length = p.lengths[b];
    const bool keep = p.task != kHmmLogLikelihood, normalise = p.task != kHmmPosteriors;
    T *out = keep ? static_cast<T *>(p.posteriors) + p.starts[b] * K : nullptr;
    double log_likelihood = 0;
    const T limit = *s.limit;
    T scale = T(1), sums[kFrames];
    bool lost = false;
    for (int64_t t = 0; t < kAhead && t < length; ++t) log_likelihood += double(observe(p, s, w, b, t));
    for (int64_t t0 = 0; t0 < length; t0 += kFrames) {
      const int64_t end = length - t0 < kFrames ? length : t0 + kFrames;
      for (int64_t t = t0; t < end; ++t) {
        if (t + kAhead < length) log_likelihood += double(observe(p, s, w, b, t + kAhead));
        const T *density = density_of(w, Kp, t);
        T *next = w.alpha[t & 1];
        Vec<T> total = {};
        Vec<Int<T>> gone = {};
        if (t == 0) {
          const T *initial = Layout::initial_of(p, b);
          for (int64_t k = 0; k < Kp; ++k) next[k] = k < K ? initial[k] : T(0);
          for (int64_t k = 0; k < Kp; k += W) {
            const Vec<T> start = load(next + k), d = load(density + k), y = start * d;
            if constexpr (Watch) gone |= lost_of(y, start, d, limit);
            store(next + k, y);
            total += y;
          }
        } else {
          const T *rows = s.forward;
          if (varying(p)) {
            const T *step = step_of(p, b, t - 1), *before = w.alpha[(t & 1) ^ 1], need = Layout::limit_of(step, K);
            for (int64_t k = 0; k < K; ++k) lost |= before[k] > T(0) && before[k] < need;
            Layout::pad_matrix(step, K, w.matrix, nullptr);
            rows = w.matrix;
          }
          product(K, w.alpha[(t & 1) ^ 1], rows, [&](int64_t j, Vec<T> sum) {
            const Vec<T> d = load(density + j), y = sum * scale * d;
            if constexpr (Watch) gone |= lost_of(y, sum, d, limit);
            store(next + j, y);
            total += y;
          });
        }
        const T all = sum<T>(total);
        scale = inverse(all);
        sums[t - t0] = all;
        lost |= !reached(all);
        if constexpr (Watch)
          for (int l = 0; l < W; ++l) lost |= gone[l] != 0;
        if (!keep) continue;
        const T factor = normalise ? scale : T(1);
        for (int64_t k = 0; k < K; ++k) out[t * K + k] = next[k] * factor;
      }
      if (lost) return false;
      // Off the chain of the recursion, a vector of frames at a time.
      for (int64_t t = end - t0; t < kFrames; ++t) sums[t] = T(1);
      for (int64_t t = 0; t < kFrames; t += W) store(sums + t, log<T>(load(sums + t)));
      for (int64_t t = 0; t < end - t0; ++t) log_likelihood += double(sums[t]);
    }
    p.log_likelihood[b] = log_likelihood;
    return true;
  }

  static bool backward(const HmmParams &p, const Shared &s, const Scratch &w, int64_t b, double *second) {
    const int64_t K = p.states, Kp = padded(K, W), length = p.lengths[b];
    const T weight = weight_of(p, b);
    T *rows = static_cast<T *>(p.posteriors) + p.starts[b] * K, *alpha = w.alpha[0];
    T scale = T(0), factor = T(0);
    int64_t step = 0;
    for (int64_t k = 0; k < Kp; ++k) w.message[k] = alpha[k] = T(0);
    for (int64_t t = length - 1; t >= 0 && t > length - 1 - kAhead; --t) observe(p, s, w, b, t);
    for (int64_t t = length - 1; t >= 0; --t) {
      if (t >= kAhead) observe(p, s, w, b, t - kAhead);
      for (int64_t k = 0; k < K; ++k) alpha[k] = rows[t * K + k];
      Vec<T> total = {};
      if (t + 1 == length) {
        for (int64_t k = 0; k < Kp; k += W) store(w.beta + k, broadcast<T>(T(1))), total += load(alpha + k);
      } else {
        const T *columns = s.backward;
        if (varying(p)) Layout::pad_matrix(step_of(p, b, t), K, nullptr, w.matrix), columns = w.matrix;
        product(K, w.message, columns, [&](int64_t i, Vec<T> sum) {
          const Vec<T> y = sum * scale;
          store(w.beta + i, y);
          total += y * load(alpha + i);
        });
      }
      const T z = sum<T>(total);
      if (!reached(z)) return false;
      factor = T(1) / z;
      if (t + 1 < length && p.second != nullptr && (p.per_step || weight != T(0))) {
        const T pair = factor * scale * (p.per_step ? T(1) : weight);
        T *left = w.left + step * Kp, *right = w.right + step * Kp;
        for (int64_t k = 0; k < Kp; k += W) {
          store(left + k, load(alpha + k) * pair);
          store(right + k, load(w.message + k));
        }
        if (p.per_step) {
          T *out = static_cast<T *>(p.second) + (p.second_row[b] + t) * K * K;
          for (int64_t i = 0; i < K; ++i)
            for (int64_t j = 0; j < K; ++j) out[i * K + j] = left[i] * right[j];
        } else if (++step == kSteps) {
          add_products(K, step, w, second);
          step = 0;
        }
      }
      for (int64_t k = 0; k < K; ++k) rows[t * K + k] = alpha[k] * w.beta[k] * factor;
      total = Vec<T>{};
      for (int64_t k = 0; k < Kp; k += W) {
        const Vec<T> y = load(density_of(w, Kp, t) + k) * load(w.beta + k);
        store(w.message + k, y);
        total += y;
      }
      scale = inverse(sum<T>(total));
    }
    if (step > 0) add_products(K, step, w, second);
    T *first = static_cast<T *>(p.first) + b * K;
    for (int64_t k = 0; k < K; ++k) first[k] = w.message[k] * factor;
    return true;
  }
  // second[i][j] += sum over n of left[n][i] * right[n][j].
  static void add_products(int64_t K, int64_t n, const Scratch &w, double *second) {
    constexpr int R = EVIDENS_REGISTERS == 32 ? 8 : 4, V = EVIDENS_REGISTERS == 32 ? 3 : 2;
    const int64_t Kp = padded(K, W);
    for (int64_t j = 0; j < Kp; j += V * W) {
      const int vectors = Kp - j < V * W ? int((Kp - j) / W) : V;
      with_constant<V>(vectors, [&](auto v) {
        constexpr int NV = decltype(v)::value;
        for (int64_t i = 0; i < K; i += R) {
          const int height = K - i < R ? int(K - i) : R;
          with_constant<R>(height, [&](auto r) {
            constexpr int H = decltype(r)::value;
            outer_tile<T, H, NV, false>(n, w.left + i, Kp, w.right + j, Kp, [&](Vec<T>(&acc)[H][NV]) {
              for (int m = 0; m < H; ++m)
                for (int u = 0; u < NV; ++u) {
                  T lanes[W];
                  store(lanes, acc[m][u]);
                  for (int l = 0; l < W; ++l) second[(i + m) * Kp + j + u * W + l] += double(lanes[l]);
                }
            });
          });
        }
      });
    }
  }

  static void run(const HmmParams &p, const Shared &s, int64_t index, void *worker, double *unit) {
    const int64_t K = p.states, Kp = padded(K, W), b = p.order[index];
    Scratch w;
    const int64_t bytes = carve(p, worker, w);
    double *second = reinterpret_cast<double *>(static_cast<char *>(worker) + bytes);
    if (unit != nullptr)
      for (int64_t i = 0; i < K * Kp; ++i) second[i] = 0;
    bool reached = *s.limit > T(0) ? forward<true>(p, s, w, b) : forward<false>(p, s, w, b);
    if (reached && p.task == kHmmPosteriors) {
      reached = backward(p, s, w, b, second);
      if (reached && unit != nullptr)
        for (int64_t i = 0; i < K * Kp; ++i) unit[i] += second[i];
    }
    p.redo[b] = !reached;
  }
};

}  // namespace
}  // namespace EVIDENS_NAMESPACE
