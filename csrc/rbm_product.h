// Rows of states times packed weights: the product of a half step, and of the sums over rows.
//
// Lanes are units of the result.  Weights are packed in panels, (panel, depth, units of a panel).  A row
// with few nonzero states sums the weights of those, without a product where all are 1; others go through
// a register tile together.  All add in the order of depth into one accumulator, and zeros add nothing,
// so the way changes no bit; it depends on the row alone.
#pragma once
#include "tile.h"
#include "transpose.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace EVIDENS_NAMESPACE {
namespace {

template <class T> constexpr int64_t kPanel = kOuterVectors * width<T>;
// Weights of a panel that a sparse row reads at random: they stay near the first-level cache.
template <class T> constexpr int64_t kNear = (int64_t(1) << 15) / (kPanel<T> * int64_t(sizeof(T)));

constexpr int64_t panels_of(int64_t units, int64_t panel) { return (units + panel - 1) / panel; }

// Whether a sum over the list is the faster way.
constexpr bool is_sparse(int64_t nonzero, int64_t depth) { return nonzero * 8 <= depth * 5; }

// Scratch of a block of rows.
template <class T> struct ProductScratch {
  T *sums;         // (rows, panel)
  int64_t *begin;  // (sparse rows, parts + 1) where each part of a row's list begins
  int64_t *row;    // (rows,) the sparse rows, then the others from the end
  uint8_t *ones;   // (sparse rows,) whether what is not zero is 1
  int32_t *list;   // the lists of the sparse rows, one after the other

  static int64_t parts(int64_t depth) { return (depth + kNear<T> - 1) / kNear<T>; }
  static int64_t bytes(int64_t rows, int64_t depth) {
    const int64_t lists = rows * (depth * 5 / 8 + 1) + depth + 16;
    return (rows * (parts(depth) + 2) + 1) * 8 + rows * kPanel<T> * int64_t(sizeof(T)) + lists * 4 + rows + 64;
  }
  ProductScratch(void *scratch, int64_t rows, int64_t depth)
      : sums(static_cast<T *>(scratch)),
        begin(reinterpret_cast<int64_t *>(sums + rows * kPanel<T>)),
        row(begin + rows * (parts(depth) + 1)),
        ones(reinterpret_cast<uint8_t *>(row + rows + 1)),
        list(reinterpret_cast<int32_t *>(ones + (rows + 3) / 4 * 4)) {}
};

// Indices from `first` to n - 1 of what is not zero; up to a vector of indices beyond the last is written.
// `ones` stays set where all of them are 1.
template <class T>
static int64_t list_nonzero(const T *row, int64_t first, int64_t n, int32_t *list, bool &ones) {
  int64_t count = 0, i = first;
  bool others = false;
#if defined(__AVX512F__)
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i index = _mm512_add_epi32(lanes, _mm512_set1_epi32(int32_t(first)));
  uint32_t odd = 0;
  for (; i + 16 <= n; i += 16) {
    uint32_t mask, one;
    if constexpr (sizeof(T) == 4) {
      const __m512 x = _mm512_loadu_ps(row + i);
      mask = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
      one = _mm512_cmp_ps_mask(x, _mm512_set1_ps(1), _CMP_EQ_OQ);
    } else {
      const __m512d zero = _mm512_setzero_pd(), unit = _mm512_set1_pd(1);
      const __m512d x = _mm512_loadu_pd(row + i), y = _mm512_loadu_pd(row + i + 8);
      mask = uint32_t(_mm512_cmp_pd_mask(x, zero, _CMP_NEQ_UQ)) | uint32_t(_mm512_cmp_pd_mask(y, zero, _CMP_NEQ_UQ))
                                                                      << 8;
      one = uint32_t(_mm512_cmp_pd_mask(x, unit, _CMP_EQ_OQ)) | uint32_t(_mm512_cmp_pd_mask(y, unit, _CMP_EQ_OQ)) << 8;
    }
    odd |= mask ^ one;
    _mm512_storeu_si512(list + count, _mm512_maskz_compress_epi32(__mmask16(mask), index));
    count += __builtin_popcount(mask);
    index = _mm512_add_epi32(index, _mm512_set1_epi32(16));
  }
  others = odd != 0;
#endif
  for (; i < n; ++i) {
    list[count] = int32_t(i);
    count += row[i] != T(0);
    others |= row[i] != T(0) && row[i] != T(1);
  }
  ones = ones && !others;
  return count;
}

// Adds the weights of the list to the sums of a row, times the states of the row unless these are ones.
template <bool Ones, class T>
EVIDENS_INLINE void sparse_row(const int32_t *list, int64_t count, const T *row, const T *panel, bool first, T *sums) {
  constexpr int W = width<T>, NV = kOuterVectors;
  Vec<T> acc[NV] = {};
  if (!first) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[v] = load(sums + v * W);
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = list[i];
    const Vec<T> s = broadcast<T>(Ones ? T(1) : row[at]);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const Vec<T> w = load(panel + at * kPanel<T> + v * W);
      acc[v] += Ones ? w : s * w;
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) store(sums + v * W, acc[v]);
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

template <class T> struct DenseTiles {
  void (*of[kOuterRows])(int64_t, const T *const *, const T *, T *);
  template <int N> constexpr void fill() {
    of[N - 1] = dense_rows<T, N>;
    if constexpr (N > 1) fill<N - 1>();
  }
  constexpr DenseTiles() : of{} { fill<kOuterRows>(); }
};
template <class T> constexpr DenseTiles<T> dense_tiles = {};

// epilogue(row, first unit, sums) for every row in [0, count) and every panel of the units; a panel
// begins `step` elements after the one before.
template <class T, class Epilogue>
static void multiply(const T *rows, int64_t stride, int64_t count, int64_t depth, const T *packed, int64_t step,
                     int64_t units, const ProductScratch<T> &w, Epilogue &&epilogue) {
  const int64_t parts = ProductScratch<T>::parts(depth);
  int64_t sparse = 0, dense = count, listed = 0;
  for (int64_t n = 0; n < count; ++n) {
    int64_t *const begin = w.begin + sparse * (parts + 1), nonzero = 0;
    bool ones = true;
    for (int64_t c = 0; c < parts; ++c) {
      begin[c] = listed + nonzero;
      const int64_t end = (c + 1) * kNear<T> < depth ? (c + 1) * kNear<T> : depth;
      nonzero += list_nonzero(rows + n * stride, c * kNear<T>, end, w.list + begin[c], ones);
    }
    begin[parts] = listed + nonzero;
    if (is_sparse(nonzero, depth)) w.ones[sparse] = ones, w.row[sparse++] = n, listed += nonzero;
    else w.row[--dense] = n;
  }
  for (int64_t k = 0; k < panels_of(units, kPanel<T>); ++k, packed += step) {
    for (int64_t c = 0; c < parts || c == 0; ++c) {
      for (int64_t i = 0; i < sparse; ++i) {
        const int64_t *const begin = w.begin + i * (parts + 1) + c;
        const int64_t listed_here = parts == 0 ? 0 : begin[1] - begin[0];
        if (listed_here == 0 && c > 0) continue;
        const T *const row = rows + w.row[i] * stride;
        T *const to = w.sums + i * kPanel<T>;
        if (w.ones[i]) sparse_row<true>(w.list + begin[0], listed_here, row, packed, c == 0, to);
        else sparse_row<false>(w.list + begin[0], listed_here, row, packed, c == 0, to);
      }
    }
    for (int64_t i = 0; i < sparse; ++i) epilogue(w.row[i], k * kPanel<T>, w.sums + i * kPanel<T>);
    for (int64_t i = dense; i < count; i += kOuterRows) {
      const int64_t m = count - i < kOuterRows ? count - i : kOuterRows;
      const T *row[kOuterRows];
      for (int64_t l = 0; l < m; ++l) row[l] = rows + w.row[i + l] * stride;
      dense_tiles<T>.of[m - 1](depth, row, packed, w.sums);
      for (int64_t l = 0; l < m; ++l) epilogue(w.row[i + l], k * kPanel<T>, w.sums + l * kPanel<T>);
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
