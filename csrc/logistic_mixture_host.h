// Logistic mixtures, the host's side: phases of a call.
#pragma once
#include <array>
#include <vector>

#include "host.h"
#include "kernels.h"

namespace evidens {

// -1, or the first place of x that is no level, as (n S + s) C + c.
inline int64_t logistic_mixture(bool backward, bool is_double, int64_t rows, int64_t places, int64_t mixtures,
                                int channels, int levels, double min_log_scale, const Planes &params, const Planes &x,
                                uintptr_t log_prob, uintptr_t grad, const Planes &grad_params) {
  const LogisticMixtureKernel &kernel = kernels->logistic_mixture[is_double];
  LogisticMixtureParams p{rows,
                          places,
                          mixtures,
                          channels,
                          levels,
                          min_log_scale,
                          at(uintptr_t(params[0])),
                          params[1],
                          params[2],
                          params[3],
                          at(uintptr_t(x[0])),
                          x[1],
                          x[2],
                          x[3],
                          at(log_prob),
                          nullptr,
                          at(grad),
                          at(uintptr_t(grad_params[0])),
                          grad_params[1],
                          grad_params[2],
                          grad_params[3]};
  LogisticMixturePlan plan;
  kernel.plan(p, plan);
  std::vector<int64_t> bad(size_t(backward ? 0 : plan.units), -1);
  p.bad = bad.data();
  const double work = double(rows) * double(places) * double(mixtures) * (channels == 1 ? 100 : 330);
  const int64_t workers = workers_for(work, plan.units);
  const Buffer scratch = allocate(workers * plan.worker_bytes);
  const auto run = backward ? kernel.backward : kernel.forward;
  run_blocks(pool, plan.units, workers, [&](int64_t unit, int64_t worker) {
    run(unit, p, plan, static_cast<char *>(scratch.get()) + worker * plan.worker_bytes);
  });
  for (const int64_t place : bad)
    if (place >= 0) return place;
  return -1;
}

inline void logistic_mixture_sample(bool is_double, int64_t rows, int64_t places, int64_t mixtures, int channels,
                                    int levels, double min_log_scale, const Planes &params, uint64_t seed, int64_t row0,
                                    uint32_t step0, uintptr_t x) {
  const LogisticMixtureKernel &kernel = kernels->logistic_mixture[is_double];
  LogisticMixtureParams p{};
  p.rows = rows, p.places = places, p.mixtures = mixtures, p.channels = channels, p.levels = levels;
  p.min_log_scale = min_log_scale;
  p.params = at(uintptr_t(params[0])), p.row = params[1], p.plane = params[2], p.place = params[3];
  const LogisticMixtureDraws draws{seed, row0, step0, at<int64_t>(x)};
  const int64_t chunk = 256, pixels = rows * places, units = (pixels + chunk - 1) / chunk;
  const int64_t workers = workers_for(double(pixels) * double(mixtures + 16) * 16, units);
  const int64_t bytes = (kernel.sample_bytes(p) + 63) / 64 * 64;
  const Buffer scratch = allocate(workers * bytes);
  run_blocks(pool, units, workers, [&](int64_t i, int64_t worker) {
    kernel.sample(i * chunk, std::min(pixels, (i + 1) * chunk), p, draws,
                  static_cast<char *>(scratch.get()) + worker * bytes);
  });
}

}  // namespace evidens
