// Discretized mixture of logistics: blocks of pixels, where they lie and where not, and the sampler.
#include "logistic_mixture.h"

#include "logistic_mixture_tile.h"
#include "philox.h"
#include "transpose.h"

namespace EVIDENS_NAMESPACE {
namespace {

int64_t kinds(const LogisticMixtureParams &p) { return p.channels == 1 ? 2 : 9; }  // beside the logits
int64_t planes(const LogisticMixtureParams &p) { return p.mixtures * (1 + kinds(p)); }

template <class T> void plan(const LogisticMixtureParams &p, LogisticMixturePlan &plan) {
  constexpr int64_t W = width<T>, cache = 32 << 10, work = 1 << 14;
  const int64_t vectors = cache / ((planes(p) + 2 * p.mixtures) * EVIDENS_VECTOR_BYTES);
  const int64_t row = (p.places + W - 1) / W;
  int64_t block = vectors < 1 ? 1 : vectors > kMaxVectors ? kMaxVectors : vectors;
  if (block > row) block = row < 1 ? 1 : row;
  plan.block = block * W;
  plan.blocks = (p.places + plan.block - 1) / plan.block;
  const int64_t all = p.rows * plan.blocks, in_unit = work / (plan.block * planes(p));
  plan.in_unit = in_unit < 1 ? 1 : in_unit;
  plan.units = (all + plan.in_unit - 1) / plan.in_unit;
  // Of a block: what the tile keeps, and copies of what does not lie as it must.
  const int64_t kept = kPlanes + 2 * p.mixtures + planes(p), copied = p.channels + 2 * planes(p) + 2;
  plan.worker_bytes = (kept + copied) * plan.block * int64_t(sizeof(T));
}

template <class T> T *skip(void *p, int64_t n) { return static_cast<T *>(p) + n; }
template <class T> const T *skip(const void *p, int64_t n) { return static_cast<const T *>(p) + n; }

// Pixels s .. s + pixels - 1 of a row by way of copies, padded with zeros to whole vectors.
template <class T, int C, bool Gradient>
void copied_block(int64_t n, int64_t s, int64_t pixels, const LogisticMixtureParams &p, T *scratch, T *copies) {
  const int64_t block = (pixels + width<T> - 1) / width<T> * width<T>, count = planes(p);
  T *x = copies, *params = x + C * block, *one = params + count * block, *out = one + block;
  transpose_in(skip<T>(p.x, n * p.x_row + s * p.x_place), p.x_place, p.x_plane, pixels, C, block, x);
  transpose_in(skip<T>(p.params, n * p.row + s * p.place), p.place, p.plane, pixels, count, block, params);
  if constexpr (Gradient) {
    for (int64_t i = 0; i < block; ++i) one[i] = i < pixels ? *skip<T>(p.grad, n * p.places + s + i) : T(0);
    block_of_pixels<T, C, true>({x, block, params, block, nullptr, one, out, block, false}, block, p, scratch);
    T *to = skip<T>(p.grad_params, n * p.grad_row + s * p.grad_place);
    if (p.grad_plane == 1 && p.grad_place == count) {
      transpose_out(out, block, pixels, count, to);
    } else {
      for (int64_t c = 0; c < count; ++c)
        for (int64_t i = 0; i < pixels; ++i) to[c * p.grad_plane + i * p.grad_place] = out[c * block + i];
    }
  } else {
    block_of_pixels<T, C, false>({x, block, params, block, one, nullptr, nullptr, 0, false}, block, p, scratch);
    for (int64_t i = 0; i < pixels; ++i) *skip<T>(p.log_prob, n * p.places + s + i) = one[i];
  }
}

// The first place of x that is no level among pixels of a row, or -1.
template <class T, int C>
int64_t first_bad(int64_t n, int64_t s, int64_t pixels, const LogisticMixtureParams &p, const Constants<T> &k) {
  for (int64_t i = 0; i < pixels; ++i)
    for (int c = 0; c < C; ++c) {
      const T x = *skip<T>(p.x, n * p.x_row + c * p.x_plane + (s + i) * p.x_place);
      if (!(x >= T(0) && x <= k.last && (x + magic<T>)-magic<T> == x)) return (n * p.places + s + i) * C + c;
    }
  return -1;
}

template <class T, int C, bool Gradient>
void run(int64_t unit, const LogisticMixtureParams &p, const LogisticMixturePlan &plan, void *worker) {
  constexpr int64_t W = width<T>;
  const Constants<T> k = constants<T>(p);
  T *scratch = static_cast<T *>(worker), *copies = scratch + (kPlanes + 2 * p.mixtures + planes(p)) * plan.block;
  const bool adjacent = p.place == 1 && p.x_place == 1 && (!Gradient || p.grad_place == 1);
  const bool past_cache =
      Gradient && p.grad_row % W == 0 && p.grad_plane % W == 0 && on_a_vector(skip<T>(p.grad_params, 0));
  const int64_t all = p.rows * plan.blocks, begin = unit * plan.in_unit;
  const int64_t end = begin + plan.in_unit < all ? begin + plan.in_unit : all;
  int64_t bad = -1;
  for (int64_t b = begin; b < end; ++b) {
    const int64_t n = b / plan.blocks, s = b % plan.blocks * plan.block;
    const int64_t pixels = p.places - s < plan.block ? p.places - s : plan.block;
    const int64_t whole = adjacent ? pixels / W * W : 0;
    if constexpr (!Gradient) {
      if (bad < 0) bad = first_bad<T, C>(n, s, pixels, p, k);
    }
    if (whole > 0) {
      Pixels<T> at = {skip<T>(p.x, n * p.x_row + s),
                      p.x_plane,
                      skip<T>(p.params, n * p.row + s),
                      p.plane,
                      nullptr,
                      nullptr,
                      nullptr,
                      0,
                      past_cache};
      if constexpr (Gradient) {
        at.grad = skip<T>(p.grad, n * p.places + s);
        at.grad_params = skip<T>(p.grad_params, n * p.grad_row + s);
        at.grad_plane = p.grad_plane;
      } else {
        at.log_prob = skip<T>(p.log_prob, n * p.places + s);
      }
      block_of_pixels<T, C, Gradient>(at, whole, p, scratch);
    }
    if (whole < pixels) copied_block<T, C, Gradient>(n, s + whole, pixels - whole, p, scratch, copies);
  }
  if constexpr (Gradient) finish_stream();
  else p.bad[unit] = bad;
}

template <class T, bool Gradient>
void run_channels(int64_t unit, const LogisticMixtureParams &p, const LogisticMixturePlan &plan, void *worker) {
  if (p.channels == 1) run<T, 1, Gradient>(unit, p, plan, worker);
  else run<T, 3, Gradient>(unit, p, plan, worker);
}

// --- draws ---------------------------------------------------------------------------------------
// In double whatever the parameters are, so that backends agree on all but ties within its rounding.

typedef Vec<double> Lanes;

int64_t sample_bytes(const LogisticMixtureParams &p) { return p.mixtures * int64_t(sizeof(Lanes)); }

Lanes floor(Lanes x) {  // |x| < 2^51
  const Lanes n = (x + magic<double>)-magic<double>;
  return n > x ? n - 1. : n;
}

// One vector of pixels; lanes past the last repeat it.
template <class T>
void draw(int64_t first, int64_t count, const LogisticMixtureParams &p, const LogisticMixtureDraws &d, double *sums) {
  constexpr int W = width<double>;
  const int64_t columns = 1 + p.channels, step = p.channels == 1 ? 2 : 3, mixtures = p.mixtures;
  const T *from[W];
  double uniforms[4][W];
  for (int l = 0; l < W; ++l) {
    const int64_t pixel = first + (l < count ? l : count - 1), n = pixel / p.places, s = pixel % p.places;
    from[l] = skip<T>(p.params, n * p.row + s * p.place);
    const uint64_t row = uint64_t(d.row0 + n);
    for (int64_t c = 0; c < columns; c += 2) {
      const PhiloxWords w = philox({{uint32_t(c / 2), uint32_t(row), uint32_t(row >> 32), d.step0 + uint32_t(s)}},
                                   uint32_t(d.seed), uint32_t(d.seed >> 32));
      uniforms[c][l] = uniform(w.word[0], w.word[1]);
      uniforms[c + 1][l] = uniform(w.word[2], w.word[3]);
    }
  }
  auto plane = [&](int64_t m) {
    Lanes v;
    for (int l = 0; l < W; ++l) v[l] = double(from[l][m * p.plane]);
    return v;
  };
  Lanes greatest = plane(0), total = {}, chosen = {};
  for (int64_t m = 1; m < mixtures; ++m) greatest = max<double>(greatest, plane(m));
  for (int64_t m = 0; m < mixtures; ++m) {
    total += exp<double>(plane(m) - greatest);
    store(sums + m * W, total);
  }
  const Lanes mark = load(uniforms[0]) * total, one = broadcast<double>(1.);
  for (int64_t m = 0; m + 1 < mixtures; ++m) chosen += load(sums + m * W) <= mark ? one : Lanes{};
  for (int l = 0; l < W; ++l) from[l] += int64_t(chosen[l]) * p.plane;
  const double last = p.levels - 1;
  Lanes values[2];
  for (int c = 0; c < p.channels; ++c) {
    const int64_t own = (1 + step * c) * mixtures;
    Lanes mean = plane(own);
    for (int j = 0; j < c; ++j) {
      const int64_t coefficient = c == 1 ? 0 : 1 + j;
      mean += tanh<double>(plane((1 + step * coefficient + 2) * mixtures)) * values[j];
    }
    const Lanes scale = exp<double>(max<double>(broadcast<double>(p.min_log_scale), plane(own + mixtures)));
    const Lanes u = load(uniforms[1 + c]), v = mean + scale * (log<double>(u) - log<double>(1. - u));  // 1 - u is exact
    const Lanes clamped =
        max<double>(broadcast<double>(-1.), min<double>(broadcast<double>(last + 1), (v + 1.) * (last / 2)));
    const Lanes level = max<double>(Lanes{}, min<double>(broadcast<double>(last), floor(clamped + 0.5)));
    if (c < 2) values[c] = ((level + level) - last) / last;
    for (int l = 0; l < count; ++l) {
      const int64_t pixel = first + l, n = pixel / p.places, s = pixel % p.places;
      const bool number = total[l] == total[l] && level[l] == level[l];
      d.x[(n * p.channels + c) * p.places + s] = number ? int64_t(level[l]) : -1;
    }
  }
}

template <class T>
void sample(int64_t begin, int64_t end, const LogisticMixtureParams &p, const LogisticMixtureDraws &d, void *worker) {
  constexpr int64_t W = width<double>;
  for (int64_t i = begin; i < end; i += W) draw<T>(i, end - i < W ? end - i : W, p, d, static_cast<double *>(worker));
}

}  // namespace

extern const evidens::LogisticMixtureKernel logistic_mixture[2];
constexpr evidens::LogisticMixtureKernel logistic_mixture[2] = {
    {plan<float>, run_channels<float, false>, run_channels<float, true>, sample<float>, sample_bytes},
    {plan<double>, run_channels<double, false>, run_channels<double, true>, sample<double>, sample_bytes}};

}  // namespace EVIDENS_NAMESPACE
