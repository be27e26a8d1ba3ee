// Sums over rows of h_mean v^T, v and h_mean: one phase of the gradient, or the difference of two.
//
// A band of visible units, transposed, is what the rows of states are in a half step; the means of the
// hidden units, times the weights of their rows, are the weights.  Sums are in the type of the data within
// a chunk of rows, else double.
#pragma once
#include "rbm.h"
#include "rbm_product.h"

namespace EVIDENS_NAMESPACE {
namespace {

constexpr int64_t kBand = 64;    // visible units, at most
constexpr int64_t kChunk = 512;  // rows

template <class T> constexpr int64_t padded(int64_t units) { return panels_of(units, kPanel<T>) * kPanel<T>; }

// The weight of row n of all, which is negative for those that count against.
template <class T> EVIDENS_INLINE T weight_of(const evidens::RbmSums &p, int64_t n) {
  const bool minus = n >= p.plus.rows;
  const evidens::RbmRows &side = minus ? p.minus : p.plus;
  const T weight =
      side.sample_weight == nullptr ? T(1) : static_cast<const T *>(side.sample_weight)[n - (minus ? p.plus.rows : 0)];
  return minus ? -weight : weight;
}

template <class T> static void pack_sums(int64_t begin, int64_t end, const evidens::RbmSums &p) {
  constexpr int W = width<T>;
  for (int64_t k = begin; k < end; ++k) {
    const int64_t first = k * kPanel<T>, units = p.hidden - first < kPanel<T> ? p.hidden - first : kPanel<T>;
    T *out = static_cast<T *>(p.packed) + first * p.rows;
    Vec<double> sums[kOuterVectors][2] = {};
    for (int64_t n = 0; n < p.rows; ++n, out += kPanel<T>) {
      const evidens::RbmRows &side = n < p.plus.rows ? p.plus : p.minus;
      const int64_t row = n < p.plus.rows ? n : n - p.plus.rows;
      const T *const in = static_cast<const T *>(side.h_mean) + row * side.h_row + first;
      const T weight = weight_of<T>(p, n);
      T lanes[kPanel<T>] = {};
      for (int64_t i = 0; units < kPanel<T> && i < units; ++i) lanes[i] = in[i];
      const T *const from = units < kPanel<T> ? lanes : in;
#pragma GCC unroll 4
      for (int v = 0; v < kOuterVectors; ++v) {
        store(out + v * W, load(from + v * W) * weight);
        for (int half = 0; half < W / width<double>; ++half) {
          sums[v][half] += load_as<double>(out + v * W + half * width<double>);
        }
      }
    }
    for (int64_t i = 0; i < units; ++i) {
      static_cast<T *>(p.sum_h)[first + i] = T(sums[i / W][i % W / width<double>][i % width<double>]);
    }
  }
}

template <class T> struct Band {
  const evidens::RbmSums &p;
  int64_t first, units, chunk, hidden;
  ProductScratch<T> product;
  double *total;      // (band, hidden units, padded), where there are several chunks
  T *v, *sums;        // (band, chunk) and (band, hidden units, padded)
  T weights[kChunk];  // of the rows of a chunk

  static int64_t rows_of(const evidens::RbmSums &p) {
    const int64_t rows = p.rows < 1 ? 1 : p.rows < kChunk ? p.rows : kChunk;
    return (rows + width<T> - 1) / width<T> * width<T>;
  }
  static int64_t product_bytes(const evidens::RbmSums &p) {
    return (ProductScratch<T>::bytes(kBand, rows_of(p)) + 63) / 64 * 64;
  }
  static int64_t bytes(const evidens::RbmSums &p) {
    const int64_t h = padded<T>(p.hidden);
    return product_bytes(p) + kBand * (h * 8 + (rows_of(p) + h) * int64_t(sizeof(T)));
  }
  Band(int64_t begin, int64_t end, const evidens::RbmSums &params, void *scratch)
      : p(params),
        first(begin),
        units(end - begin),
        chunk(rows_of(params)),
        hidden(padded<T>(params.hidden)),
        product(scratch, kBand, chunk) {
    total = reinterpret_cast<double *>(static_cast<char *>(scratch) + product_bytes(p));
    sums = reinterpret_cast<T *>(total + kBand * hidden);
    v = sums + kBand * hidden;
  }

  void run() {
    double sum[kBand] = {}, square[kBand] = {};
    const bool several = p.rows > chunk;
    for (int64_t i = 0; several && i < units * hidden; ++i) total[i] = 0;
    for (int64_t n = 0; n == 0 || n < p.rows; n += chunk) {
      const int64_t rows = p.rows - n < chunk ? p.rows - n : chunk;
      transpose_rows(n, rows);
      // The panels of all rows lie one after the other.
      multiply(v, chunk, units, rows, static_cast<const T *>(p.packed) + n * kPanel<T>, p.rows * kPanel<T>, p.hidden,
               product, [&](int64_t i, int64_t unit, const T *found) {
                 for (int64_t c = 0; c < kPanel<T>; c += width<T>) store(sums + i * hidden + unit + c, load(found + c));
               });
      for (int64_t i = 0; i < units; ++i) own(rows, v + i * chunk, i, sum[i], square[i]);
      for (int64_t i = 0; several && i < units * hidden; ++i) total[i] += double(sums[i]);
    }
    for (int64_t i = 0; several && i < units * hidden; ++i) sums[i] = T(total[i]);
    T *const out = static_cast<T *>(p.weight) + first;
    for (int64_t j = 0; j < p.hidden; j += width<T>) {
      scatter_rows(units, sums + j, hidden, p.hidden - j, [&](int l) { return out + (j + l) * p.visible; });
    }
    for (int64_t i = 0; i < units; ++i) {
      static_cast<T *>(p.sum_v)[first + i] = T(sum[i]);
      if (p.square != nullptr) static_cast<T *>(p.square)[first + i] = T(square[i]);
    }
  }

 private:
  void transpose_rows(int64_t n, int64_t rows) {
    const auto row = [&](int64_t r) {
      const evidens::RbmRows &side = r < p.plus.rows ? p.plus : p.minus;
      return static_cast<const T *>(side.v) + (r < p.plus.rows ? r : r - p.plus.rows) * side.v_row + first;
    };
    for (int64_t r = 0; r < rows; r += width<T>) {
      const int64_t last = rows - 1 - r;
      gather_rows(units, v + r, chunk, 0, [&](int l) { return row(n + r + (l < last ? l : last)); });
    }
    for (int64_t r = 0; r < rows; ++r) weights[r] = weight_of<T>(p, n + r);
  }
  void own(int64_t rows, const T *values, int64_t i, double &sum, double &square) const {
    const double centre = p.centre == nullptr ? 0 : double(static_cast<const T *>(p.centre)[first + i]);
    constexpr int W = width<double>;
    Vec<double> sums_of[2] = {}, squares[2] = {};
    int64_t r = 0;
    for (; r + W <= rows; r += W) {
      const Vec<double> away = load_as<double>(values + r) - centre;
      const Vec<double> weighted = away * load_as<double>(weights + r);
      sums_of[r / W % 2] += weighted, squares[r / W % 2] += weighted * away;
    }
    for (; r < rows; ++r) {
      const double away = double(values[r]) - centre, weighted = away * double(weights[r]);
      sum += weighted, square += weighted * away;
    }
    sum += total_of(sums_of), square += total_of(squares);
  }
  static double total_of(const Vec<double> (&v)[2]) { return EVIDENS_NAMESPACE::sum<double>(v[0] + v[1]); }
};

}  // namespace
}  // namespace EVIDENS_NAMESPACE
