// Gaussian mixture kernels: the params struct and the entry points of one level.
#pragma once
#include <stdint.h>

namespace evidens {

enum GmmCovariance : int32_t { kFull = 0, kTied = 1, kDiag = 2, kSpherical = 3 };
enum GmmTask : int32_t {
  kGmmComponentLogProb = 0,  // out (N, K)
  kGmmLogProb = 1,           // out (N,)
  kGmmStatistics = 2,        // log_likelihood, weight, first, second from the posteriors
  kGmmMoments = 3,           // weight, first, second from given responsibilities
  kGmmInputGradient = 4,     // out (N, D) from given responsibilities
};

// Every void pointer is of the kernel's type, float or double.
struct GmmParams {
  int64_t rows;                  // N
  int64_t features;              // D
  int64_t components;            // K
  int32_t covariance;            // GmmCovariance
  int32_t task;                  // GmmTask
  const void *x;                 // (N, D), strides below
  int64_t x_row, x_column;       // strides of x in elements
  const void *log_weights;       // (K,) nats
  const void *means;             // (K, D)
  const void *precisions;        // (K, D, D) upper | (D, D) upper | (K, D) | (K,)
  const void *sample_weight;     // (N,) or null: ones
  const int64_t *labels;         // (N,) or null; -1: free
  const void *responsibilities;  // (N, K) contiguous, given, or null
  void *out;                     // see GmmTask
  double *log_likelihood;        // ()
  double *weight;                // (K,)
  double *first;                 // (K, D), about means
  double *second;                // (K, D, D) | (D, D) | (K, D) | (K,), about means
};

// How a call is cut into blocks; a function of the sizes only, never of the number of threads.
struct GmmPlan {
  int64_t block;         // data rows per cache block
  int64_t slabs;         // units of work: consecutive blocks that share accumulators
  int64_t slab_rows;     // data rows per slab, a multiple of block
  int64_t parts;         // units of the prepare and finish phases
  int64_t shared_bytes;  // packed parameters
  int64_t worker_bytes;  // scratch of one worker
  int64_t slab_bytes;    // accumulators of one slab
};

// The phases of a call; units of one phase run in any order, on any thread.
struct GmmKernel {
  void (*plan)(const GmmParams &, GmmPlan &);
  void (*prepare)(int64_t part, const GmmParams &, const GmmPlan &, void *shared);
  void (*run)(int64_t slab, const GmmParams &, const GmmPlan &, const void *shared, void *worker, void *slabs);
  void (*finish)(int64_t part, const GmmParams &, const GmmPlan &, void *slabs);
  void (*combine)(const GmmParams &, const void *shared);  // once, after every finish
};

}  // namespace evidens
