// Restricted Boltzmann machines, the host's side: packing, blocks of rows, bands of visible units.
#pragma once
#include "host.h"
#include "kernels.h"

namespace evidens {

// run(begin, end, scratch) for all rows in blocks.  Rows do not meet, so blocks may be cut by the number
// of threads.
template <class Bytes, class Run> void rbm_blocks(double work, int64_t rows, Bytes &&scratch_bytes, Run &&run) {
  const int64_t workers = workers_for(work, rows), most = 128;
  const int64_t each = (std::max<int64_t>(rows, 1) + workers - 1) / workers;
  const int64_t parts = workers * ((each + most - 1) / most);
  const int64_t block = std::max<int64_t>((rows + parts - 1) / parts, 1), blocks = (rows + block - 1) / block;
  const int64_t bytes = (scratch_bytes(block) + 63) / 64 * 64;
  const Buffer scratch = allocate(std::min(workers, blocks) * bytes);
  run_blocks(pool, blocks, std::min(workers, blocks), [&](int64_t i, int64_t worker) {
    run(i * block, std::min(rows, (i + 1) * block), static_cast<char *>(scratch.get()) + worker * bytes);
  });
}
inline void rbm_rows(const RbmKernel &kernel, const RbmParams &p, double passes,
                     void (*run)(int64_t, int64_t, const RbmParams &, void *)) {
  rbm_blocks(
      double(p.rows) * double(p.visible.units) * double(p.hidden.units) * passes, p.rows,
      [&](int64_t rows) { return kernel.scratch_bytes(p, rows); },
      [&](int64_t begin, int64_t end, void *scratch) { run(begin, end, p, scratch); });
}

// The packed weights of the hidden layer, of both with `both`, and room behind them.  In one piece: of
// several that go at once the allocator would give the pages back each time.
inline Buffer rbm_packed(const RbmKernel &kernel, bool is_double, RbmParams &p, bool both, int64_t room = 0) {
  const int64_t size = is_double ? 8 : 4, up = kernel.packed_elements(p.hidden.depth, p.hidden.units) * size;
  const int64_t down = both ? kernel.packed_elements(p.visible.depth, p.visible.units) * size : 0;
  Buffer packed = allocate(up + down + room);
  p.hidden.packed = packed.get();
  p.visible.packed = static_cast<char *>(packed.get()) + up;
  const int64_t hidden = (p.hidden.units + kernel.panel - 1) / kernel.panel;
  const int64_t panels = hidden + (both ? (p.visible.units + kernel.panel - 1) / kernel.panel : 0);
  const double work = double(p.visible.units) * double(p.hidden.units) * 4;
  run_blocks(pool, panels, workers_for(work, panels), [&](int64_t k, int64_t) {
    const int64_t at = k < hidden ? k : k - hidden;
    kernel.pack(at, at + 1, p, k < hidden);
  });
  return packed;
}

inline RbmParams rbm_machine(int64_t rows, int64_t visible, int64_t hidden, int visible_kind, int hidden_kind,
                             int64_t levels, uintptr_t weight, uintptr_t visible_bias, uintptr_t hidden_bias,
                             uintptr_t precision, uintptr_t scale, uintptr_t beta) {
  RbmParams p{};
  p.rows = rows, p.weight = at(weight), p.precision = at(precision), p.beta = at(beta);
  p.visible = {visible, hidden, visible_kind, levels, at(visible_bias), at(scale), nullptr};
  p.hidden = {hidden, visible, hidden_kind, 0, at(hidden_bias), nullptr, nullptr};
  return p;
}

inline void rbm_gibbs(bool is_double, int64_t rows, int64_t visible, int64_t hidden, int visible_kind, int hidden_kind,
                      int64_t levels, uintptr_t weight, uintptr_t visible_bias, uintptr_t hidden_bias,
                      uintptr_t precision, uintptr_t scale, uintptr_t beta, uintptr_t state, int64_t state_row,
                      bool from_hidden, uintptr_t clamped, int64_t clamped_row, uintptr_t values, int64_t values_row,
                      int64_t steps, int64_t step0, int64_t row0, uint64_t seed, uintptr_t new_v, uintptr_t new_h,
                      uintptr_t v_mean, uintptr_t h_mean) {
  const RbmKernel &kernel = kernels->rbm[is_double];
  RbmParams p = rbm_machine(rows, visible, hidden, visible_kind, hidden_kind, levels, weight, visible_bias, hidden_bias,
                            precision, scale, beta);
  p.from_hidden = from_hidden;
  (from_hidden ? p.h : p.v) = at(state);
  (from_hidden ? p.h_row : p.v_row) = state_row;
  p.clamped = at<uint8_t>(clamped), p.clamped_row = clamped_row;
  p.values = at(values), p.values_row = values_row;
  p.steps = steps, p.step0 = step0, p.row0 = row0, p.seed = seed;
  p.new_v = at(new_v), p.new_h = at(new_h), p.v_mean = at(v_mean), p.h_mean = at(h_mean);
  const Buffer packed = rbm_packed(kernel, is_double, p, true);
  rbm_rows(kernel, p, 2 * double(steps), kernel.gibbs);
}

inline void rbm_free_energy(bool is_double, int64_t rows, int64_t visible, int64_t hidden, int hidden_kind,
                            uintptr_t weight, uintptr_t visible_bias, uintptr_t hidden_bias, uintptr_t precision,
                            uintptr_t beta, uintptr_t v, int64_t v_row, uintptr_t out) {
  const RbmKernel &kernel = kernels->rbm[is_double];
  RbmParams p =
      rbm_machine(rows, visible, hidden, 0, hidden_kind, 0, weight, visible_bias, hidden_bias, precision, 0, beta);
  p.v = at(v), p.v_row = v_row, p.free_energy = at(out);
  const Buffer packed = rbm_packed(kernel, is_double, p, false);
  rbm_rows(kernel, p, 1, kernel.free_energy);
}

inline void rbm_sums(const RbmKernel &kernel, bool is_double, RbmSums s) {
  const int64_t panels = (s.hidden + kernel.panel - 1) / kernel.panel;
  const Buffer factors = allocate(panels * kernel.panel * s.rows * (is_double ? 8 : 4));
  s.packed = factors.get();
  run_blocks(pool, panels, workers_for(double(s.rows) * double(s.hidden) * 4, panels),
             [&](int64_t k, int64_t) { kernel.pack_sums(k, k + 1, s); });
  const int64_t parts = (s.visible + kernel.band - 1) / kernel.band;
  const int64_t workers = workers_for(double(s.rows) * double(s.visible) * double(s.hidden), parts);
  // As many bands for each worker.
  const int64_t bands = (parts + workers - 1) / workers * workers;
  const int64_t band = ((s.visible + bands - 1) / std::max<int64_t>(bands, 1) + 7) / 8 * 8;
  const int64_t bytes = (kernel.sums_bytes(s) + 63) / 64 * 64;
  const Buffer scratch = allocate(workers * bytes);
  run_blocks(pool, bands, workers, [&](int64_t i, int64_t worker) {
    const int64_t begin = i * band, end = std::min(s.visible, begin + band);
    if (begin < end) kernel.sums(begin, end, s, static_cast<char *>(scratch.get()) + worker * bytes);
  });
}

// Means of the hidden units, unless they are given, and the sums over rows, less those over the rows of
// `minus`.
inline void rbm_statistics(bool is_double, int64_t rows, int64_t visible, int64_t hidden, int hidden_kind,
                           uintptr_t weight, uintptr_t hidden_bias, uintptr_t precision, uintptr_t v, int64_t v_row,
                           bool means_given, uintptr_t h_mean, int64_t h_row, uintptr_t sample_weight,
                           int64_t minus_rows, uintptr_t minus_v, int64_t minus_v_row, uintptr_t minus_h_mean,
                           int64_t minus_h_row, uintptr_t minus_weight, uintptr_t centre, uintptr_t sum_weight,
                           uintptr_t sum_v, uintptr_t sum_h, uintptr_t square) {
  const RbmKernel &kernel = kernels->rbm[is_double];
  if (!means_given) {
    RbmParams p = rbm_machine(rows, visible, hidden, 0, hidden_kind, 0, weight, 0, hidden_bias, precision, 0, 0);
    p.v = at(v), p.v_row = v_row, p.h_mean = at(h_mean);
    const Buffer packed = rbm_packed(kernel, is_double, p, false);
    rbm_rows(kernel, p, 1, kernel.means);
  }
  RbmSums s{visible,
            hidden,
            rows + minus_rows,
            {rows, at(v), v_row, at(h_mean), h_row, at(sample_weight)},
            {minus_rows, at(minus_v), minus_v_row, at(minus_h_mean), minus_h_row, at(minus_weight)},
            at(centre),
            nullptr,
            at(sum_weight),
            at(sum_v),
            at(sum_h),
            at(square)};
  rbm_sums(kernel, is_double, s);
}

// Steps of persistent chains, and the sums over the rows less those over the chains.
inline void rbm_pcd(bool is_double, int64_t rows, int64_t chains, int64_t visible, int64_t hidden, int visible_kind,
                    int hidden_kind, int64_t levels, uintptr_t weight, uintptr_t visible_bias, uintptr_t hidden_bias,
                    uintptr_t precision, uintptr_t scale, uintptr_t v, int64_t v_row, uintptr_t h, int64_t h_row,
                    uintptr_t sample_weight, uintptr_t minus_weight, int64_t steps, int64_t step0, int64_t row0,
                    uint64_t seed, uintptr_t new_h, uintptr_t h_mean, uintptr_t sum_weight, uintptr_t sum_v,
                    uintptr_t sum_h, uintptr_t square) {
  const RbmKernel &kernel = kernels->rbm[is_double];
  const int64_t size = is_double ? 8 : 4, states = (chains * visible * size + 63) / 64 * 64;
  RbmParams p = rbm_machine(chains, visible, hidden, visible_kind, hidden_kind, levels, weight, visible_bias,
                            hidden_bias, precision, scale, 0);
  p.from_hidden = true, p.h = at(h), p.h_row = h_row;
  p.steps = steps, p.step0 = step0, p.row0 = row0, p.seed = seed, p.new_h = at(new_h);
  const int64_t packed_size = kernel.packed_elements(hidden, visible) + kernel.packed_elements(visible, hidden);
  const Buffer packed = rbm_packed(kernel, is_double, p, true, states + chains * hidden * size);
  p.new_v = static_cast<char *>(packed.get()) + packed_size * size;
  p.h_mean = static_cast<char *>(p.new_v) + states;
  rbm_rows(kernel, p, 2 * double(steps), kernel.gibbs);
  RbmParams data = p;
  data.rows = rows, data.v = at(v), data.v_row = v_row, data.h_mean = at(h_mean);
  rbm_rows(kernel, data, 1, kernel.means);
  rbm_sums(kernel, is_double,
           {visible,
            hidden,
            rows + chains,
            {rows, data.v, v_row, data.h_mean, hidden, at(sample_weight)},
            {chains, p.new_v, visible, p.h_mean, hidden, at(minus_weight)},
            precision == 0 ? nullptr : at(visible_bias),
            nullptr,
            at(sum_weight),
            at(sum_v),
            at(sum_h),
            at(square)});
}

}  // namespace evidens
