// Stores past the cache, for large results: a line that is written whole need not be read first, and
// what stays in the cache is the arguments.
#pragma once
#include "simd.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace EVIDENS_NAMESPACE {
namespace {

// `p` on the boundary of a vector.
template <class T> EVIDENS_INLINE void store_past_cache(T *p, Vec<T> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i *>(p), (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i *>(p), (__m256i)v);
#elif defined(__x86_64__)
  _mm_stream_si128(reinterpret_cast<__m128i *>(p), (__m128i)v);
#else
  store(p, v);
#endif
}
template <class T> EVIDENS_INLINE void put(T *p, Vec<T> v, bool past_cache) {
  if (past_cache) store_past_cache(p, v);
  else store(p, v);
}

// Before other threads may read what was stored so.
EVIDENS_INLINE void finish_stream() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class... P> EVIDENS_INLINE bool on_a_vector(P *...p) {
  return ((reinterpret_cast<uintptr_t>(p) | ...) % EVIDENS_VECTOR_BYTES) == 0;
}

}  // namespace
}  // namespace EVIDENS_NAMESPACE
