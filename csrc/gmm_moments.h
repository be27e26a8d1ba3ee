// Gaussian mixtures: the weighted moments of a block of rows, and their sums over all blocks.
#pragma once
#include "gmm_layout.h"

namespace EVIDENS_NAMESPACE {
namespace {

template <class T> struct GmmMoments : GmmLayout<T> {
  using Layout = GmmLayout<T>;
  using Layout::W, Layout::NT, Layout::carve_shared, Layout::component_doubles, Layout::slab_doubles;
  using typename Layout::Scratch;
  using typename Layout::Shared;

  // u = sqrt|r| (x - mean) with sqrt|r| as the last row, v = sign(r) u; rows without responsibility
  // are left out when they are the majority.  Returns the padded row count.
  template <bool Finite>
  static int64_t weighted_residuals(const GmmParams &p, const T *mean, const T *x, const T *r, const Scratch &w,
                                    int64_t block, int64_t rows, bool &is_signed) {
    const int64_t D = p.features;
    constexpr int64_t ld = kGramStride<T>;
    int64_t active = 0, negative = 0;
    for (int64_t n = 0; n < rows; ++n) {
      active += r[n] != T(0);
      negative += r[n] < T(0);
    }
    is_signed = negative != 0;
    if (active == 0) return 0;
    T *root = w.u + D * ld;
    const int64_t padded = (rows + W - 1) / W * W;
    int64_t count = padded;
    if (2 * active <= rows && !is_signed) {
      // Gather the active rows; w.v is free to hold their positions.
      int32_t *at = reinterpret_cast<int32_t *>(w.v);
      int64_t m = 0;
      for (int64_t n = 0; n < rows; ++n) {
        at[m] = int32_t(n);
        root[m] = r[n];
        m += r[n] != T(0);
      }
      count = (active + W - 1) / W * W;
      for (; m < count; ++m) {
        at[m] = at[active - 1];
        root[m] = T(0);
      }
      for (int64_t i = 0; i < count; i += W) store(root + i, sqrt<T>(load(root + i)));
      for (int64_t d = 0; d < D; ++d) {
        const T *xd = x + d * block, m0 = mean[d];
        T *u = w.u + d * ld;
        for (int64_t i = 0; i < count; ++i) u[i] = (xd[at[i]] - m0) * root[i];
      }
      return count;
    }
    for (int64_t i = 0; i < count; i += W) store(root + i, sqrt<T>(abs<T>(load(r + i))));
    for (int64_t d = 0; d < D; ++d) {
      const Vec<T> m = broadcast<T>(mean[d]);
      for (int64_t i = 0; i < count; i += W) {
        const Vec<T> f = load(root + i);
        Vec<T> y = (load(x + d * block + i) - m) * f;
        if constexpr (!Finite) y = f == T(0) ? Vec<T>{} : y;  // 0 * inf
        store(w.u + d * ld + i, y);
      }
    }
    if (is_signed) {
      for (int64_t d = 0; d <= D; ++d)
        for (int64_t i = 0; i < count; i += W) {
          const Vec<T> y = load(w.u + d * ld + i);
          store(w.v + d * ld + i, load(r + i) < T(0) ? -y : y);
        }
    }
    return count;
  }

  // weight, sum r d and, when Square, sum r d^2 for KT components and DT features at a time.
  template <int KT, int DT, bool Square, bool Finite>
  EVIDENS_INLINE void diagonal_tile(const T *x, const T *r, const T *mean, int64_t D, int64_t block, int64_t rows,
                                    double *first, int64_t stride) {
    constexpr int count = KT * DT * (Square ? 2 : 1), padded = (count + W - 1) / W * W;
    Vec<T> acc[padded] = {};
    for (int64_t n = 0; n < rows; n += W) {
#pragma GCC unroll 4
      for (int c = 0; c < KT; ++c) {
        const Vec<T> rv = load(r + c * block + n);
#pragma GCC unroll 4
        for (int e = 0; e < DT; ++e) {
          Vec<T> t = load(x + e * block + n) - mean[c * D + e];
          if constexpr (!Finite) t = rv == T(0) ? Vec<T>{} : t;
          const Vec<T> rt = rv * t;
          acc[c * DT + e] += rt;
          if constexpr (Square) acc[KT * DT + c * DT + e] += rt * t;
        }
      }
    }
    T sums[padded] __attribute__((aligned(64)));
#pragma GCC unroll 16
    for (int i = 0; i < padded; i += W) store(sums + i, sum_lanes<T>(acc + i));
    for (int c = 0; c < KT; ++c)
      for (int e = 0; e < DT; ++e) {
        first[c * stride + e] += double(sums[c * DT + e]);
        if constexpr (Square) first[c * stride + D + e] += double(sums[KT * DT + c * DT + e]);
      }
  }
  template <bool Square, bool Finite>
  static void diagonal_moments(const GmmParams &p, const Scratch &w, int64_t block, int64_t rows, double *slab) {
    const int64_t D = p.features, K = p.components, stride = component_doubles(p);
    const T *means = static_cast<const T *>(p.means);
    constexpr int KM = 4, DM = EVIDENS_REGISTERS == 32 ? 2 : 1;
    for (int64_t k = 0; k < K; k += KM) {
      const int kt = K - k < KM ? int(K - k) : KM;
      with_constant<KM>(kt, [&](auto kc) {
        constexpr int KT = decltype(kc)::value;
        for (int64_t d = 0; d < D; d += DM) {
          const int dt = D - d < DM ? int(D - d) : DM;
          with_constant<DM>(dt, [&](auto dc) {
            diagonal_tile<KT, decltype(dc)::value, Square, Finite>(w.x + d * block, w.r + k * block, means + k * D + d,
                                                                   D, block, rows, slab + k * stride + 1 + d, stride);
          });
        }
      });
    }
    for (int64_t k = 0; k < K; ++k) slab[k * stride] += sum_in_double<T>(w.r + k * block, rows);
  }
  // sum_n (sum_k r_nk) (x - c)(x - c)^T in double; the finish moves it to the components' means.
  static void tied_scatter(const GmmParams &p, const Scratch &w, int64_t block, int64_t rows, const T *centre,
                           double *packed) {
    const int64_t D = p.features, padded = (rows + NT - 1) / NT * NT;
    double *u = w.wide, *v = u + D * block, *total = v + D * block;
    // In double, as the weights are: only then do the distances between the means cancel.
    for (int64_t n = 0; n < padded; ++n) total[n] = 0;
    for (int64_t k = 0; k < p.components; ++k)
      for (int64_t n = 0; n < padded; ++n) total[n] += double(w.r[k * block + n]);
    for (int64_t d = 0; d < D; ++d) {
      const double c = double(centre[d]);
      for (int64_t n = 0; n < padded; ++n) {
        const double z = total[n] == 0. ? 0. : double(w.x[d * block + n]) - c;
        u[d * block + n] = z;
        v[d * block + n] = total[n] * z;
      }
    }
    add_gram<double>(D, padded, u, v, block, packed);
  }

  template <bool Finite>
  static void add_block(const GmmParams &p, const Shared &s, const Scratch &w, int64_t block, int64_t rows,
                        double *slab) {
    const int64_t D = p.features, K = p.components;
    const T *means = static_cast<const T *>(p.means);
    if (p.covariance == kFull) {
      const int64_t parts = (rows + kGramRows - 1) / kGramRows, even = ((rows + parts - 1) / parts + W - 1) / W * W;
      for (int64_t k = 0; k < K; ++k) {
        for (int64_t n0 = 0; n0 < rows; n0 += even) {
          const int64_t part = rows - n0 < even ? rows - n0 : even;
          bool is_signed;
          const int64_t n =
              weighted_residuals<Finite>(p, means + k * D, w.x + n0, w.r + k * block + n0, w, block, part, is_signed);
          if (n > 0) add_gram<T>(D + 1, n, w.u, is_signed ? w.v : w.u, kGramStride<T>, slab + k * triangle_size(D + 1));
        }
      }
    } else if (p.covariance == kTied) {
      diagonal_moments<false, Finite>(p, w, block, rows, slab);
      tied_scatter(p, w, block, rows, s.centre, slab + K * component_doubles(p));
    } else {
      diagonal_moments<true, Finite>(p, w, block, rows, slab);
    }
  }

  // A row without responsibility must not enter even where it is infinite.
  static void add_moments(const GmmParams &p, const Shared &s, const Scratch &w, int64_t block, int64_t rows,
                          bool finite, double *slab) {
    if (finite) add_block<true>(p, s, w, block, rows, slab);
    else add_block<false>(p, s, w, block, rows, slab);
  }

  // --- finish: sum the slabs in order for component k ----------------------------------------------

  static void finish(int64_t k, const GmmParams &p, const GmmPlan &plan, void *slabs) {
    const int64_t D = p.features, K = p.components, size = component_doubles(p);
    double *sums = static_cast<double *>(slabs);  // slab 0 takes the totals
    // Ranges of a slab: the log-likelihood, each component, and with the last one the tied scatter.
    const int64_t begin = k == 0 ? 0 : 1 + k * size, end = k == K - 1 ? slab_doubles(p) : 1 + (k + 1) * size;
    for (int64_t i = 1; i < plan.slabs; ++i) {
      const double *slab = reinterpret_cast<const double *>(static_cast<const char *>(slabs) + i * plan.slab_bytes);
      for (int64_t at = begin; at < end; ++at) sums[at] += slab[at];
    }
    if (k == 0 && p.log_likelihood) *p.log_likelihood = sums[0];
    const double *at = sums + 1 + k * size;
    double *first = p.first + k * D;
    if (p.covariance == kFull) {
      double *second = p.second + k * D * D;
      for (int64_t i = 0; i < D; ++i) {
        for (int64_t j = i; j < D; ++j) second[i * D + j] = second[j * D + i] = *at++;
        first[i] = *at++;
      }
      p.weight[k] = *at;
      return;
    }
    p.weight[k] = *at++;
    for (int64_t d = 0; d < D; ++d) first[d] = *at++;
    if (p.covariance == kDiag) {
      for (int64_t d = 0; d < D; ++d) p.second[k * D + d] = at[d];
    } else if (p.covariance == kSpherical) {
      double sum = 0;
      for (int64_t d = 0; d < D; ++d) sum += at[d];
      p.second[k] = sum / double(D);
    } else if (k == K - 1) {
      at = sums + 1 + K * size;
      for (int64_t i = 0; i < D; ++i)
        for (int64_t j = i; j < D; ++j) p.second[i * D + j] = *at++;
    }
  }
  // Tied: from moments about the centre c to moments about each mean, with e_k = mean_k - c:
  // sum r (x - mean)(x - mean)^T = scatter - sum_k (first_k e_k^T + e_k first_k^T + weight_k e_k e_k^T).
  static void combine(const GmmParams &p, const void *shared) {
    if (p.covariance != kTied) return;
    const int64_t D = p.features, K = p.components;
    const T *means = static_cast<const T *>(p.means);
    Shared s;
    carve_shared(p, const_cast<void *>(shared), s);
    for (int64_t k = 0; k < K; ++k) {
      const double weight = p.weight[k], *first = p.first + k * D;
      for (int64_t i = 0; i < D; ++i) {
        const double ei = double(means[k * D + i]) - double(s.centre[i]);
        for (int64_t j = i; j < D; ++j) {
          const double ej = double(means[k * D + j]) - double(s.centre[j]);
          p.second[i * D + j] -= first[i] * ej + ei * first[j] + weight * ei * ej;
        }
      }
    }
    for (int64_t i = 0; i < D; ++i)
      for (int64_t j = 0; j < i; ++j) p.second[i * D + j] = p.second[j * D + i];
  }
};

}  // namespace
}  // namespace EVIDENS_NAMESPACE
