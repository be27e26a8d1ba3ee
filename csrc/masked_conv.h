// Masked convolution and masked linear layers: the params struct and the entry points of one level.
#pragma once
#include <stdint.h>

namespace evidens {

// A stack of planes: (images, channels, places).  Either `channel` or `place` is 1, or C is 1.
struct MaskedConvPlanes {
  void *data;     // of the kernel's type, float or double; null: not wanted
  int64_t image;  // strides in elements
  int64_t channel;
  int64_t place;  // the places of a plane, H * W, lie evenly in the order of the raster
};

// A linear layer is a convolution of one image, N x 1 places, with one tap: the centre.
struct MaskedConvParams {
  int64_t images;            // N
  int64_t height, width;     // H, W
  int64_t in_channels;       // C
  int64_t out_channels;      // O
  int64_t kernel;            // kh * kw
  int64_t taps;              // live ones
  const int64_t *live;       // (kernel,) which tap a place of the kernel is; -1: dead
  const int64_t *dy, *dx;    // (taps,) from an output pixel to the input pixel that the tap reads
  int64_t centre;            // the tap that sees only some channels; -1: none
  const int64_t *in_key;     // (C,) rising, by order; at `centre` o sees c where out_key >= in_key
  const int64_t *out_key;    // (O,) rising, by order
  const int64_t *in_order;   // (C,) the channel that comes at each place, or null: its own
  const int64_t *in_rank;    // (C,) the place of each channel, or null
  const int64_t *out_order;  // (O,)
  MaskedConvPlanes x;        // C channels
  const void *weight;        // (O, C, kernel)
  const void *bias;          // (O,) or null: 0
  MaskedConvPlanes y;        // out, O channels; forward only
  MaskedConvPlanes grad_y;   // O channels; backward only, as all that follow
  MaskedConvPlanes grad_x;   // out, C channels
  void *grad_weight;         // out (O, C, kernel) or null; 0 where dead
  void *grad_bias;           // out (O,) or null
};

// How a call is cut; a function of the sizes only, never of the number of threads.
struct MaskedConvPlan {
  int64_t top, bottom, left, right;  // rows and columns around x that live taps reach
  bool x_in_place, grad_in_place;    // pixels are read where they lie
  int64_t x_step, grad_step;         // elements from a pixel to the next, in a band
  int64_t rows;                      // of a band, the unit that stays in the second-level cache
  int64_t bands;                     // of an image
  int64_t units;                     // forward: bands; backward: slabs, which are runs of bands
  int64_t slabs;                     // of the backward's sums
  int64_t parts;                     // blocks of input channels, to pack and to finish
  int64_t shared_bytes;              // packed weights
  int64_t worker_bytes;              // scratch of one worker
  int64_t slab_bytes;                // sums of one slab
};

struct MaskedConvKernel {
  void (*plan)(bool backward, const MaskedConvParams &, MaskedConvPlan &);
  void (*prepare)(bool backward, int64_t part, const MaskedConvParams &, const MaskedConvPlan &, void *shared);
  void (*forward)(int64_t unit, const MaskedConvParams &, const MaskedConvPlan &, const void *shared, void *worker);
  void (*backward)(int64_t unit, const MaskedConvParams &, const MaskedConvPlan &, const void *shared, void *worker,
                   void *slabs);
  void (*finish)(int64_t part, const MaskedConvParams &, const MaskedConvPlan &, const void *slabs);
};

}  // namespace evidens
