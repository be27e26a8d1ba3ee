// This level's kernels, and its vector mathematics made callable for the tests.
#include "kernels.h"
#include "simd.h"

namespace EVIDENS_NAMESPACE {

extern const evidens::GmmKernel gmm[2];
extern const evidens::HmmKernel hmm[2];
extern const evidens::CouplingKernel coupling[2];
extern const evidens::ActNormKernel actnorm[2];
extern const evidens::SplineKernel spline[2];
extern const evidens::MaskedConvKernel masked_conv[2];
extern const evidens::MadeKernel made[2];
extern const evidens::PixelKernel pixelcnn[2];
extern const evidens::LogisticMixtureKernel logistic_mixture[2];
extern const evidens::RbmKernel rbm[2];
extern const evidens::RbmAnnealingKernel rbm_annealing[2];
extern const evidens::RbmEnumerationKernel rbm_enumeration;
extern void philox_uniform(int64_t, int64_t, const evidens::PhiloxParams &);

namespace {

template <class T> Vec<T> apply(int32_t function, Vec<T> x) {
  switch (function) {
    case evidens::kExp: return exp<T>(x);
    case evidens::kLog: return log<T>(x);
    case evidens::kLog1p: return log1p<T>(x);
    case evidens::kTanh: return tanh<T>(x);
    case evidens::kSoftplus: return softplus<T>(x);
    case evidens::kAtan: return atan<T>(x);
    default: return exp_nonpositive<T>(x);
  }
}
template <class T> void map(int32_t function, int64_t n, const T *x, T *y) {
  for (int64_t i = 0; i < n; i += width<T>) {
    const int64_t left = n - i < width<T> ? n - i : width<T>;
    T lanes[width<T>] = {};
    for (int64_t l = 0; l < left; ++l) lanes[l] = x[i + l];
    store(lanes, apply<T>(function, load(lanes)));
    for (int64_t l = 0; l < left; ++l) y[i + l] = lanes[l];
  }
}
void vector_math(int32_t function, int32_t is_double, int64_t n, const void *x, void *y) {
  if (is_double) map(function, n, static_cast<const double *>(x), static_cast<double *>(y));
  else map(function, n, static_cast<const float *>(x), static_cast<float *>(y));
}

}  // namespace

#define EVIDENS_STRING_(a) #a
#define EVIDENS_STRING(a) EVIDENS_STRING_(a)
extern const evidens::Kernels kernels;
constexpr evidens::Kernels kernels = {EVIDENS_STRING(EVIDENS_LEVEL),
                                      gmm,
                                      hmm,
                                      coupling,
                                      actnorm,
                                      spline,
                                      masked_conv,
                                      made,
                                      pixelcnn,
                                      logistic_mixture,
                                      rbm,
                                      rbm_annealing,
                                      &rbm_enumeration,
                                      philox_uniform,
                                      vector_math};

}  // namespace EVIDENS_NAMESPACE
