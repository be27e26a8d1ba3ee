// Hidden Markov models in log space, in double, one sequence at a time: what linear space lost.
//
// Messages are logarithms, less those of what all states of a frame share: beside a log-likelihood of -1e16,
// a log-density of 1 would be rounding.  A product with the transitions leaves log space for one frame, behind
// the shift of its greatest message, and takes an exp for every pair of states only where that is not enough.
#pragma once
#include "hmm_states.h"
#include "philox.h"

namespace EVIDENS_NAMESPACE {
namespace {

template <class T> struct HmmExact : HmmLayout<T> {
  using Layout = HmmLayout<T>;
  using Layout::WD, Layout::padded, Layout::frame, Layout::varying;
  typedef Vec<double> V;
  // Sums within are right: what an exp lost is far below the one, and nothing is near the other's end.
  static constexpr double kLeast = 1e-200, kMost = 1e300;

  struct Matrix {
    double *linear, *logs;  // (Kd, Kd), 0 and -inf beyond the states
  };
  struct Scratch {
    Matrix rows, columns;          // A and its transpose
    double *alpha;                 // (longest, Kd)
    double *beta, *right, *b, *e;  // (Kd,)
  };
  static int64_t carve(const HmmParams &p, int64_t longest, void *base, Scratch &s) {
    Carver c(base);
    const int64_t Kd = padded(p.states, WD);
    double **matrices[] = {&s.rows.linear, &s.rows.logs, &s.columns.linear, &s.columns.logs};
    for (double **m : matrices) *m = c.take<double>(Kd * Kd);
    s.alpha = c.take<double>(longest * Kd);
    s.beta = c.take<double>(Kd);
    s.right = c.take<double>(Kd);
    s.b = c.take<double>(Kd);
    s.e = c.take<double>(Kd);
    return c.bytes();
  }
  static void use(const T *A, int64_t K, const Scratch &w) {
    const int64_t Kd = padded(K, WD);
    for (int64_t i = 0; i < Kd; ++i) {
      double *row = w.rows.linear + i * Kd, *logs = w.rows.logs + i * Kd;
      for (int64_t j = 0; j < Kd; ++j) row[j] = i < K && j < K ? double(A[i * K + j]) : 0.;
      for (int64_t j = 0; j < Kd; j += WD) store(logs + j, log<double>(load(row + j)));
      for (int64_t j = 0; j < Kd; ++j) w.columns.linear[j * Kd + i] = row[j], w.columns.logs[j * Kd + i] = logs[j];
    }
  }
  // e = exp(x - shift), where the shift is the greatest x; returns the shift.
  static double exps(int64_t K, const double *x, double *e) {
    double top = -__builtin_inf();
    for (int64_t k = 0; k < K; ++k) top = x[k] > top ? x[k] : top;
    const double shift = top == -__builtin_inf() ? 0. : top;
    for (int64_t k = 0; k < padded(K, WD); k += WD) store(e + k, exp_nonpositive<double>(load(x + k) - shift));
    return shift;
  }
  // out[j] = add[j] + log sum_i exp(x[i]) A[i][j]
  static void log_product(int64_t K, const double *x, const Matrix &m, const double *add, double *e, double *out) {
    const double shift = exps(K, x, e);
    HmmStates<double>::product(K, e, m.linear, [&](int64_t j, V sum) {
      V y = shift + log<double>(sum);
      const bool within = greatest<double>(-sum) <= -kLeast && greatest<double>(sum) <= kMost;
      if (!within) y = log_terms(K, x, m.logs + j, sum, y);
      store(out + j, load(add + j) + y);
    });
  }
  // The same for one vector of states, term by term; `y` stays where nothing was lost.
  static V log_terms(int64_t K, const double *x, const double *logs, V sum, V y) {
    const int64_t Kd = padded(K, WD);
    V top = broadcast<double>(-__builtin_inf()), total = {};
    for (int64_t i = 0; i < K; ++i) top = max<double>(x[i] + load(logs + i * Kd), top);
    const V lost = ((sum >= kLeast) & (sum <= kMost)) ? broadcast<double>(-__builtin_inf()) : top;
    if (greatest<double>(lost) == -__builtin_inf()) return y;  // no state leads to what is missing
    const V shift = top == -__builtin_inf() ? V{} : top;
    for (int64_t i = 0; i < K; ++i) total += exp_nonpositive<double>(x[i] + load(logs + i * Kd) - shift);
    return shift + log<double>(total);
  }
  static double log_sum(int64_t K, const double *x) {
    const int64_t Kd = padded(K, WD);
    double top = -__builtin_inf(), total = 0;
    for (int64_t k = 0; k < K; ++k) top = x[k] > top || x[k] != x[k] ? x[k] : top;
    if (top == -__builtin_inf()) return top;
    for (int64_t k = 0; k < Kd; k += WD) total += sum<double>(exp_nonpositive<double>(load(x + k) - top));
    return top + log<double>(broadcast<double>(total))[0];
  }
  // Takes `shared` from x where it is finite, and returns what it took.
  static double take(int64_t K, double shared, double *x) {
    if (!(shared - shared == 0)) return 0;
    for (int64_t k = 0; k < padded(K, WD); k += WD) store(x + k, load(x + k) - shared);
    return shared;
  }
  // Log-densities of a frame less the greatest, which is returned.
  static double observe(const HmmParams &p, int64_t b, int64_t t, double *out) {
    const T *row = frame(p, b, t);
    double top = -__builtin_inf();
    for (int64_t k = 0; k < padded(p.states, WD); ++k) {
      out[k] = k < p.states ? double(row[k]) : -__builtin_inf();
      top = out[k] > top ? out[k] : top;
    }
    return take(p.states, top, out);
  }
  // out = x + y, and the logarithm of its sum.
  static double log_sum_of(int64_t K, const double *x, const double *y, double *out) {
    for (int64_t k = 0; k < padded(K, WD); k += WD) store(out + k, load(x + k) + load(y + k));
    return log_sum(K, out);
  }
  static void use_step(const HmmParams &p, int64_t b, int64_t t, const Scratch &w) {  // from frame t
    const int64_t K = p.states;
    if (varying(p)) use(static_cast<const T *>(p.transition) + (p.first_transition[b] + t) * K * K, K, w);
  }

  // Everything of sequence b; `second`, where there is one, takes its share of the sum over sequences.
  static void run(int64_t b, const HmmParams &p, void *worker, double *second) {
    const int64_t K = p.states, Kd = padded(K, WD), length = p.lengths[b];
    const bool all = p.task != kHmmLogLikelihood;
    Scratch w;
    carve(p, p.lengths[p.order[0]], worker, w);
    if (!varying(p)) use(static_cast<const T *>(p.transition), K, w);
    T *rows = all ? static_cast<T *>(p.posteriors) + p.starts[b] * K : nullptr;
    const T *initial = Layout::initial_of(p, b);
    double total = 0, sum = 0;
    for (int64_t t = 0; t < length; ++t) {
      double *alpha = w.alpha + t * Kd;
      total += observe(p, b, t, w.b);
      if (t == 0) {
        for (int64_t k = 0; k < Kd; ++k) alpha[k] = w.b[k] + (k < K ? Layout::log_of(initial[k]) : 0.);
      } else {
        use_step(p, b, t - 1, w);
        log_product(K, alpha - Kd, w.rows, w.b, w.e, alpha);
      }
      sum = log_sum(K, alpha);
      if (p.task == kHmmForward) {
        probabilities(K, sum, [&](int64_t k) { return load(alpha + k); }, w.b);
        for (int64_t k = 0; k < K; ++k) rows[t * K + k] = T(w.b[k]);
      }
      const double taken = take(K, sum, alpha);
      total += taken, sum -= taken;
    }
    total += sum;
    p.log_likelihood[b] = total;
    if (p.task == kHmmPosteriors) backward(b, p, w, rows, second);
    if (p.task == kHmmDrawPaths) draw(b, p, w, total);
  }
  // exp(x(k) - total), 0 where nothing is possible.
  template <class F> EVIDENS_INLINE void probabilities(int64_t K, double total, F &&x, double *out) {
    const bool impossible = total == -__builtin_inf();
    for (int64_t k = 0; k < padded(K, WD); k += WD) store(out + k, impossible ? V{} : exp<double>(x(k) - total));
  }

  static void backward(int64_t b, const HmmParams &p, const Scratch &w, T *rows, double *second) {
    const int64_t K = p.states, Kd = padded(K, WD), Kp = padded(K, width<T>), length = p.lengths[b];
    const double weight = double(Layout::weight_of(p, b));
    for (int64_t k = 0; k < Kd; ++k) w.beta[k] = 0;
    for (int64_t t = length - 1; t >= 0; --t) {
      const double *alpha = w.alpha + t * Kd, total = log_sum_of(K, alpha, w.beta, w.b);
      probabilities(K, total, [&](int64_t k) { return load(w.b + k); }, w.b);
      for (int64_t k = 0; k < K; ++k) rows[t * K + k] = T(w.b[k]);
      observe(p, b, t, w.b);
      for (int64_t k = 0; k < Kd; ++k) w.right[k] = w.b[k] + w.beta[k];
      if (t == 0) break;
      use_step(p, b, t - 1, w);
      for (int64_t k = 0; k < Kd; ++k) w.b[k] = 0;
      log_product(K, w.right, w.columns, w.b, w.e, w.beta);
      T *out = p.per_step ? static_cast<T *>(p.second) + (p.second_row[b] + t - 1) * K * K : nullptr;
      if (out != nullptr || (second != nullptr && weight != 0)) {
        pairs(K, alpha - Kd, log_sum_of(K, alpha - Kd, w.beta, w.b), w, [&](int64_t i, int64_t j, V y) {
          if (out == nullptr) return store(second + i * Kp + j, load(second + i * Kp + j) + y * weight);
          for (int l = 0; l < WD && j + l < K; ++l) out[i * K + j + l] = bounded(y[l]);
        });
      }
      take(K, log_sum(K, w.beta), w.beta);
    }
    T *first = static_cast<T *>(p.first) + b * K;
    const T *initial = Layout::initial_of(p, b);
    for (int64_t k = 0; k < Kd; ++k) w.e[k] = k < K ? Layout::log_of(initial[k]) : 0.;
    const double total = log_sum_of(K, w.e, w.right, w.b);
    probabilities(K, total, [&](int64_t k) { return load(w.right + k); }, w.b);
    for (int64_t k = 0; k < K; ++k) first[k] = bounded(w.b[k]);
  }
  // f(i, j, exp(alpha[i] + right[j] - total)) for vectors of j.
  template <class F> EVIDENS_INLINE void pairs(int64_t K, const double *alpha, double total, const Scratch &w, F &&f) {
    const int64_t Kd = padded(K, WD);
    double *left = w.b;
    const double factor = exps(K, alpha, left) + exps(K, w.right, w.e) - total;
    const bool linear = factor < 230;  // e^230 is 1e100: what an exp lost stays far below anything
    const double size = exp<double>(broadcast<double>(factor))[0];
    for (int64_t i = 0; i < K; ++i) {
      if (!linear) probabilities(K, total, [&](int64_t j) { return alpha[i] + load(w.right + j); }, w.e);
      const double scale = linear ? left[i] * size : 1.;
      for (int64_t j = 0; j < Kd; j += WD) f(i, j, scale * load(w.e + j));
    }
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
        if (t + 1 < length) use_step(p, b, t, w), into = w.columns.logs + path[t + 1] * Kd;
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
