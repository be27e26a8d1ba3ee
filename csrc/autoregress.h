// Cached sampling of autoregressive networks: the params structs and the entry points of one level.
#pragma once
#include <stdint.h>

#include "spline.h"

namespace evidens {

enum Activation : int32_t {
  kIdentity,
  kRelu,
  kLeakyRelu,  // slope 0.01
  kElu,
  kTanhUnit,
  kSigmoidUnit,
  kSilu,
  kSoftplusUnit,
};
enum MadeKind : int32_t { kMadeAffine, kMadeBernoulli, kMadeCategorical, kMadeMixture, kMadeSpline };

// A product of up to six units of one layer with a range of the units below it, or a draw.
enum MadeTask : int32_t {
  kUnits,    // hidden units: sum, then activation
  kOutputs,  // parameters of one feature
  kDraw,     // one feature
};
struct MadeJob {
  int32_t task;     // MadeTask
  int32_t layer;    // the weight, 0 .. layers - 1
  int32_t rows;     // units
  int32_t adds;     // to what an earlier job left; else to bias and context
  int32_t partial;  // others follow: leave the sums where they will be looked for
  int64_t first;    // unit of the layer in the order of degrees; kDraw: feature in that order
  int64_t slot;     // kOutputs: the first parameter's place, among those of a feature or of a panel
  int64_t held;     // kOutputs: where the sums of a partial job lie in the panel
  int64_t begin;    // units below
  int64_t end;
  int64_t weights;  // where the packed weights (end - begin, rows) begin
};

// One matrix of weights.  `units` and `below` are in the order of degrees, and hold what is needed only.
struct MadeLayer {
  const void *weight;      // (units, below), a row contiguous
  int64_t row;             // stride in elements
  const void *bias;        // by the unit's own number, or null
  const int64_t *units;    // (count,) own number of each unit
  const int64_t *columns;  // (width,) own number of each unit below
  int64_t count, width;
};

// Every void pointer is of the kernel's type, float or double.
struct MadeParams {
  int64_t rows;        // N
  int64_t features;    // D
  int64_t parameters;  // P of each feature
  int64_t draws;       // R numbers of noise of each feature
  int64_t levels;      // 0: inputs are scaled values; else one-hot
  double input_scale, input_shift;
  int32_t kind;        // MadeKind
  int32_t activation;  // Activation
  int32_t map;         // CouplingMap of the affine kind
  int32_t inverse;     // direction of affine and spline
  double clamp;        // of the map
  const SplineParams *spline;
  int64_t layers;          // matrices
  const MadeLayer *layer;  // (layers,); the last one gives the parameters
  const MadeJob *job;      // (jobs,) in order
  int64_t jobs;
  int64_t held;           // parameters that wait in a panel, at most
  const int64_t *order;   // (D,) features in the order of their degrees
  int64_t context_units;  // of a row of context; 0: none
  int32_t stepwise;       // known and values are read at the draw, and x is written there
  const void *noise;      // (N, D, R) contiguous
  const void *context;    // (N, context_units) contiguous
  const uint8_t *known;   // (N, D) contiguous, or null
  const void *values;     // (N, D) contiguous, or null
  void *packed;           // the weights of all jobs
  void *x;                // out (N, D) contiguous
  void *logdet;           // out (N,) nats
  void *given;            // out (N, P) parameters of the feature that was drawn last; stepwise only
};

struct MadeKernel {
  int32_t tile_rows;                                             // most units of a job
  int32_t width;                                                 // rows of a vector
  int32_t lanes;                                                 // most rows of a block
  int64_t (*scratch_bytes)(const MadeParams &);                  // of one block
  void (*pack)(int64_t begin, int64_t end, const MadeParams &);  // a range of jobs
  // Jobs first .. last of one block of rows, whose scratch holds what the jobs before have left.
  void (*run)(int64_t begin, int64_t end, int64_t first, int64_t last, const MadeParams &, void *scratch);
};

}  // namespace evidens
