// Affine coupling and ActNorm kernels: the params structs and the entry points of one level.
#pragma once
#include <stdint.h>

namespace evidens {

enum CouplingMap : int32_t {  // how a raw scale r becomes s; c is CouplingParams::clamp
  kCouplingExp = 0,           // exp(r)
  kCouplingExpClamped = 1,    // exp(clip(r, -c, c))
  kCouplingSigmoid = 2,       // sigmoid(r + 2) + c
  kCouplingSoftplus = 3,      // softplus(r) + c
  kCouplingTanh = 4,          // exp(c tanh(r))
  kCouplingAtan = 5,          // exp(c 0.636 atan(r))
  kCouplingBoundedExp = 6,    // exp(r / (1 + |r / log(c)|))
  kCouplingSigmoidZero = 7,   // sigmoid(r + 2), whose logarithm is known beyond its underflow
  kCouplingAdditive = 8,      // 1
};

// Every void pointer is of the kernel's type, float or double.  A row of x, grad_y and of every result
// is contiguous, D * S elements; so are the S places of one channel of scale and shift.
struct CouplingParams {
  int64_t rows;                      // N
  int64_t features;                  // D
  int64_t active_features;           // A
  int64_t places;                    // S, the product of the spatial axes
  int32_t map;                       // CouplingMap
  bool inverse;                      // direction
  double clamp;                      // c
  const int64_t *active;             // (A,) features, or null: all of them
  const void *x;                     // (N, D, S)
  int64_t x_row;                     // stride in elements, as all that follow
  const void *scale;                 // (N, A, S) or null: additive
  int64_t scale_row, scale_channel;  // strides
  const void *shift;                 // (N, A, S) or null: 0
  int64_t shift_row, shift_channel;  // strides
  void *y;                           // out (N, D, S), forward only
  void *logdet;                      // out (N,) nats, forward only
  const void *grad_y;                // (N, D, S) or null: 0; backward only, as all that follow
  int64_t grad_y_row;                // stride
  const void *grad_logdet;           // (N,) or null: 0
  int64_t grad_logdet_row;           // stride
  void *grad_x;                      // out (N, D, S) or null
  void *grad_scale;                  // out (N, A, S) or null
  void *grad_shift;                  // out (N, A, S) or null
};

// How a call is cut; a function of the sizes only, never of the number of threads.
struct CouplingPlan {
  int64_t block;         // rows of a unit
  int64_t parts;         // pieces of a row, 1 unless rows are very long
  int64_t units;         // of work: blocks times parts
  int64_t shared_bytes;  // what `prepare` finds out about `active`, and the sums of parts
  int64_t worker_bytes;  // scratch of one worker
};

struct CouplingKernel {
  void (*plan)(const CouplingParams &, CouplingPlan &);
  // 0, or the place (from 1) in `active` of an index out of range or seen before: then nothing runs.
  int64_t (*prepare)(const CouplingParams &, const CouplingPlan &, void *shared);
  void (*forward)(int64_t unit, const CouplingParams &, const CouplingPlan &, void *shared, void *worker);
  void (*backward)(int64_t unit, const CouplingParams &, const CouplingPlan &, void *shared, void *worker);
  void (*finish)(const CouplingParams &, const CouplingPlan &, const void *shared);  // once, after every forward
};

struct ActNormParams {
  int64_t rows;           // N
  int64_t channels;       // C
  int64_t places;         // S
  bool inverse;           // direction
  const void *x;          // (N, C, S), a row contiguous
  int64_t x_row;          // stride in elements
  const void *log_scale;  // (C,) nats
  const void *shift;      // (C,)
  void *y;                // out (N, C, S), forward only
  void *logdet;           // out (N,) nats, forward only
  const void *grad_y;     // (N, C, S), a row contiguous; backward only, as all that follow
  int64_t grad_y_row;     // stride
  void *grad_x;           // out (N, C, S) or null
  void *grad_log_scale;   // out (C,), through y
  void *grad_shift;       // out (C,)
};

struct ActNormPlan {
  int64_t block;         // rows of a unit
  int64_t units;         // blocks
  int64_t shared_bytes;  // factors and offsets, and the sums of the units
};

struct ActNormKernel {
  void (*plan)(const ActNormParams &, ActNormPlan &);
  void (*prepare)(const ActNormParams &, const ActNormPlan &, void *shared);
  void (*forward)(int64_t unit, const ActNormParams &, const ActNormPlan &, void *shared);
  void (*backward)(int64_t unit, const ActNormParams &, const ActNormPlan &, void *shared);
  void (*finish)(const ActNormParams &, const ActNormPlan &, const void *shared);  // once, after every backward
};

}  // namespace evidens
