// Blocks of rows to vectors along rows, and back.
#pragma once
#include "simd.h"

namespace EVIDENS_NAMESPACE {
namespace {

// How many of the rows, whole blocks of W, may be read or written W columns at a time: all that far
// from the end where a row has so many, else those that reach over into rows of their own.
template <class T> static int64_t whole_blocks(int64_t rows, int64_t columns, int64_t row) {
  constexpr int W = width<T>;
  if (columns >= W) return rows / W * W;
  if (columns < 2) return 0;
  const int64_t over = (W - columns + row - 1) / row;
  return rows > over ? (rows - over) / W * W : 0;
}

// out[c][n] = in[n][c] for n < rows, zero up to block; W x W at a time where columns are adjacent.
template <class T>
static void transpose_in(const T *in, int64_t row, int64_t column, int64_t rows, int64_t columns, int64_t block,
                         T *out) {
  constexpr int W = width<T>;
  const int64_t whole = column == 1 && row > 0 ? whole_blocks<T>(rows, columns, row) : 0;
  const int height = columns < W ? int(columns) : W;
  for (int64_t n = 0; n < whole; n += W) {
    for (int64_t c = 0; c < columns; c += W) {
      const int64_t from = c + W <= columns || c == 0 ? c : columns - W;  // the last block overlaps the one before
      Vec<T> v[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) v[i] = load(in + (n + i) * row + from);
      transpose<T>(v);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        if (i < height) store(out + (from + i) * block + n, v[i]);
    }
  }
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t n = whole; n < rows; ++n) out[c * block + n] = in[n * row + c * column];
    for (int64_t n = rows; n < block; ++n) out[c * block + n] = T(0);
  }
}
// Narrow rows are written W columns at a time from the first to the last: each covers what the one
// before wrote beyond its end.
template <class T>
static void transpose_out(const T *in, int64_t block, int64_t rows, int64_t columns, T *out) {
  constexpr int W = width<T>;
  const int64_t whole = whole_blocks<T>(rows, columns, columns);
  const int height = columns < W ? int(columns) : W;
  for (int64_t n = 0; n < whole; n += W) {
    for (int64_t c = 0; c < columns; c += W) {
      const int64_t from = c + W <= columns || c == 0 ? c : columns - W;
      Vec<T> v[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) v[i] = i < height ? load(in + (from + i) * block + n) : Vec<T>{};
      transpose<T>(v);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store(out + (n + i) * columns + from, v[i]);
    }
  }
  for (int64_t c = 0; c < columns; ++c)
    for (int64_t n = whole; n < rows; ++n) out[n * columns + c] = in[c * block + n];
}

// --- rows that lie anywhere, one for each lane -----------------------------------------------------
// H values of each at a time: those of width / H rows fill a vector.

template <class T, int N> struct PartOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
  typedef T loose __attribute__((vector_size(N * sizeof(T)), aligned(alignof(T)), may_alias));
};
template <class T, int N, int... I>
EVIDENS_INLINE auto join_(typename PartOf<T, N>::type a, typename PartOf<T, N>::type b, Indices<I...>) {
  return __builtin_shufflevector(a, b, I...);
}
template <class T, int N, int From, int... I>
EVIDENS_INLINE auto take_(typename PartOf<T, N>::type v, Indices<I...>) {
  return __builtin_shufflevector(v, v, (From + I)...);
}
template <class T, int H, int N = width<T>, class S>
EVIDENS_INLINE typename PartOf<T, N>::type load_parts(const S *const *rows, int64_t c) {
  if constexpr (N == H) {
    const typename PartOf<S, N>::type v = *reinterpret_cast<const typename PartOf<S, N>::loose *>(rows[0] + c);
    return __builtin_convertvector(v, typename PartOf<T, N>::type);
  } else {
    return join_<T, N / 2>(load_parts<T, H, N / 2>(rows, c), load_parts<T, H, N / 2>(rows + N / 2, c),
                           typename MakeIndices<N>::type());
  }
}
template <class T, int H, bool All, int N = width<T>>
EVIDENS_INLINE void store_parts(T *const *rows, int64_t c, typename PartOf<T, N>::type v) {
  if constexpr (N == H) {
    if (All || rows[0] != nullptr) *reinterpret_cast<typename PartOf<T, N>::loose *>(rows[0] + c) = v;
  } else {
    store_parts<T, H, All, N / 2>(rows, c, take_<T, N, 0>(v, typename MakeIndices<N / 2>::type()));
    store_parts<T, H, All, N / 2>(rows + N / 2, c, take_<T, N, N / 2>(v, typename MakeIndices<N / 2>::type()));
  }
}

// Calls f<H>(c) with the largest H that fits until `count` values are covered; the last call may
// cover some of them again.
template <class T, int H = width<T>, class F> EVIDENS_INLINE void in_parts(int64_t count, F &&f, int64_t c = 0) {
  if constexpr (H > 1) {
    for (; c + H <= count; c += H) f.template operator()<H>(c);
    // What is left is less than H, or needs no more than one smaller part that overlaps.
    if (c < count) {
      if (count >= H / 2 && count - c <= H / 2 && H > 2) f.template operator()<(H > 2 ? H / 2 : 2)>(count - H / 2);
      else if (count >= H) f.template operator()<H>(count - H);
      else in_parts<T, H / 2>(count, f, c);
    }
  }
}

// out[c][lane] = rows[lane][c] for one vector of lanes.  What lies `ahead` of a row is fetched into the
// cache: these are more streams than the hardware follows.  each(lanes) meets every column, some of
// them twice.
template <class T, class S, class Each>
EVIDENS_INLINE void gather_lanes(int64_t columns, const S *const *rows, T *out, int64_t stride, int64_t ahead,
                                 Each &&each) {
  if (columns == 1) {
    for (int l = 0; l < width<T>; ++l) out[l] = T(rows[l][0]);
    each(load(out));
    return;
  }
  in_parts<T>(columns, [&]<int H>(int64_t c) __attribute__((always_inline)) {
    Vec<T> v[H];
#pragma GCC unroll 16
    for (int i = 0; i < H; ++i) v[i] = load_parts<T, H>(rows + i, c);
    for (int l = 0; ahead != 0 && l < width<T>; ++l) __builtin_prefetch(rows[l] + c + ahead);
    transpose<T, H>(v);
#pragma GCC unroll 16
    for (int i = 0; i < H; ++i) store(out + (c + i) * stride, v[i]), each(v[i]);
  });
}
template <class T, class S>
static void gather_lanes(int64_t columns, const S *const *rows, T *out, int64_t stride, int64_t ahead = 0) {
  gather_lanes(columns, rows, out, stride, ahead, [](Vec<T>) {});
}
// The same of rows[lane] = row(lane).
template <class T, class Row, class... Each>
EVIDENS_INLINE void gather_rows(int64_t columns, T *out, int64_t stride, int64_t ahead, Row &&row, Each &&...each) {
  __typeof__(&*row(0)) rows[width<T>];
  for (int l = 0; l < width<T>; ++l) rows[l] = row(l);
  gather_lanes(columns, rows, out, stride, ahead, each...);
}

// rows[lane][c] = in[c][lane]; equal rows get the last one's values, and null none where not All are rows.
template <class T, bool All = true>
static void scatter_lanes(int64_t columns, const T *in, int64_t stride, T *const *rows) {
  if (columns == 1) {
    for (int l = 0; l < width<T>; ++l)
      if (All || rows[l] != nullptr) rows[l][0] = in[l];
    return;
  }
  in_parts<T>(columns, [&]<int H>(int64_t c) __attribute__((always_inline)) {
    Vec<T> v[H];
#pragma GCC unroll 16
    for (int i = 0; i < H; ++i) v[i] = load(in + (c + i) * stride);
    transpose<T, H>(v);
#pragma GCC unroll 16
    for (int i = 0; i < H; ++i) store_parts<T, H, All>(rows + i, c, v[i]);
  });
}
// The same of rows[lane] = row(lane) for the first `count` lanes.
template <class T, class Row>
EVIDENS_INLINE void scatter_rows(int64_t columns, const T *in, int64_t stride, int64_t count, Row &&row) {
  T *rows[width<T>];
  for (int l = 0; l < width<T>; ++l) rows[l] = l < count ? row(l) : nullptr;
  if (count < width<T>) scatter_lanes<T, false>(columns, in, stride, rows);
  else scatter_lanes(columns, in, stride, rows);
}

}  // namespace
}  // namespace EVIDENS_NAMESPACE
