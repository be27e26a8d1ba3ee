// Fills rows of uniforms; see philox.h for the generator.
#include "philox.h"

#include "kernels.h"

namespace EVIDENS_NAMESPACE {

extern void philox_uniform(int64_t begin, int64_t end, const evidens::PhiloxParams &p);
void philox_uniform(int64_t begin, int64_t end, const evidens::PhiloxParams &p) {
  const uint32_t k0 = uint32_t(p.seed), k1 = uint32_t(p.seed >> 32);
  const int64_t per_block = p.is_double ? 2 : 4;
  for (int64_t row = begin; row < end; ++row) {
    const uint64_t r = uint64_t(row + p.row_offset);
    for (int64_t c = 0; c < p.columns; c += per_block) {
      const PhiloxWords w = philox({{uint32_t(c / per_block), uint32_t(r), uint32_t(r >> 32), p.step}}, k0, k1);
      const int64_t left = p.columns - c < per_block ? p.columns - c : per_block;
      for (int64_t i = 0; i < left; ++i) {
        const int64_t at = row * p.columns + c + i;
        if (p.is_double) static_cast<double *>(p.out)[at] = uniform(w.word[2 * i], w.word[2 * i + 1]);
        else static_cast<float *>(p.out)[at] = uniform(w.word[i]);
      }
    }
  }
}

}  // namespace EVIDENS_NAMESPACE
