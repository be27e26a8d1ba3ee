// Memory of large results, which the next result of about that size takes over.
//
// A fresh page costs more than the numbers that are written to it, so what was freed is kept, up to
// kKept bytes.  A request that nothing kept fits frees all of it first: the peak is not raised by more
// than the slack of one result.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace evidens {

class Results {
 public:
  struct Block {
    void *at = nullptr;
    int64_t size = 0;
  };

  Block take(int64_t bytes) {
    const int64_t size = (bytes + kPage - 1) / kPage * kPage;
    // A lock that a fork has caught is never free again: then nothing is kept.
    if (const std::unique_lock lock(mutex_, std::try_to_lock); lock) {
      for (size_t i = 0; i < kept_.size(); ++i) {
        const Block block = kept_[i];
        if (block.size < size || block.size > size + size / 4) continue;
        kept_.erase(kept_.begin() + std::ptrdiff_t(i));
        total_ -= block.size;
        return block;
      }
      for (const Block &block : kept_) std::free(block.at);
      kept_.clear(), total_ = 0;
    }
    const Block block{std::aligned_alloc(size_t(kPage), size_t(size)), size};
    if (block.at == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    // Written once and whole: huge pages are cleared several times faster than small ones.
    madvise(block.at, size_t(size), MADV_HUGEPAGE);
#endif
    return block;
  }

  void give_back(Block block) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || block.size > kKept) return std::free(block.at);
    kept_.push_back(block);
    for (total_ += block.size; total_ > kKept; kept_.erase(kept_.begin())) {
      total_ -= kept_[0].size;
      std::free(kept_[0].at);
    }
  }

 private:
  static constexpr int64_t kPage = int64_t(1) << 21, kKept = int64_t(1) << 27;
  std::mutex mutex_;
  std::vector<Block> kept_;  // oldest first
  int64_t total_ = 0;
};

inline Results &results() {  // never destroyed: tensors may outlive everything
  static Results *const all = new Results;
  return *all;
}

// A result as Python holds it, by the buffer protocol.
struct Result {
  Results::Block block;
  int64_t bytes;
  explicit Result(int64_t bytes) : block(results().take(bytes)), bytes(bytes) {}
  ~Result() { results().give_back(block); }
  Result(const Result &) = delete;
  Result &operator=(const Result &) = delete;
};

}  // namespace evidens
