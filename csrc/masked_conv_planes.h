// Bands of rows of an image: from planes to pixels that hold their channels side by side, and back.
#pragma once
#include "masked_conv.h"
#include "transpose.h"

namespace EVIDENS_NAMESPACE {
namespace {

using evidens::MaskedConvPlanes;

// A band as the products read it: channel c of the pixel (row, column) is
// at[((top + row) * row_step + (left + column)) * pixel_step + c].
template <class T> struct Band {
  const T *at;
  int64_t top, left;
  int64_t row_step;    // pixels
  int64_t pixel_step;  // elements
};

struct Window {
  int64_t top, bottom, left, right;  // rows and columns around a band
};

template <class T> EVIDENS_INLINE void copy_run(int64_t n, const T *from, T *to) {
  constexpr int W = width<T>;
  int64_t i = 0;
  for (; i + W <= n; i += W) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = from[i];
}
template <class T> EVIDENS_INLINE void clear_run(int64_t n, T *to) {
  constexpr int W = width<T>;
  int64_t i = 0;
  for (; i + W <= n; i += W) store(to + i, Vec<T>{});
  for (; i < n; ++i) to[i] = T(0);
}

// Where the pixels of consecutive rows go in a padded band.
template <class T> struct Places {
  T *begin;
  int64_t columns;    // of the image
  int64_t step, row;  // elements to the next pixel and to the next row
  // Those of n pixels from p on.
  EVIDENS_METHOD void find(int64_t p, int64_t n, T **to) const {
    int64_t column = p % columns;
    T *at = begin + p / columns * row + column * step;
    for (int64_t i = 0; i < n; ++i) {
      to[i] = at;
      at += step;
      if (++column == columns) column = 0, at += row - columns * step;
    }
  }
};

// `count` pixels from planes; a pixel's channels lie together in the result.
template <class T>
static void gather_pixels(const T *plane, int64_t channel, int64_t count, int64_t channels, const Places<T> &places) {
  constexpr int W = width<T>;
  for (int64_t p = 0; p < count; p += W) {
    // The last blocks of pixels and of channels overlap those before them.
    const int64_t n = count < W ? count : W, at = count - p < n ? count - n : p;
    T *to[W];
    places.find(at, n, to);
    if (n < W || channels < W) {
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < n; ++i) to[i][c] = plane[c * channel + at + i];
      continue;
    }
    for (int64_t b = 0; b < channels; b += W) {
      const int64_t c = channels - b < W ? channels - W : b;
      Vec<T> v[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) v[i] = load(plane + (c + i) * channel + at);
      transpose<T>(v);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store(to[i] + c, v[i]);
    }
  }
}

// The rows [first, first + rows) of an image with the window around them, zero outside of it.
template <class T>
static void pack_band(const MaskedConvPlanes &planes, int64_t image, int64_t channels, int64_t height, int64_t columns,
                      int64_t first, int64_t rows, const Window &window, int64_t step, T *out) {
  const int64_t across = (window.left + columns + window.right) * step;
  const int64_t begin = first - window.top > 0 ? first - window.top : 0;
  const int64_t end = first + rows + window.bottom < height ? first + rows + window.bottom : height;
  T *inside = out + (begin - (first - window.top)) * across;
  clear_run(inside - out, out);
  for (int64_t r = 0; r < end - begin; ++r) {
    clear_run(window.left * step, inside + r * across);
    clear_run(window.right * step, inside + r * across + (window.left + columns) * step);
  }
  clear_run((first + rows + window.bottom - end) * across, inside + (end - begin) * across);
  const T *from = static_cast<const T *>(planes.data) + image * planes.image + begin * columns * planes.place;
  const int64_t count = (end - begin) * columns;
  const Places<T> places = {inside + window.left * step, columns, step, across};
  if (planes.channel != 1) return gather_pixels(from, planes.channel, count, channels, places);
  T *to;
  for (int64_t p = 0; p < count; ++p, from += planes.place) {
    places.find(p, 1, &to);
    copy_run(channels, from, to);
  }
}

// Channels [begin, begin + channels) of `count` pixels from `first` on to planes; the channels of a
// pixel lie together in `in`, pixels `step` elements apart.
template <class T>
static void unpack_band(const T *in, int64_t step, int64_t count, int64_t begin, int64_t channels, const int64_t *order,
                        const MaskedConvPlanes &planes, int64_t image, int64_t first) {
  constexpr int W = width<T>;
  T *to = static_cast<T *>(planes.data) + image * planes.image + first * planes.place;
  if (order != nullptr) {
    for (int64_t p = 0; p < count; ++p, in += step, to += planes.place)
      for (int64_t c = 0; c < channels; ++c) to[order[begin + c] * planes.channel] = in[c];
    return;
  }
  to += begin * planes.channel;
  if (planes.channel == 1 && planes.place != 1) {
    for (int64_t p = 0; p < count; ++p, in += step, to += planes.place) copy_run(channels, in, to);
    return;
  }
  for (int64_t p = 0; p < count; p += W) {
    const int64_t n = count < W ? count : W, at = count - p < n ? count - n : p;
    for (int64_t c = 0; c < channels; c += W) {
      const int64_t lanes = channels - c < W ? channels - c : W;
      const T *from = in + at * step + c;
      T *plane = to + c * planes.channel + at;
      if (n < W) {
        for (int64_t l = 0; l < lanes; ++l)
          for (int64_t i = 0; i < n; ++i) plane[l * planes.channel + i] = from[i * step + l];
        continue;
      }
      Vec<T> v[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) v[i] = load(from + i * step);
      transpose<T>(v);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        if (i < lanes) store(plane + i * planes.channel, v[i]);
    }
  }
}

}  // namespace
}  // namespace EVIDENS_NAMESPACE
