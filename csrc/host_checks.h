// What Python asks of numbers in memory before a kernel reads them.
#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "host.h"

namespace evidens {

// Whether all numbers of some float64 arrays, each (address, count), are finite.
inline bool all_finite(const std::vector<std::pair<uintptr_t, int64_t>> &arrays) {
  // An exponent of ones overflows into the sign.
  constexpr uint64_t magnitude = ~uint64_t(0) >> 1, one = uint64_t(1) << 52;
  return std::all_of(arrays.begin(), arrays.end(), [](const auto &array) {
    const uint64_t *x = at<uint64_t>(array.first);
    uint64_t any = 0;
    for (int64_t i = 0; i < array.second; ++i) any |= (x[i] & magnitude) + one;
    return any >> 63 == 0;
  });
}

// The first position of (count,) indices that lies outside [0, bound) or repeats another; -1: none.
inline int64_t first_bad_index(uintptr_t indices, int64_t count, int64_t bound) {
  std::vector<bool> seen(size_t(std::max<int64_t>(bound, 0)));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t index = at<int64_t>(indices)[i];
    if (index < 0 || index >= bound || seen[size_t(index)]) return i;
    seen[size_t(index)] = true;
  }
  return -1;
}

}  // namespace evidens
