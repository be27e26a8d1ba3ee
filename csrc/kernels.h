// The table of kernels: one constant-initialised instance per instruction set.
#pragma once
#include <stdint.h>

#include "autoregress.h"
#include "coupling.h"
#include "gmm.h"
#include "hmm.h"
#include "logistic_mixture.h"
#include "masked_conv.h"
#include "philox_params.h"
#include "pixelcnn.h"
#include "rbm.h"
#include "rbm_partition.h"
#include "spline.h"

namespace evidens {

enum VectorFunction : int32_t { kExp, kLog, kLog1p, kTanh, kSoftplus, kExpNonpositive, kAtan };

struct Kernels {
  const char *isa;
  const GmmKernel *gmm;  // [float, double]
  const HmmKernel *hmm;
  const CouplingKernel *coupling;
  const ActNormKernel *actnorm;
  const SplineKernel *spline;
  const MaskedConvKernel *masked_conv;
  const MadeKernel *made;
  const PixelKernel *pixelcnn;
  const LogisticMixtureKernel *logistic_mixture;
  const RbmKernel *rbm;
  const RbmAnnealingKernel *rbm_annealing;
  const RbmEnumerationKernel *rbm_enumeration;  // of doubles only
  void (*philox_uniform)(int64_t begin, int64_t end, const PhiloxParams &);
  void (*vector_math)(int32_t function, int32_t is_double, int64_t n, const void *x, void *y);
};

}  // namespace evidens
