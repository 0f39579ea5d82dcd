// Judges what a layer's run gave: what verify and demo share.
#pragma once

#include "cli/layer_runner.h"

namespace nybble::cli {

struct LayerVerdict {
  ErrorStats stats;       // against the double-precision sums
  double of_allowed = 0;  // the worst output's error beyond its one rounding, as a share of what fp32 sums may add
  int64_t checked = 0;    // outputs looked at: all, unless the layer is large
  std::string first_bad;  // the first output that is wrong; empty: none

  bool ok() const { return first_bad.empty(); }
};

LayerVerdict judge_layer(const QuantizedWeight& weight, const FloatArray& act, int64_t m, const LayerRun& run,
                         int num_threads);

// Of the 4-bit weight against the one it was made from; same shape.
ErrorStats weight_error_of(const QuantizedWeight& weight, const DenseWeight& dense);

}  // namespace nybble::cli
