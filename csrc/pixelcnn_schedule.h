// What a network of masked convolutions keeps and sums: rows of values, and runs of taps.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "pixelcnn.h"

namespace evidens {

struct PixelSchedule {
  // As the caller gives a node; taps (kh, kw), the centre included where some channel sees it.
  struct Layer {
    const void *weight, *bias, *context;
    int64_t outputs, height, width;
    const char *taps;  // 0 or 1
    int32_t source, add, activation;
    bool strict, ahead;  // strict: at the centre a group sees those before it only
  };

  std::vector<PixelNode> nodes;
  std::vector<PixelValue> values;
  std::vector<PixelPart> parts;
  std::vector<PixelRun> runs;
  int64_t packed = 0;  // vectors

  PixelSchedule(const std::vector<Layer> &layers, int64_t inputs, int64_t groups, int64_t lanes) : lanes_(lanes) {
    values.push_back({inputs, 1, 0, 0});
    for (const Layer &layer : layers) {
      PixelNode node = {
          layer.weight, layer.bias, layer.context,    0,           layer.height * layer.width, layer.width,
          layer.source, layer.add,  layer.activation, layer.ahead, int64_t(parts.size()),      0};
      PixelValue &source = values[size_t(layer.source)];
      node.outputs = layer.weight == nullptr ? source.channels : layer.outputs;
      node.parts = layer.ahead ? 1 : groups;
      for (int64_t g = 0; g < node.parts; ++g) add_part(layer, node, g, source);
      values.push_back({layer.activation == kGate ? node.outputs / 2 : node.outputs, 1, 0, 0});
      nodes.push_back(node);
    }
  }

 private:
  void add_part(const Layer &layer, const PixelNode &node, int64_t g, PixelValue &source) {
    PixelPart part = {};
    part.outputs = node.outputs / node.parts;
    part.first = g * part.outputs;
    part.values = layer.activation == kGate ? part.outputs / 2 : part.outputs;
    part.first_value = g * part.values;
    part.first_run = int64_t(runs.size());
    for (int64_t ky = 0; ky < layer.height && layer.weight != nullptr; ++ky) add_row(layer, node, g, ky, source, part);
    part.runs = int64_t(runs.size()) - part.first_run;
    const int64_t vectors = (part.outputs + lanes_ - 1) / lanes_;
    part.bias = packed;
    part.weights = packed += vectors;
    packed += vectors * part.depth;
    parts.push_back(part);
  }

  void add_row(const Layer &layer, const PixelNode &node, int64_t g, int64_t ky, PixelValue &source, PixelPart &part) {
    const int64_t dy = ky - layer.height / 2, middle = layer.width / 2;
    PixelRun run = {};
    bool open = false;
    const auto close = [&] {
      if (open && run.depth > 0) runs.push_back(run), part.depth += run.depth;
      open = false;
    };
    for (int64_t kx = 0; kx < layer.width; ++kx) {
      if (!layer.taps[ky * layer.width + kx]) {
        close();
        continue;
      }
      const bool centre = dy == 0 && kx == middle;
      const int64_t seen = source.channels / node.parts * (layer.strict ? g : g + 1);
      if (!open) run = {dy, kx - middle, ky, kx, 0}, open = true;
      run.depth += centre ? seen : source.channels;
      source.ring = std::max(source.ring, 1 - dy);
      source.left = std::max(source.left, middle - kx);
      source.right = std::max(source.right, kx - middle);
      if (centre && seen < source.channels) close();
    }
    close();
  }

  int64_t lanes_;
};

}  // namespace evidens
