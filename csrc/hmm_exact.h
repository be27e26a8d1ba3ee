// Hidden Markov models in log space, in double, one sequence at a time: what linear space lost.
#pragma once
#include "hmm_layout.h"
#include "philox.h"

namespace EVIDENS_NAMESPACE {
namespace {

template <class T> struct HmmExact : HmmLayout<T> {
  using Layout = HmmLayout<T>;
  using Layout::WD, Layout::padded, Layout::frame, Layout::varying;
  typedef Vec<double> V;

  struct Scratch {
    double *log_a, *log_columns;  // (Kd, Kd) log A and its transpose, -inf beyond the states
    double *alpha;                // (longest, Kd)
    double *beta, *right, *b;     // (Kd,)
  };
  static int64_t carve(const HmmParams &p, int64_t longest, void *base, Scratch &s) {
    Carver c(base);
    const int64_t Kd = padded(p.states, WD);
    s.log_a = c.take<double>(Kd * Kd);
    s.log_columns = c.take<double>(Kd * Kd);
    s.alpha = c.take<double>(longest * Kd);
    s.beta = c.take<double>(Kd);
    s.right = c.take<double>(Kd);
    s.b = c.take<double>(Kd);
    return c.bytes();
  }
  static void logs_of(const T *A, int64_t K, const Scratch &w) {
    const int64_t Kd = padded(K, WD);
    for (int64_t i = 0; i < Kd; ++i) {
      double *row = w.log_a + i * Kd;
      for (int64_t j = 0; j < Kd; ++j) row[j] = i < K && j < K ? double(A[i * K + j]) : 0.;
      for (int64_t j = 0; j < Kd; j += WD) store(row + j, log<double>(load(row + j)));
      for (int64_t j = 0; j < Kd; ++j) w.log_columns[j * Kd + i] = row[j];
    }
  }
  // out[j] = add[j] + log sum_i exp(x[i] + rows[i][j])
  static void log_product(int64_t K, const double *x, const double *rows, const double *add, double *out) {
    const int64_t Kd = padded(K, WD);
    const double inf = __builtin_inf();
    for (int64_t j = 0; j < Kd; j += WD) {
      V top = broadcast<double>(-inf), total = {};
      for (int64_t i = 0; i < K; ++i) top = max<double>(x[i] + load(rows + i * Kd + j), top);
      const V shift = top == -inf ? V{} : top;
      for (int64_t i = 0; i < K; ++i) total += exp_nonpositive<double>(x[i] + load(rows + i * Kd + j) - shift);
      store(out + j, load(add + j) + (shift + log<double>(total)));
    }
  }
  static double log_sum(int64_t K, const double *x) {
    const int64_t Kd = padded(K, WD);
    double top = -__builtin_inf(), total = 0;
    for (int64_t k = 0; k < K; ++k) top = x[k] > top || x[k] != x[k] ? x[k] : top;
    if (top == -__builtin_inf()) return top;
    for (int64_t k = 0; k < Kd; k += WD) total += sum<double>(exp_nonpositive<double>(load(x + k) - top));
    return top + log<double>(broadcast<double>(total))[0];
  }
  static void observe(const HmmParams &p, int64_t b, int64_t t, double *out) {
    const T *row = frame(p, b, t);
    for (int64_t k = 0; k < padded(p.states, WD); ++k) out[k] = k < p.states ? double(row[k]) : -__builtin_inf();
  }
  static void use_step(const HmmParams &p, int64_t b, int64_t t, const Scratch &w) {  // from frame t
    const int64_t K = p.states;
    if (varying(p)) logs_of(static_cast<const T *>(p.transition) + (p.first_transition[b] + t) * K * K, K, w);
  }

  // Everything of sequence b; `second` takes its share of the sum over sequences.
  static void run(int64_t b, const HmmParams &p, void *worker, double *second) {
    const int64_t K = p.states, Kd = padded(K, WD), length = p.lengths[b];
    const bool all = p.task != kHmmLogLikelihood;
    Scratch w;
    carve(p, p.lengths[p.order[0]], worker, w);
    if (!varying(p)) logs_of(static_cast<const T *>(p.transition), K, w);
    T *rows = all ? static_cast<T *>(p.posteriors) + p.starts[b] * K : nullptr;
    const T *initial = Layout::initial_of(p, b);
    for (int64_t t = 0; t < length; ++t) {
      double *alpha = w.alpha + t * Kd;
      observe(p, b, t, w.b);
      if (t == 0) {
        for (int64_t k = 0; k < Kd; ++k) alpha[k] = w.b[k] + (k < K ? Layout::log_of(initial[k]) : 0.);
      } else {
        use_step(p, b, t - 1, w);
        log_product(K, alpha - Kd, w.log_a, w.b, alpha);
      }
      if (p.task != kHmmForward) continue;
      const double sum = log_sum(K, alpha);
      probabilities(K, sum, [&](int64_t k) { return load(alpha + k); }, w.b);
      for (int64_t k = 0; k < K; ++k) rows[t * K + k] = T(w.b[k]);
    }
    const double total = log_sum(K, w.alpha + (length - 1) * Kd);
    p.log_likelihood[b] = total;
    if (p.task == kHmmPosteriors) backward(b, p, w, rows, total, second);
    if (p.task == kHmmDrawPaths) draw(b, p, w, total);
  }
  // exp(x(k) - total), 0 where nothing is possible.
  template <class F> EVIDENS_INLINE void probabilities(int64_t K, double total, F &&x, double *out) {
    const bool impossible = total == -__builtin_inf();
    for (int64_t k = 0; k < padded(K, WD); k += WD) store(out + k, impossible ? V{} : exp<double>(x(k) - total));
  }

  static void backward(int64_t b, const HmmParams &p, const Scratch &w, T *rows, double total, double *second) {
    const int64_t K = p.states, Kd = padded(K, WD), Kp = padded(K, width<T>), length = p.lengths[b];
    const double weight = double(Layout::weight_of(p, b));
    for (int64_t k = 0; k < Kd; ++k) w.beta[k] = 0;
    for (int64_t t = length - 1; t >= 0; --t) {
      const double *alpha = w.alpha + t * Kd;
      probabilities(K, total, [&](int64_t k) { return load(alpha + k) + load(w.beta + k); }, w.b);
      for (int64_t k = 0; k < K; ++k) rows[t * K + k] = T(w.b[k]);
      observe(p, b, t, w.b);
      for (int64_t k = 0; k < Kd; ++k) w.right[k] = w.b[k] + w.beta[k];
      if (t == 0) break;
      T *out = p.per_step ? static_cast<T *>(p.second) + (p.second_row[b] + t - 1) * K * K : nullptr;
      for (int64_t i = 0; i < K && (out != nullptr || weight != 0); ++i) {
        probabilities(K, total, [&](int64_t j) { return alpha[i - Kd] + load(w.right + j); }, w.b);
        for (int64_t j = 0; j < K; ++j) {
          if (out != nullptr) out[i * K + j] = bounded(w.b[j]);
          else second[i * Kp + j] += w.b[j] * weight;
        }
      }
      use_step(p, b, t - 1, w);
      for (int64_t k = 0; k < Kd; ++k) w.b[k] = 0;
      log_product(K, w.right, w.log_columns, w.b, w.beta);
    }
    T *first = static_cast<T *>(p.first) + b * K;
    probabilities(K, total, [&](int64_t k) { return load(w.right + k); }, w.b);
    for (int64_t k = 0; k < K; ++k) first[k] = bounded(w.b[k]);
  }
  static T bounded(double y) {  // a derivative at a probability of zero may exceed the largest number
    const double most = double(Float<T>::largest);
    return T(y > most ? most : y);
  }

  // --- drawn paths -----------------------------------------------------------------------------------

  // The state at which the running sum of f(k) passes u times its total, one with weight; -1: none.
  template <class F> static int64_t pick(int64_t K, double u, F &&f) {
    double total = 0, sum = 0;
    for (int64_t k = 0; k < K; ++k) total += f(k);
    int64_t last = -1;
    for (int64_t k = 0; k < K; ++k) {
      const double y = f(k);
      if (!(y > 0)) continue;
      last = k;
      sum += y;
      if (sum > u * total) break;
    }
    return last;
  }
  static double uniform_of(const HmmParams &p, int64_t draw, int64_t b, int64_t t) {
    const PhiloxWords w = philox({{uint32_t(t / 2), uint32_t(b), uint32_t(uint64_t(b) >> 32), uint32_t(draw)}},
                                 uint32_t(p.seed), uint32_t(p.seed >> 32));
    return t % 2 ? uniform(w.word[2], w.word[3]) : uniform(w.word[0], w.word[1]);
  }
  static void draw(int64_t b, const HmmParams &p, const Scratch &w, double total) {
    const int64_t K = p.states, Kd = padded(K, WD), length = p.lengths[b];
    for (int64_t d = 0; d < p.draws; ++d) {
      int64_t *path = p.paths + d * p.rows + p.starts[b];
      for (int64_t t = length - 1; t >= 0; --t) {
        if (!(total > -__builtin_inf())) {
          path[t] = -1;
          continue;
        }
        const double *alpha = w.alpha + t * Kd, *into = nullptr;
        if (t + 1 < length) use_step(p, b, t, w), into = w.log_columns + path[t + 1] * Kd;
        double top = -__builtin_inf();
        for (int64_t k = 0; k < Kd; ++k) {
          w.right[k] = alpha[k] + (into ? into[k] : 0.);
          top = w.right[k] > top ? w.right[k] : top;
        }
        probabilities(K, top, [&](int64_t k) { return load(w.right + k); }, w.b);
        path[t] = pick(K, uniform_of(p, d, b, t), [&](int64_t k) { return w.b[k]; });
      }
    }
  }
  // The same from the filter in linear space.
  static void draw_filtered(int64_t b, const HmmParams &p) {
    const int64_t K = p.states, length = p.lengths[b];
    const T *filtered = static_cast<const T *>(p.posteriors) + p.starts[b] * K;
    for (int64_t d = 0; d < p.draws; ++d) {
      int64_t *path = p.paths + d * p.rows + p.starts[b];
      for (int64_t t = length - 1; t >= 0; --t) {
        const T *row = filtered + t * K, *A = static_cast<const T *>(p.transition);
        const double u = uniform_of(p, d, b, t);
        if (t + 1 == length) {
          path[t] = pick(K, u, [&](int64_t k) { return double(row[k]); });
          continue;
        }
        if (varying(p)) A += (p.first_transition[b] + t) * K * K;
        const int64_t next = path[t + 1];
        path[t] = next < 0 ? -1 : pick(K, u, [&](int64_t k) { return double(row[k]) * double(A[k * K + next]); });
      }
    }
  }
};

}  // namespace
}  // namespace EVIDENS_NAMESPACE
