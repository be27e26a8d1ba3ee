// Blocks of rows to vectors along rows, and back.
#pragma once
#include "simd.h"

namespace EVIDENS_NAMESPACE {
namespace {

// out[c][n] = in[n][c] for n < rows, zero up to block; W x W at a time where columns are adjacent.
template <class T>
static void transpose_in(const T *in, int64_t row, int64_t column, int64_t rows, int64_t columns, int64_t block,
                         T *out) {
  constexpr int W = width<T>;
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
template <class T>
static void transpose_out(const T *in, int64_t block, int64_t rows, int64_t columns, T *out) {
  constexpr int W = width<T>;
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

// Rows that lie anywhere to lanes: out[c][lane] = row(lane)[c] for one vector of lanes.  What lies
// `ahead` of a row is fetched into the cache: these are more streams than the hardware follows.
template <class U, class Row>
EVIDENS_INLINE void gather_rows(int64_t columns, U *out, int64_t stride, int64_t ahead, Row &&row) {
  typedef __typeof__(row(0)) Pointer;
  constexpr int W = width<U>;
  Pointer rows[W];
  for (int l = 0; l < W; ++l) rows[l] = row(l);
  if (columns < W) {
    for (int64_t c = 0; c < columns; ++c)
      for (int l = 0; l < W; ++l) out[c * stride + l] = U(rows[l][c]);
    return;
  }
  for (int64_t c = 0; c < columns; c += W) {
    const int64_t from = c + W <= columns ? c : columns - W;  // the last block overlaps the one before
    Vec<U> v[W];
#pragma GCC unroll 16
    for (int l = 0; l < W; ++l) {
      v[l] = load_as<U>(rows[l] + from);
      __builtin_prefetch(rows[l] + from + ahead);
    }
    transpose<U>(v);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) store(out + (from + i) * stride, v[i]);
  }
}
// row(lane)[c] = in[c][lane] for the first `count` lanes of one vector.
template <class T, class Row>
EVIDENS_INLINE void scatter_rows(int64_t columns, const T *in, int64_t stride, int64_t count, Row &&row) {
  constexpr int W = width<T>;
  if (count > W) count = W;
  T *rows[W];
  for (int l = 0; l < W; ++l) rows[l] = l < count ? row(l) : nullptr;
  if (columns < W) {
    for (int64_t c = 0; c < columns; ++c)
      for (int l = 0; l < count; ++l) rows[l][c] = in[c * stride + l];
    return;
  }
  for (int64_t c = 0; c < columns; c += W) {
    const int64_t from = c + W <= columns ? c : columns - W;
    Vec<T> v[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) v[i] = load(in + (from + i) * stride);
    transpose<T>(v);
#pragma GCC unroll 16
    for (int l = 0; l < W; ++l)
      if (l < count) store(rows[l] + from, v[l]);
  }
}

}  // namespace
}  // namespace EVIDENS_NAMESPACE
