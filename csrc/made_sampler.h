// Cached sampling of masked networks, the host's side: schedule, blocks of rows, state between steps.
#pragma once
#include <array>
#include <memory>
#include <vector>

#include "kernels.h"
#include "made_schedule.h"
#include "sampler_blocks.h"

namespace evidens {

// A matrix is (address, row stride).
using Matrix = std::array<int64_t, 2>;

// What all states of a network share: the order of work and the packed weights.
struct MadeNetwork {
  MadeSchedule schedule;
  std::vector<MadeLayer> layers;
  std::vector<int32_t> tails;
  std::vector<double> box;
  SplineParams spline = {};
  Buffer packed;
};

class MadeSampler {
 public:
  // `given`: where to leave the parameters of the feature drawn last, for steps; 0: all is drawn at once.
  MadeSampler(bool is_double, int64_t rows, int64_t features, int64_t parameters, int64_t draws, int64_t levels,
              double input_scale, double input_shift, int kind, int activation, int map, bool inverse, double clamp,
              const std::vector<Matrix> &weights, const std::vector<uintptr_t> &biases,
              const std::vector<uintptr_t> &degrees, const std::vector<int64_t> &sizes, uintptr_t noise,
              uintptr_t context, int64_t context_units, uintptr_t known, uintptr_t values, int64_t bins, int spline_map,
              bool first_slope, bool last_stored, int64_t derivatives, const std::vector<int32_t> &tails,
              const std::vector<double> &box, const std::vector<double> &options, uintptr_t x, uintptr_t logdet,
              uintptr_t given)
      : kernel_(kernels->made[is_double]) {
    std::vector<const int64_t *> degree;
    for (uintptr_t address : degrees) degree.push_back(at<int64_t>(address));
    network_.reset(
        new MadeNetwork{MadeSchedule(degree, sizes, std::max<int64_t>(levels, 1), parameters, kernel_.tile_rows),
                        {},
                        tails,
                        box,
                        {},
                        nullptr});
    const MadeSchedule &schedule = network_->schedule;
    for (size_t l = 0; l < weights.size() && features > 0; ++l) {
      const auto &units = schedule.levels[l + 1].number, &below = schedule.levels[l].number;
      network_->layers.push_back({at(uintptr_t(weights[l][0])), weights[l][1], at(biases[l]), units.data(),
                                  below.data(), int64_t(units.size()), int64_t(below.size())});
    }
    SplineParams &spline = network_->spline;
    spline.bins = bins, spline.map = spline_map, spline.mixed = tails.size() > 1;
    spline.first_slope = first_slope, spline.last_stored = last_stored;
    spline.tails = network_->tails.data(), spline.box = network_->box.data();
    spline.min_width = options[0], spline.min_height = options[1], spline.min_derivative = options[2];
    spline.beta = options[3], spline.log_slope = options[4], spline.logit_scale = options[5];
    spline.widths.count = spline.heights.count = bins, spline.derivatives.count = derivatives;
    network_->packed = allocate(schedule.packed * int64_t(is_double ? sizeof(double) : sizeof(float)));
    p_ = {rows,
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
          int64_t(network_->layers.size()),
          network_->layers.data(),
          schedule.jobs.data(),
          int64_t(schedule.jobs.size()),
          schedule.held,
          schedule.order.data(),
          context_units,
          given != 0,
          at(noise),
          at(context),
          at<uint8_t>(known),
          at(values),
          network_->packed.get(),
          at(x),
          at(logdet),
          at(given)};
    // Rows do not meet, so that blocks may be cut by the number of threads.
    const int64_t share = (rows + workers() - 1) / workers(), wide = kernel_.width;
    const int64_t block = std::min<int64_t>(kernel_.lanes, (share + wide - 1) / wide * wide);
    blocks_.reset(new Blocks(rows, block, kernel_.scratch_bytes(p_)));
    const int64_t part = 256, parts = rows == 0 ? 0 : (p_.jobs + part - 1) / part;
    run_blocks(pool, parts, workers_for(double(schedule.packed) * 8, parts),
               [&](int64_t i, int64_t) { kernel_.pack(i * part, std::min(p_.jobs, (i + 1) * part), p_); });
  }

  void draw() const { blocks_->run_whole(kernel_, p_, p_.jobs, workers()); }

  // One place of the order of features further.
  void step() {
    int64_t last = job_;
    while (last < p_.jobs && p_.job[last].task != kDraw) ++last;
    blocks_->run_part(kernel_, p_, job_, last + 1, workers());
    job_ = last + 1;
  }

  // Another state that has come as far, and goes on in tensors of its own.
  std::unique_ptr<MadeSampler> copy(uintptr_t known, uintptr_t values, uintptr_t x, uintptr_t logdet,
                                    uintptr_t given) const {
    std::unique_ptr<MadeSampler> other(new MadeSampler(*this));
    other->blocks_.reset(new Blocks(*blocks_));
    MadeParams &p = other->p_;
    p.known = at<uint8_t>(known), p.values = at(values), p.x = at(x), p.logdet = at(logdet), p.given = at(given);
    return other;
  }

 private:
  using Blocks = SamplerBlocks<MadeKernel, MadeParams>;
  int64_t workers() const {
    const double work = double(p_.rows) * double(network_->schedule.packed);
    return workers_for(p_.stepwise ? work / double(p_.features) : work, p_.rows);
  }

  const MadeKernel &kernel_;
  std::shared_ptr<MadeNetwork> network_;
  MadeParams p_;
  std::shared_ptr<Blocks> blocks_;
  int64_t job_ = 0;
};

}  // namespace evidens
