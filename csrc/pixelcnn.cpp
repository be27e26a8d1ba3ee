// Sampling of networks of masked convolutions: every value is computed once, when the pixel is reached,
// instead of the whole network once for every pixel.
//
// Lanes are output channels, the rows of a tile are images.  Of every value only the rows are kept that
// a kernel still reaches, (row, image, column, channel), so taps side by side are one run of numbers.
// Zeros stand beside the columns, and above the first row, as padding has them.
#include "pixelcnn.h"

#include "activations.h"
#include "kernels.h"
#include "tile.h"

namespace EVIDENS_NAMESPACE {
namespace {

using evidens::PixelNode;
using evidens::PixelParams;
using evidens::PixelPart;
using evidens::PixelRun;
using evidens::PixelValue;

template <class T> constexpr int64_t vectors(int64_t n) { return (n + width<T> - 1) / width<T>; }
// Output vectors of the tile that begins at vector v of n: tiles of even width.
EVIDENS_INLINE int64_t tile_vectors(int64_t left) {
  const int64_t tiles = (left + kOuterVectors - 1) / kOuterVectors;
  return (left + tiles - 1) / tiles;
}

// --- products ------------------------------------------------------------------------------------

template <class T> struct Stretch {  // a run at a pixel
  const T *values;                   // of the first image
  int64_t depth;
};
template <class T> struct Convolution {
  const Stretch<T> *stretches;
  int64_t count;
  int64_t offset, step;  // the first image of the tile, and from image to image
  const T *weights, *bias;
  T *out;
  int64_t out_step;
};

template <class T, int Rows, int NV> void convolve(const Convolution<T> &c) {
  constexpr int W = width<T>;
  Vec<T> acc[Rows][NV];
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    const Vec<T> b = load(c.bias + v * W);
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) acc[m][v] = b;
  }
  const T *w = c.weights;
  for (int64_t s = 0; s < c.count; ++s) {
    const T *a = c.stretches[s].values + c.offset;
    for (int64_t i = c.stretches[s].depth; i > 0; --i, ++a, w += NV * W) {
      Vec<T> bv[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) bv[v] = load(w + v * W);
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m) {
        const Vec<T> x = broadcast<T>(a[m * c.step]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[m][v] += x * bv[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) store(c.out + m * c.out_step + v * W, acc[m][v]);
  }
}

template <class T> using Convolve = void (*)(const Convolution<T> &);
template <class T> struct Convolutions {
  Convolve<T> of[kOuterVectors][kOuterRows];
  template <int NV, int R> constexpr void fill() {
    of[NV - 1][R - 1] = convolve<T, R, NV>;
    if constexpr (R > 1) fill<NV, R - 1>();
    else if constexpr (NV > 1) fill<NV - 1, kOuterRows>();
  }
  constexpr Convolutions() : of{} { fill<kOuterVectors, kOuterRows>(); }
};
template <class T> constexpr Convolutions<T> convolutions = {};

// Bias, then tile by tile (depth, vectors of the tile).
template <class T> void pack(int64_t begin, int64_t end, const PixelParams &p) {
  constexpr int W = width<T>;
  T *packed = static_cast<T *>(p.packed);
  for (int64_t n = 0; n < p.nodes; ++n) {
    const PixelNode &node = p.node[n];
    const int64_t channels = p.value[node.source].channels;
    for (int64_t g = 0; g < node.parts; ++g) {
      if (node.first_part + g < begin || node.first_part + g >= end) continue;
      const PixelPart &part = p.part[node.first_part + g];
      T *bias = packed + part.bias * W, *out = packed + part.weights * W;
      for (int64_t o = 0; o < vectors<T>(part.outputs) * W; ++o)
        bias[o] = node.bias != nullptr && o < part.outputs ? static_cast<const T *>(node.bias)[part.first + o] : T(0);
      for (int64_t v = 0, wide; part.runs > 0 && v < vectors<T>(part.outputs); v += wide) {
        wide = tile_vectors(vectors<T>(part.outputs) - v);
        const int64_t lanes = wide * W, left = part.outputs - v * W, live = left < lanes ? left : lanes;
        for (int64_t r = part.first_run; r < part.first_run + part.runs; ++r) {
          const PixelRun &run = p.run[r];
          const T *corner = static_cast<const T *>(node.weight) + (part.first + v * W) * channels * node.taps +
                            run.ky * node.columns + run.kx;
          for (int64_t d = 0; d < run.depth; ++d, out += lanes) {
            const T *w = corner + d % channels * node.taps + d / channels;
            for (int64_t o = 0; o < live; ++o) out[o] = w[o * channels * node.taps];
            for (int64_t o = live; o < lanes; ++o) out[o] = T(0);
          }
        }
      }
    }
  }
}

// --- draws ---------------------------------------------------------------------------------------

// The entry of `count` logits that u falls on; -1: they give no distribution.  `weights` holds whole vectors.
template <class T> int64_t pick(const T *logits, int64_t count, T u, T *weights) {
  constexpr int W = width<T>;
  const int64_t blocks = vectors<T>(count);
  for (int64_t k = 0; k < count; ++k) weights[k] = logits[k];
  for (int64_t k = count; k < blocks * W; ++k) weights[k] = -T(__builtin_inf());
  Vec<T> most = load(weights);
  for (int64_t b = 1; b < blocks; ++b) most = max<T>(most, load(weights + b * W));
  const T top = greatest<T>(most);
  T total = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const Vec<T> e = exp_nonpositive<T>(load(weights + b * W) - top);
    store(weights + b * W, e);
    total += sum<T>(e);
  }
  if (!(total > T(0))) return -1;
  const T limit = u * total;
  T before = 0;
  int64_t block = 0;
  for (;; ++block) {  // in the order in which the total was summed
    const T after = before + sum<T>(load(weights + block * W));
    if (after > limit || block + 1 == blocks) break;
    before = after;
  }
  int64_t last = -1;
  for (int64_t k = block * W; k < (block + 1) * W; ++k) {
    before += weights[k];
    if (weights[k] > T(0)) last = k;
    if (before > limit) return k;
  }
  return last;  // rounding within the block
}

template <class T, class F> EVIDENS_INLINE T one_lane(T x, F &&f) { return f(broadcast<T>(x))[0]; }

// --- a block of images ---------------------------------------------------------------------------

template <class T> struct Images {
  static constexpr int W = width<T>;
  const PixelParams &p;
  int64_t begin, count;
  T **value;              // (nodes + 1,): kept rows
  T **context;            // (nodes,): (images, outputs in whole vectors), or null
  Stretch<T> *stretches;  // of one part
  T *sums, *weights;      // (images, outputs in whole vectors); of one distribution
  int64_t sums_step;

  static int64_t row_size(const PixelParams &p, int64_t v) {  // of one image
    return (p.width + p.value[v].left + p.value[v].right) * p.value[v].channels;
  }
  static int64_t widest(const PixelParams &p) {
    int64_t most = W;
    for (int64_t i = 0; i < p.nodes; ++i)
      if (vectors<T>(p.node[i].outputs) * W > most) most = vectors<T>(p.node[i].outputs) * W;
    return most;
  }
  static int64_t most_runs(const PixelParams &p) {
    int64_t most = 1;
    for (int64_t i = 0; i < p.parts; ++i)
      if (p.part[i].runs > most) most = p.part[i].runs;
    return most;
  }
  static int64_t value_size(int64_t images, const PixelParams &p, int64_t v) {
    return images * p.value[v].ring * row_size(p, v) + W;  // whole vectors are read past the end
  }
  static int64_t pointer_bytes(const PixelParams &p) {
    return ((2 * p.nodes + 1) * int64_t(sizeof(T *)) + most_runs(p) * int64_t(sizeof(Stretch<T>)) + 63) / 64 * 64;
  }
  static int64_t bytes(int64_t images, const PixelParams &p) {
    int64_t n = (images + 1) * widest(p) + W;
    for (int64_t v = 0; v <= p.nodes; ++v) n += value_size(images, p, v);
    for (int64_t i = 0; i < p.nodes; ++i)
      if (p.node[i].context != nullptr) n += images * vectors<T>(p.node[i].outputs) * W;
    return pointer_bytes(p) + n * int64_t(sizeof(T));
  }

  Images(int64_t first, int64_t end, const PixelParams &params, void *scratch)
      : p(params), begin(first), count(end - first) {
    value = static_cast<T **>(scratch);
    context = value + p.nodes + 1;
    stretches = reinterpret_cast<Stretch<T> *>(context + p.nodes);
    T *next = reinterpret_cast<T *>(static_cast<char *>(scratch) + pointer_bytes(p));
    sums_step = widest(p);
    sums = next, next += count * sums_step;
    weights = next, next += sums_step + W;
    for (int64_t i = 0; i < p.nodes; ++i) {
      const bool told = p.node[i].context != nullptr;
      context[i] = told ? next : nullptr;
      if (told) next += count * vectors<T>(p.node[i].outputs) * W;
    }
    for (int64_t v = 0; v <= p.nodes; ++v) value[v] = next, next += value_size(count, p, v);
  }

  void start() {
    for (int64_t i = 0; i < p.nodes; ++i) {
      if (context[i] == nullptr) continue;
      const int64_t outputs = p.node[i].outputs, wide = vectors<T>(outputs) * W;
      const T *given = static_cast<const T *>(p.node[i].context) + begin * outputs;
      for (int64_t m = 0; m < count; ++m)
        for (int64_t o = 0; o < wide; ++o) context[i][m * wide + o] = o < outputs ? given[m * outputs + o] : T(0);
    }
    for (int64_t v = 0; v <= p.nodes; ++v)
      for (int64_t i = 0; i < value_size(count, p, v); ++i) value[v][i] = T(0);
  }

  // A value at a pixel of the first image; the next image is a row further.
  T *at(int64_t v, int64_t y, int64_t x) const {
    const PixelValue &s = p.value[v];
    const int64_t slot = (y + s.ring) % s.ring;  // y >= 1 - ring
    return value[v] + slot * count * row_size(p, v) + (x + s.left) * s.channels;
  }

  void multiply(const PixelNode &node, const PixelPart &part, int64_t y, int64_t x) {
    for (int64_t r = 0; r < part.runs; ++r) {
      const PixelRun &run = p.run[part.first_run + r];
      stretches[r] = {at(node.source, y + run.dy, x + run.dx), run.depth};
    }
    const T *packed = static_cast<const T *>(p.packed);
    Convolution<T> c = {stretches, part.runs, 0,        row_size(p, node.source), packed + part.weights * W,
                        nullptr,   nullptr,   sums_step};
    const int64_t all = vectors<T>(part.outputs), tiles = (count + kOuterRows - 1) / kOuterRows;
    for (int64_t v = 0, wide; v < all; v += wide) {
      wide = tile_vectors(all - v);
      c.bias = packed + (part.bias + v) * W;
      for (int64_t m = 0, left = tiles, rows; m < count; m += rows, --left) {
        rows = (count - m + left - 1) / left;
        c.offset = m * c.step;
        c.out = sums + m * sums_step + v * W;
        convolutions<T>.of[wide - 1][rows - 1](c);
      }
      c.weights += wide * part.depth * W;
    }
  }

  void copy_source(const PixelNode &node, const PixelPart &part, int64_t y, int64_t x) {
    const T *from = at(node.source, y, x) + part.first;
    for (int64_t m = 0; m < count; ++m)
      for (int64_t o = 0; o < part.outputs; o += W)
        store(sums + m * sums_step + o, load(from + m * row_size(p, node.source) + o));
  }

  void compute(int64_t i, int64_t g, int64_t y, int64_t x) {
    const PixelNode &node = p.node[i];
    const PixelPart &part = p.part[node.first_part + g];
    if (node.weight == nullptr) copy_source(node, part, y, x);
    else multiply(node, part, y, x);
    const int64_t n = part.outputs, whole = vectors<T>(n) * W;
    T *out = at(i + 1, y, x) + part.first_value;
    for (int64_t m = 0; m < count; ++m, out += row_size(p, i + 1)) {
      T *s = sums + m * sums_step;
      if (context[i] != nullptr) {
        const T *c = context[i] + m * vectors<T>(node.outputs) * W + part.first;
        for (int64_t o = 0; o < n; ++o) s[o] += c[o];
      }
      if (node.add >= 0) {
        const T *a = at(node.add, y, x) + m * row_size(p, node.add) + part.first;
        for (int64_t o = 0; o < whole; o += W) store(s + o, load(s + o) + load(a + o));
      }
      if (node.activation == evidens::kGate) {
        for (int64_t o = 0; o < part.values; o += W)
          store(s + o, tanh<T>(load(s + o)) * sigmoid<T>(load(s + part.values + o)));
      } else {
        activate<T>(node.activation, whole, s);
      }
      for (int64_t o = 0; o < part.values; ++o) out[o] = s[o];
    }
  }

  void show(int64_t channel, int64_t level, T *input) const {  // what the network sees of a drawn level
    if (!p.one_hot) {
      input[channel] = T(level) * T(p.input_scale) + T(p.input_shift);
      return;
    }
    for (int64_t k = 0; k < p.levels; ++k) input[channel * p.levels + k] = T(k == level);
  }

  // Draws channels first .. last of image m; `params` are those of the first.
  void draw(int64_t m, int64_t first, int64_t last, int64_t y, int64_t x, const T *params, T *input) {
    const int64_t size = p.height * p.width, pixel = y * p.width + x, image = begin + m;
    const T *noise = static_cast<const T *>(p.noise) + image * p.draws * size + pixel;
    const int64_t at_pixel = image * p.channels * size + pixel;
    const auto settle = [&](int64_t c, int64_t level) {
      const int64_t place = at_pixel + c * size;
      if (p.known != nullptr && p.known[place]) level = p.values[place];
      p.x[place] = level;
      show(c, level, input);
      return level;
    };
    if (p.kind == evidens::kPixelLogistic) {
      const int64_t k = p.mixtures, chosen = pick<T>(params, k, noise[0], weights);
      const T half = T(0.5) * T(p.levels - 1);
      T seen[3];
      for (int64_t c = 0; c < p.channels; ++c) {
        int64_t level = -1;
        if (chosen >= 0) {
          const T *own = params + (c * (p.channels == 3 ? 3 : 2) + 1) * k + chosen;
          T mean = own[0];
          for (int64_t b = 0; b < c; ++b) {  // coefficients of red for green, of red and green for blue
            const T raw = params[((c + b - 1) * 3 + 3) * k + chosen];
            mean += one_lane<T>(raw, [](Vec<T> v) { return tanh<T>(v); }) * seen[b];
          }
          const T low = T(p.min_log_scale), raw = own[k] < low ? low : own[k];
          const T scale = one_lane<T>(raw, [](Vec<T> v) { return exp<T>(v); }), u = noise[(1 + c) * size];
          const T v = mean + scale * one_lane<T>(u / (T(1) - u), [](Vec<T> r) { return log<T>(r); });
          const T place = (v + T(1)) * half + T(0.5), top = T(p.levels - 1);
          if (place == place) level = int64_t(place < T(0) ? T(0) : place > top ? top : place);
        }
        level = settle(c, level);
        seen[c] = T(level) / half - T(1);
      }
      return;
    }
    const int64_t each = p.kind == evidens::kPixelBernoulli ? 1 : p.levels;
    for (int64_t c = first; c < last; ++c, params += each) {
      const T u = noise[c * size];
      if (p.kind == evidens::kPixelBernoulli) {
        const T chance = one_lane<T>(params[0], [](Vec<T> v) { return sigmoid<T>(v); });
        settle(c, chance == chance ? u < chance : -1);
      } else {
        settle(c, pick<T>(params, each, u, weights));
      }
    }
  }

  void run(int64_t first, int64_t last) {
    const int64_t share = p.channels / p.groups;
    const PixelPart *outputs = p.part + p.node[p.nodes - 1].first_part;
    for (int64_t pixel = first; pixel < last; ++pixel) {
      const int64_t y = pixel / p.width, x = pixel % p.width;
      for (int64_t i = 0; i < p.nodes && x == 0; ++i)
        for (int64_t column = 0; p.node[i].ahead && column < p.width; ++column) compute(i, 0, y, column);
      for (int64_t g = 0; g < p.groups; ++g) {
        for (int64_t i = 0; i < p.nodes; ++i)
          if (!p.node[i].ahead) compute(i, g, y, x);
        const T *params = at(p.nodes, y, x) + outputs[g].first_value;
        T *input = at(0, y, x);
        for (int64_t m = 0; m < count; ++m)
          draw(m, g * share, (g + 1) * share, y, x, params + m * row_size(p, p.nodes), input + m * row_size(p, 0));
      }
    }
  }

  void hand_out(int64_t pixel) const {
    const int64_t n = p.value[p.nodes].channels;
    const T *params = at(p.nodes, pixel / p.width, pixel % p.width);
    T *out = static_cast<T *>(p.given) + begin * n;
    for (int64_t m = 0; m < count; ++m)
      for (int64_t o = 0; o < n; ++o) out[m * n + o] = params[m * row_size(p, p.nodes) + o];
  }
};

template <class T> int64_t scratch_bytes(int64_t images, const PixelParams &p) { return Images<T>::bytes(images, p); }
template <class T>
void run(int64_t begin, int64_t end, int64_t first, int64_t last, const PixelParams &p, void *scratch) {
  Images<T> images(begin, end, p, scratch);
  if (first == 0) images.start();
  images.run(first, last);
  if (p.given != nullptr && last > first) images.hand_out(last - 1);
}

}  // namespace

extern const evidens::PixelKernel pixelcnn[2];
constexpr evidens::PixelKernel pixelcnn[2] = {
    {width<float>, scratch_bytes<float>, pack<float>, run<float>},
    {width<double>, scratch_bytes<double>, pack<double>, run<double>},
};

}  // namespace EVIDENS_NAMESPACE
