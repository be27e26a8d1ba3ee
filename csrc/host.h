// What the host side of a call needs: threads, and scratch that lives for one call.
#pragma once
#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels.h"
#include "parallel.h"

namespace evidens {

inline const Kernels *kernels = nullptr;  // of the level that was chosen; set once at load
inline Pool pool;                         // set once at load; serial in a forked child

// Threads for `work` multiply-adds: the pool costs a microsecond, so small calls stay here.
inline int64_t workers_for(double work, int64_t units) {
  if (pool.parallel_for == nullptr || work < 2e5 || units < 2) return 1;
  uint32_t threads = 1;
  if (pool.num_threads == nullptr || pool.num_threads(&threads) != 0) return 1;
  return std::min<int64_t>(threads, units);
}

struct Free {
  void operator()(void *p) const { std::free(p); }
};
using Buffer = std::unique_ptr<void, Free>;
inline Buffer allocate(int64_t bytes) {
  void *p = std::aligned_alloc(64, size_t(std::max<int64_t>(bytes, 1) + 63) / 64 * 64);
  if (p == nullptr) throw std::bad_alloc();
  return Buffer(p);
}

// An address, as Python knows it.
template <class T = void> T *at(uintptr_t address) { return reinterpret_cast<T *>(address); }

// (address, stride of images, of channels, of places)
using Planes = std::array<int64_t, 4>;

}  // namespace evidens
