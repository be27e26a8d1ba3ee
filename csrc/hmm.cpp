// Hidden Markov models: which engine runs a call, and the sums over its units.
#include "hmm.h"

#include "hmm_exact.h"
#include "hmm_lanes.h"
#include "hmm_path.h"
#include "hmm_states.h"
#include "kernels.h"

namespace EVIDENS_NAMESPACE {
namespace {

template <class T> struct Hmm : HmmLayout<T> {
  using Layout = HmmLayout<T>;
  using Layout::padded, Layout::W;
  using typename Layout::Shared;

  static bool mixes(const HmmParams &p) {
    return Layout::limit_of(static_cast<const T *>(p.transition), p.states) == T(0);
  }

  static void plan(const HmmParams &p, int64_t threads, HmmPlan &plan) {
    Layout::plan(p, threads, plan);
    const int64_t longest = p.sequences ? p.lengths[p.order[0]] : 0;
    if (p.task == kHmmBestPath) {
      double *unused;
      plan.worker_bytes = HmmPath<T>::carve(p, plan, nullptr, unused, unused, unused);
    } else if (plan.by_lanes) {
      typename HmmLanes<T>::Scratch s;
      const int64_t groups = plan.groups > 0 ? plan.groups : 1;
      const int64_t small = HmmLanes<T>::carve(p, plan.vectors / groups * W, nullptr, s);
      const int64_t large = HmmLanes<T>::carve(p, (plan.vectors + groups - 1) / groups * W, nullptr, s);
      // The smaller may be the one that keeps its densities.
      plan.worker_bytes = small > large ? small : large;
    } else {
      typename HmmStates<T>::Scratch s;
      plan.worker_bytes = HmmStates<T>::carve(p, nullptr, s);
    }
    plan.worker_bytes += plan.unit_bytes;  // the sums of one group
    typename HmmExact<T>::Scratch s;
    plan.exact_bytes = HmmExact<T>::carve(p, longest, nullptr, s);
  }

  static void run(int64_t unit, const HmmParams &p, const HmmPlan &plan, const void *shared, void *worker,
                  void *units) {
    Shared s;
    int64_t bytes;
    Layout::carve_shared(p, const_cast<void *>(shared), s, bytes);
    double *sums = nullptr;
    if (plan.unit_bytes > 0) {
      sums = reinterpret_cast<double *>(static_cast<char *>(units) + unit * plan.unit_bytes);
      for (int64_t i = 0; i < Layout::sums_of(p); ++i) sums[i] = 0;
    }
    for (int64_t g = plan.groups * unit / plan.units; g < plan.groups * (unit + 1) / plan.units; ++g) {
      if (p.task == kHmmBestPath) HmmPath<T>::run(p, plan, s, g, worker);
      else if (plan.by_lanes) HmmLanes<T>::run(p, plan, s, g, worker, sums);
      else HmmStates<T>::run(p, s, g, worker, sums);
      if (p.task == kHmmDrawPaths) draw(p, plan, g);
    }
  }
  static void draw(const HmmParams &p, const HmmPlan &plan, int64_t group) {
    const auto first = [&](int64_t g) { return plan.by_lanes ? Layout::vectors_before(plan, g) * W : g; };
    for (int64_t i = first(group); i < p.sequences && i < first(group + 1); ++i) {
      const int64_t b = p.order[i];
      if (!p.redo[b]) HmmExact<T>::draw_filtered(b, p);
    }
  }

  static void exact(int64_t b, const HmmParams &p, const HmmPlan &, void *worker, double *second) {
    HmmExact<T>::run(b, p, worker, Layout::sums(p) ? second : nullptr);
  }

  // Unit 0 takes the totals.
  static void finish(const HmmParams &p, const HmmPlan &plan, void *units) {
    const int64_t K = p.states, Kp = padded(K, W);
    double *total = static_cast<double *>(units), *out = static_cast<double *>(p.second);
    for (int64_t u = 1; u < plan.units; ++u) {
      const double *sums = reinterpret_cast<const double *>(static_cast<const char *>(units) + u * plan.unit_bytes);
      for (int64_t i = 0; i < Layout::sums_of(p); ++i) total[i] += sums[i];
    }
    for (int64_t i = 0; i < K; ++i)
      for (int64_t j = 0; j < K; ++j) out[i * K + j] = total[i * Kp + j];
    for (int64_t i = 0; i < Layout::moments_of(p); ++i) p.gaussians->moments[i] = total[Layout::pairs_of(p) + i];
  }
};

}  // namespace

extern const evidens::HmmKernel hmm[2];
constexpr evidens::HmmKernel hmm[2] = {
    {Hmm<float>::mixes, Hmm<float>::plan, Hmm<float>::prepare, Hmm<float>::run, Hmm<float>::exact, Hmm<float>::finish},
    {Hmm<double>::mixes, Hmm<double>::plan, Hmm<double>::prepare, Hmm<double>::run, Hmm<double>::exact,
     Hmm<double>::finish},
};

}  // namespace EVIDENS_NAMESPACE
