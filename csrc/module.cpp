// evidens._C: names to kernels, nothing else.
//
// Arguments are integers (addresses, sizes, strides); shapes, dtypes and devices were checked in
// Python.  Every call releases the GIL.  Workspaces live for one call, or with a sampler that goes step
// by step; where a stem has more to do on this side than to hand its arguments on, it stands in a header
// of its own.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "hmm_maximise.h"
#include "hmm_run.h"
#include "host.h"
#include "host_checks.h"
#include "kernels.h"
#include "logistic_mixture_host.h"
#include "made_sampler.h"
#include "masked_conv_host.h"
#include "pixelcnn_sampler.h"
#include "rbm_host.h"
#include "rbm_partition_host.h"
#include "results.h"

#if defined(__x86_64__)
namespace evidens_v2 { extern const evidens::Kernels kernels; }
namespace evidens_v3 { extern const evidens::Kernels kernels; }
namespace evidens_v4 { extern const evidens::Kernels kernels; }
#else
namespace evidens_neon { extern const evidens::Kernels kernels; }
#endif

namespace py = pybind11;
namespace {

using namespace evidens;

// Levels this machine can run, lowest first.
std::vector<const Kernels *> available() {
  std::vector<const Kernels *> levels;
#if defined(__x86_64__)
  levels.push_back(&evidens_v2::kernels);
  if (__builtin_cpu_supports("x86-64-v3")) levels.push_back(&evidens_v3::kernels);
  if (__builtin_cpu_supports("x86-64-v4")) levels.push_back(&evidens_v4::kernels);
#else
  levels.push_back(&evidens_neon::kernels);
#endif
  return levels;
}

const Kernels *choose() {
  const auto levels = available();
  const char *cap = std::getenv("EVIDENS_ISA");
  if (cap == nullptr || *cap == 0) return levels.back();
  std::string names;
  for (const Kernels *level : levels) {
    if (std::strcmp(level->isa, cap) == 0) return level;
    names += std::string(names.empty() ? "" : ", ") + level->isa;
  }
  throw std::runtime_error("EVIDENS_ISA: expected one of " + names + " on this machine, got '" + cap + "'");
}

void gmm(int task, int covariance, bool is_double, int64_t rows, int64_t features, int64_t components, uintptr_t x,
         int64_t x_row, int64_t x_column, uintptr_t log_weights, uintptr_t means, uintptr_t precisions,
         uintptr_t sample_weight, uintptr_t labels, uintptr_t responsibilities, uintptr_t out, uintptr_t log_likelihood,
         uintptr_t weight, uintptr_t first, uintptr_t second) {
  const GmmParams p{rows,
                    features,
                    components,
                    covariance,
                    task,
                    at(x),
                    x_row,
                    x_column,
                    at(log_weights),
                    at(means),
                    at(precisions),
                    at(sample_weight),
                    at<int64_t>(labels),
                    at(responsibilities),
                    at(out),
                    at<double>(log_likelihood),
                    at<double>(weight),
                    at<double>(first),
                    at<double>(second)};
  const GmmKernel &kernel = kernels->gmm[is_double];
  GmmPlan plan;
  kernel.plan(p, plan);
  const double parameters =
      double(components) * double(features) * (covariance == kFull ? 0.5 * double(features) + 1 : 1);
  const int64_t workers = workers_for(double(rows) * parameters, plan.slabs);
  const int64_t packers = workers_for(parameters / 8, plan.parts);
  const int64_t adders = workers_for(parameters / 8 * double(plan.slabs), plan.parts);
  const Buffer shared = allocate(plan.shared_bytes), scratch = allocate(workers * plan.worker_bytes),
               slabs = allocate(plan.slabs * plan.slab_bytes);
  run_blocks(pool, plan.parts, packers, [&](int64_t k, int64_t) { kernel.prepare(k, p, plan, shared.get()); });
  run_blocks(pool, plan.slabs, workers, [&](int64_t slab, int64_t worker) {
    kernel.run(slab, p, plan, shared.get(), static_cast<char *>(scratch.get()) + worker * plan.worker_bytes,
               slabs.get());
  });
  if (plan.slab_bytes == 0) return;
  run_blocks(pool, plan.parts, adders, [&](int64_t k, int64_t) { kernel.finish(k, p, plan, slabs.get()); });
  kernel.combine(p, shared.get());
}

// What the kernels leave out: sequences without frames, and rows of no sequence.
void clear_unused(const HmmParams &p, size_t size, int64_t sequences) {
  int64_t frames = 0;
  for (int64_t b = 0; b < sequences; ++b) {
    frames += p.lengths[b];
    if (p.lengths[b] > 0) continue;
    p.log_likelihood[b] = 0;
    if (p.first != nullptr)
      std::memset(static_cast<char *>(p.first) + size_t(b * p.states) * size, 0, size_t(p.states) * size);
  }
  if (frames == p.rows) return;
  if (p.posteriors != nullptr) std::memset(p.posteriors, 0, size_t(p.rows * p.states) * size);
  if (p.paths != nullptr) std::fill_n(p.paths, p.rows * (p.task == kHmmDrawPaths ? p.draws : 1), -1);
}

// Adds what every call has; `redo` (B,) is 0.  False where emissions are in the way (`run_whole`).
bool run_hmm(HmmParams p, bool is_double, int64_t sequences, uint8_t *redo) {
  const std::vector<int64_t> order = by_length(sequences, p.lengths);
  p.sequences = int64_t(order.size()), p.order = order.data(), p.redo = redo;
  const HmmKernel &kernel = kernels->hmm[is_double];
  clear_unused(p, is_double ? sizeof(double) : sizeof(float), sequences);
  const bool done = is_double ? HmmChunks<double>(kernel, p).run() : HmmChunks<float>(kernel, p).run();
  return done || run_whole(kernel, p);
}

void hmm(int task, bool is_double, int64_t rows, int64_t sequences, int64_t states, uintptr_t log_obs, uintptr_t starts,
         uintptr_t lengths, uintptr_t initial, int64_t initial_stride, uintptr_t transition, uintptr_t first_transition,
         uintptr_t second_row, uintptr_t weight, uintptr_t log_likelihood, uintptr_t posteriors, uintptr_t first,
         uintptr_t second, uintptr_t paths, int64_t draws, uint64_t seed) {
  HmmParams p{};
  p.task = task, p.rows = rows, p.states = states, p.per_step = second_row != 0;
  p.log_obs = at(log_obs), p.starts = at<int64_t>(starts), p.lengths = at<int64_t>(lengths);
  p.initial = at(initial), p.initial_stride = initial_stride, p.transition = at(transition);
  p.first_transition = at<int64_t>(first_transition), p.second_row = at<int64_t>(second_row);
  p.weight = at(weight), p.log_likelihood = at<double>(log_likelihood), p.posteriors = at(posteriors);
  p.first = at(first), p.second = at(second);
  p.paths = at<int64_t>(paths), p.draws = draws, p.seed = seed;
  std::vector<uint8_t> redo(size_t(sequences), 0);
  run_hmm(p, is_double, sequences, redo.data());
}

// Derivatives in probabilities times these, over sequences with their weights: expected counts.
template <class T> void count_states(const HmmParams &p, int64_t sequences, double *starts, double *steps) {
  const int64_t K = p.states;
  const T *initial = static_cast<const T *>(p.initial), *transition = static_cast<const T *>(p.transition);
  std::fill_n(starts, K, 0.0);
  for (int64_t b = 0; b < sequences; ++b) {
    const double weight = p.weight == nullptr ? 1.0 : double(static_cast<const T *>(p.weight)[b]);
    const T *first = static_cast<const T *>(p.first) + b * K, *own = initial + b * p.initial_stride;
    for (int64_t k = 0; weight != 0 && k < K; ++k)
      if (own[k] != T(0)) starts[k] += weight * double(first[k]) * double(own[k]);
  }
  for (int64_t i = 0; i < K * K; ++i) steps[i] = transition[i] == T(0) ? 0 : steps[i] * double(transition[i]);
}

// With emissions that are computed on the way: the sequences that linear space lost, all of them where it
// is not possible.  Of these nothing is said, and they are in no sum.  `sums`, of a call that asks for it:
// (K,) first states, (K, K) steps, and the moments of `HmmGaussians`.
std::vector<int64_t> hmm_gaussian(int task, bool is_double, int64_t sequences, int64_t states, int64_t features,
                                  uintptr_t frames, uintptr_t starts, uintptr_t lengths, uintptr_t initial,
                                  int64_t initial_stride, uintptr_t transition, uintptr_t means, uintptr_t precisions,
                                  uintptr_t weight, int64_t rows, uintptr_t log_likelihood, uintptr_t posteriors,
                                  uintptr_t paths, uintptr_t sums) {
  double *counts = at<double>(sums), *steps = counts == nullptr ? nullptr : counts + states;
  const HmmGaussians gaussians{features, at(frames), at(means), at(precisions),
                               counts == nullptr ? nullptr : steps + states * states};
  const size_t size = is_double ? sizeof(double) : sizeof(float);
  const Buffer first = allocate(sequences * states * int64_t(size));
  HmmParams p{};
  p.task = task, p.rows = rows, p.states = states, p.gaussians = &gaussians;
  p.starts = at<int64_t>(starts), p.lengths = at<int64_t>(lengths);
  p.initial = at(initial), p.initial_stride = initial_stride, p.transition = at(transition), p.weight = at(weight);
  p.log_likelihood = at<double>(log_likelihood), p.posteriors = at(posteriors), p.paths = at<int64_t>(paths);
  p.first = first.get(), p.second = steps;
  std::vector<uint8_t> redo(size_t(sequences), 0);
  if (!run_hmm(p, is_double, sequences, redo.data())) std::fill(redo.begin(), redo.end(), 1);
  std::vector<int64_t> lost;
  for (int64_t b = 0; b < sequences; ++b)
    if (redo[size_t(b)]) lost.push_back(b);
  if (counts == nullptr || int64_t(lost.size()) == sequences) return lost;
  for (const int64_t b : lost)
    std::memset(static_cast<char *>(first.get()) + size_t(b * states) * size, 0, size_t(states) * size);
  if (is_double) count_states<double>(p, sequences, counts, steps);
  else count_states<float>(p, sequences, counts, steps);
  return lost;
}

// A prior is (value for all, address of one for each or 0).
using PriorOf = std::pair<double, uintptr_t>;
Prior prior_of(const PriorOf &p) { return {p.first, at<double>(p.second)}; }

void maximise_distributions(int64_t rows, int64_t columns, uintptr_t counts, const PriorOf &prior, uintptr_t old,
                            uintptr_t out) {
  maximise_rows(rows, columns, at<double>(counts), prior_of(prior), at<double>(old), at<double>(out));
}

void maximise_normal(int64_t states, int64_t features, bool spherical, bool learn_means, bool learn_variances,
                     uintptr_t weight, uintptr_t first, uintptr_t second, uintptr_t old_means, uintptr_t old_variances,
                     uintptr_t old_precisions, const PriorOf &mean_weight, const PriorOf &mean, const PriorOf &variance,
                     double variance_weight, double unvisited, double least, uintptr_t means, uintptr_t variances,
                     uintptr_t precisions, uintptr_t kept) {
  const NormalStep step{states,
                        features,
                        spherical,
                        learn_means,
                        learn_variances,
                        at<double>(weight),
                        at<double>(first),
                        at<double>(second),
                        at<double>(old_means),
                        at<double>(old_variances),
                        at<double>(old_precisions),
                        prior_of(mean_weight),
                        prior_of(mean),
                        prior_of(variance),
                        variance_weight,
                        unvisited,
                        least,
                        at<double>(means),
                        at<double>(variances),
                        at<double>(precisions),
                        at<bool>(kept)};
  step.run();
}

// A group is (values, row stride, feature stride, gradient, row stride, feature stride, count).
using Group = std::array<int64_t, 7>;
SplineGroup group(const Group &g) { return {at(uintptr_t(g[0])), g[1], g[2], at(uintptr_t(g[3])), g[4], g[5], g[6]}; }

void spline(bool backward, bool is_double, int64_t rows, int64_t features, int64_t active, uintptr_t index,
            int64_t bins, int map, bool inverse, bool per_row, bool per_feature, int first_slope, bool last_stored,
            const std::vector<int32_t> &tails, const std::vector<double> &box, const std::vector<double> &options,
            const Group &widths, const Group &heights, const Group &derivatives, uintptr_t x, uintptr_t y,
            uintptr_t logdet, uintptr_t grad_y, uintptr_t grad_logdet, uintptr_t grad_x) {
  const SplineParams p{rows,       features,      active,          at<int64_t>(index), bins,       map,
                       inverse,    per_feature,   first_slope,     last_stored,        per_row,    tails.data(),
                       box.data(), options[0],    options[1],      options[2],         options[3], options[4],
                       options[5], group(widths), group(heights),  group(derivatives), at(x),      at(y),
                       at(logdet), at(grad_y),    at(grad_logdet), at(grad_x)};
  const SplineKernel &kernel = kernels->spline[is_double];
  const int64_t chunk = std::max<int64_t>(1, 1024 / std::max<int64_t>(active, 1));
  const int64_t blocks = (rows + chunk - 1) / chunk;
  const int64_t workers = workers_for(double(rows) * double(active) * double(bins) * 8, blocks);
  const int64_t bytes = (kernel.scratch_bytes(std::min(chunk, rows), p) + 63) / 64 * 64;
  const Buffer scratch = allocate(workers * bytes);
  const auto run = backward ? kernel.backward : kernel.forward;
  run_blocks(pool, blocks, workers, [&](int64_t i, int64_t worker) {
    run(i * chunk, std::min(rows, (i + 1) * chunk), p, static_cast<char *>(scratch.get()) + worker * bytes);
  });
}

// 0, or the place (from 1) in `active` of an index that is out of range or repeats another.
int64_t coupling(bool backward, bool is_double, int64_t rows, int64_t features, int64_t active_features, int64_t places,
                 int map, bool inverse, double clamp, uintptr_t active, uintptr_t x, int64_t x_row, uintptr_t scale,
                 int64_t scale_row, int64_t scale_channel, uintptr_t shift, int64_t shift_row, int64_t shift_channel,
                 uintptr_t y, uintptr_t logdet, uintptr_t grad_y, int64_t grad_y_row, uintptr_t grad_logdet,
                 int64_t grad_logdet_row, uintptr_t grad_x, uintptr_t grad_scale, uintptr_t grad_shift) {
  const CouplingParams p{rows,
                         features,
                         active_features,
                         places,
                         map,
                         inverse,
                         clamp,
                         at<int64_t>(active),
                         at(x),
                         x_row,
                         at(scale),
                         scale_row,
                         scale_channel,
                         at(shift),
                         shift_row,
                         shift_channel,
                         at(y),
                         at(logdet),
                         at(grad_y),
                         grad_y_row,
                         at(grad_logdet),
                         grad_logdet_row,
                         at(grad_x),
                         at(grad_scale),
                         at(grad_shift)};
  const CouplingKernel &kernel = kernels->coupling[is_double];
  CouplingPlan plan;
  kernel.plan(p, plan);
  const Buffer shared = allocate(plan.shared_bytes);
  const int64_t bad = kernel.prepare(p, plan, shared.get());
  if (bad != 0 || rows == 0) return bad;
  const double work = double(rows) * double(places) * (double(features) + 16 * double(active_features));
  const int64_t workers = workers_for(work, plan.units);
  const Buffer scratch = allocate(workers * plan.worker_bytes);
  const auto run = backward ? kernel.backward : kernel.forward;
  run_blocks(pool, plan.units, workers, [&](int64_t unit, int64_t worker) {
    run(unit, p, plan, shared.get(), static_cast<char *>(scratch.get()) + worker * plan.worker_bytes);
  });
  if (!backward) kernel.finish(p, plan, shared.get());
  return 0;
}

void actnorm(bool backward, bool is_double, int64_t rows, int64_t channels, int64_t places, bool inverse, uintptr_t x,
             int64_t x_row, uintptr_t log_scale, uintptr_t shift, uintptr_t y, uintptr_t logdet, uintptr_t grad_y,
             int64_t grad_y_row, uintptr_t grad_x, uintptr_t grad_log_scale, uintptr_t grad_shift) {
  const ActNormParams p{rows,          channels,           places,        inverse,    at(x),      x_row,
                        at(log_scale), at(shift),          at(y),         at(logdet), at(grad_y), grad_y_row,
                        at(grad_x),    at(grad_log_scale), at(grad_shift)};
  const ActNormKernel &kernel = kernels->actnorm[is_double];
  ActNormPlan plan;
  kernel.plan(p, plan);
  const Buffer shared = allocate(plan.shared_bytes);
  kernel.prepare(p, plan, shared.get());
  const int64_t workers = workers_for(double(rows) * double(channels) * double(places) * 4, plan.units);
  const auto run = backward ? kernel.backward : kernel.forward;
  run_blocks(pool, plan.units, workers, [&](int64_t unit, int64_t) { run(unit, p, plan, shared.get()); });
  if (backward) kernel.finish(p, plan, shared.get());
}

void philox_uniform(uint64_t seed, uint32_t step, int64_t row_offset, int64_t rows, int64_t columns, bool is_double,
                    uintptr_t out) {
  const PhiloxParams p{seed, step, row_offset, rows, columns, is_double, at(out)};
  const int64_t chunk = std::max<int64_t>(1, 65536 / std::max<int64_t>(columns, 1));
  const int64_t blocks = (rows + chunk - 1) / chunk;
  run_blocks(pool, blocks, workers_for(double(rows) * double(columns) * 8, blocks),
             [&](int64_t i, int64_t) { kernels->philox_uniform(i * chunk, std::min(rows, (i + 1) * chunk), p); });
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  kernels = choose();
  m.doc() = "Compiled kernels of evidens; addresses and sizes in, nothing checked. Use evidens.ops.";
  m.attr("isa") = kernels->isa;
  std::vector<std::string> levels;
  for (const Kernels *level : available()) levels.push_back(level->isa);
  m.attr("isa_available") = levels;
  m.attr("compiler") = __VERSION__;

  m.def(
      "set_pool",
      [](uintptr_t parallel_for, uintptr_t num_threads) {
        pool.parallel_for = reinterpret_cast<ParallelFor>(parallel_for);
        pool.num_threads = reinterpret_cast<int (*)(uint32_t *)>(num_threads);
      },
      py::arg("parallel_for"), py::arg("num_threads"));
  py::class_<Result>(m, "Result", py::buffer_protocol())
      .def(py::init<int64_t>(), py::arg("bytes"))
      .def_buffer([](const Result &r) {
        return py::buffer_info(static_cast<uint8_t *>(r.block.at), py::ssize_t(r.bytes), false);
      });
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def("gmm", &gmm, release, py::arg("task"), py::arg("covariance"), py::arg("is_double"), py::arg("rows"),
        py::arg("features"), py::arg("components"), py::arg("x"), py::arg("x_row"), py::arg("x_column"),
        py::arg("log_weights"), py::arg("means"), py::arg("precisions"), py::arg("sample_weight"), py::arg("labels"),
        py::arg("responsibilities"), py::arg("out"), py::arg("log_likelihood"), py::arg("weight"), py::arg("first"),
        py::arg("second"));
  m.def("hmm", &hmm, release, py::arg("task"), py::arg("is_double"), py::arg("rows"), py::arg("sequences"),
        py::arg("states"), py::arg("log_obs"), py::arg("starts"), py::arg("lengths"), py::arg("initial"),
        py::arg("initial_stride"), py::arg("transition"), py::arg("first_transition"), py::arg("second_row"),
        py::arg("weight"), py::arg("log_likelihood"), py::arg("posteriors"), py::arg("first"), py::arg("second"),
        py::arg("paths"), py::arg("draws"), py::arg("seed"));
  m.def("hmm_gaussian", &hmm_gaussian, release, py::arg("task"), py::arg("is_double"), py::arg("sequences"),
        py::arg("states"), py::arg("features"), py::arg("frames"), py::arg("starts"), py::arg("lengths"),
        py::arg("initial"), py::arg("initial_stride"), py::arg("transition"), py::arg("means"), py::arg("precisions"),
        py::arg("weight"), py::arg("rows"), py::arg("log_likelihood"), py::arg("posteriors"), py::arg("paths"),
        py::arg("sums"));
  m.def("maximise_distributions", &maximise_distributions, release, py::arg("rows"), py::arg("columns"),
        py::arg("counts"), py::arg("prior"), py::arg("old"), py::arg("out"));
  m.def("maximise_normal", &maximise_normal, release, py::arg("states"), py::arg("features"), py::arg("spherical"),
        py::arg("learn_means"), py::arg("learn_variances"), py::arg("weight"), py::arg("first"), py::arg("second"),
        py::arg("old_means"), py::arg("old_variances"), py::arg("old_precisions"), py::arg("mean_weight"),
        py::arg("mean"), py::arg("variance"), py::arg("variance_weight"), py::arg("unvisited"), py::arg("least"),
        py::arg("means"), py::arg("variances"), py::arg("precisions"), py::arg("kept"));
  m.def("all_finite", &all_finite, release, py::arg("arrays"));
  m.def("first_bad_index", &first_bad_index, py::arg("indices"), py::arg("count"), py::arg("bound"));
  m.def("spline", &spline, release, py::arg("backward"), py::arg("is_double"), py::arg("rows"), py::arg("features"),
        py::arg("active"), py::arg("index"), py::arg("bins"), py::arg("map"), py::arg("inverse"), py::arg("per_row"),
        py::arg("per_feature"), py::arg("first_slope"), py::arg("last_stored"), py::arg("tails"), py::arg("box"),
        py::arg("options"), py::arg("widths"), py::arg("heights"), py::arg("derivatives"), py::arg("x"), py::arg("y"),
        py::arg("logdet"), py::arg("grad_y"), py::arg("grad_logdet"), py::arg("grad_x"));
  m.def("coupling", &coupling, release, py::arg("backward"), py::arg("is_double"), py::arg("rows"), py::arg("features"),
        py::arg("active_features"), py::arg("places"), py::arg("map"), py::arg("inverse"), py::arg("clamp"),
        py::arg("active"), py::arg("x"), py::arg("x_row"), py::arg("scale"), py::arg("scale_row"),
        py::arg("scale_channel"), py::arg("shift"), py::arg("shift_row"), py::arg("shift_channel"), py::arg("y"),
        py::arg("logdet"), py::arg("grad_y"), py::arg("grad_y_row"), py::arg("grad_logdet"), py::arg("grad_logdet_row"),
        py::arg("grad_x"), py::arg("grad_scale"), py::arg("grad_shift"));
  m.def("actnorm", &actnorm, release, py::arg("backward"), py::arg("is_double"), py::arg("rows"), py::arg("channels"),
        py::arg("places"), py::arg("inverse"), py::arg("x"), py::arg("x_row"), py::arg("log_scale"), py::arg("shift"),
        py::arg("y"), py::arg("logdet"), py::arg("grad_y"), py::arg("grad_y_row"), py::arg("grad_x"),
        py::arg("grad_log_scale"), py::arg("grad_shift"));
  m.def("masked_conv", &masked_conv, release, py::arg("backward"), py::arg("is_double"), py::arg("images"),
        py::arg("height"), py::arg("width"), py::arg("in_channels"), py::arg("out_channels"), py::arg("down"),
        py::arg("across"), py::arg("taps"), py::arg("groups"), py::arg("strict"), py::arg("x"), py::arg("weight"),
        py::arg("bias"), py::arg("y"), py::arg("grad_x"), py::arg("grad_weight"), py::arg("grad_bias"));
  m.def("masked_linear", &masked_linear, release, py::arg("backward"), py::arg("is_double"), py::arg("rows"),
        py::arg("inputs"), py::arg("outputs"), py::arg("in_degrees"), py::arg("out_degrees"), py::arg("in_order"),
        py::arg("out_order"), py::arg("strict"), py::arg("x"), py::arg("x_row"), py::arg("weight"), py::arg("bias"),
        py::arg("y"), py::arg("y_row"), py::arg("grad_x"), py::arg("grad_weight"), py::arg("grad_bias"));
  using Integers = std::vector<int64_t>;
  using Addresses = std::vector<uintptr_t>;
  using Numbers = std::vector<double>;
  py::class_<MadeSampler>(m, "MadeSampler")
      .def(py::init<bool, int64_t, int64_t, int64_t, int64_t, int64_t, double, double, int, int, int, bool, double,
                    const std::vector<Matrix> &, const Addresses &, const Addresses &, const Integers &, uintptr_t,
                    uintptr_t, int64_t, uintptr_t, uintptr_t, int64_t, int, bool, bool, int64_t,
                    const std::vector<int32_t> &, const Numbers &, const Numbers &, uintptr_t, uintptr_t, uintptr_t>(),
           release, py::arg("is_double"), py::arg("rows"), py::arg("features"), py::arg("parameters"), py::arg("draws"),
           py::arg("levels"), py::arg("input_scale"), py::arg("input_shift"), py::arg("kind"), py::arg("activation"),
           py::arg("map"), py::arg("inverse"), py::arg("clamp"), py::arg("weights"), py::arg("biases"),
           py::arg("degrees"), py::arg("sizes"), py::arg("noise"), py::arg("context"), py::arg("context_units"),
           py::arg("known"), py::arg("values"), py::arg("bins"), py::arg("spline_map"), py::arg("first_slope"),
           py::arg("last_stored"), py::arg("derivatives"), py::arg("tails"), py::arg("box"), py::arg("options"),
           py::arg("x"), py::arg("logdet"), py::arg("given"))
      .def("draw", &MadeSampler::draw, release)
      .def("step", &MadeSampler::step, release)
      .def("copy", &MadeSampler::copy, release, py::arg("known"), py::arg("values"), py::arg("x"), py::arg("logdet"),
           py::arg("given"));
  py::class_<PixelSampler>(m, "PixelSampler")
      .def(py::init<bool, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, bool, double,
                    double, double, const std::vector<Node> &, const std::string &, uintptr_t, uintptr_t, uintptr_t,
                    uintptr_t, uintptr_t>(),
           release, py::arg("is_double"), py::arg("images"), py::arg("channels"), py::arg("height"), py::arg("width"),
           py::arg("groups"), py::arg("levels"), py::arg("draws"), py::arg("mixtures"), py::arg("kind"),
           py::arg("one_hot"), py::arg("input_scale"), py::arg("input_shift"), py::arg("min_log_scale"),
           py::arg("nodes"), py::arg("taps"), py::arg("noise"), py::arg("known"), py::arg("values"), py::arg("x"),
           py::arg("given"))
      .def("draw", &PixelSampler::draw, release)
      .def("step", &PixelSampler::step, release)
      .def("copy", &PixelSampler::copy, release, py::arg("known"), py::arg("values"), py::arg("x"), py::arg("given"));
  m.def("logistic_mixture", &logistic_mixture, release, py::arg("backward"), py::arg("is_double"), py::arg("rows"),
        py::arg("places"), py::arg("mixtures"), py::arg("channels"), py::arg("levels"), py::arg("min_log_scale"),
        py::arg("params"), py::arg("x"), py::arg("log_prob"), py::arg("grad"), py::arg("grad_params"));
  m.def("logistic_mixture_sample", &logistic_mixture_sample, release, py::arg("is_double"), py::arg("rows"),
        py::arg("places"), py::arg("mixtures"), py::arg("channels"), py::arg("levels"), py::arg("min_log_scale"),
        py::arg("params"), py::arg("seed"), py::arg("row0"), py::arg("step0"), py::arg("x"));
  m.def("rbm_gibbs", &rbm_gibbs, release, py::arg("is_double"), py::arg("rows"), py::arg("visible"), py::arg("hidden"),
        py::arg("visible_kind"), py::arg("hidden_kind"), py::arg("levels"), py::arg("weight"), py::arg("visible_bias"),
        py::arg("hidden_bias"), py::arg("precision"), py::arg("scale"), py::arg("beta"), py::arg("state"),
        py::arg("state_row"), py::arg("from_hidden"), py::arg("clamped"), py::arg("clamped_row"), py::arg("values"),
        py::arg("values_row"), py::arg("steps"), py::arg("step0"), py::arg("row0"), py::arg("seed"), py::arg("new_v"),
        py::arg("new_h"), py::arg("v_mean"), py::arg("h_mean"));
  m.def("rbm_free_energy", &rbm_free_energy, release, py::arg("is_double"), py::arg("rows"), py::arg("visible"),
        py::arg("hidden"), py::arg("hidden_kind"), py::arg("weight"), py::arg("visible_bias"), py::arg("hidden_bias"),
        py::arg("precision"), py::arg("beta"), py::arg("v"), py::arg("v_row"), py::arg("out"));
  m.def("rbm_statistics", &rbm_statistics, release, py::arg("is_double"), py::arg("rows"), py::arg("visible"),
        py::arg("hidden"), py::arg("hidden_kind"), py::arg("weight"), py::arg("hidden_bias"), py::arg("precision"),
        py::arg("v"), py::arg("v_row"), py::arg("means_given"), py::arg("h_mean"), py::arg("h_row"),
        py::arg("sample_weight"), py::arg("minus_rows"), py::arg("minus_v"), py::arg("minus_v_row"),
        py::arg("minus_h_mean"), py::arg("minus_h_row"), py::arg("minus_weight"), py::arg("centre"),
        py::arg("sum_weight"), py::arg("sum_v"), py::arg("sum_h"), py::arg("square"));
  m.def("rbm_pcd", &rbm_pcd, release, py::arg("is_double"), py::arg("rows"), py::arg("chains"), py::arg("visible"),
        py::arg("hidden"), py::arg("visible_kind"), py::arg("hidden_kind"), py::arg("levels"), py::arg("weight"),
        py::arg("visible_bias"), py::arg("hidden_bias"), py::arg("precision"), py::arg("scale"), py::arg("v"),
        py::arg("v_row"), py::arg("h"), py::arg("h_row"), py::arg("sample_weight"), py::arg("minus_weight"),
        py::arg("steps"), py::arg("step0"), py::arg("row0"), py::arg("seed"), py::arg("new_h"), py::arg("h_mean"),
        py::arg("sum_weight"), py::arg("sum_v"), py::arg("sum_h"), py::arg("square"));
  m.def("rbm_ais", &rbm_ais, release, py::arg("is_double"), py::arg("chains"), py::arg("visible"), py::arg("hidden"),
        py::arg("visible_kind"), py::arg("levels"), py::arg("weight"), py::arg("visible_bias"), py::arg("hidden_bias"),
        py::arg("base_bias"), py::arg("rungs"), py::arg("beta"), py::arg("seed"), py::arg("row0"),
        py::arg("log_weights"));
  m.def("rbm_exact_log_partition", &rbm_exact_log_partition, release, py::arg("visible"), py::arg("hidden"),
        py::arg("levels"), py::arg("weight"), py::arg("visible_bias"), py::arg("hidden_bias"));
  m.def("philox_uniform", &philox_uniform, release, py::arg("seed"), py::arg("step"), py::arg("row_offset"),
        py::arg("rows"), py::arg("columns"), py::arg("is_double"), py::arg("out"));
  m.def(
      "vector_math",
      [](int function, bool is_double, int64_t n, uintptr_t x, uintptr_t y) {
        kernels->vector_math(function, is_double, n, at(x), at(y));
      },
      release, py::arg("function"), py::arg("is_double"), py::arg("n"), py::arg("x"), py::arg("y"));
}
