// AWQ over a whole model: scales shared by the layers of one input, and the tensors before them that take the inverse.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "nybble/checkpoint.h"
#include "nybble/launch.h"
#include "nybble/statistics.h"

#pragma GCC visibility push(default)
namespace nybble {

// One place of a decoder block where an input's features can change their scale without changing the model's output.
struct ScaleFold {
  std::string from;                 // the layer or the norm whose outputs are divided by the scales
  std::vector<std::string> layers;  // those whose input columns are multiplied
  AwqScales found;
};

// The scales of every place in a model, found with its statistics. Known are decoders built like Llama's, by their
// layers' names (HF: self_attn.q_proj ..., GGUF: attn_q ...): attention norm -> q, k, v; v -> o where both have as many
// features (no grouped queries); feed-forward norm -> gate, up; up -> down. A place is left out, with a warning, where
// the block is built differently, where statistics are missing or where none of its layers is quantized.
class ScaleFolds {
 public:
  // Reads the model's dense layers, a place's at a time. `choice` is the one that the model is quantized with.
  // kUnsupported for a model whose config.json names an architecture with other norms. `progress(done, total)` counts
  // bytes of weights and may be empty. On kCuda search_awq_scales_cuda() searches, with the same result and its errors.
  static Result<ScaleFolds> search(const std::string& model, const QuantizeModelOptions& choice,
                                   const StatisticsFile& statistics, const GridOptions& grid, const AwqOptions& options,
                                   const std::function<void(int64_t, int64_t)>& progress,
                                   DeviceKind device = DeviceKind::kCpu);

  const std::vector<ScaleFold>& folds() const;  // those with scales other than 1
  const std::vector<std::string>& warnings() const;

  // A layer's weight with its columns multiplied by the scales of its input and its rows divided by those folded into
  // its output: fp32, each element rounded once. A layer without scales comes back as it is. Its bias, which is copied
  // and not quantized, is left to edits().
  Result<DenseWeight> apply(const DenseWeight& dense, int num_threads) const;
  // The statistics of the layer's input as it is then.
  Result<LayerStatistics> apply(const LayerStatistics& statistics) const;

  // What becomes of the tensors that are copied: norms, biases, and weights that are scaled but not quantized. For
  // CompressedTensorsScheme::edits; holds what it needs.
  TensorEdits edits() const;

 private:
  struct Content;
  explicit ScaleFolds(std::shared_ptr<const Content> content);
  std::shared_ptr<const Content> content_;
};

}  // namespace nybble
#pragma GCC visibility pop
