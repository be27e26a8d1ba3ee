// Rows of states times packed weights: the product of a half step, and of the sums over rows.
//
// Lanes are units of the result.  Weights are packed in panels, (panel, depth, units of a panel).  A row
// with few nonzero states sums the weights of those; others go through a register tile together.  Both
// add in the order of depth into one accumulator, and zeros add nothing, so the way changes no bit; it
// depends on the row alone.
#pragma once
#include "tile.h"
#include "transpose.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace EVIDENS_NAMESPACE {
namespace {

template <class T> constexpr int64_t kPanel = kOuterVectors * width<T>;
constexpr int64_t kPanelsAtOnce = 4;              // for a sparse row: one pass over its list
constexpr int64_t kNearBytes = int64_t(1) << 19;  // of panels that are read at once: half a second-level cache

constexpr int64_t panels_of(int64_t units, int64_t panel) { return (units + panel - 1) / panel; }

// Whether a sum over the list is the faster way.
constexpr bool is_sparse(int64_t nonzero, int64_t depth) { return nonzero * 2 <= depth; }

// Scratch of a block of rows.
template <class T> struct ProductScratch {
  int32_t *list;   // the lists of the sparse rows, one after the other
  int64_t *begin;  // (rows + 1,) where they begin
  int64_t *row;    // (rows,) the sparse rows, then the others from the end
  T *sums;         // (rows of a tile, panels at once)

  static int64_t bytes(int64_t rows, int64_t depth) {
    const int64_t list = rows * (depth / 2 + 1) + depth + 16;
    return (list * 4 + 63) / 64 * 64 + ((2 * rows + 1) * 8 + 63) / 64 * 64 +
           kOuterRows * kPanelsAtOnce * kPanel<T> * int64_t(sizeof(T));
  }
  ProductScratch(void *scratch, int64_t rows, int64_t depth) {
    char *p = static_cast<char *>(scratch);
    list = reinterpret_cast<int32_t *>(p);
    p += ((rows * (depth / 2 + 1) + depth + 16) * 4 + 63) / 64 * 64;
    begin = reinterpret_cast<int64_t *>(p);
    row = begin + rows + 1;
    p += ((2 * rows + 1) * 8 + 63) / 64 * 64;
    sums = reinterpret_cast<T *>(p);
  }
};

// Indices of what is not zero; up to a vector of indices beyond the last is written.
template <class T> static int64_t list_nonzero(const T *row, int64_t n, int32_t *list) {
  int64_t count = 0, i = 0;
#if defined(__AVX512F__)
  __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (; i + 16 <= n; i += 16) {
    uint32_t mask;
    if constexpr (sizeof(T) == 4) {
      mask = _mm512_cmp_ps_mask(_mm512_loadu_ps(row + i), _mm512_setzero_ps(), _CMP_NEQ_UQ);
    } else {
      const __m512d zero = _mm512_setzero_pd();
      mask = uint32_t(_mm512_cmp_pd_mask(_mm512_loadu_pd(row + i), zero, _CMP_NEQ_UQ)) |
             uint32_t(_mm512_cmp_pd_mask(_mm512_loadu_pd(row + i + 8), zero, _CMP_NEQ_UQ)) << 8;
    }
    _mm512_storeu_si512(list + count, _mm512_maskz_compress_epi32(__mmask16(mask), index));
    count += __builtin_popcount(mask);
    index = _mm512_add_epi32(index, _mm512_set1_epi32(16));
  }
#endif
  for (; i < n; ++i) {
    list[count] = int32_t(i);
    count += row[i] != T(0);
  }
  return count;
}

template <class T, int NP>
static void sparse_row(const int32_t *list, int64_t count, const T *row, const T *panel, int64_t step, T *out) {
  constexpr int W = width<T>, NV = kOuterVectors;
  Vec<T> acc[NP][NV] = {};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = list[i];
    const Vec<T> s = broadcast<T>(row[at]);
    const T *w = panel + at * kPanel<T>;
#pragma GCC unroll 4
    for (int k = 0; k < NP; ++k) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[k][v] += s * load(w + k * step + v * W);
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < NP; ++k) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(out + k * kPanel<T> + v * W, acc[k][v]);
  }
}
template <class T, int Rows>
static void dense_rows(int64_t depth, const T *const *rows, const T *panel, T *out) {
  constexpr int W = width<T>, NV = kOuterVectors;
  const T *row[Rows];
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) row[m] = rows[m];
  Vec<T> acc[Rows][NV] = {};
  for (int64_t i = 0; i < depth; ++i, panel += kPanel<T>) {
    Vec<T> w[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) w[v] = load(panel + v * W);
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) {
      const Vec<T> s = broadcast<T>(row[m][i]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] += s * w[v];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(out + m * kPanel<T> + v * W, acc[m][v]);
  }
}

template <class T> struct ProductTiles {
  void (*sparse[kPanelsAtOnce])(const int32_t *, int64_t, const T *, const T *, int64_t, T *);
  void (*dense[kOuterRows])(int64_t, const T *const *, const T *, T *);
  template <int N> constexpr void fill() {
    if constexpr (N <= kPanelsAtOnce) sparse[N - 1] = sparse_row<T, N>;
    dense[N - 1] = dense_rows<T, N>;
    if constexpr (N > 1) fill<N - 1>();
  }
  constexpr ProductTiles() : sparse{}, dense{} { fill<kOuterRows>(); }
};
template <class T> constexpr ProductTiles<T> product_tiles = {};

// epilogue(row, first unit, sums) for every row in [0, count) and every panel of the units; a panel
// begins `step` elements after the one before.
template <class T, class Epilogue>
static void multiply(const T *rows, int64_t stride, int64_t count, int64_t depth, const T *packed, int64_t step,
                     int64_t units, const ProductScratch<T> &w, Epilogue &&epilogue) {
  int64_t sparse = 0, dense = count;
  w.begin[0] = 0;
  for (int64_t n = 0; n < count; ++n) {
    const int64_t nonzero = list_nonzero(rows + n * stride, depth, w.list + w.begin[sparse]);
    if (is_sparse(nonzero, depth)) {
      w.row[sparse] = n;
      w.begin[sparse + 1] = w.begin[sparse] + nonzero;
      ++sparse;
    } else {
      w.row[--dense] = n;
    }
  }
  const int64_t panels = panels_of(units, kPanel<T>), near = kNearBytes / (depth * kPanel<T> * int64_t(sizeof(T)) + 1);
  const int64_t most = near < 1 ? 1 : near < kPanelsAtOnce ? near : kPanelsAtOnce;
  for (int64_t k = 0; k < panels; k += most) {
    const int64_t np = panels - k < most ? panels - k : most;
    for (int64_t i = 0; i < sparse; ++i) {
      const int64_t n = w.row[i];
      product_tiles<T>.sparse[np - 1](w.list + w.begin[i], w.begin[i + 1] - w.begin[i], rows + n * stride,
                                      packed + k * step, step, w.sums);
      for (int64_t j = 0; j < np; ++j) epilogue(n, (k + j) * kPanel<T>, w.sums + j * kPanel<T>);
    }
    for (int64_t j = k; j < k + np; ++j) {
      for (int64_t i = dense; i < count; i += kOuterRows) {
        const int64_t m = count - i < kOuterRows ? count - i : kOuterRows;
        const T *row[kOuterRows];
        for (int64_t l = 0; l < m; ++l) row[l] = rows + w.row[i + l] * stride;
        product_tiles<T>.dense[m - 1](depth, row, packed + j * step, w.sums);
        for (int64_t l = 0; l < m; ++l) epilogue(w.row[i + l], j * kPanel<T>, w.sums + l * kPanel<T>);
      }
    }
  }
}

// One panel: `units` columns of a matrix (depth, ...), each row times its factor.
template <class T>
static void pack_columns(const T *in, int64_t row, int64_t units, int64_t depth, const T *factor, T *out) {
  constexpr int W = width<T>;
  for (int64_t i = 0; i < depth; ++i, in += row, out += kPanel<T>) {
    const T f = factor == nullptr ? T(1) : factor[i];
    if (units == kPanel<T>) {
      for (int64_t v = 0; v < kPanel<T>; v += W) store(out + v, load(in + v) * f);
    } else {
      for (int64_t v = 0; v < kPanel<T>; ++v) out[v] = v < units ? in[v] * f : T(0);
    }
  }
}

}  // namespace
}  // namespace EVIDENS_NAMESPACE
