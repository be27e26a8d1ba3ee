// Restricted Boltzmann machines: the params structs and the entry points of one level.
#pragma once
#include <stdint.h>

namespace evidens {

enum RbmUnits : int32_t { kBernoulliUnits, kSpinUnits, kGaussianUnits, kSoftmaxUnits };

// One layer as the other one sees it.  Every void pointer is of the kernel's type, float or double.
struct RbmLayer {
  int64_t units;      // U
  int64_t depth;      // units of the other layer
  int32_t kind;       // RbmUnits
  int64_t levels;     // of a softmax group
  const void *bias;   // (U,)
  const void *scale;  // (U,) standard deviations of Gaussian units, or null
  void *packed;       // panels of the weights, then bias and scale, padded to whole panels
};

struct RbmParams {
  int64_t rows;            // N
  const void *weight;      // (J, V) contiguous
  const void *precision;   // (V,) 1 / variance of Gaussian units, or null
  const void *beta;        // (N,) inverse temperatures, or null for 1
  RbmLayer visible;        // V units, depth J
  RbmLayer hidden;         // J units, depth V
  int32_t from_hidden;     // the chains start with their hidden units
  const void *v;           // (N, V), rows v_row apart; read unless from_hidden
  int64_t v_row;           // elements
  const void *h;           // (N, J), rows h_row apart; read where from_hidden
  int64_t h_row;           // elements
  const uint8_t *clamped;  // (N, V), rows clamped_row apart, or null
  int64_t clamped_row;     // elements; 0: one mask for all rows
  const void *values;      // (N, V), rows values_row apart; read where clamped
  int64_t values_row;      // elements
  int64_t steps;           // full Gibbs steps
  int64_t step0;           // of the stream
  int64_t row0;            // of the stream
  uint64_t seed;           // key
  void *new_v;             // out (N, V) contiguous
  void *new_h;             // out (N, J) contiguous
  void *v_mean;            // out (N, V) contiguous, or null
  void *h_mean;            // out (N, J) contiguous, or null
  void *free_energy;       // out (N,) nats
};

// Rows of one sign in the sums.
struct RbmRows {
  int64_t rows;               // N
  const void *v;              // (N, V), rows v_row apart
  int64_t v_row;              // elements
  const void *h_mean;         // (N, J), rows h_row apart
  int64_t h_row;              // elements
  const void *sample_weight;  // (N,), or null for 1
};

// Sums over rows of h_mean v^T, v and h_mean, less those over the rows that count against them.
struct RbmSums {
  int64_t visible, hidden;  // V, J
  int64_t rows;             // of both kinds
  RbmRows plus, minus;
  const void *centre;  // (V,) subtracted from v in the sums of v, or null
  void *packed;        // panels of h_mean times the weights of the rows
  void *weight;        // out (J, V) contiguous
  void *sum_v;         // out (V,)
  void *sum_h;         // out (J,)
  void *square;        // out (V,) sum of (v - centre)^2, or null
};

struct RbmKernel {
  int64_t panel;                                                                // units of a panel
  int64_t (*packed_elements)(int64_t depth, int64_t units);                     // of a layer
  void (*pack)(int64_t begin, int64_t end, const RbmParams &, bool hidden);     // a range of panels
  int64_t (*scratch_bytes)(const RbmParams &, int64_t rows);                    // of a block of rows
  void (*gibbs)(int64_t begin, int64_t end, const RbmParams &, void *scratch);  // a block of rows
  void (*means)(int64_t begin, int64_t end, const RbmParams &, void *scratch);  // of the hidden units
  void (*free_energy)(int64_t begin, int64_t end, const RbmParams &, void *scratch);
  int64_t band;                                                              // visible units of one sum
  int64_t (*sums_bytes)(const RbmSums &);                                    // scratch of one band
  void (*pack_sums)(int64_t begin, int64_t end, const RbmSums &);            // a range of panels
  void (*sums)(int64_t begin, int64_t end, const RbmSums &, void *scratch);  // one band of visible units
};

}  // namespace evidens
