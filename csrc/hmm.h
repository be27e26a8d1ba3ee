// Hidden Markov model kernels: the params struct and the entry points of one level.
#pragma once
#include <stdint.h>

namespace evidens {

enum HmmTask : int32_t {
  kHmmLogLikelihood = 0,  // log_likelihood
  kHmmForward = 1,        // log_likelihood, posteriors = p(state | frames so far)
  kHmmPosteriors = 2,     // log_likelihood, posteriors = p(state | all frames), first, second
  kHmmBestPath = 3,       // log_likelihood = score of the path, paths (N,)
  kHmmDrawPaths = 4,      // log_likelihood, posteriors as scratch, paths (draws, N)
};

// Emissions with diagonal covariances in the place of log_obs; only where lanes are sequences.
struct HmmGaussians {
  int64_t features;                // D
  const void *frames;              // (N, D) contiguous
  const void *means, *precisions;  // (K, D); 1 / standard deviation
  double *moments;                 // (K,), (K, D), (K, D): with second, sums of posteriors times powers of x - mean
};

// Every void pointer is of the kernel's type, float or double.  A sequence is a run of rows.
struct HmmParams {
  int64_t rows;                     // N, frames of all sequences (and padding)
  int64_t sequences;                // B that have frames
  int64_t states;                   // K
  int32_t task;                     // HmmTask
  int32_t per_step;                 // second is (M, K, K), one derivative per step and unweighted
  const void *log_obs;              // (N, K) contiguous, nats; null where there are
  const HmmGaussians *gaussians;    // emissions of their own, or null
  const int64_t *order;             // (B,) sequences by falling length
  const int64_t *starts, *lengths;  // (B,) frames, by sequence
  const void *initial;              // (K,) or (B, K)
  int64_t initial_stride;           // 0 or K
  const void *transition;           // (K, K) or (M, K, K): step t of b at row first_transition[b] + t
  const int64_t *first_transition;  // (B,), null: one matrix for all steps
  const int64_t *second_row;        // (B,) row of second for step 0 of b, where per_step
  const void *weight;               // (B,) or null: ones
  double *log_likelihood;           // (B,)
  void *posteriors;                 // (N, K), or null with gaussians
  void *first;                      // (B, K) d log_likelihood / d initial
  void *second;                     // d log_likelihood / d transition: double (K, K), or per_step; null: not asked
  void *last;                       // (B, K) p(state of the last frame | its sequence so far), or null
  const void *ends;                 // (B, K) density of what follows a sequence, by its last state; null: nothing does
  int64_t *paths;
  int64_t draws;
  uint64_t seed;
  uint8_t *redo;  // (B,) set where linear space does not reach: these go through `exact`
};

// How a call is cut; only what sums over sequences must not depend on the number of threads.
struct HmmPlan {
  int32_t by_lanes;      // lanes are sequences; otherwise they are states
  int64_t vectors;       // by_lanes: that all sequences fill
  int64_t groups;        // of sequences that are worked on together
  int64_t units;         // of work: consecutive groups that share sums
  int64_t shared_bytes;  // packed transitions
  int64_t worker_bytes;  // scratch of one worker
  int64_t exact_bytes;   // scratch of one worker in `exact`
  int64_t unit_bytes;    // sums of one unit
};

// The phases of a call; units of one phase run in any order, on any thread.
struct HmmKernel {
  bool (*mixes)(const HmmParams &);  // no transition is so small that messages have to be watched
  void (*plan)(const HmmParams &, int64_t threads, HmmPlan &);
  void (*prepare)(const HmmParams &, const HmmPlan &, void *shared);
  void (*run)(int64_t unit, const HmmParams &, const HmmPlan &, const void *shared, void *worker, void *units);
  void (*exact)(int64_t sequence, const HmmParams &, const HmmPlan &, void *worker, double *second);
  void (*finish)(const HmmParams &, const HmmPlan &, void *units);
};

}  // namespace evidens
