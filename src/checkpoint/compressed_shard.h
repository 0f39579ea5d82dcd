// One shard of a dense model, rewritten with its chosen layers in compressed-tensors' 4-bit form.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "checkpoint/model_files.h"
#include "checkpoint/safetensors_writer.h"
#include "nybble/checkpoint.h"

namespace nybble::checkpoint {

using ByteProgress = std::function<void(uint64_t)>;  // bytes of input tensors dealt with, one piece at a time

class CompressedShard {
 public:
  // `layers`: those of the model that are quantized and whose weight is in `shard`. `dense` reads the model.
  CompressedShard(const ModelFiles& model, const Checkpoint& dense, size_t shard, std::vector<LayerInfo> layers,
                  const CompressedTensorsScheme& scheme);

  const std::string& name() const { return name_; }
  std::vector<std::string> tensor_names() const;  // of the output

  // Whether `folder` holds this shard, made from the same bytes in the same way. Reads the whole input shard, unless
  // the output's header already says no.
  Result<bool> is_finished(const base::Directory& folder, const ByteProgress& progress) const;
  // The file's size.
  Result<uint64_t> write(const base::Directory& folder, const LayerQuantizer& quantizer,
                         const ByteProgress& progress) const;

 private:
  // A tensor of the output: copied from the input, or made when its layer is quantized.
  struct Item {
    TensorEntry entry;
    TensorRef source;
    const LayerInfo* layer = nullptr;
    bool is_scale = false;  // its type is known only when the layer is quantized
  };
  struct Job;  // the state of one write()

  void add_layer_items(const LayerInfo& layer);
  Result<uint64_t> source_hash(const ByteProgress& progress) const;
  Metadata metadata(uint64_t source_hash) const;

  const ModelFiles& model_;
  const Checkpoint& dense_;
  const SafetensorsFile& input_;
  std::string name_;
  std::vector<LayerInfo> layers_;
  CompressedTensorsScheme scheme_;
  std::vector<Item> items_;  // in the order of the output, but for the scales, whose order their types decide
};

// The error, if the quantizer's answer for `layer` is none that the scheme and the format have room for.
Result<void> check_quantized(const QuantizedWeight& weight, const LayerInfo& layer,
                             const CompressedTensorsScheme& scheme);

}  // namespace nybble::checkpoint
