// AWQ (Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", MLSys 2024):
// search for the scales of an input's features, and for the range of each group. The loss is the layer's mean squared
// output error, tr(dW H dW^T): with the Hessian it needs no activations.
//
// Here stands what the CPU's and the GPU's AWQ have in common. The errors e of some rows cost the sum of e_i p_i over
// the rows and their features, p = e H; without a Hessian that of e_i e_i times the mean square of input i. Both
// backends add up p_j in the order of i and a loss in the order of rows and features, in double, every product and
// every sum rounded by itself, so their results are equal bit for bit.
#pragma once

#include <vector>

#include "quantize/rows.h"
#include "quantize/rtn.h"

namespace nybble::quantize {

// A loss is added up over tiles of kRowsPerItem rows, then over the tiles.
inline int64_t tiles_of(int64_t rows) { return (rows + kRowsPerItem - 1) / kRowsPerItem; }

// Range i of quantize_clipped() is the full one times clip_factor(i).
inline constexpr int kMaxClipSteps = 20;
NYBBLE_HD inline float clip_factor(int step) {
  return rtn::divide(static_cast<float>(kMaxClipSteps - step), static_cast<float>(kMaxClipSteps));
}

struct TileErrors {
  double error = 0;  // of the difference between two weights
  double size = 0;   // of the one they are measured by
};

// Where the arithmetic is done.
class AwqBackend {
 public:
  virtual ~AwqBackend() = default;
  // What round to nearest on some rows of a layer costs, its columns multiplied by each candidate's scales[k], in the
  // units of the unscaled input: [tiles, candidates]. Infinite where the scale of a group overflows its type.
  virtual Result<std::vector<double>> scaled_losses(const DenseWeight& layer, const std::vector<int64_t>& rows,
                                                    const std::vector<std::vector<float>>& candidates) = 0;
  // Codes, scales and zeros, each group in that one of `steps` ranges which costs least by the group's own block of the
  // Hessian; of equals the widest wins.
  virtual Result<void> round_clipped(const DenseWeight& dense, int steps, QuantizedWeight& weight) = 0;
  // Of values[n, k] - dense, and of dense: [tiles].
  virtual Result<std::vector<TileErrors>> output_errors(const DenseWeight& dense, const std::vector<float>& values) = 0;
};

// search_awq_scales(), quantize_clipped() and relative_output_error() around the arithmetic: checks before, candidates,
// the choice among them.
Result<AwqScales> run_awq_search(std::span<const DenseWeight* const> layers, const GridOptions& grid,
                                 const AwqOptions& options, const LayerStatistics& statistics, AwqBackend& backend);
Result<QuantizedWeight> run_clipping(const DenseWeight& dense, const GridOptions& grid, int clip_steps,
                                     const LayerStatistics& statistics, AwqBackend& backend);
Result<double> run_output_error(const DenseWeight& dense, const QuantizedWeight& weight,
                                const LayerStatistics& statistics, AwqBackend& backend);

}  // namespace nybble::quantize
