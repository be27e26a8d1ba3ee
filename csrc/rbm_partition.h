// Partition functions of restricted Boltzmann machines: params structs and the entry points of one
// level.  Hidden units are Bernoulli; visible ones are Bernoulli, softmax groups, or Gaussian of
// variance 1.
#pragma once
#include "rbm.h"

namespace evidens {

// Annealed importance sampling, beside the machine and the stream of an RbmParams: its rows are
// chains, and its layers are packed.
struct RbmAnnealing {
  const void *base_bias;  // (V,) of the kernel's type, of the model without hidden units
  const double *beta;     // (rungs + 1,) rising from 0 to 1
  int64_t rungs;          // K
  double *log_weights;    // out (N,) nats, less log Z of the base model
};

struct RbmAnnealingKernel {
  int64_t (*scratch_bytes)(const RbmParams &, int64_t rows);  // of a block of chains
  void (*run)(int64_t begin, int64_t end, const RbmParams &, const RbmAnnealing &, void *scratch);
};

// Enumeration of the hidden states in blocks: the low and the middle bits of a state's number vary
// within a block, the high ones are the number of the block.  All in double.
//
// A group of visible units is worth base + sum_l exp(x_l); a Gaussian one exp(g (b + g / 2)) with g = x
// - b.  A unit whose inputs cannot leave the range of exp has factors in the tables, and others have
// terms, of the low and the middle hidden units.
struct RbmEnumeration {
  int64_t units;                // V, groups of units with factors first
  int64_t levels;               // units of a group
  int64_t plain;                // groups with factors
  int64_t groups;               // V / levels
  double base;                  // 1: Bernoulli units, else 0
  int32_t gaussian;             // no unit has factors then
  int32_t middle, high;         // bits
  const double *bias;           // (V,)
  const double *weight;         // (high, V) of the high hidden units
  const double *field;          // (high,) their biases
  const double *near;           // (V, kRbmLow) low bits
  const double *near_field;     // (kRbmLow,)
  const double *far;            // (2^middle, V)
  const double *far_field;      // (2^middle,)
  const uint8_t *rescale;       // (groups,) the product must be rescaled after this group
  double *mantissa, *exponent;  // out (blocks,): Z of a block is mantissa 2^exponent
};
constexpr int kRbmLowBits = 5, kRbmLow = 1 << kRbmLowBits;

struct RbmEnumerationKernel {
  int64_t (*scratch_bytes)(const RbmEnumeration &);
  void (*run)(int64_t begin, int64_t end, const RbmEnumeration &, void *scratch);  // blocks
};

}  // namespace evidens
