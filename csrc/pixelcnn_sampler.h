// Cached sampling of masked convolutions, the host's side: schedule, blocks of images, state between steps.
#pragma once
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "pixelcnn_schedule.h"
#include "sampler_blocks.h"

namespace evidens {

// A node is (weight, bias, context, outputs, height, width, first tap, source, add, activation, strict,
// ahead).
using Node = std::array<int64_t, 12>;

class PixelSampler {
 public:
  // `given`: where to leave the parameters of the pixel drawn last, for steps; 0: all is drawn at once.
  PixelSampler(bool is_double, int64_t images, int64_t channels, int64_t height, int64_t width, int64_t groups,
               int64_t levels, int64_t draws, int64_t mixtures, int kind, bool one_hot, double input_scale,
               double input_shift, double min_log_scale, const std::vector<Node> &nodes, const std::string &taps,
               uintptr_t noise, uintptr_t known, uintptr_t values, uintptr_t x, uintptr_t given)
      : kernel_(kernels->pixelcnn[is_double]) {
    std::vector<PixelSchedule::Layer> layers;
    for (const Node &n : nodes)
      layers.push_back({at(uintptr_t(n[0])), at(uintptr_t(n[1])), at(uintptr_t(n[2])), n[3], n[4], n[5],
                        taps.data() + n[6], int32_t(n[7]), int32_t(n[8]), int32_t(n[9]), n[10] != 0, n[11] != 0});
    schedule_.reset(new PixelSchedule(layers, one_hot ? channels * levels : channels, groups, kernel_.width));
    const PixelSchedule &schedule = *schedule_;
    numbers_ = schedule.packed * kernel_.width;
    packed_ = allocate(numbers_ * int64_t(is_double ? sizeof(double) : sizeof(float)));
    p_ = {images,
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
          packed_.get(),
          at<int64_t>(x),
          at(given)};
    // Images do not meet, so that blocks may be cut by the number of threads.
    const int64_t most = 48, block = std::min(most, (images + workers() - 1) / workers());
    blocks_.reset(new Blocks(images, block, kernel_.scratch_bytes(block, p_)));
    if (images * pixels() > 0)
      run_blocks(pool, p_.parts, workers_for(double(numbers_) * 8, p_.parts),
                 [&](int64_t i, int64_t) { kernel_.pack(i, i + 1, p_); });
  }

  void draw() const {
    if (pixels() > 0) blocks_->run_whole(kernel_, p_, pixels(), workers());
  }

  // One pixel further.
  void step() {
    blocks_->run_part(kernel_, p_, pixel_, pixel_ + 1, workers());
    ++pixel_;
  }

  // Another state that has come as far, and goes on in tensors of its own.
  std::unique_ptr<PixelSampler> copy(uintptr_t known, uintptr_t values, uintptr_t x, uintptr_t given) const {
    std::unique_ptr<PixelSampler> other(new PixelSampler(*this));
    other->blocks_.reset(new Blocks(*blocks_));
    PixelParams &p = other->p_;
    p.known = at<uint8_t>(known), p.values = at<int64_t>(values), p.x = at<int64_t>(x), p.given = at(given);
    return other;
  }

 private:
  using Blocks = SamplerBlocks<PixelKernel, PixelParams>;
  int64_t pixels() const { return p_.height * p_.width; }
  int64_t workers() const {
    const int64_t count = p_.given == nullptr ? pixels() : 1;
    return workers_for(double(p_.images * count) * double(numbers_), p_.images);
  }

  const PixelKernel &kernel_;
  std::shared_ptr<PixelSchedule> schedule_;
  std::shared_ptr<void> packed_;
  int64_t numbers_ = 0;
  PixelParams p_;
  std::shared_ptr<Blocks> blocks_;
  int64_t pixel_ = 0;
};

}  // namespace evidens
