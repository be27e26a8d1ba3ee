// Discretized mixture of logistics: the params struct and the entry points of one level.
#pragma once
#include <stdint.h>

namespace evidens {

// Every void pointer is of the kernel's type, float or double; strides are in elements.  The planes of
// params are those of a network's output: M logits, then for each channel M means, M log scales and,
// with three channels, M coefficients.
struct LogisticMixtureParams {
  int64_t rows;                              // N
  int64_t places;                            // S = H W
  int64_t mixtures;                          // M
  int32_t channels;                          // C, 1 or 3
  int32_t levels;                            // at least 2
  double min_log_scale;                      // nats
  const void *params;                        // (N, P, S), P = 3 M or 10 M
  int64_t row, plane, place;                 // strides of params
  const void *x;                             // (N, C, S) levels; not when sampling
  int64_t x_row, x_plane, x_place;           // strides
  void *log_prob;                            // out (N, S) nats, forward only
  int64_t *bad;                              // out (units,) forward only: the first place of x that
                                             // is no level, as (n S + s) C + c, or -1
  const void *grad;                          // (N, S), backward only, as all that follow
  void *grad_params;                         // out (N, P, S)
  int64_t grad_row, grad_plane, grad_place;  // strides
};

struct LogisticMixtureDraws {
  uint64_t seed;   // of the stream
  int64_t row0;    // its row for the first row
  uint32_t step0;  // its step for the first place
  int64_t *x;      // out (N, C, S) levels, -1 where a parameter is not a number
};

// How a call is cut; a function of the sizes only.
struct LogisticMixturePlan {
  int64_t block;         // places of a block, a multiple of the vector width
  int64_t blocks;        // of a row
  int64_t in_unit;       // blocks of a unit of work
  int64_t units;         // of work
  int64_t worker_bytes;  // scratch of one worker
};

struct LogisticMixtureKernel {
  void (*plan)(const LogisticMixtureParams &, LogisticMixturePlan &);
  void (*forward)(int64_t unit, const LogisticMixtureParams &, const LogisticMixturePlan &, void *worker);
  void (*backward)(int64_t unit, const LogisticMixtureParams &, const LogisticMixturePlan &, void *worker);
  // Pixels begin .. end - 1 of N S; the scratch takes sample_bytes.
  void (*sample)(int64_t begin, int64_t end, const LogisticMixtureParams &, const LogisticMixtureDraws &, void *worker);
  int64_t (*sample_bytes)(const LogisticMixtureParams &);
};

}  // namespace evidens
