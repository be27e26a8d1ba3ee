// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
//
// Counter = (column block, row low, row high, step), key = (seed low, seed high): a row's stream
// depends on nothing but the seed, the step and the row.
#pragma once
#include "simd.h"

namespace EVIDENS_NAMESPACE {
namespace {

struct PhiloxWords { uint32_t word[4]; };

EVIDENS_INLINE PhiloxWords philox(PhiloxWords c, uint32_t k0, uint32_t k1) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c.word[0], p1 = uint64_t(0xCD9E8D57u) * c.word[2];
    c = {{uint32_t(p1 >> 32) ^ c.word[1] ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ c.word[3] ^ k1, uint32_t(p0)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// Uniforms in [0, 1): 24 bits for float, 53 for double.  Exact, so equal on every level and device.
EVIDENS_INLINE float uniform(uint32_t word) { return float(word >> 8) * 0x1p-24f; }
EVIDENS_INLINE double uniform(uint32_t high, uint32_t low) {
  return (double(high >> 5) * 0x1p26 + double(low >> 6)) * 0x1p-53;
}

}  // namespace
}  // namespace EVIDENS_NAMESPACE
