// Gaussian mixtures: log-densities, posteriors and sufficient statistics in one pass over the data.
//
// A block of rows is transposed once, so that vectors run along rows; then for each component
//   E:  z = x - mean,  q = |P^T z|^2      (outer tile, the exact upper triangle of P)
//   M:  u = sqrt(r) z,  S += u u^T        (inner tile, the exact upper triangle of S)
// The residual is formed before any product, so neither a large offset nor float32 can turn a
// variance negative.  Sums over a block are in the data's type, sums over blocks in double, in an
// order that depends on the sizes alone.
#include "gmm.h"

#include "kernels.h"
#include "tile.h"

namespace EVIDENS_NAMESPACE {
namespace {

using namespace evidens;

constexpr int64_t kAlign = 64;
constexpr int64_t align(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
constexpr int64_t kGramRows = 320;  // most data rows of one Gram product
// One cache line more: strides of a power of two would share a few sets of the first-level cache.
template <class T> constexpr int64_t kGramStride = kGramRows + kAlign / int64_t(sizeof(T));
constexpr double kLog2Pi = 1.8378770664093454836;

// Values in the packed upper triangle of P: per tile of columns, all rows down to its diagonal.
int64_t packed_size(int64_t d) {
  int64_t size = 0;
  for (int64_t j = 0; j < d; j += kOuterRows) {
    const int64_t columns = d - j < kOuterRows ? d - j : kOuterRows;
    size += (j + columns) * columns;
  }
  return size;
}

template <class T> struct Gmm {
  static constexpr int W = width<T>, NV = kOuterVectors, NT = NV * W;  // NT: rows of one tile

  // What prepare packs, shared by all workers.
  struct Shared {
    T *offset;     // (K,) log w + log det P - D/2 log 2 pi
    T *factor;     // (K,) -1/2 s^2 of the scalar precision, -1/2 where it sits in P
    T *means;      // (K, D); tied: P^T (mean - centre)
    T *packed;     // full: K packed triangles; tied: one
    T *transposed; // the same triangles by rows, for the input gradient
    T *centre;     // (D,) tied only
    int64_t stride;
  };
  // What one worker scribbles on; every matrix has a row of `block` values per feature/component.
  struct Scratch {
    T *x, *r, *u, *v, *y;
    T *log_prob, *weight;  // (block,)
    double *wide;          // (D, block), tied moments in double
  };

  static bool grouped(const GmmParams &p) { return p.covariance == kFull || p.covariance == kTied; }
  static bool posterior(const GmmParams &p) { return p.task <= kGmmStatistics; }
  static bool moments(const GmmParams &p) { return p.task == kGmmStatistics || p.task == kGmmMoments; }

  static int64_t carve_shared(const GmmParams &p, void *base, Shared &s) {
    char *at = static_cast<char *>(base);
    auto take = [&](int64_t n) { T *r = reinterpret_cast<T *>(at); at += align(n * int64_t(sizeof(T))); return r; };
    const int64_t D = p.features, K = p.components;
    const int64_t triangles = p.covariance == kFull ? K : p.covariance == kTied ? 1 : 0;
    s.stride = packed_size(D);
    s.offset = take(K);
    s.factor = take(K);
    s.means = take(K * D);
    s.packed = take(triangles * s.stride);
    s.transposed = take(p.task == kGmmInputGradient ? triangles * s.stride : 0);
    s.centre = take(p.covariance == kTied ? D : 0);
    return at - static_cast<char *>(base);
  }
  static int64_t carve_scratch(const GmmParams &p, int64_t block, void *base, Scratch &s) {
    char *at = static_cast<char *>(base);
    auto take = [&](int64_t rows, int64_t length = 0) {
      T *r = reinterpret_cast<T *>(at);
      at += align(rows * (length ? length : block) * int64_t(sizeof(T)));
      return r;
    };
    const int64_t D = p.features, gram = kGramStride<T> > block ? kGramStride<T> : block;
    const bool outer = p.covariance == kFull && moments(p), tied = p.covariance == kTied;
    s.x = take(D);
    s.r = take(p.components);
    s.u = take(D + 1, gram);
    s.v = take(outer || p.task == kGmmInputGradient ? D + 1 : 0, gram);
    s.y = take(tied || p.task == kGmmInputGradient ? D : 0);
    s.log_prob = take(1);
    s.weight = take(1);
    s.wide = reinterpret_cast<double *>(at);
    if (tied && moments(p)) at += align(2 * D * block * int64_t(sizeof(double)));
    return at - static_cast<char *>(base);
  }
  // Doubles of one slab: log-likelihood, then per component packed moments.
  static int64_t component_doubles(const GmmParams &p) {
    const int64_t D = p.features;
    if (p.covariance == kFull) return triangle_size(D + 1);
    return p.covariance == kTied ? 1 + D : 1 + 2 * D;
  }
  static int64_t slab_doubles(const GmmParams &p) {
    return 1 + p.components * component_doubles(p) + (p.covariance == kTied ? triangle_size(p.features) : 0);
  }

  static void plan(const GmmParams &p, GmmPlan &plan) {
    const int64_t D = p.features, K = p.components, N = p.rows;
    // Half of a common second-level cache where that holds enough rows to amortise the horizontal
    // sums of the Gram tiles; otherwise enough rows, less where many components share them.
    constexpr int64_t cache = (512 << 10) / int64_t(sizeof(T));
    int64_t least = 4 * cache / K;
    least = least < 256 ? 256 : least > 768 ? 768 : least;
    int64_t block = cache / (3 * D + K + 4);
    block = block < least ? least : block > 1024 ? 1024 : block;
    block = block < N ? block : N > 0 ? N : 1;
    plan.block = ((block + NT - 1) / NT | 1) * NT;  // odd, so that rows spread over the cache's sets
    const int64_t blocks = (N + plan.block - 1) / plan.block;
    const int64_t bytes = moments(p) ? slab_doubles(p) * int64_t(sizeof(double)) : 0;
    // Accumulators of all slabs stay below 48 MB; without accumulators a slab is four blocks.
    int64_t slabs = moments(p) ? (bytes > (48 << 20) ? 1 : (48 << 20) / bytes) : (blocks + 3) / 4;
    if (moments(p) && slabs > 32) slabs = 32;
    if (slabs > blocks) slabs = blocks;
    if (slabs < 1) slabs = 1;
    plan.slab_rows = (blocks + slabs - 1) / slabs * plan.block;
    plan.slabs = N == 0 ? 1 : (N + plan.slab_rows - 1) / plan.slab_rows;  // one to hold the zeros
    plan.parts = K;
    Shared shared;
    Scratch scratch;
    plan.shared_bytes = carve_shared(p, nullptr, shared);
    plan.worker_bytes = carve_scratch(p, plan.block, nullptr, scratch);
    plan.slab_bytes = align(bytes);
  }

  // --- prepare: pack component k -----------------------------------------------------------------

  static void pack(const T *P, int64_t D, T *out) {
    for (int64_t j0 = 0; j0 < D; j0 += kOuterRows) {
      const int64_t columns = D - j0 < kOuterRows ? D - j0 : kOuterRows;
      for (int64_t i = 0; i < j0 + columns; ++i)
        for (int64_t m = 0; m < columns; ++m) *out++ = i <= j0 + m ? P[i * D + j0 + m] : T(0);
    }
  }
  static void pack_transposed(const T *P, int64_t D, T *out) {  // row tiles, columns from the diagonal
    for (int64_t i0 = 0; i0 < D; i0 += kOuterRows) {
      const int64_t rows = D - i0 < kOuterRows ? D - i0 : kOuterRows;
      for (int64_t j = i0; j < D; ++j)
        for (int64_t m = 0; m < rows; ++m) *out++ = i0 + m <= j ? P[(i0 + m) * D + j] : T(0);
    }
  }

  static void prepare(int64_t k, const GmmParams &p, const GmmPlan &, void *base) {
    const int64_t D = p.features, K = p.components;
    const T *means = static_cast<const T *>(p.means), *P = static_cast<const T *>(p.precisions);
    Shared s;
    carve_shared(p, base, s);
    for (int64_t d = 0; d < D; ++d) s.means[k * D + d] = means[k * D + d];
    if (p.covariance == kTied && k == 0) {
      for (int64_t d = 0; d < D; ++d) s.centre[d] = tied_centre(means, K, D, d);
    }
    if (P == nullptr) return;  // moments need no more
    double log_det = 0;
    s.factor[k] = T(-0.5);
    switch (p.covariance) {
      case kFull:
        for (int64_t d = 0; d < D; ++d) log_det += __builtin_log(double(P[(k * D + d) * D + d]));
        pack(P + k * D * D, D, s.packed + k * s.stride);
        if (p.task == kGmmInputGradient) pack_transposed(P + k * D * D, D, s.transposed + k * s.stride);
        break;
      case kTied: {
        // Distances of whitened points about a common centre: y = P^T (x - c), b_k = P^T (mean_k - c).
        for (int64_t d = 0; d < D; ++d) log_det += __builtin_log(double(P[d * D + d]));
        if (k == 0) {
          pack(P, D, s.packed);
          if (p.task == kGmmInputGradient) pack_transposed(P, D, s.transposed);
        }
        for (int64_t j = 0; j < D; ++j) s.means[k * D + j] = T(0);
        for (int64_t i = 0; i < D; ++i) {
          const T z = means[k * D + i] - tied_centre(means, K, D, i);
          for (int64_t j = i; j < D; ++j) s.means[k * D + j] += P[i * D + j] * z;
        }
        break;
      }
      case kDiag:
        for (int64_t d = 0; d < D; ++d) log_det += __builtin_log(double(P[k * D + d]));
        break;
      default:
        log_det = double(D) * __builtin_log(double(P[k]));
        s.factor[k] = T(-0.5) * P[k] * P[k];
    }
    if (posterior(p)) {
      s.offset[k] = T(double(static_cast<const T *>(p.log_weights)[k]) + log_det - 0.5 * double(D) * kLog2Pi);
    }
  }
  static T tied_centre(const T *means, int64_t K, int64_t D, int64_t d) {
    double sum = 0;
    for (int64_t k = 0; k < K; ++k) sum += double(means[k * D + d]);
    return T(sum / double(K));
  }

  // --- a block of rows ---------------------------------------------------------------------------

  // out[c][n] = in[n][c] for n < rows, zero up to block; W x W at a time where columns are adjacent.
  static void transpose_in(const T *in, int64_t row, int64_t column, int64_t rows, int64_t columns,
                           int64_t block, T *out) {
    const int64_t whole_rows = column == 1 ? rows / W * W : 0, whole = columns / W * W;
    for (int64_t n = 0; n < whole_rows; n += W) {
      for (int64_t c = 0; c < whole; c += W) {
        Vec<T> v[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) v[i] = load(in + (n + i) * row + c);
        transpose<T>(v);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) store(out + (c + i) * block + n, v[i]);
      }
    }
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t n = c < whole ? whole_rows : 0; n < rows; ++n) out[c * block + n] = in[n * row + c * column];
      for (int64_t n = rows; n < block; ++n) out[c * block + n] = T(0);
    }
  }
  static void transpose_out(const T *in, int64_t block, int64_t rows, int64_t columns, T *out) {
    const int64_t whole_rows = rows / W * W, whole = columns / W * W;
    for (int64_t n = 0; n < whole_rows; n += W) {
      for (int64_t c = 0; c < whole; c += W) {
        Vec<T> v[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) v[i] = load(in + (c + i) * block + n);
        transpose<T>(v);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) store(out + (n + i) * columns + c, v[i]);
      }
    }
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t n = c < whole ? whole_rows : 0; n < rows; ++n) out[n * columns + c] = in[c * block + n];
    }
  }

  // y = P^T z for one tile of rows; consume(tile_column, accumulators of up to kOuterRows columns).
  template <class F> EVIDENS_INLINE void upper_product(const T *packed, int64_t D, const T *z, int64_t ldz, F &&consume) {
    for (int64_t j = 0; j < D; j += kOuterRows) {
      const int columns = D - j < kOuterRows ? int(D - j) : kOuterRows;
      with_constant<kOuterRows>(columns, [&](auto c) {
        constexpr int C = decltype(c)::value;
        outer_tile<T, C, true>(j, packed, z, ldz, [&](Vec<T>(&acc)[C][NV]) { consume(j, acc); });
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
        outer_tile<T, R, false>(D - i, packed, y + i * block, block, [&](Vec<T>(&acc)[R][NV]) {
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
  EVIDENS_INLINE void distances(const GmmParams &p, const Shared &s, const T *scale, const T *x, T *r, int64_t k, int64_t block) {
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
      for (int v = 0; v < NV; ++v)
        store(r + (k + c) * block + v * W, s.offset[k + c] + s.factor[k + c] * q[c][v]);
  }

  // log_prob[n] = log sum_k exp r[k][n]; with `normalize`, r becomes the posterior times weight[n].
  static void log_sum_exp(const GmmParams &p, const Scratch &w, int64_t block, int64_t rows, bool normalize) {
    const int64_t K = p.components;
    const T inf = T(__builtin_inf());
    for (int64_t n = 0; n < rows; n += W) {
      T *r = w.r + n;
      Vec<T> top = broadcast<T>(-inf);
      for (int64_t k = 0; k < K; ++k) top = max<T>(load(r + k * block), top);
      const Vec<T> shift = top == -inf ? Vec<T>{} : top;  // impossible under every component
      Vec<T> total = {};
      for (int64_t k = 0; k < K; ++k) {
        const Vec<T> e = exp<T>(load(r + k * block) - shift);
        if (normalize) store(r + k * block, e);
        total += e;
      }
      store(w.log_prob + n, shift + log<T>(total));
      if (!normalize) continue;
      const Vec<T> weight = load(w.weight + n);
      const Vec<T> scale = weight / (total == T(0) ? broadcast<T>(T(1)) : total);
      for (int64_t k = 0; k < K; ++k) {
        const Vec<T> y = load(r + k * block) * scale;
        store(r + k * block, weight == T(0) ? Vec<T>{} : y);
      }
    }
  }

  // --- moments -----------------------------------------------------------------------------------

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
      // Gather the active rows; w.v is free to hold their positions and weights.
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
            diagonal_tile<KT, decltype(dc)::value, Square, Finite>(w.x + d * block, w.r + k * block, means + k * D + d, D,
                                                           block, rows, slab + k * stride + 1 + d, stride);
          });
        }
      });
    }
    for (int64_t k = 0; k < K; ++k) {
      Vec<T> total = {};
      for (int64_t n = 0; n < rows; n += W) total += load(w.r + k * block + n);
      slab[k * stride] += double(sum<T>(total));
    }
  }
  // sum_n (sum_k r_nk) (x - c)(x - c)^T in double; the finish moves it to the components' means.
  static void tied_scatter(const GmmParams &p, const Scratch &w, int64_t block, int64_t rows, const T *centre, double *packed) {
    const int64_t D = p.features, padded = (rows + NT - 1) / NT * NT;
    double *u = w.wide, *v = w.wide + D * block;
    T *total = w.log_prob;  // already written out
    for (int64_t n = 0; n < padded; n += W) {
      Vec<T> t = {};
      for (int64_t k = 0; k < p.components; ++k) t += load(w.r + k * block + n);
      store(total + n, t);
    }
    for (int64_t d = 0; d < D; ++d) {
      const double c = double(centre[d]);
      for (int64_t n = 0; n < padded; ++n) {
        const double z = total[n] == T(0) ? 0. : double(w.x[d * block + n]) - c;
        u[d * block + n] = z;
        v[d * block + n] = double(total[n]) * z;
      }
    }
    add_gram<double>(D, padded, u, v, block, packed);
  }

  template <bool Finite>
  static void add_moments(const GmmParams &p, const Shared &s, const Scratch &w, int64_t block, int64_t rows, double *slab) {
    const int64_t D = p.features, K = p.components;
    const T *means = static_cast<const T *>(p.means);
    if (p.covariance == kFull) {
      const int64_t parts = (rows + kGramRows - 1) / kGramRows, even = ((rows + parts - 1) / parts + W - 1) / W * W;
      for (int64_t k = 0; k < K; ++k) {
        for (int64_t n0 = 0; n0 < rows; n0 += even) {
          const int64_t part = rows - n0 < even ? rows - n0 : even;
          bool is_signed;
          const int64_t n = weighted_residuals<Finite>(p, means + k * D, w.x + n0, w.r + k * block + n0, w, block, part, is_signed);
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

  // A row without responsibility must not enter even where it is infinite; looking for infinities
  // once a block keeps the test for it out of the inner loops.
  static void add_finite_moments(const GmmParams &p, const Shared &s, const Scratch &w, int64_t block, int64_t rows, double *slab) {
    Vec<T> zero = {};
    for (int64_t d = 0; d < p.features; ++d)
      for (int64_t n = 0; n < rows; n += W) zero += load(w.x + d * block + n) * T(0);
    if (sum<T>(zero) == T(0)) add_moments<true>(p, s, w, block, rows, slab);
    else add_moments<false>(p, s, w, block, rows, slab);
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

  static void run(int64_t slab, const GmmParams &p, const GmmPlan &plan, const void *shared, void *worker, void *slabs) {
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
      if (!posterior(p)) {
        transpose_in(static_cast<const T *>(p.responsibilities) + n0 * K, K, 1, rows, K, block, w.r);
        if (p.task == kGmmMoments) {
          add_finite_moments(p, s, w, block, padded, accumulators + 1);
        } else {
          GmmParams here = p;
          here.out = static_cast<T *>(p.out) + n0 * D;
          input_gradient(here, s, w, block, rows);
        }
        continue;
      }
      terms(p, s, w, block, rows);
      T *out = static_cast<T *>(p.out);
      if (p.task == kGmmComponentLogProb) {
        transpose_out(w.r, block, rows, K, out + n0 * K);
      } else if (p.task == kGmmLogProb) {
        log_sum_exp(p, w, block, padded, false);
        for (int64_t n = 0; n < rows; ++n) out[n0 + n] = w.log_prob[n];
      } else {
        posteriors(p, w, n0, rows, padded, block);
        for (int64_t n = 0; n < rows; ++n)
          if (w.weight[n] != T(0)) accumulators[0] += double(w.weight[n]) * double(w.log_prob[n]);
        add_finite_moments(p, s, w, block, padded, accumulators + 1);
      }
    }
  }
  static void posteriors(const GmmParams &p, const Scratch &w, int64_t n0, int64_t rows, int64_t padded, int64_t block) {
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
    log_sum_exp(p, w, block, padded, true);
    if (labels) {
      // A pinned row belongs to its component even where that component finds it impossible.
      for (int64_t n = 0; n < rows; ++n)
        if (labels[n] >= 0) w.r[labels[n] * block + n] = w.weight[n];
    }
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

extern const evidens::GmmKernel gmm[2];
constexpr evidens::GmmKernel gmm[2] = {
    {Gmm<float>::plan, Gmm<float>::prepare, Gmm<float>::run, Gmm<float>::finish, Gmm<float>::combine},
    {Gmm<double>::plan, Gmm<double>::prepare, Gmm<double>::run, Gmm<double>::finish, Gmm<double>::combine},
};

}  // namespace EVIDENS_NAMESPACE
