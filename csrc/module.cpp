// evidens._C: names to kernels, nothing else.
//
// Arguments are integers (addresses, sizes, strides); shapes, dtypes and devices were checked in
// Python.  Every call releases the GIL.  Workspaces are allocated here and live for one call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "hmm_run.h"
#include "host.h"
#include "kernels.h"
#include "made_schedule.h"
#include "parallel.h"
#include "pixelcnn_schedule.h"

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

const Kernels *kernels = nullptr;  // set once at load
// Large results are written once and whole: with huge pages the kernel clears them several times
// faster than page by page, which costs as much as filling them.
void expect_whole(uintptr_t address, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = uintptr_t(1) << 21;
  const uintptr_t begin = (address + page - 1) / page * page, end = (address + uintptr_t(bytes)) / page * page;
  if (end > begin) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)address, (void)bytes;
#endif
}

template <class T = void> T *at(uintptr_t address) { return reinterpret_cast<T *>(address); }

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

void hmm(int task, bool is_double, int64_t rows, int64_t sequences, int64_t states, uintptr_t log_obs, uintptr_t starts,
         uintptr_t lengths, uintptr_t initial, int64_t initial_stride, uintptr_t transition, uintptr_t first_transition,
         uintptr_t second_row, uintptr_t weight, uintptr_t log_likelihood, uintptr_t posteriors, uintptr_t first,
         uintptr_t second, uintptr_t paths, int64_t draws, uint64_t seed) {
  const std::vector<int64_t> order = by_length(sequences, at<int64_t>(lengths));
  std::vector<uint8_t> redo(size_t(sequences), 0);
  const HmmParams p{rows,
                    int64_t(order.size()),
                    states,
                    task,
                    second_row != 0,
                    at(log_obs),
                    order.data(),
                    at<int64_t>(starts),
                    at<int64_t>(lengths),
                    at(initial),
                    initial_stride,
                    at(transition),
                    at<int64_t>(first_transition),
                    at<int64_t>(second_row),
                    at(weight),
                    at<double>(log_likelihood),
                    at(posteriors),
                    at(first),
                    at(second),
                    nullptr,
                    nullptr,
                    at<int64_t>(paths),
                    draws,
                    seed,
                    redo.data()};
  const HmmKernel &kernel = kernels->hmm[is_double];
  clear_unused(p, is_double ? sizeof(double) : sizeof(float), sequences);
  const bool done = is_double ? HmmChunks<double>(kernel, p).run() : HmmChunks<float>(kernel, p).run();
  if (!done) run_whole(kernel, p);
}

// The first position of (count,) indices that lies outside [0, bound) or repeats another; -1: none.
int64_t first_bad_index(uintptr_t indices, int64_t count, int64_t bound) {
  std::vector<bool> seen(size_t(std::max<int64_t>(bound, 0)));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t index = at<int64_t>(indices)[i];
    if (index < 0 || index >= bound || seen[size_t(index)]) return i;
    seen[size_t(index)] = true;
  }
  return -1;
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

// (address, stride of images, of channels, of places)
using Planes = std::array<int64_t, 4>;
MaskedConvPlanes planes(const Planes &p) { return {at(uintptr_t(p[0])), p[1], p[2], p[3]}; }

void run_masked_conv(bool backward, bool is_double, const MaskedConvParams &p) {
  if (p.images == 0 || p.height == 0 || p.width == 0) return;
  const MaskedConvKernel &kernel = kernels->masked_conv[is_double];
  MaskedConvPlan plan;
  kernel.plan(backward, p, plan);
  const double weights = double(p.taps) * double(p.in_channels) * double(p.out_channels);
  const double work = (weights + 64) * double(p.images) * double(p.height) * double(p.width);
  const int64_t workers = workers_for(work, plan.units), packers = workers_for(weights * 4, plan.parts);
  const Buffer shared = allocate(plan.shared_bytes), scratch = allocate(workers * plan.worker_bytes),
               slabs = allocate(plan.slab_bytes * plan.slabs);
  run_blocks(pool, plan.parts, packers,
             [&](int64_t part, int64_t) { kernel.prepare(backward, part, p, plan, shared.get()); });
  run_blocks(pool, plan.units, workers, [&](int64_t unit, int64_t worker) {
    void *own = static_cast<char *>(scratch.get()) + worker * plan.worker_bytes;
    if (backward) kernel.backward(unit, p, plan, shared.get(), own, slabs.get());
    else kernel.forward(unit, p, plan, shared.get(), own);
  });
  if (plan.slab_bytes > 0)
    run_blocks(pool, plan.parts, packers, [&](int64_t part, int64_t) { kernel.finish(part, p, plan, slabs.get()); });
}

// `taps` are places of a kernel of `across` columns; groups of channels follow each other.
void masked_conv(bool backward, bool is_double, int64_t images, int64_t height, int64_t width, int64_t in_channels,
                 int64_t out_channels, int64_t down, int64_t across, const std::vector<int64_t> &taps, int64_t groups,
                 bool strict, const Planes &x, uintptr_t weight, uintptr_t bias, const Planes &y, const Planes &grad_x,
                 uintptr_t grad_weight, uintptr_t grad_bias) {
  std::vector<int64_t> live(size_t(down * across), -1), dy, dx, in_key, out_key;
  int64_t centre = -1;
  for (int64_t tap : taps) {
    const int64_t y_step = tap / across - down / 2, x_step = tap % across - across / 2;
    // One that reads nothing but padding is as good as dead.
    if (std::abs(y_step) >= height || std::abs(x_step) >= width) continue;
    if (groups > 1 && tap == down * across / 2) centre = int64_t(dy.size());
    live[size_t(tap)] = int64_t(dy.size());
    dy.push_back(y_step);
    dx.push_back(x_step);
  }
  if (centre >= 0) {
    for (int64_t c = 0; c < in_channels; ++c) in_key.push_back(c / (in_channels / groups) + strict);
    for (int64_t o = 0; o < out_channels; ++o) out_key.push_back(o / (out_channels / groups));
  }
  const MaskedConvParams p{images,
                           height,
                           width,
                           in_channels,
                           out_channels,
                           down * across,
                           int64_t(dy.size()),
                           live.data(),
                           dy.data(),
                           dx.data(),
                           centre,
                           in_key.data(),
                           out_key.data(),
                           nullptr,
                           nullptr,
                           nullptr,
                           planes(x),
                           at(weight),
                           at(bias),
                           backward ? MaskedConvPlanes{} : planes(y),
                           backward ? planes(y) : MaskedConvPlanes{},
                           planes(grad_x),
                           at(grad_weight),
                           at(grad_bias)};
  run_masked_conv(backward, is_double, p);
}

// The degrees in the order given, which must be one of all of them and make them rise; empty if not.
std::vector<int64_t> sorted_degrees(const int64_t *degrees, const std::vector<int64_t> &order) {
  std::vector<int64_t> sorted;
  std::vector<bool> seen(order.size());
  for (int64_t i : order) {
    if (i < 0 || i >= int64_t(order.size()) || seen[size_t(i)]) return {};
    seen[size_t(i)] = true;
    sorted.push_back(degrees[i]);
    if (sorted.size() > 1 && sorted[sorted.size() - 2] > sorted.back()) return {};
  }
  return sorted;
}

// 0, or 1 or 2 where the input's or the output's degrees do not rise in their order (null: their own).
int64_t masked_linear(bool backward, bool is_double, int64_t rows, int64_t inputs, int64_t outputs,
                      uintptr_t in_degrees, uintptr_t out_degrees, uintptr_t in_order, uintptr_t out_order, bool strict,
                      uintptr_t x, int64_t x_row, uintptr_t weight, uintptr_t bias, uintptr_t y, int64_t y_row,
                      uintptr_t grad_x, uintptr_t grad_weight, uintptr_t grad_bias) {
  // Copies, so that whoever writes to the tensors meanwhile changes no address.
  auto copied = [](uintptr_t order, int64_t count) {
    std::vector<int64_t> v(size_t(count), 0);
    if (order == 0) std::iota(v.begin(), v.end(), 0);
    else std::copy_n(at<int64_t>(order), count, v.begin());
    return v;
  };
  const std::vector<int64_t> ins = copied(in_order, inputs), outs = copied(out_order, outputs);
  std::vector<int64_t> in_key = sorted_degrees(at<int64_t>(in_degrees), ins);
  std::vector<int64_t> out_key = sorted_degrees(at<int64_t>(out_degrees), outs);
  if (int64_t(in_key.size()) != inputs) return 1;
  if (int64_t(out_key.size()) != outputs) return 2;
  // Keys are places among the outputs, so that no degree can overflow.
  int64_t first = 0;
  for (int64_t &key : in_key) {
    while (first < outputs && (strict ? out_key[size_t(first)] <= key : out_key[size_t(first)] < key)) ++first;
    key = first;
  }
  std::iota(out_key.begin(), out_key.end(), 0);
  std::vector<int64_t> ranks(ins.size());
  for (size_t i = 0; i < ins.size(); ++i) ranks[size_t(ins[i])] = int64_t(i);
  const int64_t none = 0;
  const MaskedConvPlanes result = {at(y), 0, 1, y_row};
  const MaskedConvParams p{1,
                           rows,
                           1,
                           inputs,
                           outputs,
                           1,
                           1,
                           &none,
                           &none,
                           &none,
                           0,
                           in_key.data(),
                           out_key.data(),
                           in_order == 0 ? nullptr : ins.data(),
                           in_order == 0 ? nullptr : ranks.data(),
                           out_order == 0 ? nullptr : outs.data(),
                           {at(x), 0, 1, x_row},
                           at(weight),
                           at(bias),
                           backward ? MaskedConvPlanes{} : result,
                           backward ? result : MaskedConvPlanes{},
                           {at(grad_x), 0, 1, inputs},
                           at(grad_weight),
                           at(grad_bias)};
  run_masked_conv(backward, is_double, p);
  return 0;
}

// A matrix is (address, row stride).
using Matrix = std::array<int64_t, 2>;

void made_sample(bool is_double, int64_t rows, int64_t features, int64_t parameters, int64_t draws, int64_t levels,
                 double input_scale, double input_shift, int kind, int activation, int map, bool inverse, double clamp,
                 const std::vector<Matrix> &weights, const std::vector<uintptr_t> &biases,
                 const std::vector<uintptr_t> &degrees, const std::vector<int64_t> &sizes, uintptr_t noise,
                 uintptr_t context, int64_t context_units, uintptr_t known, uintptr_t values, int64_t bins,
                 int spline_map, bool first_slope, bool last_stored, int64_t derivatives,
                 const std::vector<int32_t> &tails, const std::vector<double> &box, const std::vector<double> &options,
                 uintptr_t x, uintptr_t logdet) {
  const MadeKernel &kernel = kernels->made[is_double];
  std::vector<const int64_t *> degree;
  for (uintptr_t address : degrees) degree.push_back(at<int64_t>(address));
  const MadeSchedule schedule(degree, sizes, std::max<int64_t>(levels, 1), parameters, kernel.tile_rows);
  std::vector<MadeLayer> layers;
  for (size_t l = 0; l < weights.size() && features > 0; ++l) {
    const auto &units = schedule.levels[l + 1].number, &below = schedule.levels[l].number;
    layers.push_back({at(uintptr_t(weights[l][0])), weights[l][1], at(biases[l]), units.data(), below.data(),
                      int64_t(units.size()), int64_t(below.size())});
  }
  SplineParams spline = {};
  spline.bins = bins, spline.map = spline_map, spline.mixed = tails.size() > 1;
  spline.first_slope = first_slope, spline.last_stored = last_stored;
  spline.tails = tails.data(), spline.box = box.data();
  spline.min_width = options[0], spline.min_height = options[1], spline.min_derivative = options[2];
  spline.beta = options[3], spline.log_slope = options[4], spline.logit_scale = options[5];
  spline.widths.count = spline.heights.count = bins, spline.derivatives.count = derivatives;
  const int64_t element = is_double ? sizeof(double) : sizeof(float);
  const Buffer packed = allocate(schedule.packed * element);
  const MadeParams p{rows,
                     features,
                     parameters,
                     draws,
                     levels,
                     input_scale,
                     input_shift,
                     kind,
                     activation,
                     map,
                     inverse,
                     clamp,
                     &spline,
                     int64_t(layers.size()),
                     layers.data(),
                     schedule.jobs.data(),
                     int64_t(schedule.jobs.size()),
                     schedule.held,
                     schedule.order.data(),
                     context_units,
                     at(noise),
                     at(context),
                     at<uint8_t>(known),
                     at(values),
                     packed.get(),
                     at(x),
                     at(logdet)};
  // Rows do not meet, so that blocks may be cut by the number of threads.
  const int64_t workers = workers_for(double(rows) * double(schedule.packed), rows);
  const int64_t share = (rows + workers - 1) / std::max<int64_t>(workers, 1);
  const int64_t block = std::min<int64_t>(kernel.lanes, (share + kernel.width - 1) / kernel.width * kernel.width);
  const int64_t blocks = block == 0 ? 0 : (rows + block - 1) / block, part = 256;
  const int64_t parts = blocks == 0 ? 0 : (p.jobs + part - 1) / part;
  run_blocks(pool, parts, workers_for(double(schedule.packed) * 8, parts),
             [&](int64_t i, int64_t) { kernel.pack(i * part, std::min(p.jobs, (i + 1) * part), p); });
  const int64_t bytes = (kernel.scratch_bytes(p) + 63) / 64 * 64;
  const Buffer scratch = allocate(std::min(workers, blocks) * bytes);
  run_blocks(pool, blocks, std::min(workers, blocks), [&](int64_t i, int64_t worker) {
    kernel.run(i * block, std::min(rows, (i + 1) * block), p, static_cast<char *>(scratch.get()) + worker * bytes);
  });
}

// A node is (weight, bias, context, outputs, height, width, first tap, source, add, activation, strict,
// ahead).
using Node = std::array<int64_t, 12>;

void pixelcnn_sample(bool is_double, int64_t images, int64_t channels, int64_t height, int64_t width, int64_t groups,
                     int64_t levels, int64_t draws, int64_t mixtures, int kind, bool one_hot, double input_scale,
                     double input_shift, double min_log_scale, const std::vector<Node> &nodes, const std::string &taps,
                     uintptr_t noise, uintptr_t known, uintptr_t values, uintptr_t x) {
  const PixelKernel &kernel = kernels->pixelcnn[is_double];
  std::vector<PixelSchedule::Layer> layers;
  for (const Node &n : nodes)
    layers.push_back({at(uintptr_t(n[0])), at(uintptr_t(n[1])), at(uintptr_t(n[2])), n[3], n[4], n[5],
                      taps.data() + n[6], int32_t(n[7]), int32_t(n[8]), int32_t(n[9]), n[10] != 0, n[11] != 0});
  const PixelSchedule schedule(layers, one_hot ? channels * levels : channels, groups, kernel.width);
  const int64_t element = is_double ? sizeof(double) : sizeof(float), count = schedule.packed * kernel.width;
  const Buffer packed = allocate(count * element);
  const PixelParams p{images,
                      channels,
                      height,
                      width,
                      groups,
                      levels,
                      draws,
                      mixtures,
                      kind,
                      one_hot,
                      input_scale,
                      input_shift,
                      min_log_scale,
                      schedule.nodes.data(),
                      schedule.values.data(),
                      int64_t(schedule.nodes.size()),
                      schedule.parts.data(),
                      schedule.runs.data(),
                      int64_t(schedule.parts.size()),
                      int64_t(schedule.runs.size()),
                      at(noise),
                      at<uint8_t>(known),
                      at<int64_t>(values),
                      packed.get(),
                      at<int64_t>(x)};
  if (images * height * width == 0) return;
  // Images do not meet, so that blocks may be cut by the number of threads.
  const int64_t workers = workers_for(double(images * height * width) * double(count), images), most = 48;
  const int64_t block = std::min(most, (images + workers - 1) / workers), blocks = (images + block - 1) / block;
  run_blocks(pool, p.parts, workers_for(double(count) * 8, p.parts),
             [&](int64_t i, int64_t) { kernel.pack(i, i + 1, p); });
  const int64_t bytes = (kernel.scratch_bytes(block, p) + 63) / 64 * 64;
  const Buffer scratch = allocate(std::min(workers, blocks) * bytes);
  run_blocks(pool, blocks, std::min(workers, blocks), [&](int64_t i, int64_t worker) {
    kernel.run(i * block, std::min(images, (i + 1) * block), p, static_cast<char *>(scratch.get()) + worker * bytes);
  });
}

// -1, or the first place of x that is no level, as (n S + s) C + c.
int64_t logistic_mixture(bool backward, bool is_double, int64_t rows, int64_t places, int64_t mixtures, int channels,
                         int levels, double min_log_scale, const Planes &params, const Planes &x, uintptr_t log_prob,
                         uintptr_t grad, const Planes &grad_params) {
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

void logistic_mixture_sample(bool is_double, int64_t rows, int64_t places, int64_t mixtures, int channels, int levels,
                             double min_log_scale, const Planes &params, uint64_t seed, int64_t row0, uint32_t step0,
                             uintptr_t x) {
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
  m.def("expect_whole", &expect_whole, py::arg("address"), py::arg("bytes"));
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
  m.def("made_sample", &made_sample, release, py::arg("is_double"), py::arg("rows"), py::arg("features"),
        py::arg("parameters"), py::arg("draws"), py::arg("levels"), py::arg("input_scale"), py::arg("input_shift"),
        py::arg("kind"), py::arg("activation"), py::arg("map"), py::arg("inverse"), py::arg("clamp"),
        py::arg("weights"), py::arg("biases"), py::arg("degrees"), py::arg("sizes"), py::arg("noise"),
        py::arg("context"), py::arg("context_units"), py::arg("known"), py::arg("values"), py::arg("bins"),
        py::arg("spline_map"), py::arg("first_slope"), py::arg("last_stored"), py::arg("derivatives"), py::arg("tails"),
        py::arg("box"), py::arg("options"), py::arg("x"), py::arg("logdet"));
  m.def("pixelcnn_sample", &pixelcnn_sample, release, py::arg("is_double"), py::arg("images"), py::arg("channels"),
        py::arg("height"), py::arg("width"), py::arg("groups"), py::arg("levels"), py::arg("draws"),
        py::arg("mixtures"), py::arg("kind"), py::arg("one_hot"), py::arg("input_scale"), py::arg("input_shift"),
        py::arg("min_log_scale"), py::arg("nodes"), py::arg("taps"), py::arg("noise"), py::arg("known"),
        py::arg("values"), py::arg("x"));
  m.def("logistic_mixture", &logistic_mixture, release, py::arg("backward"), py::arg("is_double"), py::arg("rows"),
        py::arg("places"), py::arg("mixtures"), py::arg("channels"), py::arg("levels"), py::arg("min_log_scale"),
        py::arg("params"), py::arg("x"), py::arg("log_prob"), py::arg("grad"), py::arg("grad_params"));
  m.def("logistic_mixture_sample", &logistic_mixture_sample, release, py::arg("is_double"), py::arg("rows"),
        py::arg("places"), py::arg("mixtures"), py::arg("channels"), py::arg("levels"), py::arg("min_log_scale"),
        py::arg("params"), py::arg("seed"), py::arg("row0"), py::arg("step0"), py::arg("x"));
  m.def("philox_uniform", &philox_uniform, release, py::arg("seed"), py::arg("step"), py::arg("row_offset"),
        py::arg("rows"), py::arg("columns"), py::arg("is_double"), py::arg("out"));
  m.def(
      "vector_math",
      [](int function, bool is_double, int64_t n, uintptr_t x, uintptr_t y) {
        kernels->vector_math(function, is_double, n, at(x), at(y));
      },
      release, py::arg("function"), py::arg("is_double"), py::arg("n"), py::arg("x"), py::arg("y"));
}
