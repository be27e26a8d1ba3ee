// Masked convolutions and linear layers, the host's side: live taps, keys of channels, phases of a call.
#pragma once
#include <array>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "host.h"
#include "kernels.h"

namespace evidens {

inline MaskedConvPlanes planes(const Planes &p) { return {at(uintptr_t(p[0])), p[1], p[2], p[3]}; }

inline void run_masked_conv(bool backward, bool is_double, const MaskedConvParams &p) {
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
inline void masked_conv(bool backward, bool is_double, int64_t images, int64_t height, int64_t width,
                        int64_t in_channels, int64_t out_channels, int64_t down, int64_t across,
                        const std::vector<int64_t> &taps, int64_t groups, bool strict, const Planes &x,
                        uintptr_t weight, uintptr_t bias, const Planes &y, const Planes &grad_x, uintptr_t grad_weight,
                        uintptr_t grad_bias) {
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
inline std::vector<int64_t> sorted_degrees(const int64_t *degrees, const std::vector<int64_t> &order) {
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
inline int64_t masked_linear(bool backward, bool is_double, int64_t rows, int64_t inputs, int64_t outputs,
                             uintptr_t in_degrees, uintptr_t out_degrees, uintptr_t in_order, uintptr_t out_order,
                             bool strict, uintptr_t x, int64_t x_row, uintptr_t weight, uintptr_t bias, uintptr_t y,
                             int64_t y_row, uintptr_t grad_x, uintptr_t grad_weight, uintptr_t grad_bias) {
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

}  // namespace evidens
