// Philox4x32-10 for the columns of one row: lanes are column blocks.
#pragma once
#include "philox.h"
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace EVIDENS_NAMESPACE {
namespace {

typedef uint64_t Words __attribute__((vector_size(EVIDENS_VECTOR_BYTES)));  // a word in the low half of each lane

// 64-bit products of the low halves.
EVIDENS_INLINE Words multiply_words(Words a, Words b) {
#if defined(__AVX512F__)
  return (Words)_mm512_maskz_mul_epu32(__mmask8(-1), (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (Words)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (Words)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#endif
}

// The stream of one (seed, step): uniforms of 2 x width adjacent columns at a time.
template <class T> struct PhiloxColumns {
  static constexpr int lanes = EVIDENS_VECTOR_BYTES / 8;
  static constexpr int64_t per_block = sizeof(T) == 4 ? 4 : 2;
  uint64_t key0[10], key1[10];
  uint64_t step;
  Words order;  // block of each lane, so that interleaved words are in the order of columns

  PhiloxColumns(uint64_t seed, uint32_t step_) : step(step_) {
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      key0[round] = k0, key1[round] = k1;
      k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    for (int l = 0; l < lanes; ++l) order[l] = uint64_t(l % 2 * (lanes / 2) + l / 2);
  }

  // Columns column .. column + 2 width - 1 of a row; column is a multiple of 2 width.
  EVIDENS_METHOD void uniforms(uint64_t row, int64_t column, Vec<T> (&u)[2]) const {
    constexpr uint64_t low = 0xFFFFFFFFu;
    const Words m0 = Words{} + 0xD2511F53u, m1 = Words{} + 0xCD9E8D57u;
    Words c0 = order + uint64_t(column / per_block), c1 = Words{} + (row & low), c2 = Words{} + (row >> 32),
          c3 = Words{} + step;
    // The high halves hold rubbish between rounds: nothing reads them.
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const Words p0 = multiply_words(m0, c0), p1 = multiply_words(m1, c2);
      c0 = (p1 >> 32) ^ c1 ^ key0[round], c1 = p1;
      c2 = (p0 >> 32) ^ c3 ^ key1[round], c3 = p0;
    }
    if constexpr (sizeof(T) == 4) {
      typedef uint32_t Bits __attribute__((vector_size(EVIDENS_VECTOR_BYTES)));
      const Vec<double> a = (Vec<double>)((c0 & low) | (c1 << 32)), b = (Vec<double>)((c2 & low) | (c3 << 32));
      const Bits first = (Bits)interleave<double, 1, false>(a, b), second = (Bits)interleave<double, 1, true>(a, b);
      u[0] = __builtin_convertvector((Vec<int32_t>)(first >> 8), Vec<float>) * 0x1p-24f;
      u[1] = __builtin_convertvector((Vec<int32_t>)(second >> 8), Vec<float>) * 0x1p-24f;
    } else {
      const Vec<double> a = join(c0 & low, c1 & low), b = join(c2 & low, c3 & low);
      u[0] = interleave<double, 1, false>(a, b);
      u[1] = interleave<double, 1, true>(a, b);
    }
  }

 private:
  static EVIDENS_METHOD Vec<double> join(Words high, Words low) {
    constexpr uint64_t exponent = 0x4330000000000000u;  // of 2^52: the words are its last bits
    const Vec<double> h = (Vec<double>)((high >> 5) | exponent) - 0x1p52;
    const Vec<double> l = (Vec<double>)((low >> 6) | exponent) - 0x1p52;
    return (h * 0x1p26 + l) * 0x1p-53;
  }
};

}  // namespace
}  // namespace EVIDENS_NAMESPACE
