// Rational-quadratic spline kernels: the params struct and the entry points of one level.
#pragma once
#include <stdint.h>

namespace evidens {

// How the parameters become bins: knots as they are, softmax (nflows), soft-clipped softmax (zuko).
enum SplineMap : int32_t { kKnots = 0, kSoftmax = 1, kSoftClip = 2 };
enum SplineTails : int32_t { kNoTails = 0, kLinear = 1, kCircular = 2 };

// Every void pointer is of the kernel's type, float or double; strides are in elements.
struct SplineGroup {
  const void *values;          // widths, heights or derivatives: (N, A, count), the last stride is 1
  int64_t row, feature;        // strides
  void *gradient;              // of the same shape
  int64_t to_row, to_feature;  // its strides
  int64_t count;               // M, M + 1, or the stored derivatives
};

struct SplineParams {
  int64_t rows;          // N
  int64_t features;      // D of a row of x
  int64_t active;        // A of them are transformed
  const int64_t *index;  // (A,) which; null: all, A = D
  int64_t bins;          // M
  int32_t map;           // SplineMap
  int32_t inverse;       // y is given, x is wanted
  int32_t mixed;         // tails and box are per feature
  int32_t first_slope;   // the knot of the first stored derivative, 0 or 1
  int32_t last_stored;   // the slope at the last knot of a linear feature is stored; else it is 1
  int32_t per_row;       // logdet is (N,), else (N, A)
  const int32_t *tails;  // SplineTails, (1,) or (D,)
  const double *box;     // left, right, bottom, top: (1, 4) or (D, 4)
  double min_width, min_height, min_derivative;  // floors of the softmax map
  double beta;                                   // of its softplus
  double log_slope;                              // of the soft clip
  double logit_scale;                            // multiplies widths and heights before the softmax
  SplineGroup widths, heights, derivatives;
  const void *x;            // (N, D) contiguous: the input of the direction taken
  void *y;                  // (N, D) contiguous
  void *logdet;             // (N,) or (N, A) contiguous, nats
  const void *grad_y;       // (N, D) contiguous, or null
  const void *grad_logdet;  // like logdet, or null
  void *grad_x;             // (N, D) contiguous
};

struct SplineKernel {
  int64_t (*scratch_bytes)(int64_t rows, const SplineParams &);               // of one call
  void (*forward)(int64_t begin, int64_t end, const SplineParams &, void *);  // a range of rows
  void (*backward)(int64_t begin, int64_t end, const SplineParams &, void *);
};

}  // namespace evidens
