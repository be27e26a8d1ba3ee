// Cached sampling of masked convolutions, pixel by pixel: the params structs and the entry points.
#pragma once
#include <stdint.h>

namespace evidens {

enum PixelKind : int32_t { kPixelBernoulli, kPixelCategorical, kPixelLogistic };
constexpr int32_t kGate = 100;  // beside Activation: tanh of the first half times sigmoid of the second

// Taps of a kernel that lie side by side in the row `dy` below the pixel: `depth` numbers of the source.
struct PixelRun {
  int64_t dy, dx;  // of the first tap
  int64_t ky, kx;  // its place in the kernel
  int64_t depth;   // taps times channels; the last tap may be cut short
};

// The outputs of one group of channels of one node: sums over runs.
struct PixelPart {
  int64_t first_run, runs;
  int64_t first, outputs;       // rows of the weight
  int64_t first_value, values;  // channels of the result: half as many after a gate
  int64_t depth;                // of all runs
  int64_t weights;              // where the packed weights (depth, outputs) begin, in vectors
  int64_t bias;                 // where the packed bias (outputs,) begins, in vectors
};

// A node of the network and its value; value 0 is the input, value i + 1 that of node i.
struct PixelNode {
  const void *weight;         // (O, C, kh, kw) contiguous, or null: the source itself
  const void *bias;           // (O,) or null
  const void *context;        // (N, O) contiguous, or null: added for each image
  int64_t outputs, taps;      // O, kh * kw
  int64_t columns;            // kw
  int32_t source, add;        // values; add: -1 for none
  int32_t activation;         // Activation, or kGate
  int32_t ahead;              // depends on rows above only: a row at a time
  int64_t first_part, parts;  // one, or one for each group
};
struct PixelValue {
  int64_t channels;
  int64_t ring;         // rows that are kept
  int64_t left, right;  // columns of zeros beside the image
};

// Every void pointer is of the kernel's type, float or double.
struct PixelParams {
  int64_t images, channels, height, width;  // N, C, H, W
  int64_t groups;                           // of channels, drawn one after the other
  int64_t levels;                           // K
  int64_t draws;                            // uniforms of a pixel
  int64_t mixtures;                         // M, for the logistic kind
  int32_t kind;                             // PixelKind
  int32_t one_hot;
  double input_scale, input_shift, min_log_scale;
  const PixelNode *node;    // (nodes,)
  const PixelValue *value;  // (nodes + 1,)
  int64_t nodes;
  const PixelPart *part;
  const PixelRun *run;
  int64_t parts, runs;
  const void *noise;      // (N, draws, H, W) contiguous
  const uint8_t *known;   // (N, C, H, W) contiguous, or null
  const int64_t *values;  // (N, C, H, W) contiguous, or null
  void *packed;
  int64_t *x;   // out (N, C, H, W); -1: the network gave no distribution
  void *given;  // out (N, O of the last node) at the pixel that was drawn last, or null
};

struct PixelKernel {
  int32_t width;                                                  // lanes: output channels
  int64_t (*scratch_bytes)(int64_t images, const PixelParams &);  // of one block
  void (*pack)(int64_t begin, int64_t end, const PixelParams &);  // a range of parts
  // Pixels first .. last of a block of images, whose scratch holds what the pixels before have left.
  void (*run)(int64_t begin, int64_t end, int64_t first, int64_t last, const PixelParams &, void *scratch);
};

}  // namespace evidens
