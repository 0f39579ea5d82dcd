// What the writers of compressed-tensors' "pack-quantized" share: the words of a layer, the settings in config.json.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/model_files.h"
#include "nybble/weight.h"

namespace nybble::checkpoint {

// weight_packed and weight_zero_point of a layer, as compressed_tensors.h draws them.
std::vector<std::byte> packed_codes(const QuantizedWeight& weight);
std::vector<std::byte> packed_zeros(const QuantizedWeight& weight);

// Layers that are quantized alike.
struct CompressedGroup {
  int group_size = 128;  // or kPerColumn
  bool symmetric = true;
  bool act_order = false;
  std::vector<std::string> targets;  // layer names, or a module class
};

// quantization_config: the keys that every release of compressed-tensors and vLLM since the format's beginning takes,
// and no others.
nlohmann::ordered_json compressed_settings(const std::vector<CompressedGroup>& groups,
                                           const std::vector<std::string>& ignore);

// Language models that share their head's weight with the embedding have a Linear module without a tensor of its own,
// which loaders would otherwise expect to be quantized.
bool has_shared_head(const ModelFiles& model);

}  // namespace nybble::checkpoint
