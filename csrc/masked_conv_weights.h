// Weights (O, C, kernel) to tiles whose lanes are channels, and sums of gradients back to weights.
#pragma once
#include "masked_conv_planes.h"

namespace EVIDENS_NAMESPACE {
namespace {

using evidens::MaskedConvParams;

EVIDENS_INLINE int64_t ordered(const int64_t *order, int64_t i) { return order == nullptr ? i : order[i]; }

// The first of n rising keys that is not below `key`.
static int64_t lower_bound(const int64_t *keys, int64_t n, int64_t key) {
  int64_t begin = 0;
  while (begin < n) {
    const int64_t middle = (begin + n) / 2;
    if (keys[middle] < key) begin = middle + 1;
    else n = middle;
  }
  return begin;
}
// What is alive at the centre: outputs from the first on, inputs up to the last, by order.
static int64_t first_output(const MaskedConvParams &p, int64_t t, int64_t c) {
  return t != p.centre ? 0 : lower_bound(p.out_key, p.out_channels, p.in_key[c]);
}
static int64_t end_of_inputs(const MaskedConvParams &p, int64_t t, int64_t o) {
  return t != p.centre ? p.in_channels : lower_bound(p.in_key, p.in_channels, p.out_key[o] + 1);
}

constexpr int64_t kPart = 16;  // input channels that are packed together: whole vectors

// Of each input channel of a part: its place by order, and the first output that sees it at the centre.
struct Part {
  int64_t rank[kPart], first[kPart];
  Part(const MaskedConvParams &p, int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      rank[c - begin] = ordered(p.in_rank, c);
      first[c - begin] = p.centre < 0 ? 0 : first_output(p, p.centre, rank[c - begin]);
    }
  }
};

// Lanes [begin, end) of v, 0 elsewhere.
template <class T> EVIDENS_INLINE Vec<T> only_lanes(Vec<T> v, int64_t begin, int64_t end) {
  constexpr int W = width<T>;
  const Vec<Int<T>> lane = lane_numbers<T>();
  const Int<T> from = Int<T>(begin < 0 ? 0 : begin > W ? W : begin), to = Int<T>(end < 0 ? 0 : end > W ? W : end);
  return ((lane >= from) & (lane < to)) ? v : Vec<T>{};
}

// store(i, lanes) for i < n, where lane l is row[l][i].  Nothing past `end` is read.
template <class T, class Store>
EVIDENS_INLINE void transpose_rows(const T *const *row, int64_t n, const T *end, Store &&put_lanes) {
  constexpr int W = width<T>;
  for (int64_t i = 0; i < n; i += W) {
    Vec<T> v[W];
    for (int l = 0; l < W; ++l) {
      if (row[l] + i + W <= end) {
        v[l] = load(row[l] + i);
      } else {
        T part[W] = {};
        for (int64_t j = 0; j < W && row[l] + i + j < end; ++j) part[j] = row[l][i + j];
        v[l] = load(part);
      }
    }
    transpose<T>(v);
    for (int j = 0; j < W && i + j < n; ++j) put_lanes(i + j, v[j]);
  }
}

// Input channels [begin, end) into tiles of outputs: at(t, c, o) is where a vector of lanes goes.
template <class T, class At>
static void pack_outputs(const MaskedConvParams &p, int64_t begin, int64_t end, At &&at) {
  constexpr int W = width<T>;
  const T *weight = static_cast<const T *>(p.weight);
  const int64_t size = p.in_channels * p.kernel;
  const Part part(p, begin, end);
  for (int64_t o = 0; o < p.out_channels; o += W) {
    const T *row[W];
    for (int64_t l = 0; l < W; ++l) {
      const int64_t channel = o + l < p.out_channels ? o + l : p.out_channels - 1;
      row[l] = weight + ordered(p.out_order, channel) * size + begin * p.kernel;
    }
    int64_t place = 0, c = 0;
    transpose_rows<T>(row, (end - begin) * p.kernel, weight + p.out_channels * size, [&](int64_t, Vec<T> v) {
      const int64_t t = p.live[place];
      if (t >= 0) {
        const int64_t first = t == p.centre ? part.first[c] : 0;
        store(at(t, part.rank[c], o), only_lanes<T>(v, first - o, p.out_channels - o));
      }
      if (++place == p.kernel) place = 0, ++c;
    });
  }
}

// The same into tiles of inputs; `begin` and `end` count inputs by order.
template <class T, class At>
static void pack_inputs(const MaskedConvParams &p, int64_t begin, int64_t end, At &&at) {
  constexpr int W = width<T>;
  const T *weight = static_cast<const T *>(p.weight);
  const int64_t size = p.in_channels * p.kernel;
  for (int64_t c = begin; c < end; c += W) {
    int64_t channel[W];
    for (int64_t l = 0; l < W; ++l)
      channel[l] = ordered(p.in_order, c + l < p.in_channels ? c + l : p.in_channels - 1) * p.kernel;
    int64_t seen = 0;  // inputs that o sees at the centre
    for (int64_t o = 0; o < p.out_channels; ++o) {
      const T *from = weight + ordered(p.out_order, o) * size, *row[W];
      while (p.centre >= 0 && seen < p.in_channels && p.in_key[seen] <= p.out_key[o]) ++seen;
      auto put_lanes = [&](int64_t place, Vec<T> v) {
        const int64_t t = p.live[place];
        if (t >= 0) store(at(t, o, c), only_lanes<T>(v, 0, (t == p.centre ? seen : p.in_channels) - c));
      };
      if (p.kernel == 1) {  // nothing to transpose
        T lanes[W];
        for (int l = 0; l < W; ++l) lanes[l] = from[channel[l]];
        put_lanes(0, load(lanes));
        continue;
      }
      for (int l = 0; l < W; ++l) row[l] = from + channel[l];
      transpose_rows<T>(row, p.kernel, weight + p.out_channels * size, put_lanes);
    }
  }
}

// Input channels [begin, end) of the gradient of the weight: total(t, c, o) is a vector of outputs.
template <class T, class Total>
static void unpack_outputs(const MaskedConvParams &p, int64_t begin, int64_t end, Total &&total) {
  constexpr int W = width<T>;
  T *weight = static_cast<T *>(p.grad_weight);
  const int64_t n = (end - begin) * p.kernel;
  const Part part(p, begin, end);
  for (int64_t o = 0; o < p.out_channels; o += W) {
    int64_t place = 0, c = 0;
    for (int64_t i = 0; i < n; i += W) {
      Vec<T> v[W];
      for (int j = 0; j < W; ++j) {
        v[j] = Vec<T>{};
        if (i + j >= n) continue;
        const int64_t t = p.live[place];
        const int64_t first = t == p.centre ? part.first[c] : 0;
        // Where nothing is alive there are no sums either.
        if (t >= 0 && first < o + W) v[j] = only_lanes<T>(total(t, part.rank[c], o), first - o, W);
        if (++place == p.kernel) place = 0, ++c;
      }
      transpose<T>(v);
      for (int l = 0; l < W && o + l < p.out_channels; ++l) {
        T *to = weight + (ordered(p.out_order, o + l) * p.in_channels + begin) * p.kernel + i;
        if (i + W <= n) store(to, v[l]);
        else
          for (int64_t j = 0; i + j < n; ++j) to[j] = v[l][j];
      }
    }
  }
}

}  // namespace
}  // namespace EVIDENS_NAMESPACE
