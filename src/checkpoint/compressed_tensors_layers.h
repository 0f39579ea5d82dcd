// The layers of a compressed-tensors model, by the way their codes are packed. Each pair lists a layer and reads it;
// the caller adds the name, the file and, to what was read, the bias.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>

#include "checkpoint/compressed_tensors_config.h"
#include "checkpoint/layers.h"

namespace nybble::checkpoint {

Result<LayerInfo> int4_layer_info(const ModelFiles& model, const StoredLayer& stored, const LayerScheme& scheme);
Result<QuantizedWeight> read_int4_layer(const ModelFiles& model, const StoredLayer& stored, const LayerScheme& scheme);

// NVFP4 and MXFP4.
Result<LayerInfo> fp4_layer_info(const ModelFiles& model, const StoredLayer& stored, const LayerScheme& scheme);
Result<QuantizedWeight> read_fp4_layer(const ModelFiles& model, const StoredLayer& stored, const LayerScheme& scheme);

// A model with these tensors by settings that stand for config.json's.
Result<std::unique_ptr<Checkpoint>> open_compressed_tensors(std::shared_ptr<const ModelFiles> model,
                                                            const nlohmann::json& settings);

}  // namespace nybble::checkpoint
