// Gaussian mixtures: log-densities, posteriors and sufficient statistics in one pass over the data.
//
// A block of rows is transposed once, so that vectors run along rows; then for each component
//   E:  z = x - mean,  q = |P^T z|^2      (outer tile, the exact upper triangle of P)
//   M:  u = sqrt(r) z,  S += u u^T        (inner tile, the exact upper triangle of S)
// The residual is formed before any product, so neither a large offset nor float32 can turn a
// variance negative.  Sums over a block are in the data's type, sums over blocks in double, in an
// order that depends on the sizes alone.
#include "gmm.h"
#include "gmm_moments.h"
#include "kernels.h"
#include "transpose.h"

namespace EVIDENS_NAMESPACE {
namespace {

template <class T> struct Gmm : GmmMoments<T> {
  using Layout = GmmLayout<T>;
  using Layout::W, Layout::NV, Layout::NT, Layout::carve_shared, Layout::carve_scratch, Layout::moments,
      Layout::posterior, Layout::slab_doubles;
  using typename Layout::Scratch;
  using typename Layout::Shared;
  using GmmMoments<T>::add_moments;

  // y = P^T z for one tile of rows; consume(tile_column, accumulators of up to kOuterRows columns).
  template <class F> EVIDENS_INLINE void upper_product(const T *packed, int64_t D, const T *z, int64_t ldz,
                                                       F &&consume) {
    for (int64_t j = 0; j < D; j += kOuterRows) {
      const int columns = D - j < kOuterRows ? int(D - j) : kOuterRows;
      with_constant<kOuterRows>(columns, [&](auto c) {
        constexpr int C = decltype(c)::value;
        outer_tile<T, C, NV, true>(j, packed, C, z, ldz, [&](Vec<T>(&acc)[C][NV]) { consume(j, acc); });
        packed += (j + C) * C;
      });
    }
  }
  // out (+)= P y for one tile of rows.
  static void lower_product(const T *packed, int64_t D, const T *y, T *out, int64_t block, bool add) {
    for (int64_t i = 0; i < D; i += kOuterRows) {
      const int rows = D - i < kOuterRows ? int(D - i) : kOuterRows;
      with_constant<kOuterRows>(rows, [&](auto r) {
        constexpr int R = decltype(r)::value;
        outer_tile<T, R, NV, false>(D - i, packed, R, y + i * block, block, [&](Vec<T>(&acc)[R][NV]) {
          for (int m = 0; m < R; ++m)
            for (int v = 0; v < NV; ++v) {
              T *at = out + (i + m) * block + v * W;
              store(at, add ? load(at) + acc[m][v] : acc[m][v]);
            }
        });
        packed += (D - i) * R;
      });
    }
  }
  EVIDENS_INLINE void subtract(const T *x, const T *mean, int64_t D, int64_t block, T *z) {
    for (int64_t d = 0; d < D; ++d) {
      const Vec<T> m = broadcast<T>(mean[d]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) store(z + d * NT + v * W, load(x + d * block + v * W) - m);
    }
  }

  // r[k][n] = log w_k N(x_n | k).
  static void terms(const GmmParams &p, const Shared &s, const Scratch &w, int64_t block, int64_t rows) {
    const int64_t D = p.features, K = p.components;
    if (p.covariance == kFull) {
      for (int64_t k = 0; k < K; ++k) {
        for (int64_t n = 0; n < rows; n += NT) {
          subtract(w.x + n, s.means + k * D, D, block, w.u);
          Vec<T> q[NV] = {};
          upper_product(s.packed + k * s.stride, D, w.u, NT, [&](int64_t, auto &acc) {
            for (auto &row : acc)
#pragma GCC unroll 8
              for (int v = 0; v < NV; ++v) q[v] += row[v] * row[v];
          });
          for (int v = 0; v < NV; ++v) store(w.r + k * block + n + v * W, s.offset[k] - T(0.5) * q[v]);
        }
      }
      return;
    }
    const T *x = w.x;
    if (p.covariance == kTied) {
      whiten(p, s, w, block, rows);
      x = w.y;
    }
    const T *scale = p.covariance == kDiag ? static_cast<const T *>(p.precisions) : nullptr;
    for (int64_t n = 0; n < rows; n += NT) {
      for (int64_t k = 0; k < K; k += 2) {
        if (k + 1 < K) distances<2>(p, s, scale, x + n, w.r + n, k, block);
        else distances<1>(p, s, scale, x + n, w.r + n, k, block);
      }
    }
  }
  static void whiten(const GmmParams &p, const Shared &s, const Scratch &w, int64_t block, int64_t rows) {
    for (int64_t n = 0; n < rows; n += NT) {
      subtract(w.x + n, s.centre, p.features, block, w.u);
      upper_product(s.packed, p.features, w.u, NT, [&](int64_t j, auto &acc) {
        T *at = w.y + j * block + n;
        for (auto &row : acc) {
          for (int v = 0; v < NV; ++v) store(at + v * W, row[v]);
          at += block;
        }
      });
    }
  }
  // Components k..k+KT-1 of a tile of rows: offset + factor * sum_d (scale_d (x_d - mean_d))^2.
  template <int KT>
  EVIDENS_INLINE void distances(const GmmParams &p, const Shared &s, const T *scale, const T *x, T *r, int64_t k,
                                int64_t block) {
    const int64_t D = p.features;
    Vec<T> q[KT][NV] = {};
    const T *mean = s.means + k * D;
    if (scale != nullptr) {
      scale += k * D;
      for (int64_t d = 0; d < D; ++d) {
#pragma GCC unroll 4
        for (int c = 0; c < KT; ++c) {
          const Vec<T> m = broadcast<T>(mean[c * D + d]), f = broadcast<T>(scale[c * D + d]);
#pragma GCC unroll 8
          for (int v = 0; v < NV; ++v) {
            const Vec<T> t = (load(x + d * block + v * W) - m) * f;
            q[c][v] += t * t;
          }
        }
      }
    } else {
      for (int64_t d = 0; d < D; ++d) {
#pragma GCC unroll 4
        for (int c = 0; c < KT; ++c) {
          const Vec<T> m = broadcast<T>(mean[c * D + d]);
#pragma GCC unroll 8
          for (int v = 0; v < NV; ++v) {
            const Vec<T> t = load(x + d * block + v * W) - m;
            q[c][v] += t * t;
          }
        }
      }
    }
    for (int c = 0; c < KT; ++c)
      for (int v = 0; v < NV; ++v) store(r + (k + c) * block + v * W, s.offset[k + c] + s.factor[k + c] * q[c][v]);
  }

  // log_prob[n] = log sum_k exp r[k][n]; with `normalize`, r becomes the posterior times weight[n].
  static void log_sum_exp(const GmmParams &p, const Scratch &w, int64_t block, int64_t rows, bool normalize) {
    const int64_t K = p.components;
    const T inf = T(__builtin_inf());
    for (int64_t n = 0; n < rows; n += NT) {  // NV chains at once hide the latency of each
      T *r = w.r + n;
      Vec<T> top[NV], shift[NV], total[NV] = {}, scale[NV];
      for (int v = 0; v < NV; ++v) top[v] = broadcast<T>(-inf);
      for (int64_t k = 0; k < K; ++k)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) top[v] = max<T>(load(r + k * block + v * W), top[v]);
      for (int v = 0; v < NV; ++v) shift[v] = top[v] == -inf ? Vec<T>{} : top[v];  // impossible everywhere
      for (int64_t k = 0; k < K; ++k)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          const Vec<T> e = exp_nonpositive<T>(load(r + k * block + v * W) - shift[v]);
          if (normalize) store(r + k * block + v * W, e);
          total[v] += e;
        }
      for (int v = 0; v < NV; ++v) store(w.log_prob + n + v * W, shift[v] + log<T>(total[v]));
      if (!normalize) continue;
      for (int v = 0; v < NV; ++v) {
        const Vec<T> weight = load(w.weight + n + v * W);
        scale[v] = weight / (total[v] == T(0) ? broadcast<T>(T(1)) : total[v]);
        scale[v] = weight == T(0) ? Vec<T>{} : scale[v];  // the row may be NaN
      }
      for (int64_t k = 0; k < K; ++k)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          const Vec<T> y = load(r + k * block + v * W) * scale[v];
          store(r + k * block + v * W, scale[v] == T(0) ? Vec<T>{} : y);
        }
    }
  }

  // --- the input gradient ------------------------------------------------------------------------

  // x's place takes the gradient: - sum_k r_k P_k P_k^T (x - mean_k).
  static void input_gradient(const GmmParams &p, const Shared &s, const Scratch &w, int64_t block, int64_t rows) {
    const int64_t D = p.features, K = p.components;
    const T *P = static_cast<const T *>(p.precisions);
    if (p.covariance == kTied) whiten(p, s, w, block, rows);
    const T *x = p.covariance == kTied ? w.y : w.x;
    for (int64_t n = 0; n < rows; n += NT) {
      if (p.covariance == kFull) {
        for (int64_t k = 0; k < K; ++k) {
          Vec<T> r[NV];
          for (int v = 0; v < NV; ++v) r[v] = -load(w.r + k * block + n + v * W);
          subtract(w.x + n, s.means + k * D, D, block, w.u);
          upper_product(s.packed + k * s.stride, D, w.u, NT, [&](int64_t j, auto &acc) {
            T *at = w.v + j * block;
            for (auto &row : acc) {
              for (int v = 0; v < NV; ++v) store(at + v * W, r[v] == T(0) ? Vec<T>{} : row[v] * r[v]);
              at += block;
            }
          });
          lower_product(s.transposed + k * s.stride, D, w.v, w.y + n, block, k > 0);
        }
        continue;
      }
      for (int64_t d = 0; d < D; ++d) {
        Vec<T> g[NV] = {};
        for (int64_t k = 0; k < K; ++k) {
          const T f = p.covariance == kTied ? T(1) : p.covariance == kDiag ? P[k * D + d] : P[k];
          const T m = s.means[k * D + d];
          for (int v = 0; v < NV; ++v) {
            const Vec<T> r = load(w.r + k * block + n + v * W);
            const Vec<T> t = r * ((load(x + d * block + n + v * W) - m) * (f * f));
            g[v] -= r == T(0) ? Vec<T>{} : t;
          }
        }
        T *out = p.covariance == kTied ? w.v : w.y + n;
        for (int v = 0; v < NV; ++v) store(out + d * block + v * W, g[v]);
      }
      if (p.covariance == kTied) lower_product(s.transposed, D, w.v, w.y + n, block, false);
    }
    transpose_out(w.y, block, rows, D, static_cast<T *>(p.out));
  }

  // --- one slab ----------------------------------------------------------------------------------

  static void run(int64_t slab, const GmmParams &p, const GmmPlan &plan, const void *shared, void *worker,
                  void *slabs) {
    const int64_t D = p.features, K = p.components, block = plan.block;
    Shared s;
    Scratch w;
    carve_shared(p, const_cast<void *>(shared), s);
    carve_scratch(p, block, worker, w);
    double *accumulators = reinterpret_cast<double *>(static_cast<char *>(slabs) + slab * plan.slab_bytes);
    if (moments(p)) {
      for (int64_t i = 0; i < slab_doubles(p); ++i) accumulators[i] = 0;
    }
    const int64_t end = (slab + 1) * plan.slab_rows < p.rows ? (slab + 1) * plan.slab_rows : p.rows;
    for (int64_t n0 = slab * plan.slab_rows; n0 < end; n0 += block) {
      const int64_t rows = end - n0 < block ? end - n0 : block, padded = (rows + NT - 1) / NT * NT;
      transpose_in(static_cast<const T *>(p.x) + n0 * p.x_row, p.x_row, p.x_column, rows, D, block, w.x);
      // Looked for once a block, which keeps the tests for infinities out of the inner loops.
      const bool finite = all_finite(w.x, D, block, padded);
      if (!posterior(p)) {
        transpose_in(static_cast<const T *>(p.responsibilities) + n0 * K, K, 1, rows, K, block, w.r);
        if (p.task == kGmmMoments) {
          add_moments(p, s, w, block, padded, finite, accumulators + 1);
        } else {
          GmmParams here = p;
          here.out = static_cast<T *>(p.out) + n0 * D;
          input_gradient(here, s, w, block, rows);
        }
        continue;
      }
      T *out = static_cast<T *>(p.out);
      // Cheap terms are consumed tile by tile, while they are in the first-level cache.
      const int64_t step = p.covariance == kFull ? padded : NT;
      for (int64_t i = 0; i < rows; i += step) {
        const int64_t part = rows - i < step ? rows - i : step;
        Scratch here = w;
        here.x += i, here.r += i, here.y += i, here.log_prob += i, here.weight += i;
        terms(p, s, here, block, part);
        if (!finite) exclude_infinite_rows(p, here, block, part);
        if (p.task == kGmmLogProb) {
          log_sum_exp(p, here, block, part, false);
          for (int64_t n = 0; n < part; ++n) out[n0 + i + n] = here.log_prob[n];
        } else if (p.task == kGmmStatistics) {
          posteriors(p, here, n0 + i, part, block);
          for (int64_t n = 0; n < part; ++n)
            if (here.weight[n] != T(0)) accumulators[0] += double(here.weight[n]) * double(here.log_prob[n]);
        }
      }
      if (p.task == kGmmComponentLogProb) transpose_out(w.r, block, rows, K, out + n0 * K);
      if (p.task == kGmmStatistics) add_moments(p, s, w, block, padded, finite, accumulators + 1);
    }
  }
  static bool all_finite(const T *x, int64_t D, int64_t block, int64_t rows) {
    Vec<T> zero = {};
    for (int64_t d = 0; d < D; ++d)
      for (int64_t n = 0; n < rows; n += W) zero += load(x + d * block + n) * T(0);
    return sum<T>(zero) == T(0);
  }
  // A row with an infinity and no NaN is impossible under every component, where 0 * inf made it NaN.
  static void exclude_infinite_rows(const GmmParams &p, const Scratch &w, int64_t block, int64_t rows) {
    for (int64_t n = 0; n < rows; ++n) {
      T largest = 0, nan = 0;
      for (int64_t d = 0; d < p.features; ++d) {
        const T x = w.x[d * block + n], size = x < T(0) ? -x : x;
        largest = size > largest ? size : largest;
        nan = x != x ? T(1) : nan;
      }
      if (largest < T(__builtin_inf()) || nan != T(0)) continue;
      for (int64_t k = 0; k < p.components; ++k) w.r[k * block + n] = T(-__builtin_inf());
    }
  }
  static void posteriors(const GmmParams &p, const Scratch &w, int64_t n0, int64_t rows, int64_t block) {
    const int64_t padded = (rows + NT - 1) / NT * NT;
    const T *weight = static_cast<const T *>(p.sample_weight);
    for (int64_t n = 0; n < padded; ++n) w.weight[n] = n >= rows ? T(0) : weight ? weight[n0 + n] : T(1);
    const int64_t *labels = p.labels ? p.labels + n0 : nullptr;
    if (labels) {
      for (int64_t n = 0; n < rows; ++n) {
        if (labels[n] < 0) continue;
        for (int64_t k = 0; k < p.components; ++k)
          if (k != labels[n]) w.r[k * block + n] = T(-__builtin_inf());
      }
    }
    log_sum_exp(p, w, block, rows, true);
    if (labels) {
      // A pinned row belongs to its component even where that component finds it impossible or NaN.
      for (int64_t n = 0; n < rows; ++n) {
        if (labels[n] < 0) continue;
        for (int64_t k = 0; k < p.components; ++k) w.r[k * block + n] = k == labels[n] ? w.weight[n] : T(0);
      }
    }
  }
};

}  // namespace

extern const evidens::GmmKernel gmm[2];
constexpr evidens::GmmKernel gmm[2] = {
    {Gmm<float>::plan, Gmm<float>::prepare, Gmm<float>::run, Gmm<float>::finish, Gmm<float>::combine},
    {Gmm<double>::plan, Gmm<double>::prepare, Gmm<double>::run, Gmm<double>::finish, Gmm<double>::combine},
};

}  // namespace EVIDENS_NAMESPACE
