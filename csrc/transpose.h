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

}  // namespace
}  // namespace EVIDENS_NAMESPACE
