// The table of kernels: one constant-initialised instance per instruction set.
#pragma once
#include <stdint.h>

#include "gmm.h"
#include "hmm.h"
#include "philox_params.h"

namespace evidens {

enum VectorFunction : int32_t { kExp, kLog, kLog1p, kTanh, kSoftplus, kExpNonpositive };

struct Kernels {
  const char *isa;
  const GmmKernel *gmm;  // [float, double]
  const HmmKernel *hmm;
  void (*philox_uniform)(int64_t begin, int64_t end, const PhiloxParams &);
  void (*vector_math)(int32_t function, int32_t is_double, int64_t n, const void *x, void *y);
};

}  // namespace evidens
