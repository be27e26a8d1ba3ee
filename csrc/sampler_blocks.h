// Blocks of rows or images under a cached sampler: whole, or step by step with scratch that stays.
#pragma once
#include <cstring>

#include "host.h"

namespace evidens {

template <class Kernel, class Params> class SamplerBlocks {
 public:
  SamplerBlocks(int64_t rows, int64_t block, int64_t bytes)
      : rows_(rows), block_(std::max<int64_t>(block, 1)), bytes_((bytes + 63) / 64 * 64) {}
  SamplerBlocks(const SamplerBlocks &other) : SamplerBlocks(other.rows_, other.block_, other.bytes_) {
    if (other.kept_ == nullptr) return;
    kept_ = allocate(count() * bytes_);
    std::memcpy(kept_.get(), other.kept_.get(), size_t(count() * bytes_));
  }

  // Everything, one block after the other, in the scratch of a worker.
  void run_whole(const Kernel &kernel, const Params &p, int64_t last, int64_t workers) const {
    workers = std::min(workers, count());
    const Buffer scratch = allocate(workers * bytes_);
    run_blocks(pool, count(), workers, [&](int64_t i, int64_t worker) { run(kernel, p, i, 0, last, scratch, worker); });
  }

  // A part of the work of every block, in scratch of its own.
  void run_part(const Kernel &kernel, const Params &p, int64_t first, int64_t last, int64_t workers) {
    if (kept_ == nullptr) kept_ = allocate(count() * bytes_);
    run_blocks(pool, count(), std::min(workers, count()),
               [&](int64_t i, int64_t) { run(kernel, p, i, first, last, kept_, i); });
  }

 private:
  int64_t count() const { return (rows_ + block_ - 1) / block_; }
  void run(const Kernel &kernel, const Params &p, int64_t block, int64_t first, int64_t last, const Buffer &scratch,
           int64_t place) const {
    void *own = static_cast<char *>(scratch.get()) + place * bytes_;
    kernel.run(block * block_, std::min(rows_, (block + 1) * block_), first, last, p, own);
  }

  int64_t rows_, block_, bytes_;
  Buffer kept_;
};

}  // namespace evidens
