// Hidden Markov models: the phases of a call, and few long sequences cut into many short ones.
#pragma once
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "hmm.h"
#include "host.h"

namespace evidens {

// Sequences that have frames, by falling length; equal ones in their order.
inline std::vector<int64_t> by_length(int64_t sequences, const int64_t *lengths) {
  std::vector<int64_t> order;
  for (int64_t b = 0; b < sequences; ++b)
    if (lengths[b] > 0) order.push_back(b);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  return order;
}

inline double hmm_work(const HmmParams &p) {
  int64_t frames = 0;
  for (int64_t i = 0; i < p.sequences; ++i) frames += p.lengths[p.order[i]];
  return double(frames) * double(p.states) * (double(p.states) + 16);
}

// A call in linear space; the sequences beyond its reach are marked in p.redo.
struct HmmPass {
  double work;
  HmmPlan plan;
  Buffer shared, scratch, units;

  HmmPass(const HmmKernel &kernel, const HmmParams &p) : work(hmm_work(p)) {
    kernel.plan(p, workers_for(work, p.sequences), plan);
    const int64_t workers = workers_for(work, plan.units);
    shared = allocate(plan.shared_bytes);
    scratch = allocate(workers * plan.worker_bytes);
    units = allocate(plan.units * plan.unit_bytes);
    kernel.prepare(p, plan, shared.get());
    run_blocks(pool, plan.units, workers, [&](int64_t unit, int64_t worker) {
      kernel.run(unit, p, plan, shared.get(), static_cast<char *>(scratch.get()) + worker * plan.worker_bytes,
                 units.get());
    });
  }
};

// Whether emissions of their own can be computed on the way: lanes are sequences, and there is memory
// for the messages of a group.
inline bool fits(const HmmKernel &kernel, const HmmParams &p) {
  constexpr int64_t most = int64_t(96) << 20;
  HmmPlan plan;
  if (p.gaussians != nullptr) kernel.plan(p, 1, plan);
  return p.gaussians == nullptr || (plan.by_lanes && plan.worker_bytes <= most);
}

// False where emissions of their own are in the way; then the caller has to write out log_obs.  So it has to
// for the sequences that linear space lost and p.redo says: they are in no sum.
inline bool run_whole(const HmmKernel &kernel, const HmmParams &p) {
  if (!fits(kernel, p)) return false;
  const HmmPass pass(kernel, p);
  const HmmPlan &plan = pass.plan;
  std::vector<int64_t> again;
  for (int64_t i = 0; i < p.sequences; ++i)
    if (p.redo[p.order[i]] && p.gaussians == nullptr) again.push_back(p.order[i]);
  if (!again.empty()) {
    // A fixed number of sums, so that they do not depend on the threads.
    const int64_t parts = std::min<int64_t>(int64_t(again.size()), 8), sums = plan.unit_bytes;
    const int64_t helpers = workers_for(pass.work, parts);
    const Buffer space = allocate(helpers * plan.exact_bytes), seconds = allocate(parts * sums);
    std::memset(seconds.get(), 0, size_t(parts * sums));
    run_blocks(pool, parts, helpers, [&](int64_t part, int64_t worker) {
      for (int64_t i = part; i < int64_t(again.size()); i += parts)
        kernel.exact(again[size_t(i)], p, plan, static_cast<char *>(space.get()) + worker * plan.exact_bytes,
                     reinterpret_cast<double *>(static_cast<char *>(seconds.get()) + part * sums));
    });
    double *total = static_cast<double *>(pass.units.get());
    const double *more = static_cast<const double *>(seconds.get());
    for (int64_t i = 0, n = sums / int64_t(sizeof(double)); i < parts * n; ++i) total[i % n] += more[i];
  }
  if (plan.unit_bytes > 0) kernel.finish(p, plan, pass.units.get());
  return true;
}

// Few long sequences, cut into chunks that are run as if they were sequences.  A chunk begins with
// p(its first state | the frames before) and ends with the density of the frames behind it.  Both come
// from a window of frames beside the cut, run from any start: a chain that mixes forgets its start at
// a geometric rate, which a probe measures.  In the end each chunk has to have been entered with what
// its neighbours left; if not, `run` returns false and the call has to be run whole.
template <class T> struct HmmChunks {
  static constexpr int64_t kSequences = 16, kFrames = 8192;  // most of those, least of these, for cutting
  static constexpr int64_t kChunks = 128, kShortest = 512;   // about so many, none shorter
  static constexpr int64_t kProbes = 16, kProbe = 32;        // cuts that are probed, over so many frames
  static constexpr T kAgree = 64 * std::numeric_limits<T>::epsilon();

  // Runs of frames as sequences of a call of their own.
  struct Runs {
    std::vector<int64_t> starts, lengths, order;
    std::vector<T> initial, weight, first, last, ends;  // (runs, K) but for weight
    std::vector<double> log_likelihood;
    std::vector<uint8_t> redo;

    Runs(int64_t count, int64_t states)
        : starts(size_t(count)),
          lengths(size_t(count)),
          initial(size_t(count * states)),
          last(size_t(count * states)),
          log_likelihood(size_t(count)),
          redo(size_t(count)) {}

    // The call of `task` on these runs with what p has for all frames.
    HmmParams params(const HmmParams &p, HmmTask task) {
      order = by_length(int64_t(starts.size()), lengths.data());
      first.resize(initial.size());
      HmmParams q = p;
      q.sequences = int64_t(order.size()), q.task = task;
      q.order = order.data(), q.starts = starts.data(), q.lengths = lengths.data();
      q.initial = initial.data(), q.initial_stride = p.states;
      q.weight = weight.empty() ? nullptr : weight.data();
      q.log_likelihood = log_likelihood.data();
      q.first = first.data(), q.last = last.data(), q.ends = ends.empty() ? nullptr : ends.data();
      q.redo = redo.data();
      return q;
    }
    bool lost() const { return std::count(redo.begin(), redo.end(), 0) != std::ptrdiff_t(redo.size()); }
  };

  const HmmKernel &kernel;
  const HmmParams &p;
  const int64_t K = p.states;
  const T *A = static_cast<const T *>(p.transition);
  std::vector<int64_t> parent, starts, lengths;  // by chunk; those of a sequence follow each other
  std::vector<int64_t> cuts;                     // chunks that continue the one before them
  std::vector<T> behind;                         // (cuts, K) derivatives by their first states, of the windows there

  HmmChunks(const HmmKernel &kernel, const HmmParams &p) : kernel(kernel), p(p) {}

  bool run() {
    if (!cut()) return false;
    const int64_t window = forgetting();
    if (window < 0) return false;
    Runs chunks(int64_t(starts.size()), K);
    chunks.starts = starts, chunks.lengths = lengths;
    for (size_t c = 0; c < starts.size(); ++c) {
      if (p.weight != nullptr) chunks.weight.push_back(static_cast<const T *>(p.weight)[parent[c]]);
      const T *initial = static_cast<const T *>(p.initial) + parent[c] * p.initial_stride;
      std::copy_n(initial, K, &chunks.initial[c * size_t(K)]);
    }
    // A few cuts are probed; where another one forgets more slowly, twice as many frames may do.
    return (enter(chunks, window) && finish(chunks)) || (enter(chunks, 2 * window) && finish(chunks));
  }

  bool cut() {
    const bool summed = p.task == kHmmLogLikelihood || p.task == kHmmForward || p.task == kHmmPosteriors;
    if (!summed || p.first_transition != nullptr || p.per_step || p.sequences > kSequences) return false;
    int64_t frames = 0;
    for (int64_t i = 0; i < p.sequences; ++i) frames += p.lengths[p.order[i]];
    const int64_t size = std::max(kShortest, (frames + kChunks - 1) / kChunks);
    if (frames < kFrames || p.lengths[p.order[0]] < 2 * size || !kernel.mixes(p)) return false;
    for (int64_t i = 0; i < p.sequences; ++i) {
      const int64_t b = p.order[i], n = p.lengths[b], count = std::max<int64_t>(n / size, 1);
      for (int64_t c = 0; c < count; ++c) {
        const int64_t begin = n * c / count, end = n * (c + 1) / count;
        if (c > 0) cuts.push_back(int64_t(starts.size()));
        parent.push_back(b);
        starts.push_back(p.starts[b] + begin);
        lengths.push_back(end - begin);
      }
    }
    return true;
  }

  // Frames after which two starts cannot be told apart; -1: too many to be worth it.
  int64_t forgetting() const {
    const int64_t probes = std::min<int64_t>(kProbes, int64_t(cuts.size()));
    Runs runs(2 * probes, K);
    for (int64_t i = 0; i < 2 * probes; ++i) {
      const int64_t c = cuts[size_t(i % probes * int64_t(cuts.size()) / probes)];
      runs.starts[size_t(i)] = starts[size_t(c)] - kProbe, runs.lengths[size_t(i)] = kProbe;
      for (int64_t k = 0; k < K; ++k)
        runs.initial[size_t(i * K + k)] = i < probes ? T(1) / T(K) : k == i % K ? T(1) : T(0);
    }
    const HmmParams q = runs.params(p, kHmmLogLikelihood);
    const HmmPass pass(kernel, q);
    if (runs.lost()) return -1;
    double apart = 0;  // largest ratio of the two, in logs
    for (int64_t i = 0, n = probes * K; i < n; ++i) {
      const double a = double(runs.last[size_t(i)]), b = double(runs.last[size_t(n + i)]);
      if (a != b) apart = std::max(apart, std::fabs(std::log(a / b)));
    }
    const double goal = double(kAgree) / 64;
    apart = std::max(apart, goal);
    const double rate = std::log(apart) / (kProbe - 1);
    if (!(rate < 0)) return -1;
    const double needed = 1.25 * (kProbe + std::log(goal / apart) / rate) + 8;
    return needed <= double(kShortest / 4) ? int64_t(needed) : -1;
  }

  // What chunk c begins with, given p(state of the frame before it | the frames so far).
  void predict(const T *filtered, T *out) const {
    std::vector<double> sum(size_t(K), 0.0);
    for (int64_t i = 0; i < K; ++i)
      for (int64_t j = 0; j < K; ++j) sum[size_t(j)] += double(filtered[i]) * double(A[i * K + j]);
    for (int64_t j = 0; j < K; ++j) out[j] = T(sum[size_t(j)]);
  }

  // Where chunks begin and end, by a window on either side of every cut.
  bool enter(Runs &chunks, int64_t window) {
    const int64_t n = int64_t(cuts.size());
    Runs runs(n, K);
    for (int64_t i = 0; i < n; ++i) runs.starts[size_t(i)] = starts[size_t(cuts[size_t(i)])] - window;
    std::fill(runs.lengths.begin(), runs.lengths.end(), window);
    std::fill(runs.initial.begin(), runs.initial.end(), T(1) / T(K));
    {
      const HmmParams q = runs.params(p, kHmmLogLikelihood);
      const HmmPass pass(kernel, q);
    }
    for (int64_t i = 0; i < n; ++i) {
      T *initial = &chunks.initial[size_t(cuts[size_t(i)] * K)];
      predict(&runs.last[size_t(i * K)], initial);
      std::copy_n(initial, K, &runs.initial[size_t(i * K)]);
      runs.starts[size_t(i)] += window;
    }
    if (runs.lost()) return false;
    if (p.task != kHmmPosteriors) return true;
    HmmParams q = runs.params(p, kHmmPosteriors);
    q.second = nullptr;
    const HmmPass pass(kernel, q);
    if (runs.lost()) return false;
    chunks.ends.assign(chunks.initial.size(), T(1));
    chunks.first.resize(chunks.initial.size());
    for (int64_t i = 0; i < n; ++i) {
      const T *first = &runs.first[size_t(i * K)];
      T *end = &chunks.ends[size_t((cuts[size_t(i)] - 1) * K)];
      for (int64_t s = 0; s < K; ++s) {
        double sum = 0;
        for (int64_t j = 0; j < K; ++j) sum += double(A[s * K + j]) * double(first[j]);
        end[s] = T(sum);
      }
    }
    behind = std::move(runs.first);
    return true;
  }

  static bool agree(const T *a, const T *b, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
      if (!(std::fabs(a[i] - b[i]) <= kAgree * std::max(a[i], b[i]) + std::numeric_limits<T>::min())) return false;
    return true;
  }

  bool finish(Runs &chunks) {
    const HmmParams q = chunks.params(p, HmmTask(p.task));
    if (!fits(kernel, q)) return false;
    const HmmPass pass(kernel, q);
    if (chunks.lost()) return false;
    std::vector<T> left(static_cast<size_t>(K));
    for (size_t i = 0; i < cuts.size(); ++i) {
      const size_t c = size_t(cuts[i] * K);
      predict(&chunks.last[c - size_t(K)], left.data());
      if (!agree(left.data(), &chunks.initial[c], K)) return false;
      if (p.task == kHmmPosteriors && !agree(&behind[i * size_t(K)], &chunks.first[c], K)) return false;
    }
    double *second = static_cast<double *>(p.second);
    if (pass.plan.unit_bytes > 0) kernel.finish(q, pass.plan, pass.units.get());
    for (size_t c = 0; c < parent.size(); ++c) {
      const bool begins = c == 0 || parent[c] != parent[c - 1];
      double &total = p.log_likelihood[parent[c]];
      total = (begins ? 0.0 : total) + chunks.log_likelihood[c];
      const T *first = &chunks.first[c * size_t(K)];
      if (p.task != kHmmPosteriors) continue;
      if (begins) std::copy_n(first, K, static_cast<T *>(p.first) + parent[c] * K);
      const double weight = chunks.weight.empty() ? 1.0 : double(chunks.weight[c]);
      if (begins || second == nullptr || weight == 0) continue;
      const T *filtered = &chunks.last[(c - 1) * size_t(K)];
      for (int64_t i = 0; i < K; ++i)
        for (int64_t j = 0; j < K; ++j) second[i * K + j] += weight * double(filtered[i]) * double(first[j]);
    }
    return true;
  }
};

}  // namespace evidens
