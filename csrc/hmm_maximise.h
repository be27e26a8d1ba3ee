// Hidden Markov models: the M step of tables and of normal emissions, from sums in float64.
//
// Small arrays on the host: what costs time here is how many calls it takes to say it.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace evidens {

// A prior of every entry: its own, or one value for all.
struct Prior {
  double value;
  const double *own;
  double operator[](int64_t i) const { return own != nullptr ? own[i] : value; }
};

// Rows that sum to 1, of expected counts and a Dirichlet prior.  What was 0 stays 0, and a row
// without counts stays as it was.
inline void maximise_rows(int64_t rows, int64_t columns, const double *counts, Prior prior, const double *old,
                          double *out) {
  for (int64_t i = 0; i < rows * columns; i += columns) {
    double total = 0;
    for (int64_t j = i; j < i + columns; ++j) {
      const double value = prior[j] - 1 + counts[j];
      total += out[j] = value < 0 || old[j] == 0 ? 0 : value;  // NaN stays
    }
    for (int64_t j = i; j < i + columns; ++j) out[j] = total <= 0 ? old[j] : out[j] / total;
  }
}

// Normal emissions with variances (K, D), or (K,) where they are spherical.
struct NormalStep {
  int64_t states, features;
  bool spherical, learn_means, learn_variances;
  const double *weight, *first, *second;  // moments about the old means: (K,), (K, D), as variances
  const double *old_means, *old_variances, *old_precisions;
  Prior mean_weight, mean, variance;  // (K, D)
  double variance_weight;             // of the prior of the variances
  double unvisited, least;            // weight of no visit; the least variance
  double *means, *variances, *precisions;
  bool *kept;  // (K,) states that were not visited, or kept their variances

  void run() const {
    for (int64_t k = 0; k < states; ++k) {
      kept[k] = weight[k] <= unvisited;
      if (learn_means) new_mean(k);
      else std::copy_n(old_means + k * features, features, means + k * features);
      const int64_t width = spherical ? 1 : features, at = k * width;
      if (learn_variances && new_variances(k)) continue;
      kept[k] |= learn_variances;
      std::copy_n(old_variances + at, width, variances + at);
      std::copy_n(old_precisions + at, width, precisions + at);
    }
  }

 private:
  void new_mean(int64_t k) const {  // with neither frames nor a prior it is the old one
    for (int64_t i = k * features; i < (k + 1) * features; ++i) {
      const double total = mean_weight[i] + weight[k], sum = mean_weight[i] * (mean[i] - old_means[i]) + first[i];
      means[i] = old_means[i] + (total > unvisited ? sum / total : 0);
    }
  }
  // False where a state has to keep its variances.
  bool new_variances(int64_t k) const {
    const double denominator = std::max(std::max(variance_weight - 1, 0.0) + weight[k], 1e-5);
    bool valid = variance_weight > 1 || !(weight[k] <= unvisited);
    double sum = 0;
    for (int64_t i = k * features; i < (k + 1) * features; ++i) {
      const double delta = means[i] - old_means[i], apart = means[i] - mean[i];
      // From the old means to the new ones.
      const double moved = 2 * delta * (first[i] - weight[k] * delta / 2);
      const double added = variance[i] + mean_weight[i] * apart * apart;
      if (spherical) sum += added - moved;
      else valid &= settle(i, (added + (second[i] - moved)) / denominator);
    }
    if (spherical) valid &= settle(k, (sum / double(features) + second[k]) / denominator);
    return valid;
  }
  bool settle(int64_t i, double variance) const {
    variances[i] = variance, precisions[i] = 1 / std::sqrt(variance);
    return variance >= least && variance < std::numeric_limits<double>::infinity();
  }
};

}  // namespace evidens
