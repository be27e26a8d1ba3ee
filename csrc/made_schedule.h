// The order of work of a cached masked network: which units are summed over which when.
//
// Everything is sorted by degree.  A unit is needed once what it sees is known, so the plain schedule
// is: parameters of the next feature, its draw, then the hidden units of that degree, layer by layer,
// each summed over a leading part of the layer below.  Where that leaves less work at a time than a
// tile holds, several degrees are taken together as a *panel*: what their units see of everything
// before the panel is summed in whole tiles first, and only the rest one degree at a time.
#pragma once
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "autoregress.h"

namespace evidens {

struct MadeSchedule {
  struct Level {                  // of units with values: the inputs, hidden layers, the parameters
    std::vector<int64_t> number;  // own numbers in the order of degrees
    std::vector<int64_t> degree;  // ascending
    int64_t before(int64_t d) const { return std::lower_bound(degree.begin(), degree.end(), d) - degree.begin(); }
    int64_t size() const { return int64_t(number.size()); }
  };

  std::vector<int64_t> order;  // features by degree
  std::vector<Level> levels;
  std::vector<MadeJob> jobs;
  int64_t held = 0, packed = 0;

  // degrees[0] of the features, then those of the hidden layers.
  MadeSchedule(const std::vector<const int64_t *> &degrees, const std::vector<int64_t> &sizes, int64_t inputs,
               int64_t parameters, int64_t tile)
      : tile_(tile), parameters_(parameters) {
    order = sorted(degrees[0], sizes[0]);
    if (order.empty()) return;
    const int64_t greatest = degrees[0][order.back()];
    levels.push_back(repeated(degrees[0], inputs));
    for (size_t l = 1; l < degrees.size(); ++l) {
      Level level;
      for (int64_t i : sorted(degrees[l], sizes[l]))
        if (degrees[l][i] < greatest) level.number.push_back(i), level.degree.push_back(degrees[l][i]);
      levels.push_back(level);  // units of the greatest degree are seen by nothing
    }
    levels.push_back(repeated(degrees[0], parameters));
    build();
  }

 private:
  static std::vector<int64_t> sorted(const int64_t *degree, int64_t count) {
    std::vector<int64_t> index(static_cast<size_t>(count));
    std::iota(index.begin(), index.end(), 0);
    std::stable_sort(index.begin(), index.end(), [=](int64_t a, int64_t b) { return degree[a] < degree[b]; });
    return index;
  }
  Level repeated(const int64_t *degree, int64_t times) const {
    Level level;
    for (int64_t i : order)
      for (int64_t k = 0; k < times; ++k) level.number.push_back(i * times + k), level.degree.push_back(degree[i]);
    return level;
  }

  void build() {
    std::vector<int64_t> steps = levels[0].degree;  // distinct degrees, and one past the last
    steps.erase(std::unique(steps.begin(), steps.end()), steps.end());
    const int64_t count = int64_t(steps.size());
    const size_t last = levels.size() - 1;
    // A level is thin if a step has clearly less of it than a tile.
    std::vector<bool> thin;
    int64_t length = 1;
    for (const Level &level : levels) {
      const bool is = &level != &levels[0] && level.size() * 4 < tile_ * count * 3;
      thin.push_back(is);
      if (is) length = std::max(length, std::min<int64_t>(64, 4 * tile_ * count / std::max<int64_t>(level.size(), 1)));
    }
    const auto end_of = [&](size_t l, int64_t s) {
      return s < count ? levels[l].before(steps[size_t(s)]) : levels[l].size();
    };
    for (size_t l = 1; l < last; ++l) units(l, 0, end_of(l, 0), 0);
    for (int64_t from = 0; from < count; from += length) {
      const int64_t to = std::min(count, from + length);
      std::vector<int64_t> base(levels.size(), 0);  // what is summed before the panel begins
      for (size_t l = 1; l <= last && length > 1; ++l) {
        if (!thin[l]) continue;
        base[l] = end_of(l - 1, from);
        if (base[l] == 0) continue;
        const int64_t begin = end_of(l, from), end = end_of(l, to);
        add(l == last ? kOutputs : kUnits, l, begin, end - begin, 0, base[l], false, true, 0, 0);
        if (l == last) held = std::max(held, end - begin);
      }
      const int64_t first = end_of(last, from) / parameters_;
      for (int64_t s = from; s < to; ++s) {
        const int64_t seen = end_of(last - 1, s);
        for (int64_t f = end_of(last, s) / parameters_; f < end_of(last, s + 1) / parameters_; ++f) {
          add(kOutputs, last, f * parameters_, parameters_, base[last], seen, base[last] > 0, false, 0,
              (f - first) * parameters_);
          jobs.push_back({kDraw, 0, 0, 0, 0, f, 0, 0, 0, 0, 0});
        }
        for (size_t l = 1; l < last && s + 1 < count; ++l) units(l, end_of(l, s), end_of(l, s + 1), base[l]);
      }
    }
  }

  // Units of one hidden level whose sums over [0, base) are there, in runs of one degree.
  void units(size_t l, int64_t begin, int64_t end, int64_t base) {
    const Level &level = levels[l];
    for (int64_t i = begin, next; i < end; i = next) {
      next = std::min(end, level.before(level.degree[size_t(i)] + 1));
      add(kUnits, l, i, next - i, base, levels[l - 1].before(level.degree[size_t(i)] + 1), base > 0, false, 0, 0);
    }
  }

  // Tiles of even height.
  void add(MadeTask task, size_t l, int64_t first, int64_t count, int64_t begin, int64_t end, bool adds, bool partial,
           int64_t slot, int64_t held_at) {
    for (int64_t tiles = (count + tile_ - 1) / tile_; tiles > 0; --tiles) {
      const int64_t rows = (count + tiles - 1) / tiles;
      jobs.push_back({task, int32_t(l) - 1, int32_t(rows), adds, partial, first, slot, held_at, begin, end, packed});
      packed += rows * (end - begin);
      first += rows, slot += rows, held_at += rows, count -= rows;
    }
  }

  int64_t tile_, parameters_;
};

}  // namespace evidens
