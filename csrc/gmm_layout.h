// Gaussian mixtures: how a call is cut into blocks, where its buffers lie, and the packed parameters.
#pragma once
#include "gmm.h"
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

template <class T> struct GmmLayout {
  static constexpr int W = width<T>, NV = kOuterVectors, NT = NV * W;  // NT: rows of one tile

  // What prepare packs, shared by all workers.
  struct Shared {
    T *offset;      // (K,) log w + log det P - D/2 log 2 pi
    T *factor;      // (K,) -1/2 s^2 of the scalar precision, -1/2 where it sits in P
    T *means;       // (K, D); tied: P^T (mean - centre)
    T *packed;      // full: K packed triangles; tied: one
    T *transposed;  // the same triangles by rows, for the input gradient
    T *centre;      // (D,) tied only
    int64_t stride;
  };
  // What one worker scribbles on; every matrix has a row of `block` values per feature/component.
  struct Scratch {
    T *x, *r, *u, *v, *y;
    T *log_prob, *weight;  // (block,)
    double *wide;          // (2 D + 1, block), tied moments in double
  };

  static bool posterior(const GmmParams &p) { return p.task <= kGmmStatistics; }
  static bool moments(const GmmParams &p) { return p.task == kGmmStatistics || p.task == kGmmMoments; }

  static int64_t carve_shared(const GmmParams &p, void *base, Shared &s) {
    char *at = static_cast<char *>(base);
    auto take = [&](int64_t n) {
      T *r = reinterpret_cast<T *>(at);
      at += align(n * int64_t(sizeof(T)));
      return r;
    };
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
    if (tied && moments(p)) at += align((2 * D + 1) * block * int64_t(sizeof(double)));
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
    const int64_t bytes = moments(p) ? slab_doubles(p) * int64_t(sizeof(double)) : 0;
    // Accumulators: at most 32 slabs and 20 MB, but 4 units of work where there are so many blocks,
    // and then a multiple of 4, for no thread to wait.  Slabs are even, and so are the blocks of one.
    int64_t slabs = (N + block - 1) / block;
    if (moments(p) && slabs > 4) {
      const int64_t most = (20 << 20) / bytes;
      if (slabs > most) slabs = most;
      slabs = slabs > 32 ? 32 : slabs < 4 ? 4 : slabs / 4 * 4;
    }
    const int64_t even = slabs > 0 ? (N + slabs - 1) / slabs : 1;  // rows of a slab
    const int64_t blocks = (even + block - 1) / block;             // blocks of a slab
    block = (even + blocks - 1) / blocks;
    plan.block = ((block + NT - 1) / NT | 1) * NT;  // odd, so that rows spread over the cache's sets
    plan.slab_rows = blocks * plan.block;
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
      default: log_det = double(D) * __builtin_log(double(P[k])); s.factor[k] = T(-0.5) * P[k] * P[k];
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
};

}  // namespace
}  // namespace EVIDENS_NAMESPACE
