// Partition functions by enumeration of the hidden states.
//
// Lanes are states.  exp(x) of a unit is a product of three factors, of the low, the middle and the
// high bits of a state, so that a state costs a multiply-add and a product for each unit and no
// exponential.  Products are kept as a number and a power of two.
#include "kernels.h"
#include "rbm_partition.h"
#include "simd.h"

namespace EVIDENS_NAMESPACE {
namespace {

using evidens::kRbmLow;
using evidens::RbmEnumeration;

typedef Vec<double> Lanes;
constexpr int W = width<double>;
constexpr int kTile = 4;  // vectors of states

// A sum of positive terms, each a number times a power of two that may be out of the range of double.
struct Sum {
  Lanes value = {}, top = broadcast<double>(-0x1p50);

  static EVIDENS_METHOD Lanes lowered(Lanes by) {  // 2^by for by <= 0
    Vec<int64_t> whole;
    round_to_integer<double>(max<double>(by, broadcast<double>(-1023.)), whole);
    return power_of_two<double>(whole);
  }
  EVIDENS_METHOD void add(Lanes number, Lanes exponent) {
    const Lanes greater = max<double>(top, exponent);
    value = value * lowered(top - greater) + number * lowered(exponent - greater);
    top = greater;
  }
};

// Moves the exponent of a positive number to `exponent`.
EVIDENS_INLINE void split(Lanes &number, Lanes &exponent) {
  const Vec<int64_t> shift = ((Vec<int64_t>)number >> 52) - 1023;
  number = (Lanes)((Vec<int64_t>)number - (shift << 52));
  exponent += to_real<double>(shift);
}

// x = n ln 2 + r as exp(r) and n.
EVIDENS_INLINE Lanes exp_split(Lanes x, Lanes &n) {
  typedef Float<double> F;
  Vec<int64_t> whole;
  n = round_to_integer<double>(x * F::log2e, whole);
  return 1. + expm1_reduced<double>((x - n * F::ln2_high) - n * F::ln2_low);
}

// What the states of a tile are worth: product 2^exponent exp(log).
struct Tile { Lanes product[kTile], exponent[kTile], log[kTile]; };

EVIDENS_INLINE void rescale(Tile &t) {
#pragma GCC unroll 4
  for (int v = 0; v < kTile; ++v) split(t.product[v], t.exponent[v]);
}

template <bool Binary> EVIDENS_INLINE void plain_groups(const RbmEnumeration &p, const double *factor,
                                                        const double *near, Tile &t) {
  for (int64_t g = 0; g < p.plain; ++g) {
    Lanes sum[kTile];
#pragma GCC unroll 4
    for (int v = 0; v < kTile; ++v) sum[v] = broadcast<double>(Binary ? 1. : p.base);
    for (int64_t l = 0; l < (Binary ? 1 : p.levels); ++l, ++factor, near += kRbmLow) {
      const Lanes f = broadcast<double>(*factor);
#pragma GCC unroll 4
      for (int v = 0; v < kTile; ++v) sum[v] += f * load(near + v * W);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kTile; ++v) t.product[v] *= sum[v];
    if (p.rescale[g]) rescale(t);
  }
}

// Groups with an input that may leave the range of exp: the greatest is taken out first.
static void wide_groups(const RbmEnumeration &p, const double *term, const double *near, Tile &t) {
  const bool binary = p.base != 0;
  for (int64_t g = p.plain; g < p.groups; ++g, term += p.levels, near += p.levels * kRbmLow) {
    for (int v = 0; v < kTile; ++v) {
      const double *const own = near + v * W;
      Lanes most = term[0] + load(own), sum = {};
      if (binary) {
        sum = 1. + exp_nonpositive<double>(-abs<double>(most));
        most = max<double>(most, Lanes{});
      } else {
        for (int64_t l = 1; l < p.levels; ++l) most = max<double>(most, term[l] + load(own + l * kRbmLow));
        for (int64_t l = 0; l < p.levels; ++l) sum += exp_nonpositive<double>(term[l] + load(own + l * kRbmLow) - most);
      }
      t.product[v] *= sum;
      t.log[v] += most;
    }
    if (p.rescale[g]) rescale(t);
  }
}

static void gaussian_units(const RbmEnumeration &p, const double *term, const double *near, Tile &t) {
  for (int64_t i = 0; i < p.units; ++i, near += kRbmLow) {
    const Lanes b = broadcast<double>(p.bias[i]), g0 = broadcast<double>(term[i]);
#pragma GCC unroll 4
    for (int v = 0; v < kTile; ++v) {
      const Lanes g = g0 + load(near + v * W);
      t.log[v] += g * (b + 0.5 * g);
    }
  }
}

int64_t scratch_bytes(const RbmEnumeration &p) { return 2 * (p.units + W) * int64_t(sizeof(double)); }

static void block(int64_t number, const RbmEnumeration &p, double *high, double *both) {
  const int64_t units = p.units, plain = p.plain * p.levels;
  double field = 0;
  for (int64_t i = 0; i < units; ++i) high[i] = p.gaussian ? 0. : p.bias[i];
  for (int j = 0; j < p.high; ++j) {
    if ((number >> j & 1) == 0) continue;
    field += p.field[j];
    for (int64_t i = 0; i < units; ++i) high[i] += p.weight[j * units + i];
  }
  for (int64_t i = 0; i < plain; i += W) {  // lanes past the last hold terms, which stay as they are
    const Lanes x = load(high + i), last = broadcast<double>(double(plain - i));
    store(high + i, to_real<double>(lane_numbers<double>()) < last ? exp<double>(x) : x);
  }
  Sum sum[kTile];
  for (int64_t m = 0; m < int64_t(1) << p.middle; ++m) {
    const double *const far = p.far + m * units;
    for (int64_t i = 0; i < plain; ++i) both[i] = high[i] * far[i];
    for (int64_t i = plain; i < units; ++i) both[i] = high[i] + far[i];
    for (int64_t s = 0; s < kRbmLow; s += kTile * W) {
      Tile t;
#pragma GCC unroll 4
      for (int v = 0; v < kTile; ++v) {
        t.product[v] = broadcast<double>(1.), t.exponent[v] = Lanes{};
        t.log[v] = load(p.near_field + s + v * W) + (field + p.far_field[m]);
      }
      if (p.gaussian) {
        gaussian_units(p, both, p.near + s, t);
      } else {
        if (p.levels == 1) plain_groups<true>(p, both, p.near + s, t);
        else plain_groups<false>(p, both, p.near + s, t);
        wide_groups(p, both + plain, p.near + plain * kRbmLow + s, t);
      }
#pragma GCC unroll 4
      for (int v = 0; v < kTile; ++v) {
        Lanes n;
        const Lanes e = exp_split(t.log[v], n);
        split(t.product[v], t.exponent[v]);
        sum[v].add(t.product[v] * e, t.exponent[v] + n);
      }
    }
  }
  for (int v = 1; v < kTile; ++v) sum[0].add(sum[v].value, sum[v].top);
  const double top = greatest<double>(sum[0].top);
  p.mantissa[number] = EVIDENS_NAMESPACE::sum<double>(sum[0].value * Sum::lowered(sum[0].top - top));
  p.exponent[number] = top;
}

void run(int64_t begin, int64_t end, const RbmEnumeration &p, void *scratch) {
  double *const high = static_cast<double *>(scratch);
  for (int64_t i = begin; i < end; ++i) block(i, p, high, high + p.units + W);
}

}  // namespace

extern const evidens::RbmEnumerationKernel rbm_enumeration;
constexpr evidens::RbmEnumerationKernel rbm_enumeration = {scratch_bytes, run};

}  // namespace EVIDENS_NAMESPACE
