// evidens._C: names to kernels, nothing else.
//
// Arguments are integers (addresses, sizes, strides); shapes, dtypes and devices were checked in
// Python.  Every call releases the GIL.  Workspaces are allocated here and live for one call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "parallel.h"

#if defined(__x86_64__)
namespace evidens_v2 { extern const evidens::Kernels kernels; }
namespace evidens_v3 { extern const evidens::Kernels kernels; }
namespace evidens_v4 { extern const evidens::Kernels kernels; }
#else
namespace evidens_neon { extern const evidens::Kernels kernels; }
#endif

namespace py = pybind11;
namespace {

using namespace evidens;

// Levels this machine can run, lowest first.
std::vector<const Kernels *> available() {
  std::vector<const Kernels *> levels;
#if defined(__x86_64__)
  levels.push_back(&evidens_v2::kernels);
  if (__builtin_cpu_supports("x86-64-v3")) levels.push_back(&evidens_v3::kernels);
  if (__builtin_cpu_supports("x86-64-v4")) levels.push_back(&evidens_v4::kernels);
#else
  levels.push_back(&evidens_neon::kernels);
#endif
  return levels;
}

const Kernels *choose() {
  const auto levels = available();
  const char *cap = std::getenv("EVIDENS_ISA");
  if (cap == nullptr || *cap == 0) return levels.back();
  std::string names;
  for (const Kernels *level : levels) {
    if (std::strcmp(level->isa, cap) == 0) return level;
    names += std::string(names.empty() ? "" : ", ") + level->isa;
  }
  throw std::runtime_error("EVIDENS_ISA: expected one of " + names + " on this machine, got '" + cap + "'");
}

const Kernels *kernels = nullptr;    // set once at load
Pool pool;                           // set once at load; serial in a forked child
std::atomic<bool> pool_used{false};  // a child forked after that inherits a pool without threads

// Threads for `work` multiply-adds: the pool costs a microsecond, so small calls stay here.
int64_t workers_for(double work, int64_t units) {
  if (pool.parallel_for == nullptr || work < 2e5 || units < 2) return 1;
  uint32_t threads = 1;
  if (pool.num_threads == nullptr || pool.num_threads(&threads) != 0) return 1;
  const int64_t workers = std::min<int64_t>(threads, units);
  if (workers > 1) pool_used.store(true, std::memory_order_relaxed);
  return workers;
}

struct Free {
  void operator()(void *p) const { std::free(p); }
};
using Buffer = std::unique_ptr<void, Free>;
Buffer allocate(int64_t bytes) {
  void *p = std::aligned_alloc(64, size_t(std::max<int64_t>(bytes, 1) + 63) / 64 * 64);
  if (p == nullptr) throw std::bad_alloc();
  return Buffer(p);
}

template <class T = void> T *at(uintptr_t address) { return reinterpret_cast<T *>(address); }

void gmm(int task, int covariance, bool is_double, int64_t rows, int64_t features, int64_t components, uintptr_t x,
         int64_t x_row, int64_t x_column, uintptr_t log_weights, uintptr_t means, uintptr_t precisions,
         uintptr_t sample_weight, uintptr_t labels, uintptr_t responsibilities, uintptr_t out, uintptr_t log_likelihood,
         uintptr_t weight, uintptr_t first, uintptr_t second) {
  const GmmParams p{rows,
                    features,
                    components,
                    covariance,
                    task,
                    at(x),
                    x_row,
                    x_column,
                    at(log_weights),
                    at(means),
                    at(precisions),
                    at(sample_weight),
                    at<int64_t>(labels),
                    at(responsibilities),
                    at(out),
                    at<double>(log_likelihood),
                    at<double>(weight),
                    at<double>(first),
                    at<double>(second)};
  const GmmKernel &kernel = kernels->gmm[is_double];
  GmmPlan plan;
  kernel.plan(p, plan);
  const double parameters =
      double(components) * double(features) * (covariance == kFull ? 0.5 * double(features) + 1 : 1);
  const int64_t workers = workers_for(double(rows) * parameters, plan.slabs);
  const int64_t packers = workers_for(parameters / 8, plan.parts);
  const int64_t adders = workers_for(parameters / 8 * double(plan.slabs), plan.parts);
  const Buffer shared = allocate(plan.shared_bytes), scratch = allocate(workers * plan.worker_bytes),
               slabs = allocate(plan.slabs * plan.slab_bytes);
  run_blocks(pool, plan.parts, packers, [&](int64_t k, int64_t) { kernel.prepare(k, p, plan, shared.get()); });
  run_blocks(pool, plan.slabs, workers, [&](int64_t slab, int64_t worker) {
    kernel.run(slab, p, plan, shared.get(), static_cast<char *>(scratch.get()) + worker * plan.worker_bytes,
               slabs.get());
  });
  if (plan.slab_bytes == 0) return;
  run_blocks(pool, plan.parts, adders, [&](int64_t k, int64_t) { kernel.finish(k, p, plan, slabs.get()); });
  kernel.combine(p, shared.get());
}

void philox_uniform(uint64_t seed, uint32_t step, int64_t row_offset, int64_t rows, int64_t columns, bool is_double,
                    uintptr_t out) {
  const PhiloxParams p{seed, step, row_offset, rows, columns, is_double, at(out)};
  const int64_t chunk = std::max<int64_t>(1, 65536 / std::max<int64_t>(columns, 1));
  const int64_t blocks = (rows + chunk - 1) / chunk;
  run_blocks(pool, blocks, workers_for(double(rows) * double(columns) * 8, blocks),
             [&](int64_t i, int64_t) { kernels->philox_uniform(i * chunk, std::min(rows, (i + 1) * chunk), p); });
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  kernels = choose();
  m.doc() = "Compiled kernels of evidens; addresses and sizes in, nothing checked. Use evidens.ops.";
  m.attr("isa") = kernels->isa;
  std::vector<std::string> levels;
  for (const Kernels *level : available()) levels.push_back(level->isa);
  m.attr("isa_available") = levels;
  m.attr("compiler") = __VERSION__;

  m.def(
      "set_pool",
      [](uintptr_t parallel_for, uintptr_t num_threads) {
        pool.parallel_for = reinterpret_cast<ParallelFor>(parallel_for);
        pool.num_threads = reinterpret_cast<int (*)(uint32_t *)>(num_threads);
      },
      py::arg("parallel_for"), py::arg("num_threads"));
  m.def("pool_used", [] { return pool_used.load(); });
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def("gmm", &gmm, release, py::arg("task"), py::arg("covariance"), py::arg("is_double"), py::arg("rows"),
        py::arg("features"), py::arg("components"), py::arg("x"), py::arg("x_row"), py::arg("x_column"),
        py::arg("log_weights"), py::arg("means"), py::arg("precisions"), py::arg("sample_weight"), py::arg("labels"),
        py::arg("responsibilities"), py::arg("out"), py::arg("log_likelihood"), py::arg("weight"), py::arg("first"),
        py::arg("second"));
  m.def("philox_uniform", &philox_uniform, release, py::arg("seed"), py::arg("step"), py::arg("row_offset"),
        py::arg("rows"), py::arg("columns"), py::arg("is_double"), py::arg("out"));
  m.def(
      "vector_math",
      [](int function, bool is_double, int64_t n, uintptr_t x, uintptr_t y) {
        kernels->vector_math(function, is_double, n, at(x), at(y));
      },
      release, py::arg("function"), py::arg("is_double"), py::arg("n"), py::arg("x"), py::arg("y"));
}
