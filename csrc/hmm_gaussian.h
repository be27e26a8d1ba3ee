// Hidden Markov models: Gaussian emissions with diagonal covariances, computed where they are needed.
//
// Lanes are sequences, so the log-densities of a frame come out as the recursions take them, and no
// array of frames by states is ever written.
#pragma once
#include "hmm_layout.h"

namespace EVIDENS_NAMESPACE {
namespace {

template <class T> struct HmmGaussian {
  static constexpr int kTogether = 4;  // features whose sums are in registers at once

  // out[k] = log N(x | state k) for one vector of sequences: x (D, stride), rows of out G apart.  Returns
  // the greatest.
  template <class U>
  static Vec<U> log_densities(int64_t K, const HmmGaussians &e, const HmmScaled<U> &s, const U *x, int64_t stride,
                              U *out, int64_t G) {
    const int64_t D = e.features;
    Vec<U> top = broadcast<U>(-U(__builtin_inf()));
    for (int64_t first = 0; first < D; first += kTogether) {
      const int count = D - first < kTogether ? int(D - first) : kTogether;
      with_constant<kTogether>(count, [&](auto c) {
        constexpr int C = decltype(c)::value;
        Vec<U> values[C];
        for (int d = 0; d < C; ++d) values[d] = load(x + (first + d) * stride);
        const U *means = s.means + first, *roots = s.roots + first, *constants = s.constants;
        U *at = out;
        top = broadcast<U>(-U(__builtin_inf()));
        for (int64_t k = 0; k < K; ++k, means += D, roots += D, at += G) {
          Vec<U> y = first == 0 ? broadcast<U>(constants[k]) : load(at);
#pragma GCC unroll 4
          for (int d = 0; d < C; ++d) {
            const Vec<U> z = (values[d] - means[d]) * roots[d];
            y -= z * z;
          }
          store(at, y);
          top = max<U>(y, top);
        }
      });
    }
    return top;
  }

  // Adds the moments about the means of n columns of posteriors (K, stride) and values (D, stride):
  // weight (K,), first (K, D) and second (K, D), one behind the other.  Without weight even NaN adds nothing.
  static void add_moments(int64_t K, const HmmGaussians &e, const HmmScaled<T> &s, int64_t n, const T *posteriors,
                          const T *x, int64_t stride, double *sums) {
    constexpr int W = width<T>;
    const int64_t D = e.features;
    double *firsts = sums + K, *seconds = firsts + K * D;
    for (int64_t at = 0; at < D; at += kTogether) {
      const int count = D - at < kTogether ? int(D - at) : kTogether;
      with_constant<kTogether>(count, [&](auto c) {
        constexpr int C = decltype(c)::value;
        for (int64_t k = 0; k < K; ++k) {
          const T *r = posteriors + k * stride;
          Vec<T> weight = {}, first[C] = {}, second[C] = {};
          for (int64_t i = 0; i < n; i += W) {
            const Vec<T> w = load(r + i);
            weight += w;
#pragma GCC unroll 4
            for (int d = 0; d < C; ++d) {
              const Vec<T> from = load(x + (at + d) * stride + i) - s.means[k * D + at + d];
              const Vec<T> z = w == T(0) ? Vec<T>{} : from, wz = w * z;
              first[d] += wz;
              second[d] += wz * z;
            }
          }
          if (at == 0) sums[k] += double(sum<T>(weight));
          for (int d = 0; d < C; ++d) {
            firsts[k * D + at + d] += double(sum<T>(first[d]));
            seconds[k * D + at + d] += double(sum<T>(second[d]));
          }
        }
      });
    }
  }
};

}  // namespace
}  // namespace EVIDENS_NAMESPACE
