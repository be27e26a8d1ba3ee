// The products of a masked convolution: lanes are channels, rows of a tile are pixels or weights that
// lie anywhere, and only what is alive enters.
#pragma once
#include "masked_conv_planes.h"
#include "tile.h"

namespace EVIDENS_NAMESPACE {
namespace {

constexpr int kLaneVectors = kOuterVectors;
// Rows of a tile of NV vectors, by the accumulators that the register file holds; more rows than
// eight would need more pointers than there are integer registers.
constexpr int tile_rows(int vectors) { return vectors > 2 || EVIDENS_REGISTERS == 16 ? (vectors == 1 ? 8 : 6) : 8; }
template <class T> constexpr int64_t lanes_of_a_tile = kLaneVectors * width<T>;
constexpr int64_t kWeightChunk = 1 << 17;  // bytes of packed weights that stay in the second-level cache

// acc[m][lane] += sum over i of a[m][i * a_step] * b[i * b_step + lane]
template <class T, int P, int NV>
EVIDENS_INLINE void accumulate(Vec<T> (&acc)[P][NV], int64_t depth, const T *const *rows, int64_t a_step, const T *b,
                               int64_t b_step) {
  constexpr int W = width<T>;
  const T *a[P];
#pragma GCC unroll 8
  for (int m = 0; m < P; ++m) a[m] = rows[m];
  for (int64_t i = 0; i < depth; ++i, b += b_step) {
    Vec<T> bv[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) bv[v] = load(b + v * W);
#pragma GCC unroll 8
    for (int m = 0; m < P; ++m) {
      const Vec<T> s = broadcast<T>(a[m][i * a_step]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[m][v] += s * bv[v];
    }
  }
}

// A product of one tile of lanes with all pixels of a band.
template <class T> struct Product {
  Band<T> band;
  int64_t columns;        // of the image
  int64_t pixels;         // of the band
  int64_t taps;           //
  const int64_t *offset;  // (taps,) elements from a pixel to the one that the tap reads
  int64_t depth;          // channels that are summed over
  int64_t centre;         // the tap that reads only channels [begin, end)
  int64_t begin, end;
  const T *weights;  // (taps, depth, NV vectors)
  const T *start;    // (NV vectors) what the sums start from
  T *out;            // (pixels, step)
  int64_t step;      // elements
};

template <class T, int P, int NV>
static void product_rows(const Product<T> &s, int64_t from_tap, int64_t to_tap, int64_t first, int64_t count) {
  constexpr int W = width<T>;
  const T *pixel[P];
  int64_t row = first / s.columns, column = first % s.columns;
  for (int m = 0; m < P; ++m) {
    pixel[m] = s.band.at + ((s.band.top + row) * s.band.row_step + s.band.left + column) * s.band.pixel_step;
    // A tile with more rows than there are pixels repeats the last one.
    if (m + 1 < count && ++column == s.columns) column = 0, ++row;
  }
  Vec<T> acc[P][NV];
  T *out = s.out + first * s.step;
#pragma GCC unroll 8
  for (int m = 0; m < P; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v)
      acc[m][v] = from_tap == 0 ? load(s.start + v * W) : load(out + (m < count ? m : count - 1) * s.step + v * W);
  for (int64_t t = from_tap; t < to_tap; ++t) {
    const int64_t begin = t == s.centre ? s.begin : 0, end = t == s.centre ? s.end : s.depth;
    const T *a[P];
#pragma GCC unroll 8
    for (int m = 0; m < P; ++m) a[m] = pixel[m] + s.offset[t] + begin;
    accumulate<T, P, NV>(acc, end - begin, a, 1, s.weights + (t * s.depth + begin) * NV * W, NV * W);
  }
#pragma GCC unroll 8
  for (int m = 0; m < P; ++m) {
    if (m >= count) break;
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) store(out + m * s.step + v * W, acc[m][v]);
  }
}

template <class T, int NV> static void product(const Product<T> &s) {
  constexpr int P = tile_rows(NV);
  int64_t chunk = kWeightChunk / (s.depth * NV * EVIDENS_VECTOR_BYTES + 1);
  if (chunk < 1) chunk = 1;
  for (int64_t t = 0; t == 0 || t < s.taps; t += chunk) {
    const int64_t to = t + chunk < s.taps ? t + chunk : s.taps;
    int64_t p = 0;
    for (; p + P <= s.pixels; p += P) product_rows<T, P, NV>(s, t, to, p, P);
    const int64_t rest = s.pixels - p;
    if (rest > 4) product_rows<T, P, NV>(s, t, to, p, rest);
    else if (rest > 2) product_rows<T, 4, NV>(s, t, to, p, rest);
    else if (rest > 1) product_rows<T, 2, NV>(s, t, to, p, rest);
    else if (rest > 0) product_rows<T, 1, NV>(s, t, to, p, rest);
  }
}

// Gradients of weights: a row is a channel that a tap reads, lanes are channels of the result.
template <class T> struct WeightProduct {
  Band<T> band;           // of x
  Band<T> grad;           // of the gradient of y
  int64_t rows, columns;  // of pixels
};

template <class T, int P, int NV>
static void weight_rows(const WeightProduct<T> &s, const int64_t *offset, int64_t count, int64_t lane, bool add,
                        double *sums, int64_t step) {
  constexpr int W = width<T>;
  const T *x = s.band.at + (s.band.top * s.band.row_step + s.band.left) * s.band.pixel_step;
  const T *g = s.grad.at + (s.grad.top * s.grad.row_step + s.grad.left) * s.grad.pixel_step + lane;
  Vec<T> acc[P][NV] = {};
  for (int64_t r = 0; r < s.rows; ++r) {
    const T *a[P];
#pragma GCC unroll 8
    for (int m = 0; m < P; ++m) a[m] = x + offset[m < count ? m : 0];
    accumulate<T, P, NV>(acc, s.columns, a, s.band.pixel_step, g, s.grad.pixel_step);
    x += s.band.row_step * s.band.pixel_step;
    g += s.grad.row_step * s.grad.pixel_step;
  }
  T lanes[P][NV * W] __attribute__((aligned(64)));
#pragma GCC unroll 8
  for (int m = 0; m < P; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) store(lanes[m] + v * W, acc[m][v]);
  for (int64_t m = 0; m < count; ++m) {
    double *to = sums + m * step + lane;
    if (add)
      for (int l = 0; l < NV * W; ++l) to[l] += double(lanes[m][l]);
    else
      for (int l = 0; l < NV * W; ++l) to[l] = double(lanes[m][l]);
  }
}

// sums[k][lane], to which they `add`, of `count` rows k, whose channels lie offset[k] from a pixel.
template <class T, int NV>
static void weight_product(const WeightProduct<T> &s, const int64_t *offset, int64_t count, int64_t lane, bool add,
                           double *sums, int64_t step) {
  constexpr int P = tile_rows(NV);
  int64_t k = 0;
  for (; k + P <= count; k += P) weight_rows<T, P, NV>(s, offset + k, P, lane, add, sums + k * step, step);
  const int64_t rest = count - k;
  if (rest > 4) weight_rows<T, P, NV>(s, offset + k, rest, lane, add, sums + k * step, step);
  else if (rest > 2) weight_rows<T, 4, NV>(s, offset + k, rest, lane, add, sums + k * step, step);
  else if (rest > 1) weight_rows<T, 2, NV>(s, offset + k, rest, lane, add, sums + k * step, step);
  else if (rest > 0) weight_rows<T, 1, NV>(s, offset + k, rest, lane, add, sums + k * step, step);
}

}  // namespace
}  // namespace EVIDENS_NAMESPACE
