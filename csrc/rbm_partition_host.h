// Partition functions of restricted Boltzmann machines, the host's side: blocks of chains, tables of
// an enumeration.
#pragma once
#include <cmath>
#include <vector>

#include "rbm_host.h"
#include "rbm_partition.h"

namespace evidens {

inline void rbm_ais(bool is_double, int64_t chains, int64_t visible, int64_t hidden, int visible_kind, int64_t levels,
                    uintptr_t weight, uintptr_t visible_bias, uintptr_t hidden_bias, uintptr_t base_bias, int64_t rungs,
                    uintptr_t beta, uint64_t seed, int64_t row0, uintptr_t log_weights) {
  const RbmKernel &machine = kernels->rbm[is_double];
  const RbmAnnealingKernel &kernel = kernels->rbm_annealing[is_double];
  RbmParams p = rbm_machine(chains, visible, hidden, visible_kind, kBernoulliUnits, levels, weight, visible_bias,
                            hidden_bias, 0, 0, 0);
  p.row0 = row0, p.seed = seed;
  const RbmAnnealing a{at(base_bias), at<double>(beta), rungs, at<double>(log_weights)};
  const Buffer packed = rbm_packed(machine, is_double, p, true);
  rbm_blocks(
      double(chains) * double(visible) * double(hidden) * 2 * double(rungs), chains,
      [&](int64_t rows) { return kernel.scratch_bytes(p, rows); },
      [&](int64_t begin, int64_t end, void *scratch) { kernel.run(begin, end, p, a, scratch); });
}

// Tables of an enumeration; the arrays that its kernel sees.
class RbmTables {
 public:
  RbmTables(int64_t visible, int64_t hidden, int64_t levels, bool gaussian, const double *weight, const double *bias,
            const double *field)
      : weight_(weight), field_(field), visible_(visible), hidden_(hidden) {
    const int64_t groups = visible / levels;
    for (int64_t j = 0; j < hidden; ++j) energy += std::fabs(field[j]);
    order(groups, levels, gaussian, bias);
    p.units = visible, p.levels = levels, p.groups = groups, p.base = levels == 1, p.gaussian = gaussian;
    const int bits = int(std::max<int64_t>(hidden, kRbmLowBits)) - kRbmLowBits;
    // A table of the middle bits that stays in the second-level cache.
    while (p.middle < std::min(bits, 7) && (visible << (p.middle + 1)) <= (1 << 14)) ++p.middle;
    p.high = bits - p.middle;
    near_ = table(0, kRbmLowBits, near_field_), far_ = table(kRbmLowBits, p.middle, far_field_);
    std::vector<double> turned(near_.size());  // states side by side
    for (int64_t s = 0; s < kRbmLow; ++s)
      for (int64_t i = 0; i < visible; ++i) turned[size_t(i * kRbmLow + s)] = near_[size_t(s * visible + i)];
    near_ = turned;
    for (int j = 0; j < p.high; ++j) {
      high_field_.push_back(field[hidden - p.high + j]);
      for (int64_t i = 0; i < visible; ++i) high_.push_back(input(hidden - p.high + j, i));
    }
    for (const int64_t i : unit_) bias_.push_back(bias[i]);
    p.bias = bias_.data(), p.weight = high_.data(), p.field = high_field_.data(), p.rescale = rescale_.data();
    p.near = near_.data(), p.near_field = near_field_.data(), p.far = far_.data(), p.far_field = far_field_.data();
  }

  RbmEnumeration p{};
  double energy = 0;  // no sum of inputs is greater

 private:
  double input(int64_t j, int64_t i) const { return weight_[j * visible_ + unit_[size_t(i)]]; }

  // Groups whose inputs stay within e^+-300 come first; a product of up to e^600 fits a double.
  void order(int64_t groups, int64_t levels, bool gaussian, const double *bias) {
    std::vector<double> reach(size_t(groups), 0.0);
    for (int64_t i = 0; i < groups * levels; ++i) {
      double sum = std::fabs(bias[i]);
      for (int64_t j = 0; j < hidden_; ++j) sum += std::fabs(weight_[j * visible_ + i]);
      double &most = reach[size_t(i / levels)];
      most = std::max(most, sum);
      energy += gaussian ? sum * sum : sum;
    }
    double size = 0;
    for (const bool plain : {true, false}) {
      for (int64_t g = 0; g < groups; ++g) {
        if ((!gaussian && reach[size_t(g)] <= 300) != plain) continue;
        for (int64_t l = 0; l < levels; ++l) unit_.push_back(g * levels + l);
        const double own = std::log(double(levels + 1)) + (plain ? reach[size_t(g)] : 0.0);
        if (!rescale_.empty() && size + own > 600) rescale_.back() = 1, size = 0;
        rescale_.push_back(0);
        size += own;
        p.plain += plain;
      }
    }
  }

  // Factors (terms, of units without) and biases of all states of the hidden units first .. first + bits - 1.
  std::vector<double> table(int64_t first, int bits, std::vector<double> &fields) const {
    std::vector<double> out(size_t(visible_) << bits, 0.0);
    fields.assign(size_t(1) << bits, 0.0);
    const int64_t plain = p.plain * p.levels;
    for (int64_t s = 0; s < int64_t(1) << bits; ++s) {
      double *const row = out.data() + s * visible_;
      for (int b = 0; b < bits; ++b) {
        if ((s >> b & 1) == 0 || first + b >= hidden_) continue;
        fields[size_t(s)] += field_[first + b];
        for (int64_t i = 0; i < visible_; ++i) row[i] += input(first + b, i);
      }
      for (int64_t i = 0; i < plain; ++i) row[i] = std::exp(row[i]);
    }
    return out;
  }

  const double *weight_, *field_;
  int64_t visible_, hidden_;
  std::vector<int64_t> unit_;  // own number of each unit
  std::vector<uint8_t> rescale_;
  std::vector<double> near_, near_field_, far_, far_field_, high_, high_field_, bias_;
};

// log Z, nats, or NaN where energies are too large; levels 0: Gaussian units.
inline double rbm_exact_log_partition(int64_t visible, int64_t hidden, int64_t levels, uintptr_t weight, uintptr_t bias,
                                      uintptr_t field) {
  const bool gaussian = levels == 0;
  RbmTables tables(visible, hidden, std::max<int64_t>(levels, 1), gaussian, at<double>(weight), at<double>(bias),
                   at<double>(field));
  if (!(tables.energy < 0x1p40)) return std::nan("");  // the kernel splits powers of two off up to here
  RbmEnumeration &p = tables.p;
  const RbmEnumerationKernel &kernel = *kernels->rbm_enumeration;
  const int64_t blocks = int64_t(1) << p.high;
  std::vector<double> found(size_t(2 * blocks));
  p.mantissa = found.data(), p.exponent = found.data() + blocks;
  const double states = std::ldexp(1.0, p.middle + kRbmLowBits) * double(blocks);
  const int64_t workers = workers_for(states * double(visible + 8), blocks);
  const int64_t bytes = (kernel.scratch_bytes(p) + 63) / 64 * 64;
  const Buffer scratch = allocate(workers * bytes);
  run_blocks(pool, blocks, workers, [&](int64_t i, int64_t worker) {
    kernel.run(i, i + 1, p, static_cast<char *>(scratch.get()) + worker * bytes);
  });
  const double top = *std::max_element(p.exponent, p.exponent + blocks);
  double sum = 0;
  for (int64_t i = 0; i < blocks; ++i) sum += std::ldexp(p.mantissa[i], int(std::max(p.exponent[i] - top, -1100.0)));
  // Hidden units that are not there, up to the five of the low bits, doubled every state.
  const double doubled = double(p.high + p.middle + kRbmLowBits - hidden), log2 = std::log(2.0);
  const double constant = gaussian ? 0.5 * std::log(2 * M_PI) * double(visible) : 0.0;
  return std::log(sum) + (top - doubled) * log2 + constant;
}

}  // namespace evidens
