// Hidden Markov models, many sequences: lanes are sequences, and a step of all of them is a small
// matrix product whose result is consumed at once.
//
// Matrices of a group have one row per state and one column per lane.  Sequences are sorted by
// falling length, so those that have ended are the last lanes; whole vectors of them are left out.
#pragma once
#include "hmm_gaussian.h"
#include "hmm_layout.h"
#include "transpose.h"

namespace EVIDENS_NAMESPACE {
namespace {

template <class T> struct HmmLanes : HmmLayout<T> {
  using Layout = HmmLayout<T>;
  using Layout::W, Layout::WD, Layout::kVectors, Layout::each_tile, Layout::frame, Layout::weight_of,
      Layout::initial_of, Layout::density, Layout::lost_of;
  using typename Layout::Shared;
  static constexpr int kLanes = kVectors * W;
  typedef HmmGaussian<T> Gaussian;
  static constexpr int64_t kKeptBytes = 512 << 10;  // half of a second-level cache
  typedef Vec<Int<T>> Mask;

  struct Scratch {
    T *b;                               // (frames, K, lanes) exp(log_obs - shift); one frame, or all that are kept
    T *alpha;                           // (frames, K, lanes) forward messages; two frames, or all that are kept
    T *beta, *gamma;                    // (K, lanes)
    T *left, *right;                    // (K, slots x lanes) messages around the transitions of several steps
    T *states, *x;                      // (K, slots x lanes) and (D, slots x lanes): weighted posteriors, and values
    T *shift, *total, *scale, *factor;  // (lanes,)
  };
  struct Group {
    const int64_t *order;   // its sequences
    int64_t count;          // of them
    int64_t lanes;          // row stride, whole vectors
    int64_t slots;          // steps between two products of messages
    int64_t stride;         // of left, right, states and x
    bool kept;              // b of all frames stay as they are from forward to backward
    bool kept_alpha;        // so do alpha; otherwise they lie in posteriors meanwhile
    int64_t first[kLanes];  // where the first frame of each lies in (N, K)
    const T *x[kLanes];     // the values of that frame, where emissions are computed
  };

  static Group group_of(const HmmParams &p, const HmmPlan &plan, int64_t g) {
    Group r;
    const int64_t first = Layout::vectors_before(plan, g) * W;
    r.lanes = Layout::vectors_before(plan, g + 1) * W - first;
    r.order = p.order + first;
    r.count = p.sequences - first < r.lanes ? p.sequences - first : r.lanes;
    r.slots = Layout::sums(p) ? kSlotRows / r.lanes : 1;
    r.stride = r.slots * r.lanes + W;  // an odd number of vectors spreads rows over the cache's sets
    r.kept = kept(p, r.lanes) > 0;
    r.kept_alpha = kept_alpha(p, r.lanes) > 0;
    for (int64_t l = 0; l < r.lanes; ++l) {
      const int64_t b = r.order[l < r.count ? l : 0];
      r.first[l] = p.starts[b] * p.states;
      r.x[l] = p.gaussians != nullptr ? Layout::values(p, b, 0) : nullptr;
    }
    return r;
  }
  // Frames of which b and alpha are kept: all, if they stay in the cache until they come again; alpha
  // also where there is no other place.
  static int64_t kept(const HmmParams &p, int64_t lanes) {
    const int64_t longest = p.sequences ? p.lengths[p.order[0]] : 0;
    const bool small =
        2 * longest * p.states * lanes * int64_t(sizeof(T)) <= (p.gaussians != nullptr ? 4 : 1) * kKeptBytes;
    return p.task == kHmmPosteriors && small ? longest : 0;
  }
  static int64_t kept_alpha(const HmmParams &p, int64_t lanes) {
    const bool nowhere = p.task == kHmmPosteriors && p.posteriors == nullptr && p.sequences > 0;
    return nowhere ? p.lengths[p.order[0]] : kept(p, lanes);
  }
  static int64_t carve(const HmmParams &p, int64_t lanes, void *base, Scratch &s) {
    Carver c(base);
    const int64_t K = p.states, D = Layout::features(p), all = p.task == kHmmPosteriors ? K * lanes : 0;
    const int64_t frames = kept(p, lanes), alphas = kept_alpha(p, lanes), columns = kSlotRows + W;
    const int64_t messages = p.task == kHmmPosteriors ? K * columns : 0;
    s.b = c.take<T>(K * lanes * (frames > 1 ? frames : 1));
    s.alpha = c.take<T>(K * lanes * (alphas > 2 ? alphas : 2));
    s.beta = c.take<T>(all);
    s.gamma = c.take<T>(all);
    s.left = c.take<T>(messages);
    s.right = c.take<T>(messages);
    s.states = c.take<T>(D > 0 && Layout::sums(p) ? messages : 0);
    s.x = c.take<T>(D * columns);
    s.shift = c.take<T>(lanes);
    s.total = c.take<T>(lanes);
    s.scale = c.take<T>(lanes);
    s.factor = c.take<T>(lanes);
    return c.bytes();
  }
  static T *density_of(const HmmParams &p, const Scratch &w, const Group &g, int64_t t) {
    return w.b + (g.kept ? t * p.states * g.lanes : 0);
  }
  static T *alpha_of(const HmmParams &p, const Scratch &w, const Group &g, int64_t t) {
    return w.alpha + (g.kept_alpha ? t : t & 1) * p.states * g.lanes;
  }
  EVIDENS_INLINE T *row_of(void *rows, const HmmParams &p, const Group &g, int64_t lane, int64_t t) {
    return static_cast<T *>(rows) + g.first[lane] + t * p.states;
  }

  // Lanes below `count`, as a mask; and whether a mask has any lane.
  EVIDENS_INLINE Mask lanes_below(int64_t count) {
    Mask lane;
    for (int l = 0; l < W; ++l) lane[l] = Int<T>(l);
    return lane < Int<T>(count < W ? count : W);
  }
  EVIDENS_INLINE bool any(Mask mask) { return sum<T>(mask ? broadcast<T>(T(1)) : Vec<T>{}) > T(0); }
  EVIDENS_INLINE Mask reached(Vec<T> sum) { return (sum >= Reach<T>::scale) & (sum <= Float<T>::largest); }

  // The values of frame t; a sequence that has ended shows zeros.
  static void values_of(const HmmParams &p, const Shared &s, const Group &g, int64_t t, int64_t active,
                        int64_t direction, T *x) {
    const int64_t D = Layout::features(p), at = t * D, ahead = direction * D;
    for (int64_t n = 0; n < active; n += W) {
      const T *const *rows = g.x + n;
      if (n + W <= active) gather_rows(D, x + n, g.stride, ahead, [&](int64_t l) { return rows[l] + at; });
      else gather_rows(D, x + n, g.stride, ahead, [&](int64_t l) { return n + l < active ? rows[l] + at : s.zeros; });
    }
  }
  // b and shift of frame t; a sequence that has ended observes zeros.
  static void observe(const HmmParams &p, const Shared &s, const Scratch &w, const Group &g, int64_t t, int64_t active,
                      int64_t direction, const T *x, T *densities) {
    const int64_t K = p.states, G = g.lanes;
    const T *rows = static_cast<const T *>(p.log_obs), inf = T(__builtin_inf());
    const bool watched = *s.limit > T(0);
    for (int64_t n = 0; n < active; n += W) {
      T *b = densities + n;
      Vec<T> top = broadcast<T>(-inf);
      if (p.gaussians != nullptr) {
        top = Gaussian::log_densities(K, *p.gaussians, s.scaled, x + n, g.stride, b, G);
      } else {
        gather_rows(
            K, b, G, direction * K,
            [&](int64_t l) -> const T * { return n + l < active ? rows + g.first[n + l] + t * K : s.zeros; },
            [&](Vec<T> y) { top = max<T>(y, top); });
      }
      const Vec<T> shift = top == -inf ? Vec<T>{} : top;
      store(w.shift + n, lanes_below(active - n) ? shift : Vec<T>{});
      if (watched)
        for (int64_t k = 0; k < K; ++k) store(b + k * G, density(load(b + k * G) - shift, true));
      else
        for (int64_t k = 0; k < K; ++k) store(b + k * G, density(load(b + k * G) - shift, false));
    }
  }
  static int64_t active_at(const HmmParams &p, const Group &g, int64_t t, int64_t active) {
    while (active > 0 && p.lengths[g.order[active - 1]] <= t) --active;
    return active;
  }
  static int64_t active_back(const HmmParams &p, const Group &g, int64_t t, int64_t active) {
    while (active < g.count && p.lengths[g.order[active]] > t) ++active;
    return active;
  }

  // --- forward -------------------------------------------------------------------------------------

  // next = b * scale * (A^T alpha), and its sums; `lost` where a message fell out of range.
  template <int V, bool Watch>
  static void forward_frame(const HmmParams &p, const Shared &s, const Scratch &w, const Group &g, const T *densities,
                            const T *alpha, T *next, int64_t active, uint8_t *lost) {
    const int64_t K = p.states;
    const T limit = *s.limit;
    Vec<T> total[V] = {}, scale[V];
    Vec<Int<T>> gone[V] = {};
    for (int v = 0; v < V; ++v) scale[v] = load(w.scale + v * W);
    const T *packed = s.forward;
    each_tile(K, [&](int64_t j, int rows) {
      with_constant<Layout::kRows>(rows, [&](auto r) {
        constexpr int R = decltype(r)::value;
        outer_tile<T, R, V, false>(K, packed, R, alpha, g.lanes, [&](Vec<T>(&acc)[R][V]) {
          // In registers: what is captured may lie where is stored to, as far as the compiler knows.
          const int64_t G = g.lanes;
          const T *b = densities + j * G, least = limit;
          T *out = next + j * G;
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v, b += W, out += W) {
            const Vec<T> by = scale[v];
            Vec<T> sum = total[v];
            Vec<Int<T>> any = gone[v];
#pragma GCC unroll 8
            for (int m = 0; m < R; ++m) {
              const Vec<T> d = load(b + m * G), y = acc[m][v] * by * d;
              if constexpr (Watch) any |= lost_of(y, acc[m][v], d, least);
              store(out + m * G, y);
              sum += y;
            }
            total[v] = sum, gone[v] = any;
          }
        });
        packed += K * R;
      });
    });
    for (int v = 0; v < V; ++v) {
      store(w.total + v * W, total[v]);
      if constexpr (Watch)
        for (int l = 0; l < W && v * W + l < active; ++l) lost[v * W + l] |= gone[v][l] != 0;
    }
  }
  static void first_frame(const HmmParams &p, const Shared &s, const Scratch &w, const Group &g, const T *densities,
                          T *next, int64_t active, uint8_t *lost) {
    const int64_t K = p.states;
    const T limit = *s.limit;
    for (int64_t n = 0; n < active; n += W) {
      gather_rows(K, next + n, g.lanes, 0,
                  [&](int64_t l) { return initial_of(p, g.order[n + l < active ? n + l : 0]); });
      Vec<T> total = {};
      Vec<Int<T>> gone = {};
      for (int64_t k = 0; k < K; ++k) {
        const Vec<T> start = load(next + k * g.lanes + n), b = load(densities + k * g.lanes + n), y = start * b;
        gone |= lost_of(y, start, b, limit);
        store(next + k * g.lanes + n, y);
        total += y;
      }
      store(w.total + n, total);
      for (int64_t l = 0; l < W && n + l < active; ++l) lost[n + l] |= limit > T(0) && gone[l] != 0;
    }
  }

  // Runs the group forward; the messages go to posteriors where `keep`, normalised for the filter.
  static void forward(const HmmParams &p, const Shared &s, const Scratch &w, const Group &g, uint8_t *lost) {
    const int64_t K = p.states, longest = p.lengths[g.order[0]];
    const bool normalise = p.task != kHmmPosteriors, keep = p.task != kHmmLogLikelihood && !g.kept_alpha;
    double total[kLanes] = {};
    LogProduct<T> scales[kVectors];
    Mask gone[kVectors] = {};
    int64_t active = g.count;
    for (int64_t t = 0; t < longest; ++t) {
      active = active_at(p, g, t, active);
      T *b = density_of(p, w, g, t), *next = alpha_of(p, w, g, t);
      if (p.gaussians != nullptr) values_of(p, s, g, t, active, 2, w.x);
      observe(p, s, w, g, t, active, 2, w.x, b);
      if (t == 0) {
        first_frame(p, s, w, g, b, next, active, lost);
      } else {
        with_constant<kVectors>(int((active + W - 1) / W), [&](auto v) {
          constexpr int V = decltype(v)::value;
          const T *alpha = alpha_of(p, w, g, t - 1);
          if (*s.limit > T(0)) forward_frame<V, true>(p, s, w, g, b, alpha, next, active, lost);
          else forward_frame<V, false>(p, s, w, g, b, alpha, next, active, lost);
        });
      }
      for (int64_t n = 0; n < active; n += W) {
        const Vec<T> sum = load(w.total + n);
        const Mask here = lanes_below(active - n);
        store(w.scale + n, sum < Float<T>::smallest ? Vec<T>{} : T(1) / sum);
        gone[n / W] |= here & ~reached(sum);
        scales[n / W].times(here ? sum : broadcast<T>(T(1)));
        if (t % LogProduct<T>::kMost == LogProduct<T>::kMost - 1) scales[n / W].settle(total + n);
        for (int l = 0; l < W; l += WD) store(total + n + l, load(total + n + l) + load_as<double>(w.shift + n + l));
      }
      if (p.last != nullptr)
        for (int64_t l = active_at(p, g, t + 1, active); l < active; ++l)
          for (int64_t k = 0; k < K; ++k)
            static_cast<T *>(p.last)[g.order[l] * K + k] = next[k * g.lanes + l] * w.scale[l];
      if (!keep) continue;
      for (int64_t n = 0; n < active; n += W) {
        const T *out = next + n;
        if (normalise) {
          const Vec<T> scale = load(w.scale + n);
          for (int64_t k = 0; k < K; ++k) store(b + k * g.lanes + n, load(out + k * g.lanes) * scale);
          out = b + n;
        }
        scatter_rows(K, out, g.lanes, active - n, [&](int64_t l) { return row_of(p.posteriors, p, g, n + l, t); });
      }
    }
    for (int64_t n = 0; n < g.count; n += W) scales[n / W].settle(total + n);
    for (int64_t l = 0; l < g.count; ++l) {
      p.log_likelihood[g.order[l]] = total[l];
      lost[l] |= gone[l / W][l % W] != 0;
    }
  }

  // --- backward ------------------------------------------------------------------------------------

  // beta = scale * (A right), 1 where the sequence ends here (t + 1 == length); z = sum alpha beta.
  template <int V>
  static void backward_frame(const HmmParams &p, const Shared &s, const Scratch &w, const Group &g, const T *right,
                             const T *alpha, const T *ends) {
    const int64_t K = p.states;
    Vec<T> total[V] = {}, scale[V], end[V];
    for (int v = 0; v < V; ++v) scale[v] = load(w.scale + v * W), end[v] = load(ends + v * W);
    const T *packed = s.backward;
    each_tile(K, [&](int64_t i, int rows) {
      with_constant<Layout::kRows>(rows, [&](auto r) {
        constexpr int R = decltype(r)::value;
        outer_tile<T, R, V, false>(K, packed, R, right, g.stride, [&](Vec<T>(&acc)[R][V]) {
          const int64_t G = g.lanes;
          const T *from = alpha + i * G;
          T *out = w.beta + i * G;
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v, from += W, out += W) {
            const Vec<T> by = scale[v], ones = end[v];
            Vec<T> sum = total[v];
#pragma GCC unroll 8
            for (int m = 0; m < R; ++m) {
              const Vec<T> y = acc[m][v] * by + ones;
              store(out + m * G, y);
              sum += y * load(from + m * G);
            }
            total[v] = sum;
          }
        });
        packed += K * R;
      });
    });
    for (int v = 0; v < V; ++v) store(w.total + v * W, total[v]);
  }

  // Posteriors in the place of the forward messages, and the sum of left right^T over the steps; false
  // where a sequence fell out of range, and `lost` says which.
  static bool backward(const HmmParams &p, const Shared &s, const Scratch &w, const Group &g, uint8_t *lost,
                       double *second) {
    const int64_t K = p.states, G = g.lanes, S = g.stride, longest = p.lengths[g.order[0]];
    T ends[kLanes], weight[kLanes];
    Mask gone[kVectors] = {};
    const bool sums = Layout::sums(p), moments = sums && p.gaussians != nullptr;
    for (int64_t i = 0; i < K * g.stride; ++i) w.left[i] = w.right[i] = T(0);
    for (int64_t i = 0; moments && i < K * g.stride; ++i) w.states[i] = T(0);
    for (int64_t i = 0; i < Layout::features(p) * g.stride; ++i) w.x[i] = T(0);
    for (int64_t l = 0; l < G; ++l) {
      w.scale[l] = T(0);
      weight[l] = l < g.count ? weight_of(p, g.order[l]) : T(0);
      gone[l / W][l % W] = l < g.count && lost[l] ? -1 : 0;
    }
    bool whole = true;
    int64_t active = 0, slot = 0;
    for (int64_t t = longest - 1; t >= 0; --t) {
      const int64_t before = active;
      active = active_back(p, g, t, active);
      const int64_t lanes = (active + W - 1) / W * W;
      for (int64_t n = 0; n < lanes; n += W)
        store(ends + n, lanes_below(active - n) & ~lanes_below(before - n) ? broadcast<T>(T(1)) : Vec<T>{});
      T *b = density_of(p, w, g, t), *alpha = alpha_of(p, w, g, t);
      T *right = w.right + slot * G, *left = w.left + slot * G, *states = w.states + slot * G, *x = w.x + slot * G;
      if (p.gaussians != nullptr && (moments || !g.kept)) values_of(p, s, g, t, active, -2, x);
      if (!g.kept) observe(p, s, w, g, t, active, -2, x, b);
      if (!g.kept_alpha) {
        for (int64_t n = 0; n < lanes; n += W) {
          gather_rows(K, alpha + n, G, -2 * K, [&](int64_t l) -> const T * {
            return n + l < active ? row_of(p.posteriors, p, g, n + l, t) : s.zeros;
          });
        }
      }
      with_constant<kVectors>(int(lanes / W),
                              [&](auto v) { backward_frame<decltype(v)::value>(p, s, w, g, right, alpha, ends); });
      if (p.ends != nullptr)
        for (int64_t l = before; l < active; ++l) {
          const T *end = static_cast<const T *>(p.ends) + g.order[l] * K;
          w.total[l] = T(0);
          for (int64_t k = 0; k < K; ++k) {
            w.beta[k * G + l] = end[k];
            w.total[l] += end[k] * alpha[k * G + l];
          }
        }
      for (int64_t n = 0; n < lanes; n += W) {
        const Vec<T> total = load(w.total + n), weights = load(weight + n);
        const Mask out = ~reached(total), inside = lanes_below(active - n);
        Mask &lost_lanes = gone[n / W];
        if (any(out)) {
          const Mask more = inside & ~lost_lanes & out;
          if (any(more)) lost_lanes |= more, whole = false;
          // A lost sequence adds nothing, even NaN.
          const Mask infinite = ~(inside & ~lost_lanes) & ~(total <= Float<T>::largest);
          if (any(infinite))
            for (int64_t k = 0; k < K; ++k) {
              T *at = right + k * g.stride + n;
              store(at, infinite ? Vec<T>{} : load(at));
            }
        }
        const Mask here = inside & ~lost_lanes;
        const Vec<T> factor = here ? T(1) / total : Vec<T>{};
        // What of the pair (t, t + 1) lies in left.
        const Vec<T> pair = (here & (weights != T(0))) ? factor * load(w.scale + n) * weights : Vec<T>{};
        store(w.factor + n, factor);
        const Mask unpaired = pair == T(0);
        const Vec<T> counted = factor * weights;
        const Mask uncounted = counted == T(0);
        const T *from = alpha + n, *beta = w.beta + n;
        T *to = left + n, *state = states + n;
        if (moments)
          for (int64_t k = 0; k < K; ++k, from += G, beta += G, to += S, state += S) {
            const Vec<T> message = load(from);
            store(to, unpaired ? Vec<T>{} : message * pair);
            store(state, uncounted ? Vec<T>{} : message * load(beta) * counted);
          }
        else if (sums)
          for (int64_t k = 0; k < K; ++k, from += G, to += S) store(to, unpaired ? Vec<T>{} : load(from) * pair);
        if (p.posteriors == nullptr) continue;
        for (int64_t k = 0; k < K; ++k)
          store(w.gamma + k * G + n, load(alpha + k * G + n) * load(w.beta + k * G + n) * factor);
        scatter_rows(K, w.gamma + n, G, active - n, [&](int64_t l) { return row_of(p.posteriors, p, g, n + l, t); });
      }
      if (++slot == g.slots) {
        if (sums) add_sums(p, s, slot * G, w, g.stride, second);
        slot = 0;
      }
      right = w.right + slot * G;
      for (int64_t n = 0; n < lanes; n += W) {
        Vec<T> total = {};
        const T *density = b + n, *beta = w.beta + n;
        T *to = right + n;
        for (int64_t k = 0; k < K; ++k, density += G, beta += G, to += S) {
          const Vec<T> y = load(density) * load(beta);
          store(to, y);
          total += y;
        }
        store(w.scale + n, total < Float<T>::smallest ? Vec<T>{} : T(1) / total);
      }
    }
    for (int64_t l = 0; l < g.count; ++l) lost[l] |= gone[l / W][l % W] != 0;
    if (sums && slot > 0) add_sums(p, s, slot * G, w, g.stride, second);
    for (int64_t n = 0; n < g.count; n += W) {  // at the first frame right is b beta
      const T *right = w.right + slot * G + n;
      const Vec<T> factor = load(w.factor + n);
      for (int64_t k = 0; k < K; ++k) store(w.gamma + k * G + n, load(right + k * g.stride) * factor);
      scatter_rows(K, w.gamma + n, G, g.count - n,
                   [&](int64_t l) { return static_cast<T *>(p.first) + g.order[n + l] * K; });
    }
    return whole;
  }
  static void add_sums(const HmmParams &p, const Shared &s, int64_t n, const Scratch &w, int64_t stride,
                       double *second) {
    add_products(p.states, n, w, stride, second);
    if (p.gaussians != nullptr)
      Gaussian::add_moments(p.states, *p.gaussians, s.scaled, n, w.states, w.x, stride, second + Layout::pairs_of(p));
  }
  // second[i][j] += sum over n of left[i][n] * right[j][n].
  static void add_products(int64_t K, int64_t n, const Scratch &w, int64_t stride, double *second) {
    const int64_t Kp = Layout::padded(K, W);
    for (int64_t panel = 0; panel < K; panel += kInnerPanel) {
      const int64_t end = K - panel < kInnerPanel ? K : panel + kInnerPanel;
      for (int64_t j = 0; j < K; j += kInnerColumns) {
        const int64_t columns = K - j < kInnerColumns ? K - j : kInnerColumns;
        for (int64_t i = panel; i < end; i += kInnerRows) {
          const int64_t rows = end - i < kInnerRows ? end - i : kInnerRows;
          inner_tiles<T>.tile[0][rows - 1][columns - 1](n, w.left + i * stride, w.right + j * stride, stride,
                                                        second + i * Kp + j, Kp, 0);
        }
      }
    }
  }

  static void run(const HmmParams &p, const HmmPlan &plan, const Shared &s, int64_t index, void *worker, double *unit) {
    const Group g = group_of(p, plan, index);
    const int64_t sums = Layout::sums_of(p);
    Scratch w;
    const int64_t bytes = carve(p, g.lanes, worker, w);
    double *second = reinterpret_cast<double *>(static_cast<char *>(worker) + bytes);
    uint8_t lost[kLanes] = {};
    forward(p, s, w, g, lost);
    if (p.task == kHmmPosteriors) {
      for (;;) {
        if (unit != nullptr)
          for (int64_t i = 0; i < sums; ++i) second[i] = 0;
        if (backward(p, s, w, g, lost, second)) break;
        forward(p, s, w, g, lost);  // the lost ones' sums have to come out again
      }
      if (unit != nullptr)
        for (int64_t i = 0; i < sums; ++i) unit[i] += second[i];
    }
    for (int64_t l = 0; l < g.count; ++l) p.redo[g.order[l]] = lost[l];
  }
};

}  // namespace
}  // namespace EVIDENS_NAMESPACE
