// Blocks of work on torch's own intra-op pool.
//
// torch_parallel_for (libtorch, C linkage, torch >= 2.10) is looked up in Python and handed over as
// an address, so torch.set_num_threads is obeyed and nothing is linked.  It gives each thread one
// contiguous chunk; here a chunk is a *worker* that takes block after block from a shared counter,
// so uneven threads even out.  Which worker runs a block changes nothing: results belong to blocks.
#pragma once
#include <atomic>
#include <cstdint>

namespace evidens {

using ParallelFor = int (*)(int64_t begin, int64_t end, int64_t grain, void (*f)(int64_t, int64_t, void *),
                            void *context);

struct Pool {
  ParallelFor parallel_for = nullptr;  // null: serial
  int (*num_threads)(uint32_t *out) = nullptr;
};

// f(block, worker) for every block in [0, blocks), with worker in [0, workers).
template <class F> void run_blocks(const Pool &pool, int64_t blocks, int64_t workers, F &&f) {
  if (workers <= 1 || pool.parallel_for == nullptr) {
    for (int64_t i = 0; i < blocks; ++i) f(i, int64_t(0));
    return;
  }
  struct Context {
    std::atomic<int64_t> next{0};
    int64_t blocks;
    F &f;
  } context{{0}, blocks, f};
  auto worker = [](int64_t begin, int64_t, void *p) {
    auto &c = *static_cast<Context *>(p);
    for (int64_t i; (i = c.next.fetch_add(1, std::memory_order_relaxed)) < c.blocks;) c.f(i, begin);
  };
  if (pool.parallel_for(0, workers, 1, worker, &context) != 0) worker(0, workers, &context);
}

}  // namespace evidens
