// Uniform random numbers: the params struct.
#pragma once
#include <stdint.h>

namespace evidens {

struct PhiloxParams {
  uint64_t seed;       // key
  uint32_t step;       // counter word 3
  int64_t row_offset;  // first row of this call in the stream: counter words 1 and 2
  int64_t rows, columns;
  int32_t is_double;
  void *out;  // (rows, columns) contiguous, uniforms in [0, 1)
};

}  // namespace evidens
