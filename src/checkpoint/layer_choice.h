// Which layers of a dense model are quantized.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/model_files.h"
#include "nybble/checkpoint.h"

namespace nybble::checkpoint {

struct LayerChoice {
  std::vector<LayerInfo> chosen;     // sorted by name
  std::vector<std::string> ignored;  // the other dense layers
};

// By the options' expressions or the default choice. Nothing chosen is an error.
Result<LayerChoice> choose_layers(const ModelFiles& model, const QuantizeModelOptions& options);

// Refuses layers whose k the group size does not divide, naming the sizes that fit: compressed-tensors has no partial
// groups.
Result<void> check_group_fits(const std::vector<LayerInfo>& layers, int group_size);

}  // namespace nybble::checkpoint
