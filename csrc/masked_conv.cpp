// Masked convolution: only live taps are packed, read and multiplied, forward and backward.
//
// A band of rows is turned into pixels whose channels lie together.  Then each of the three products
// is a tile whose lanes are channels: y = x times weights, the gradient of x is the same with the
// roles of the channels exchanged, and the gradient of a weight is a sum over pixels.  At the centre
// the channels are in rising order of their keys, so what is alive there is a staircase.
#include "masked_conv.h"

#include "kernels.h"
#include "masked_conv_tiles.h"
#include "masked_conv_weights.h"

namespace EVIDENS_NAMESPACE {
namespace {

using evidens::MaskedConvPlan;

constexpr int64_t kBandBytes = 384 << 10;  // of a worker's scratch
constexpr int64_t kFewestPixels = 32;      // of a band, where bands are cut to keep threads busy
constexpr int64_t kSumPixels = 1536;       // of a slab: adding up its sums is then a small part
constexpr int64_t kUnits = 8;              // that a call is cut into, where it can be
constexpr int64_t kMostSlabs = 32;
constexpr int64_t kMostSums = 20 << 20;  // bytes of all slabs, if that leaves one
constexpr int64_t kPackCost = 128;       // multiply-adds that a packed number is worth

EVIDENS_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
EVIDENS_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
EVIDENS_INLINE int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t aligned(int64_t bytes) { return over(bytes, 64) * 64; }
template <class T> int64_t padded(int64_t channels) { return over(channels, width<T>) * width<T>; }

bool needs_sums(const MaskedConvParams &p) { return p.grad_weight != nullptr || p.grad_bias != nullptr; }
bool has_window(const MaskedConvPlan &plan) { return (plan.top | plan.bottom | plan.left | plan.right) != 0; }
// Pixels some power of two apart would share few lines of the cache when many of them are summed over.
template <class T> bool crowded(int64_t step) { return step * int64_t(sizeof(T)) % 1024 == 0; }

// Whether pixels are read where they lie, and how far apart they then are.
template <class T>
bool in_place(bool backward, const MaskedConvPlanes &planes, const MaskedConvPlan &plan, int64_t channels,
              int64_t &step) {
  step = planes.place;
  if (planes.channel == 1 && !has_window(plan) && !(backward && crowded<T>(step))) return true;
  step = channels + (crowded<T>(channels) ? int64_t(width<T>) : 0);
  return false;
}

// --- memory --------------------------------------------------------------------------------------

template <class U> U *take(char *&at, int64_t count) {
  U *here = reinterpret_cast<U *>(at);
  at += aligned(count * int64_t(sizeof(U)));
  return here;
}

template <class T> struct Shared {
  int64_t *x_offset, *grad_offset;  // (taps,) elements from a pixel to the one that a tap reads
  int64_t *row_offset;              // (taps * C,) and to its channel
  T *start;                         // padded (O) of the bias; backward: zeros (C)
  T *weights;                       // by tile of lanes: (taps, depth, lanes)
  int64_t bytes;
  Shared(bool backward, const MaskedConvParams &p, void *memory) {
    char *at = static_cast<char *>(memory), *begin = at;
    const int64_t lanes = padded<T>(backward ? p.in_channels : p.out_channels);
    const int64_t depth = backward ? p.out_channels : p.in_channels;
    x_offset = take<int64_t>(at, p.taps), grad_offset = take<int64_t>(at, p.taps);
    row_offset = take<int64_t>(at, backward ? p.taps * p.in_channels : 0);
    start = take<T>(at, lanes), weights = take<T>(at, p.taps * depth * lanes);
    bytes = at - begin;
  }
};

template <class T> struct Scratch {
  T *x, *grad, *out;
  int64_t bytes;
  Scratch(bool backward, const MaskedConvParams &p, const MaskedConvPlan &plan, void *memory) {
    char *at = static_cast<char *>(memory), *begin = at;
    const int64_t around = (plan.rows + plan.top + plan.bottom) * (p.width + plan.left + plan.right);
    const bool own_x = (!backward || needs_sums(p)) && !plan.x_in_place;
    const bool own_grad = backward && !plan.grad_in_place;
    // Lanes of the last pixel reach beyond its channels.
    x = take<T>(at, own_x ? around * plan.x_step : 0);
    grad = take<T>(at, own_grad ? around * plan.grad_step + lanes_of_a_tile<T> : 0);
    out = take<T>(at, plan.rows * p.width * lanes_of_a_tile<T>);
    bytes = at - begin;
  }
};

// --- plan ----------------------------------------------------------------------------------------

struct Slabs {
  int64_t slabs, bands, parts;  // how many, bands of one, and units that share one
};
template <class T> int64_t sums_of_a_slab(const MaskedConvParams &p) {
  return (p.taps * p.in_channels + 1) * padded<T>(p.out_channels);
}
template <class T> Slabs slabs_of(const MaskedConvParams &p, const MaskedConvPlan &plan) {
  const int64_t bands = p.images * plan.bands;
  if (!needs_sums(p)) return {bands, 1, 1};
  const int64_t pixels = p.images * p.height * p.width;
  int64_t slabs = most(least(pixels / kSumPixels, kMostSlabs), least(pixels / (kSumPixels / 3), kUnits));
  slabs = least(most(1, slabs), most(1, kMostSums / (sums_of_a_slab<T>(p) * 8)));
  const int64_t each = over(bands, least(slabs, bands));
  slabs = over(bands, each);
  // Units that share a slab pack its bands each for itself, so their products must outweigh that.
  const bool in_place = plan.x_in_place && plan.grad_in_place;
  const int64_t rows = p.taps * p.in_channels, packing = in_place ? 1 : kPackCost * (p.in_channels + p.out_channels);
  const int64_t parts = least(least(over(kUnits, slabs), rows / 16), rows * p.out_channels / packing);
  return {slabs, each, most(1, parts)};
}

template <class T> void plan(bool backward, const MaskedConvParams &p, MaskedConvPlan &plan) {
  plan.top = plan.bottom = plan.left = plan.right = 0;
  for (int64_t t = 0; t < p.taps; ++t) {
    plan.top = most(plan.top, -p.dy[t]), plan.bottom = most(plan.bottom, p.dy[t]);
    plan.left = most(plan.left, -p.dx[t]), plan.right = most(plan.right, p.dx[t]);
  }
  plan.x_in_place = in_place<T>(backward, p.x, plan, p.in_channels, plan.x_step);
  // As lanes, channels must fill vectors.
  plan.grad_in_place = in_place<T>(backward, p.grad_y, plan, p.out_channels, plan.grad_step);
  if (p.out_channels % width<T> != 0) plan.grad_in_place = false, plan.grad_step = p.out_channels;
  const int64_t across = p.width + plan.left + plan.right;
  const int64_t channels = p.in_channels + (backward ? p.out_channels : 0);
  const int64_t row_bytes = (across * channels + p.width * lanes_of_a_tile<T>)*int64_t(sizeof(T));
  int64_t rows = most(kBandBytes / most(row_bytes, 1), over(backward ? 8 * kFewestPixels : kFewestPixels, p.width));
  if (!backward) {  // several slabs or parts keep threads busy otherwise
    const int64_t busy = over(p.height, over(kUnits, p.images));
    rows = least(rows, most(busy, over(kFewestPixels, p.width)));
  }
  plan.bands = over(p.height, least(rows, p.height));
  plan.rows = over(p.height, plan.bands);
  plan.bands = over(p.height, plan.rows);
  plan.parts = over(p.in_channels, kPart);
  plan.shared_bytes = Shared<T>(backward, p, nullptr).bytes;
  plan.worker_bytes = Scratch<T>(backward, p, plan, nullptr).bytes;
  plan.slab_bytes = backward && needs_sums(p) ? aligned(sums_of_a_slab<T>(p) * 8) : 0;
  plan.units = p.images * plan.bands, plan.slabs = 0;
  if (!backward) return;
  const Slabs s = slabs_of<T>(p, plan);
  plan.units = s.slabs * s.parts, plan.slabs = s.slabs;
}

// --- prepare and finish --------------------------------------------------------------------------

// Where tile of lanes `lane` begins in packed weights.
template <class T> EVIDENS_INLINE int64_t tile_begin(const MaskedConvParams &p, int64_t depth, int64_t lane) {
  return p.taps * depth * lane;
}
template <class T> EVIDENS_INLINE int64_t tile_lanes(int64_t channels, int64_t lane) {
  return least(padded<T>(channels) - lane, lanes_of_a_tile<T>);
}

template <class T>
void prepare(bool backward, int64_t part, const MaskedConvParams &p, const MaskedConvPlan &plan, void *memory) {
  const Shared<T> s(backward, p, memory);
  const int64_t begin = part * kPart, end = least(begin + kPart, p.in_channels);
  const int64_t across = p.width + plan.left + plan.right;
  for (int64_t t = 0; t < p.taps; ++t) {
    const int64_t pixels = p.dy[t] * across + p.dx[t];
    if (part == 0) s.x_offset[t] = pixels * plan.x_step, s.grad_offset[t] = -pixels * plan.grad_step;
    for (int64_t c = begin; backward && c < end; ++c) s.row_offset[t * p.in_channels + c] = pixels * plan.x_step + c;
  }
  const T *bias = static_cast<const T *>(p.bias);
  const int64_t channels = backward ? p.in_channels : p.out_channels, depth = p.in_channels + p.out_channels - channels;
  for (int64_t l = 0; part == 0 && l < padded<T>(channels); ++l)
    s.start[l] = backward || bias == nullptr || l >= channels ? T(0) : bias[ordered(p.out_order, l)];
  auto at = [&](int64_t t, int64_t d, int64_t lane) {
    const int64_t tile = lane / lanes_of_a_tile<T> * lanes_of_a_tile<T>, lanes = tile_lanes<T>(channels, tile);
    return s.weights + tile_begin<T>(p, depth, tile) + (t * depth + d) * lanes + lane - tile;
  };
  if (!backward) pack_outputs<T>(p, begin, end, at);
  else if (p.grad_x.data != nullptr) pack_inputs<T>(p, begin, end, at);
}

template <class T> void finish(int64_t part, const MaskedConvParams &p, const MaskedConvPlan &plan,
                               const void *memory) {
  const int64_t step = padded<T>(p.out_channels);
  const int64_t begin = part * kPart, end = least(begin + kPart, p.in_channels);
  auto total = [&](int64_t row, int64_t o) {
    double sum[width<T>] = {};
    for (int64_t s = 0; s < plan.slabs; ++s) {
      const char *slab = static_cast<const char *>(memory) + s * plan.slab_bytes;
      const double *sums = reinterpret_cast<const double *>(slab) + row * step + o;
      for (int l = 0; l < width<T>; ++l) sum[l] += sums[l];
    }
    Vec<T> v;
    for (int l = 0; l < width<T>; ++l) v[l] = T(sum[l]);
    return v;
  };
  T *bias = static_cast<T *>(p.grad_bias);
  for (int64_t o = 0; part == 0 && bias != nullptr && o < p.out_channels; o += width<T>) {
    const Vec<T> v = total(p.taps * p.in_channels, o);
    for (int64_t l = 0; l < width<T> && o + l < p.out_channels; ++l) bias[ordered(p.out_order, o + l)] = v[l];
  }
  if (p.grad_weight != nullptr)
    unpack_outputs<T>(p, begin, end, [&](int64_t t, int64_t c, int64_t o) { return total(t * p.in_channels + c, o); });
}

// --- bands ---------------------------------------------------------------------------------------

struct Place {
  int64_t image, first, rows;  // of a band
};
Place place_of(int64_t band, const MaskedConvParams &p, const MaskedConvPlan &plan) {
  const int64_t first = band % plan.bands * plan.rows;
  return {band / plan.bands, first, least(plan.rows, p.height - first)};
}

template <class T>
Band<T> band_of(const MaskedConvPlanes &planes, bool in_place, int64_t step, int64_t channels, const Window &window,
                const MaskedConvParams &p, const Place &at, T *scratch) {
  if (in_place) {
    const T *from = static_cast<const T *>(planes.data) + at.image * planes.image + at.first * p.width * planes.place;
    return {from, 0, 0, p.width, step};
  }
  pack_band<T>(planes, at.image, channels, p.height, p.width, at.first, at.rows, window, step, scratch);
  return {scratch, window.top, window.left, window.left + p.width + window.right, step};
}
template <class T>
Band<T> band_of_x(const MaskedConvParams &p, const MaskedConvPlan &plan, const Place &at, T *scratch) {
  const Window window = {plan.top, plan.bottom, plan.left, plan.right};
  return band_of<T>(p.x, plan.x_in_place, plan.x_step, p.in_channels, window, p, at, scratch);
}
template <class T>
Band<T> band_of_grad(const MaskedConvParams &p, const MaskedConvPlan &plan, const Place &at, T *scratch) {
  const Window window = {plan.bottom, plan.top, plan.right, plan.left};  // a tap reads the other way
  return band_of<T>(p.grad_y, plan.grad_in_place, plan.grad_step, p.out_channels, window, p, at, scratch);
}

// One tile of lanes of y or of the gradient of x, from a band to planes.
template <class T>
void run_product(bool backward, int64_t lane, const Band<T> &band, const Place &at, const Shared<T> &s,
                 const MaskedConvParams &p, T *scratch) {
  const MaskedConvPlanes &planes = backward ? p.grad_x : p.y;
  const int64_t channels = backward ? p.in_channels : p.out_channels, depth = backward ? p.out_channels : p.in_channels;
  const int64_t lanes = tile_lanes<T>(channels, lane), count = least(channels - lane, lanes);
  const int64_t *order = backward ? p.in_order : p.out_order;
  const bool direct = planes.channel == 1 && order == nullptr && count == lanes;
  Product<T> r;
  r.band = band;
  r.columns = p.width, r.pixels = at.rows * p.width;
  r.taps = p.taps, r.offset = backward ? s.grad_offset : s.x_offset;
  r.depth = depth, r.centre = p.centre, r.begin = 0, r.end = depth;
  if (p.centre >= 0 && backward) r.begin = first_output(p, p.centre, lane);
  if (p.centre >= 0 && !backward) r.end = end_of_inputs(p, p.centre, lane + count - 1);
  r.weights = s.weights + tile_begin<T>(p, depth, lane);
  r.start = s.start + lane;
  r.out = scratch, r.step = lanes;
  if (direct) {
    r.out = static_cast<T *>(planes.data) + at.image * planes.image + at.first * p.width * planes.place + lane;
    r.step = planes.place;
  }
  with_constant<kLaneVectors>(int(lanes / width<T>), [&](auto vectors) { product<T, vectors.value>(r); });
  if (!direct) unpack_band<T>(scratch, lanes, r.pixels, lane, count, order, planes, at.image, at.first * p.width);
}

template <class T>
void forward(int64_t unit, const MaskedConvParams &p, const MaskedConvPlan &plan, const void *shared, void *worker) {
  const Shared<T> s(false, p, const_cast<void *>(shared));
  const Scratch<T> scratch(false, p, plan, worker);
  const Place at = place_of(unit, p, plan);
  const Band<T> band = band_of_x<T>(p, plan, at, scratch.x);
  for (int64_t lane = 0; lane < p.out_channels; lane += lanes_of_a_tile<T>)
    run_product<T>(false, lane, band, at, s, p, scratch.out);
}

template <class T> void add_bias(const WeightProduct<T> &r, int64_t channels, double *sums) {
  for (int64_t row = 0; row < r.rows; ++row) {
    const T *g = r.grad.at + ((r.grad.top + row) * r.grad.row_step + r.grad.left) * r.grad.pixel_step;
    for (int64_t c = 0; c < r.columns; ++c, g += r.grad.pixel_step)
      for (int64_t o = 0; o < channels; ++o) sums[o] += double(g[o]);
  }
}

template <class T>
void backward(int64_t unit, const MaskedConvParams &p, const MaskedConvPlan &plan, const void *shared, void *worker,
              void *slabs) {
  const Shared<T> s(true, p, const_cast<void *>(shared));
  const Scratch<T> scratch(true, p, plan, worker);
  const Slabs cut = slabs_of<T>(p, plan);
  const int64_t slab = unit / cut.parts, part = unit % cut.parts;
  const int64_t rows = p.taps * p.in_channels, step = padded<T>(p.out_channels);
  const int64_t from = rows * part / cut.parts, to = rows * (part + 1) / cut.parts;
  double *sums = reinterpret_cast<double *>(static_cast<char *>(slabs) + slab * plan.slab_bytes);
  if (part == 0 && needs_sums(p)) clear_run(step, sums + rows * step);
  const int64_t last = least((slab + 1) * cut.bands, p.images * plan.bands);
  for (int64_t b = slab * cut.bands; b < last; ++b) {
    const Place at = place_of(b, p, plan);
    const Band<T> grad = band_of_grad<T>(p, plan, at, scratch.grad);
    if (p.grad_x.data != nullptr)
      for (int64_t lane = 0, j = b; lane < p.in_channels; lane += lanes_of_a_tile<T>, ++j)
        if (j % cut.parts == part) run_product<T>(true, lane, grad, at, s, p, scratch.out);
    if (!needs_sums(p)) continue;
    WeightProduct<T> r;
    r.grad = grad, r.rows = at.rows, r.columns = p.width;
    // Without a window the rows follow each other.
    if (!has_window(plan)) r.columns *= r.rows, r.rows = 1;
    if (part == 0 && p.grad_bias != nullptr) add_bias(r, p.out_channels, sums + rows * step);
    if (p.grad_weight == nullptr) continue;
    r.band = band_of_x<T>(p, plan, at, scratch.x);
    for (int64_t lane = 0; lane < p.out_channels; lane += lanes_of_a_tile<T>) {
      const int64_t lanes = tile_lanes<T>(p.out_channels, lane), count = least(p.out_channels - lane, lanes);
      // Of the rows of the centre none is alive from `dead` on.
      int64_t dead = rows, next = rows;
      if (p.centre >= 0) {
        next = (p.centre + 1) * p.in_channels;
        dead = next - p.in_channels + end_of_inputs(p, p.centre, lane + count - 1);
      }
      with_constant<kLaneVectors>(int(lanes / width<T>), [&](auto vectors) {
        auto span = [&](int64_t begin, int64_t end) {
          begin = most(begin, from), end = least(end, to);
          if (begin < end)
            weight_product<T, vectors.value>(r, s.row_offset + begin, end - begin, lane, b != slab * cut.bands,
                                             sums + begin * step, step);
        };
        span(0, dead);
        span(next, rows);
      });
    }
  }
}

template <class T> constexpr evidens::MaskedConvKernel kernel() {
  return {plan<T>, prepare<T>, forward<T>, backward<T>, finish<T>};
}

}  // namespace

extern const evidens::MaskedConvKernel masked_conv[2];
constexpr evidens::MaskedConvKernel masked_conv[2] = {kernel<float>(), kernel<double>()};

}  // namespace EVIDENS_NAMESPACE
