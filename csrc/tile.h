// The tile engine: a small matrix product whose result is consumed at once, in registers.
//
// Both tiles keep ROWS x VECTORS accumulators in registers and hand them to an epilogue functor.
// Vectors run along the data rows (lanes are rows of the data), so no lane is ever wasted on a
// small dimension.
//   outer_tile   c[m][lane] = sum_i a[i][m] * b[i][lane]     (a is broadcast: parameters x data)
//   inner_tile   c[m][v]    = sum_lane a[m][lane] * b[v][lane]   (data x data: moments)
#pragma once
#include "simd.h"

namespace EVIDENS_NAMESPACE {
namespace {

// Fills the register file: 24 accumulators with 32 registers, 12 with 16.
constexpr int kOuterRows = 6;
constexpr int kOuterVectors = EVIDENS_REGISTERS == 32 ? 4 : 2;
constexpr int kInnerRows = 3;
constexpr int kInnerColumns = EVIDENS_REGISTERS == 32 ? 8 : 4;
constexpr int kInnerPanel = 4 * kInnerRows;  // rows that stay in the first-level cache

constexpr int64_t triangle_size(int64_t n) { return n * (n + 1) / 2; }

// Calls f(N) with a compile-time N equal to n in 1..Max.
template <auto N> struct Constant { static constexpr auto value = N; };
template <int Max, class F> EVIDENS_INLINE void with_constant(int n, F &&f) {
  if constexpr (Max > 0) {
    if (n == Max) f(Constant<Max>());
    else with_constant<Max - 1>(n, f);
  }
}

// Product over `depth` rows of a (Rows values each, stride lda) and of b (NV vectors, stride ldb),
// followed by Rows more rows of which row s only meets columns m >= s when Triangle: the exact upper
// triangle.
template <class T, int Rows, int NV, bool Triangle, class Epilogue>
EVIDENS_INLINE void outer_tile(int64_t depth, const T *a, int64_t lda, const T *b, int64_t ldb, Epilogue &&epilogue) {
  constexpr int W = width<T>;
  Vec<T> acc[Rows][NV] = {};
  for (int64_t i = 0; i < depth; ++i, a += lda, b += ldb) {
    Vec<T> bv[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) bv[v] = load(b + v * W);
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) {
      const Vec<T> s = broadcast<T>(a[m]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[m][v] += s * bv[v];
    }
  }
  if constexpr (Triangle) {
#pragma GCC unroll 8
    for (int s = 0; s < Rows; ++s, a += lda, b += ldb) {
#pragma GCC unroll 8
      for (int m = s; m < Rows; ++m) {
        const Vec<T> p = broadcast<T>(a[m]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[m][v] += p * load(b + v * W);
      }
    }
  }
  epilogue(acc);
}

// out[v] += sum over n of a[m][n] * b[v][n], in double, for row m = 0 of Rows and v < Columns; the
// next row of out begins `step` further on, less m times `shrink` (1 in a packed triangle).  n is a
// multiple of the width.  When Triangle only v >= m is wanted.
template <class T, int Rows, int Columns, bool Triangle>
static void inner_tile(int64_t n, const T *a, const T *b, int64_t ld, double *out, int64_t step, int64_t shrink) {
  constexpr int W = width<T>, CP = kInnerColumns, padded = (Rows * CP + W - 1) / W * W;
  Vec<T> acc[padded] = {};
  for (int64_t i = 0; i < n; i += W) {
    Vec<T> av[Rows];
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) av[m] = load(a + m * ld + i);
#pragma GCC unroll 8
    for (int v = 0; v < Columns; ++v) {
      const Vec<T> bv = in_register<T>(load(b + v * ld + i));
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m) {
        if (!Triangle || v >= m) acc[m * CP + v] += av[m] * bv;
      }
    }
  }
  T sums[padded] __attribute__((aligned(64)));
#pragma GCC unroll 32
  for (int i = 0; i < padded; i += W) store(sums + i, sum_lanes<T>(acc + i));
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 8
    for (int v = Triangle ? m : 0; v < Columns; ++v) out[v] += double(sums[m * CP + v]);
    out += step - m * shrink;
  }
}

template <class T> struct InnerTiles {
  typedef void (*Tile)(int64_t, const T *, const T *, int64_t, double *, int64_t, int64_t);
  Tile tile[2][kInnerRows][kInnerColumns];  // [triangle][rows - 1][columns - 1]
  template <int R, int C> constexpr void fill() {
    tile[0][R - 1][C - 1] = inner_tile<T, R, C, false>;
    tile[1][R - 1][C - 1] = inner_tile<T, R, C, true>;
    if constexpr (C > 1) fill<R, C - 1>();
    else if constexpr (R > 1) fill<R - 1, kInnerColumns>();
  }
  constexpr InnerTiles() : tile{} { fill<kInnerRows, kInnerColumns>(); }
};
template <class T> constexpr InnerTiles<T> inner_tiles = {};

// Adds the upper triangle of a b^T (rows of a and b hold n values, stride ld) to `packed`: row i
// holds columns i..size-1.  b is a itself, or a with signs.  A panel of rows stays in the
// first-level cache while the columns stream by.
template <class T>
static void add_gram(int64_t size, int64_t n, const T *a, const T *b, int64_t ld, double *packed) {
  auto tile = [&](int64_t i, int64_t rows, int64_t j, int64_t columns) {
    inner_tiles<T>.tile[i == j][rows - 1][columns - 1](n, a + i * ld, b + j * ld, ld,
                                                       packed + i * size - triangle_size(i) + j, size - i - 1, 1);
  };
  auto width_at = [](int64_t left) {  // whole tiles, the last two of even width
    return left <= kInnerColumns ? left : left < 2 * kInnerColumns ? (left + 1) / 2 : kInnerColumns;
  };
  for (int64_t p = 0; p < size; p += kInnerPanel) {
    const int64_t end = size - p < kInnerPanel ? size : p + kInnerPanel;
    for (int64_t i = p; i < end; i += kInnerRows) {
      const int64_t rows = end - i < kInnerRows ? end - i : kInnerRows;
      for (int64_t j = i, c; j < end; j += c) tile(i, rows, j, c = width_at(end - j));
    }
    for (int64_t j = end, c; j < size; j += c) {
      c = width_at(size - j);
      for (int64_t i = p; i < end; i += kInnerRows) tile(i, end - i < kInnerRows ? end - i : kInnerRows, j, c);
    }
  }
}

}  // namespace
}  // namespace EVIDENS_NAMESPACE
