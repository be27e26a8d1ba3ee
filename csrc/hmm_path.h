// Hidden Markov models: the best path (Viterbi), in log space and in double.
//
// Only the best scores are kept; going back, the predecessor is found again among them, which takes K
// additions for a frame where keeping it would burden all K x K.  Ties as hmmlearn breaks them: the
// first of the best states at the end, the last of the best predecessors.
#pragma once
#include "hmm_gaussian.h"
#include "hmm_layout.h"
#include "transpose.h"

namespace EVIDENS_NAMESPACE {
namespace {

template <class T> struct HmmPath : HmmLayout<T> {
  using Layout = HmmLayout<T>;
  using Layout::padded, Layout::frame, Layout::varying, Layout::kRows;
  using typename Layout::Shared;
  static constexpr int W = width<double>;
  typedef Vec<double> V;
  typedef Vec<Int<double>> States;

  static int64_t carve(const HmmParams &p, const HmmPlan &plan, void *base, double *&scores, double *&b,
                       double *&matrix) {
    Carver c(base);
    const int64_t K = p.states, Kd = padded(K, W), longest = p.sequences ? p.lengths[p.order[0]] : 0;
    const int64_t row = plan.by_lanes ? K * W : Kd;
    scores = c.take<double>(longest * row);
    b = c.take<double>(row + Layout::features(p) * W);
    matrix = c.take<double>(varying(p) ? 2 * K * Kd : 0);
    return c.bytes();
  }

  // next[j] = b[j] + max_i (log A[i][j] + best[i]) for all lanes.
  static void step(int64_t K, const double *packed, const double *best, const double *b, double *next) {
    Layout::each_tile(K, [&](int64_t j, int rows) {
      with_constant<kRows>(rows, [&](auto r) {
        constexpr int R = decltype(r)::value;
        V acc[R];
#pragma GCC unroll 8
        for (int m = 0; m < R; ++m) acc[m] = broadcast<double>(-__builtin_inf());
        for (int64_t i = 0; i < K; ++i, packed += R) {
          const V x = load(best + i * W);
#pragma GCC unroll 8
          for (int m = 0; m < R; ++m) acc[m] = max<double>(packed[m] + x, acc[m]);
        }
#pragma GCC unroll 8
        for (int m = 0; m < R; ++m) store(next + (j + m) * W, load(b + (j + m) * W) + acc[m]);
      });
    });
  }

  // A vector of sequences.
  static void run_lanes(const HmmParams &p, const Shared &s, int64_t index, double *scores, double *b) {
    const int64_t K = p.states, *order = p.order + index * W;
    const int64_t count = p.sequences - index * W < W ? p.sequences - index * W : W, longest = p.lengths[order[0]];
    States infinite = {};  // where a density is NaN or +inf
    const T *first[W];
    for (int64_t l = 0; l < count; ++l)
      first[l] = p.gaussians != nullptr ? Layout::values(p, order[l], 0) : frame(p, order[l], 0);
    const int64_t row = p.gaussians != nullptr ? Layout::features(p) : K;
    int64_t active = count;
    for (int64_t t = 0; t < longest; ++t) {
      while (active > 0 && p.lengths[order[active - 1]] <= t) --active;
      double *next = scores + t * K * W;
      const auto values = [&](int64_t l) { return l < active ? first[l] + t * row : s.zeros; };
      if (p.gaussians != nullptr) {
        double *x = b + K * W;
        gather_rows(row, x, W, 2 * row, values);
        HmmGaussian<T>::log_densities(K, *p.gaussians, s.scaled_double, x, W, b, W);
      } else {
        gather_rows(row, b, W, 2 * K, values);
      }
      for (int64_t k = 0; k < K; ++k) infinite |= ~(load(b + k * W) <= Float<double>::largest);
      if (t > 0) {
        step(K, s.log_forward, next - K * W, b, next);
        continue;
      }
      gather_rows(K, next, W, 0,
                  [&](int64_t l) -> const T * { return Layout::initial_of(p, order[l < active ? l : 0]); });
      for (int64_t i = 0; i < K * W; ++i) next[i] = b[i] + Layout::log_of(T(next[i]));
    }
    if constexpr (W == 8) {
      if (K <= 2 * W) return trace_lanes<true>(p, s, order, count, infinite, scores, b);
    }
    trace_lanes<false>(p, s, order, count, infinite, scores, b);
  }

  // Back along the sequences of one vector: what of log A leads to their states becomes lanes, and the
  // predecessors are met in two halves, each a chain of its own.  Few states: a row of log A is two
  // vectors, of which the states choose.
  template <bool Few>
  static void trace_lanes(const HmmParams &p, const Shared &s, const int64_t *order, int64_t count, States bad,
                          const double *scores, double *columns) {
    struct Best {
      V score;
      States state;
      void meet(V y, States i) {
        const auto up = y >= score;
        score = up ? y : score, state = up ? i : state;
      }
    };
    const int64_t K = p.states, half = K / 2;
    double rows[Few ? 2 * W : 1][2 * W];
    for (int64_t i = 0; Few && i < K; ++i)
      for (int64_t j = 0; j < 2 * W; ++j) rows[i][j] = j < K ? s.log_columns[j * K + i] : 0;
    Int<double> state[W] = {}, lengths[W] = {};
    int64_t *paths[W];
    for (int64_t l = 0; l < count; ++l) {
      lengths[l] = p.lengths[order[l]];
      const double none = bad[l] ? __builtin_nan("") : 0.;
      const bool possible = end(p, order[l], none, scores + l + (lengths[l] - 1) * K * W, W, state[l]);
      paths[l] = possible ? p.paths + p.starts[order[l]] : nullptr;
    }
    States now, ends;
    __builtin_memcpy(&now, state, sizeof(now));
    __builtin_memcpy(&ends, lengths, sizeof(ends));
    int64_t running = 0;
    for (int64_t t = lengths[0] - 2; t >= 0; --t) {
      while (running < count && lengths[running] > t + 1) ++running;
      const double *row = scores + t * K * W;
      if (!Few) gather_rows(K, columns, W, 0, [&](int64_t l) { return s.log_columns + state[l] * K; });
      const auto into = [&](int64_t k) {  // score of a path over state k
        if constexpr (Few) return load(row + k * W) + chosen<double>(load(rows[k]), load(rows[k] + W), now);
        else return load(row + k * W) + load(columns + k * W);
      };
      const V none = broadcast<double>(-__builtin_inf());
      Best low{none, now}, high{none, now};
      States i = {};
      for (int64_t k = 0; k < half; ++k, i += 1) {
        low.meet(into(k), i);
        high.meet(into(k + half), i + half);
      }
      if (2 * half < K) high.meet(into(K - 1), i + half);
      low.meet(high.score, high.state);
      now = ends > t + 1 ? low.state : now;
      __builtin_memcpy(state, &now, sizeof(now));
      for (int64_t l = 0; l < running; ++l)
        if (paths[l] != nullptr) paths[l][t] = state[l];
    }
  }

  static void run_states(const HmmParams &p, const Shared &s, int64_t b, double *scores, double *row, double *matrix) {
    const int64_t K = p.states, Kd = padded(K, W), length = p.lengths[b];
    const T *initial = Layout::initial_of(p, b);
    double bad = 0, *columns = matrix + K * Kd;
    for (int64_t t = 0; t < length; ++t) {
      const T *x = frame(p, b, t);
      double *next = scores + t * Kd;
      for (int64_t k = 0; k < Kd; ++k) row[k] = k < K ? double(x[k]) : -__builtin_inf();
      for (int64_t k = 0; k < K; ++k) bad += (row[k] > 0. ? row[k] : row[k] == row[k] ? 0. : row[k]) * 0.;
      if (t == 0) {
        for (int64_t k = 0; k < Kd; ++k) next[k] = row[k] + (k < K ? Layout::log_of(initial[k]) : 0.);
        continue;
      }
      const double *logs = s.log_forward;
      if (varying(p)) logs_of_step(p, b, t - 1, matrix, columns), logs = matrix;
      for (int64_t j = 0; j < Kd; j += W) {
        V best[4];
        for (V &y : best) y = broadcast<double>(-__builtin_inf());
        int64_t i = 0;
        for (; i + 4 <= K; i += 4)
#pragma GCC unroll 4
          for (int c = 0; c < 4; ++c) best[c] = max<double>(next[i + c - Kd] + load(logs + (i + c) * Kd + j), best[c]);
        for (; i < K; ++i) best[0] = max<double>(next[i - Kd] + load(logs + i * Kd + j), best[0]);
        const V most = max<double>(max<double>(best[0], best[1]), max<double>(best[2], best[3]));
        store(next + j, load(row + j) + most);
      }
    }
    trace(p, b, bad, scores, Kd, 1, [&](int64_t t, int64_t j) -> const double * {
      if (!varying(p)) return s.log_columns + j * K;
      logs_of_step(p, b, t, matrix, columns);
      return columns + j * K;
    });
  }
  static void logs_of_step(const HmmParams &p, int64_t b, int64_t t, double *rows, double *columns) {
    const int64_t K = p.states, Kd = padded(K, W);
    const T *A = static_cast<const T *>(p.transition) + (p.first_transition[b] + t) * K * K;
    for (int64_t i = 0; i < K; ++i)
      for (int64_t j = 0; j < Kd; ++j) {
        const double y = j < K ? Layout::log_of(A[i * K + j]) : -__builtin_inf();
        rows[i * Kd + j] = y;
        if (j < K) columns[j * K + i] = y;
      }
  }

  // The score and the last state of a path; false, with all states -1, where there is none.
  static bool end(const HmmParams &p, int64_t b, double bad, const double *last, int64_t state_step,
                  Int<double> &state) {
    const int64_t length = p.lengths[b];
    int64_t *path = p.paths + p.starts[b];
    state = 0;
    for (int64_t k = 1; k < p.states; ++k) state = last[k * state_step] > last[state * state_step] ? k : state;
    const double score = p.log_likelihood[b] = last[state * state_step] + bad;
    const bool possible = score > -__builtin_inf();
    if (possible) path[length - 1] = state;
    else
      for (int64_t t = 0; t < length; ++t) path[t] = -1;
    return possible;
  }
  // From the scores (frames `frame_step` apart, states `state_step`); into(t, j): log A_t[:, j].
  template <class Into>
  static void trace(const HmmParams &p, int64_t b, double bad, const double *scores, int64_t frame_step,
                    int64_t state_step, Into &&into) {
    const int64_t K = p.states, length = p.lengths[b];
    int64_t *path = p.paths + p.starts[b];
    Int<double> state;
    if (!end(p, b, bad, scores + (length - 1) * frame_step, state_step, state)) return;
    for (int64_t t = length - 2; t >= 0; --t) {
      const double *row = scores + t * frame_step, *columns = into(t, state);
      double best = -__builtin_inf();
      for (int64_t i = 0; i < K; ++i) {
        const double y = row[i * state_step] + columns[i];
        state = y >= best ? i : state;
        best = y >= best ? y : best;
      }
      path[t] = state;
    }
  }

  static void run(const HmmParams &p, const HmmPlan &plan, const Shared &s, int64_t index, void *worker) {
    double *scores, *b, *matrix;
    carve(p, plan, worker, scores, b, matrix);
    if (plan.by_lanes) run_lanes(p, s, index, scores, b);
    else run_states(p, s, p.order[index], scores, b, matrix);
  }
};

}  // namespace
}  // namespace EVIDENS_NAMESPACE
