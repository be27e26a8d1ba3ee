// Cached samplers, the host's side: schedules, blocks of rows or images.
#pragma once
#include <array>
#include <vector>

#include "host.h"
#include "kernels.h"
#include "made_schedule.h"
#include "pixelcnn_schedule.h"

namespace evidens {

// A matrix is (address, row stride).
using Matrix = std::array<int64_t, 2>;

inline void made_sample(bool is_double, int64_t rows, int64_t features, int64_t parameters, int64_t draws,
                        int64_t levels, double input_scale, double input_shift, int kind, int activation, int map,
                        bool inverse, double clamp, const std::vector<Matrix> &weights,
                        const std::vector<uintptr_t> &biases, const std::vector<uintptr_t> &degrees,
                        const std::vector<int64_t> &sizes, uintptr_t noise, uintptr_t context, int64_t context_units,
                        uintptr_t known, uintptr_t values, int64_t bins, int spline_map, bool first_slope,
                        bool last_stored, int64_t derivatives, const std::vector<int32_t> &tails,
                        const std::vector<double> &box, const std::vector<double> &options, uintptr_t x,
                        uintptr_t logdet) {
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

inline void pixelcnn_sample(bool is_double, int64_t images, int64_t channels, int64_t height, int64_t width,
                            int64_t groups, int64_t levels, int64_t draws, int64_t mixtures, int kind, bool one_hot,
                            double input_scale, double input_shift, double min_log_scale,
                            const std::vector<Node> &nodes, const std::string &taps, uintptr_t noise, uintptr_t known,
                            uintptr_t values, uintptr_t x) {
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

}  // namespace evidens
