// Sampling of masked networks in one pass of work: every unit is summed once, when what it sees is
// known (csrc/made_schedule.h), instead of the whole network once for every feature.
//
// Lanes are rows of the batch.  A block of rows keeps the values of all units, (units, rows of the
// block), in the second-level cache; the weights of a job are packed so that a tile reads them in order.
#include "autoregress.h"

#include "activations.h"
#include "coupling_maps.h"
#include "kernels.h"
#include "spline_bins.h"
#include "tile.h"
#include "transpose.h"

namespace EVIDENS_NAMESPACE {
namespace {

using evidens::MadeJob;
using evidens::MadeLayer;
using evidens::MadeParams;

// --- products ------------------------------------------------------------------------------------

// What is added to a product, and where the sums go: (unit m, vector v) at m * unit + v * vector.
template <class T> struct Sums {
  T bias[kOuterRows];
  const T *more[kOuterRows];  // lanes of what is added; null: nothing
  T *out;
  int64_t unit, vector;
};

template <class T, int Rows, int NV> void product(int64_t depth, const T *weights, const T *below, const Sums<T> &s) {
  constexpr int W = width<T>;
  outer_tile<T, Rows, NV, false>(depth, weights, Rows, below, NV * W, [&](const Vec<T>(&acc)[Rows][NV]) {
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        Vec<T> sum = acc[m][v] + s.bias[m];
        if (s.more[m] != nullptr) sum += load(s.more[m] + v * W);
        store(s.out + m * s.unit + v * s.vector, sum);
      }
    }
  });
}

template <class T> using Product = void (*)(int64_t, const T *, const T *, const Sums<T> &);
template <class T> struct Products {
  Product<T> of[kOuterVectors][kOuterRows];
  template <int NV, int R> constexpr void fill() {
    of[NV - 1][R - 1] = product<T, R, NV>;
    if constexpr (R > 1) fill<NV, R - 1>();
    else if constexpr (NV > 1) fill<NV - 1, kOuterRows>();
  }
  constexpr Products() : of{} { fill<kOuterVectors, kOuterRows>(); }
};
template <class T> constexpr Products<T> products = {};

template <class T> void pack(int64_t begin, int64_t end, const MadeParams &p) {
  for (int64_t j = begin; j < end; ++j) {
    const MadeJob &job = p.job[j];
    if (job.task == evidens::kDraw) continue;
    const MadeLayer &layer = p.layer[job.layer];
    with_constant<kOuterRows>(job.rows, [&](auto rows) __attribute__((always_inline)) {
      constexpr int Rows = decltype(rows)::value;
      const T *row[Rows];
      for (int m = 0; m < Rows; ++m)
        row[m] = static_cast<const T *>(layer.weight) + layer.units[job.first + m] * layer.row;
      T *out = static_cast<T *>(p.packed) + job.weights;
      for (int64_t i = job.begin; i < job.end; ++i, out += Rows) {
        const int64_t column = layer.columns[i];
#pragma GCC unroll 8
        for (int m = 0; m < Rows; ++m) out[m] = row[m][column];
      }
    });
  }
}

// --- draws ---------------------------------------------------------------------------------------

// One vector of rows of one feature; parameters are (P, lanes).
template <class T> struct Draw {
  const MadeParams &p;
  T *params, *spare;  // the spare copy is for splines with known values
  const T *noise;     // of the vector; the next number of a feature is `stride` further
  int64_t stride;
  bool some_known;
  Vec<Int<T>> known;
  Vec<T> value;  // where known
  int64_t feature;
  Vec<T> log;  // out: term of the log-determinant
};

template <class T> constexpr T not_a_number = T(__builtin_nan(""));

template <class T, int Map, bool Inverse> Vec<T> draw_affine(Draw<T> &d) {
  constexpr int W = width<T>;
  evidens::CouplingParams map = {};
  map.map = Map, map.clamp = d.p.clamp;
  const Factor<T> f = factor<T, Map, Inverse, false>(load(d.params + W), map_constants<T>(map));
  const Vec<T> shift = load(d.params), z = load(d.noise);
  d.log = Inverse ? -f.l : f.l;
  return Inverse ? (z - shift) * f.m : z * f.m + shift;
}
template <class T> using DrawFunction = Vec<T> (*)(Draw<T> &);
template <class T> struct Affine {
  DrawFunction<T> of[evidens::kCouplingAdditive][2];
  template <int Map> constexpr void fill() {
    of[Map][0] = draw_affine<T, Map, false>;
    of[Map][1] = draw_affine<T, Map, true>;
    if constexpr (Map > 0) fill<Map - 1>();
  }
  constexpr Affine() : of{} { fill<evidens::kCouplingAdditive - 1>(); }
};
template <class T> constexpr Affine<T> affine = {};

template <class T> Vec<T> draw_bernoulli(Draw<T> &d) {
  const Vec<T> chance = sigmoid<T>(load(d.params)), one = broadcast<T>(T(1));
  const Vec<T> x = load(d.noise) < chance ? one : Vec<T>{};
  return chance == chance ? x : chance;
}

// Weights of `count` logits in their place; returns their sum times u.
template <class T> Vec<T> threshold(int64_t count, T *logits, Vec<T> u) {
  constexpr int W = width<T>;
  Vec<T> most = load(logits), sum = {};
  for (int64_t k = 1; k < count; ++k) most = max<T>(most, load(logits + k * W));
  for (int64_t k = 0; k < count; ++k) {
    const Vec<T> e = exp_nonpositive<T>(load(logits + k * W) - most);
    store(logits + k * W, e);
    sum += e;
  }
  return u * sum;
}

template <class T> Vec<T> draw_categorical(Draw<T> &d) {
  constexpr int W = width<T>;
  const int64_t count = d.p.parameters;
  const Vec<T> limit = threshold<T>(count, d.params, load(d.noise));
  Vec<T> sum = {}, x = {};
  for (int64_t k = 0; k + 1 < count; ++k) {
    sum += load(d.params + k * W);
    x += sum <= limit ? broadcast<T>(T(1)) : Vec<T>{};
  }
  return limit == limit ? x : limit;
}

template <class T> Vec<T> draw_mixture(Draw<T> &d) {
  constexpr int W = width<T>;
  const int64_t count = d.p.parameters / 3;
  const T *means = d.params + count * W, *scales = means + count * W;
  const Vec<T> limit = threshold<T>(count, d.params, load(d.noise));
  Vec<T> sum = {}, mean = load(means), scale = load(scales);
  for (int64_t k = 0; k + 1 < count; ++k) {
    sum += load(d.params + k * W);
    const Vec<Int<T>> beyond = sum <= limit;
    mean = beyond ? load(means + (k + 1) * W) : mean;
    scale = beyond ? load(scales + (k + 1) * W) : scale;
  }
  const Vec<T> x = mean + exp<T>(scale) * load(d.noise + d.stride);
  return limit == limit ? x : limit;
}

template <class T, int Map, bool Inverse> Vec<T> pass_spline(const Draw<T> &d, T *params, Vec<T> given, Vec<T> &log) {
  constexpr int W = width<T>;
  const evidens::SplineParams &s = *d.p.spline;
  const SplineBins<T, Map> bins(s);
  const int64_t f = s.mixed ? d.feature : 0;
  const double *box = s.box + 4 * f;
  Lanes<T> z = {};
  z.left = broadcast<T>(T(box[0])), z.right = broadcast<T>(T(box[1]));
  z.bottom = broadcast<T>(T(box[2])), z.top = broadcast<T>(T(box[3]));
  z.tails += Int<T>(s.tails[f]);
  z.widths = params, z.heights = params + s.bins * W, z.slopes = params + 2 * s.bins * W;
  z.given = given;
  bins.template find<Inverse>(z);
  return bins.template value<Inverse>(z, given, bins.template evaluate<Inverse>(z), log);
}
template <class T, int Map, bool Inverse> Vec<T> draw_spline(Draw<T> &d) {
  constexpr int W = width<T>;
  if (d.some_known)
    for (int64_t i = 0; i < d.p.parameters * W; i += W) store(d.spare + i, load(d.params + i));
  const Vec<T> x = pass_spline<T, Map, Inverse>(d, d.params, load(d.noise), d.log);
  if (d.some_known) {
    Vec<T> back;
    pass_spline<T, Map, !Inverse>(d, d.spare, d.value, back);
    d.log = d.known ? -back : d.log;
  }
  return x;
}

template <class T> DrawFunction<T> draw_function(const MadeParams &p) {
  using namespace evidens;
  const bool clips = p.kind == kMadeSpline && p.spline->map == kSoftClip;
  const bool no_offset = p.map == kCouplingSigmoid && T(p.clamp) < Float<T>::smallest;
  switch (p.kind) {
    case kMadeAffine: return affine<T>.of[no_offset ? int32_t(kCouplingSigmoidZero) : p.map][p.inverse];
    case kMadeBernoulli: return draw_bernoulli<T>;
    case kMadeCategorical: return draw_categorical<T>;
    case kMadeMixture: return draw_mixture<T>;
    default:
      if (clips) return p.inverse ? draw_spline<T, kSoftClip, true> : draw_spline<T, kSoftClip, false>;
      return p.inverse ? draw_spline<T, kSoftmax, true> : draw_spline<T, kSoftmax, false>;
  }
}

// --- a block of rows -----------------------------------------------------------------------------

template <class T> struct Block {
  const MadeParams &p;
  int64_t begin, rows, lanes;  // rows begin .. begin + rows in so many lanes
  T **level;                   // (layers,): values of the inputs and of the hidden units
  T *noise, *context, *known, *x, *params, *spare, *held;
  double *logdet;
  DrawFunction<T> draw_one;

  static int64_t count(const MadeParams &p) {  // values of one row
    int64_t n = p.features * (p.draws + (p.known != nullptr) + 1) + p.context_units + 2 * p.parameters + p.held;
    for (int64_t l = 0; l < p.layers; ++l) n += p.layer[l].width;
    return n;
  }
  static int64_t bytes(const MadeParams &p) {
    constexpr int64_t most = kOuterVectors * width<T>;
    return ((p.layers * int64_t(sizeof(T *)) + 63) / 64 * 64) + most * (count(p) * int64_t(sizeof(T)) + 8);
  }

  Block(int64_t first, int64_t end, const MadeParams &params_, void *scratch)
      : p(params_), begin(first), rows(end - first), lanes((end - first + width<T> - 1) / width<T> * width<T>) {
    level = static_cast<T **>(scratch);
    T *next = reinterpret_cast<T *>(static_cast<char *>(scratch) + (p.layers * int64_t(sizeof(T *)) + 63) / 64 * 64);
    const auto take = [&](int64_t n) {
      T *here = next;
      next += n * lanes;
      return here;
    };
    for (int64_t l = 0; l < p.layers; ++l) level[l] = take(p.layer[l].width);
    noise = take(p.features * p.draws);
    context = take(p.context_units);
    known = take(p.known == nullptr ? 0 : p.features);
    x = take(p.features);
    params = take(p.parameters), spare = take(p.parameters), held = take(p.held);
    logdet = reinterpret_cast<double *>(next);
    draw_one = draw_function<T>(p);
  }

  void start() {
    const int64_t d = p.features, r = d * p.draws;
    transpose_in(static_cast<const T *>(p.noise) + begin * r, r, 1, rows, r, lanes, noise);
    if (p.context_units > 0)
      transpose_in(static_cast<const T *>(p.context) + begin * p.context_units, p.context_units, 1, rows,
                   p.context_units, lanes, context);
    if (p.known != nullptr && !p.stepwise) {
      transpose_in(static_cast<const T *>(p.values) + begin * d, d, 1, rows, d, lanes, x);
      const uint8_t *given = p.known + begin * d;
      for (int64_t f = 0; f < d; ++f)
        for (int64_t n = 0; n < lanes; ++n) known[f * lanes + n] = n < rows && given[n * d + f] ? T(1) : T(0);
    }
    for (int64_t n = 0; n < lanes; ++n) logdet[n] = 0;
  }

  void multiply(const MadeJob &job) {
    const MadeLayer &layer = p.layer[job.layer];
    const bool hidden = job.task == evidens::kUnits;
    Sums<T> s = {};
    if (hidden || job.partial) {
      s.out = hidden ? level[job.layer + 1] + job.first * lanes : held + job.held * lanes;
      s.unit = lanes, s.vector = width<T>;
    } else {
      s.out = params + job.slot * width<T>;
      s.unit = width<T>, s.vector = p.parameters * width<T>;
    }
    for (int32_t m = 0; m < job.rows; ++m) {
      if (job.adds) {
        s.more[m] = hidden ? s.out + m * lanes : held + (job.held + m) * lanes;
        continue;
      }
      const int64_t number = layer.units[job.first + m];
      if (layer.bias != nullptr) s.bias[m] = static_cast<const T *>(layer.bias)[number];
      if (job.layer == 0 && p.context_units > 0) s.more[m] = context + number * lanes;
    }
    products<T>.of[lanes / width<T> - 1][job.rows - 1](
        job.end - job.begin, static_cast<const T *>(p.packed) + job.weights, level[job.layer] + job.begin * lanes, s);
    if (hidden && !job.partial) activate<T>(p.activation, job.rows * lanes, s.out);
  }

  // What is known of a feature now; whether anything is.
  bool look(int64_t f) {
    bool some = false;
    for (int64_t n = 0; n < rows; ++n) {
      const int64_t place = (begin + n) * p.features + f;
      const bool given = p.known[place];
      some = some || given;
      known[f * lanes + n] = given ? T(1) : T(0);
      x[f * lanes + n] = given ? static_cast<const T *>(p.values)[place] : T(0);
    }
    for (int64_t n = rows; n < lanes; ++n) known[f * lanes + n] = x[f * lanes + n] = T(0);
    return some;
  }
  void show(int64_t f) const {
    for (int64_t n = 0; n < rows; ++n) static_cast<T *>(p.x)[(begin + n) * p.features + f] = x[f * lanes + n];
  }
  void hand_out() const {  // before the draw, which may spoil them
    constexpr int W = width<T>;
    T *out = static_cast<T *>(p.given) + begin * p.parameters;
    for (int64_t n = 0; n < rows; ++n)
      for (int64_t i = 0; i < p.parameters; ++i)
        out[n * p.parameters + i] = params[n / W * W * p.parameters + i * W + n % W];
  }

  void draw(int64_t place) {
    constexpr int W = width<T>;
    const int64_t f = p.order[place];
    if (p.stepwise) hand_out();
    const bool some_known = p.stepwise ? look(f) : p.known != nullptr;
    Draw<T> d = {p, nullptr, spare, nullptr, lanes, some_known, {}, {}, f, {}};
    for (int64_t n = 0; n < lanes; n += W) {
      T *value = x + f * lanes + n;
      d.params = params + n * p.parameters;
      d.noise = noise + f * p.draws * lanes + n;
      if (d.some_known) d.known = load(known + f * lanes + n) > T(0), d.value = load(value);
      d.log = Vec<T>{};
      Vec<T> drawn = draw_one(d);
      if (d.some_known) drawn = d.known ? d.value : drawn;
      store(value, drawn);
      T terms[W];
      store(terms, d.log);
      for (int l = 0; l < W; ++l) logdet[n + l] += double(terms[l]);
      if (p.levels == 0) {
        store(level[0] + place * lanes + n, drawn * T(p.input_scale) + T(p.input_shift));
      } else {
        for (int64_t k = 0; k < p.levels; ++k)
          store(level[0] + (place * p.levels + k) * lanes + n, drawn == T(k) ? broadcast<T>(T(1)) : Vec<T>{});
      }
    }
    if (p.stepwise) show(f);
  }

  void finish() {
    if (!p.stepwise) transpose_out(x, lanes, rows, p.features, static_cast<T *>(p.x) + begin * p.features);
    for (int64_t n = 0; n < rows; ++n) static_cast<T *>(p.logdet)[begin + n] = T(logdet[n]);
  }
};

template <class T> int64_t scratch_bytes(const MadeParams &p) { return Block<T>::bytes(p); }
template <class T>
void run(int64_t begin, int64_t end, int64_t first, int64_t last, const MadeParams &p, void *scratch) {
  Block<T> block(begin, end, p, scratch);
  if (first == 0) block.start();
  for (int64_t j = first; j < last; ++j) {
    if (p.job[j].task == evidens::kDraw) block.draw(p.job[j].first);
    else block.multiply(p.job[j]);
  }
  if (p.stepwise || last == p.jobs) block.finish();
}

}  // namespace

extern const evidens::MadeKernel made[2];
constexpr evidens::MadeKernel made[2] = {
    {kOuterRows, width<float>, kOuterVectors * width<float>, scratch_bytes<float>, pack<float>, run<float>},
    {kOuterRows, width<double>, kOuterVectors * width<double>, scratch_bytes<double>, pack<double>, run<double>},
};

}  // namespace EVIDENS_NAMESPACE
