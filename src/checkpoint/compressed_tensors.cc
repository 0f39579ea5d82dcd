// compressed-tensors (compressed_tensors.h): which layers are packed, and how, as config.json says. Layers that are not
// packed are listed as dense ones.
#include "checkpoint/compressed_tensors.h"

#include <algorithm>

#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/compressed_tensors_config.h"
#include "checkpoint/compressed_tensors_layers.h"
#include "checkpoint/format.h"

namespace nybble::checkpoint {
namespace {

// `stored` without an index is the layer itself.
Result<LayerInfo> layer_info(const ModelFiles& model, const LayerScheme& scheme, const StoredLayer& stored) {
  Result<LayerInfo> info = scheme.packing == LayerPacking::kInt4 ? int4_layer_info(model, stored, scheme)
                                                                 : fp4_layer_info(model, stored, scheme);
  if (!info) return info;
  info->name = stored.index ? expert_name(stored.name, *stored.index) : stored.name;
  info->quantized = true;
  info->file = model.shard_name(model.find(stored.name + kWeightPacked));
  return info;
}

// The layer whose codes this tensor holds, or the layers: one for each expert where there are three dimensions.
Result<void> add_layers(const ModelFiles& model, const CompressedTensorsConfig& config, const TensorRef& packed,
                        base::MatchBudget& budget, std::vector<LayerInfo>& layers) {
  const std::string name(layer_of(packed->name, kWeightPacked));
  if (model.find(name + ".weight"))
    return invalid_data("{}: layer {} has both a .weight and a {}; which one is meant is a guess", model.path(),
                        base::printable(name), kWeightPacked);
  const Result<LayerScheme> scheme = config.scheme_of(name, budget);
  if (!scheme) return scheme.error();
  const auto add = [&](std::optional<int64_t> index) -> Result<void> {
    Result<LayerInfo> info = layer_info(model, *scheme, {name, index});
    if (!info) return info.error();
    layers.push_back(std::move(*info));
    return {};
  };
  if (packed->shape.size() != 3) return add({});
  if (packed->size_bytes() == 0)
    return invalid_data("{}: has shape {}, which holds nothing", packed.where(), shape_text(packed->shape));
  for (int64_t index = 0; index < packed->shape[0]; ++index)
    if (Result<void> added = add(index); !added) return added;
  return {};
}

class CompressedTensorsCheckpoint final : public LayerCheckpoint {
 public:
  CompressedTensorsCheckpoint(std::shared_ptr<const ModelFiles> model, CompressedTensorsConfig config,
                              std::vector<LayerInfo> layers)
      : LayerCheckpoint(std::move(model), std::move(layers)), config_(std::move(config)) {}

  std::string format() const override { return kCompressedTensorsFormat.name; }
  std::string convention() const override {
    size_t packed = 0, integers = 0, with_zeros = 0, with_order = 0, nvfp4 = 0;
    for (const LayerInfo& layer : layers()) {
      packed += layer.quantized;
      integers += layer.quantized && layer.format.zero_kind != ZeroKind::kTable;
      with_zeros += layer.quantized && layer.format.zero_kind == ZeroKind::kInt;
      with_order += layer.quantized && layer.format.k_order;
      nvfp4 += layer.quantized && layer.format.zero_kind == ZeroKind::kTable && layer.format.group_size == kNvfp4Group;
    }
    std::string text = "compressed-tensors, as config.json says: ";
    if (integers > 0)
      text += fmt::format(
          "pack-quantized, {} layers of 4-bit integers, codes and zero points stored + 8; {} symmetric, {} with zero "
          "points packed along n, {} with act-order (weight_g_idx); ",
          integers, integers - with_zeros, with_zeros, with_order);
    if (nvfp4 > 0)
      text += fmt::format(
          "{}, {} layers of E2M1 codes in groups of 16, whose scale is weight_scale / weight_global_scale; ",
          kNvfp4PackQuantized, nvfp4);
    if (packed > integers + nvfp4)
      text += fmt::format("{}, {} layers of E2M1 codes in groups of 32 with E8M0 scales; ", kMxfp4PackQuantized,
                          packed - integers - nvfp4);
    return text + fmt::format("{} dense layers", layers().size() - packed);
  }
  std::vector<std::string> warnings() const override { return config_.warnings(); }

 protected:
  std::span<const std::string_view> weight_suffixes() const override {
    static constexpr std::string_view kSuffixes[] = {kWeightPacked,    kWeightScale,      kWeightShape,
                                                     kWeightZeroPoint, kWeightGroupIndex, kWeightGlobalScale};
    return kSuffixes;
  }
  Result<TensorSlice> bias_of(const LayerInfo& info) const override {
    if (!info.quantized) return LayerCheckpoint::bias_of(info);
    return stored_layer(model(), info.name, kWeightPacked).find(model(), ".bias");
  }
  Result<QuantizedWeight> read_codes(const LayerInfo& info) const override {
    const StoredLayer stored = stored_layer(model(), info.name, kWeightPacked);
    base::MatchBudget budget;  // which this layer did not spend when all were found
    const Result<LayerScheme> scheme = config_.scheme_of(stored.name, budget);
    if (!scheme) return scheme.error();
    Result<QuantizedWeight> weight = scheme->packing == LayerPacking::kInt4 ? read_int4_layer(model(), stored, *scheme)
                                                                            : read_fp4_layer(model(), stored, *scheme);
    if (weight) weight->name = info.name;
    return weight;
  }

 private:
  CompressedTensorsConfig config_;
};

bool recognizes_compressed_tensors(const ModelFiles& model) { return is_of_method(model, kQuantMethod, kWeightPacked); }

Result<std::unique_ptr<Checkpoint>> open_by_config(std::shared_ptr<const ModelFiles> model) {
  if (model->quantization_config().is_null())
    return invalid_data(
        "{}: has {} tensors, but no config.json beside it with their quantization_config: group sizes and "
        "zero points would be a guess. Put the model's config.json into the folder",
        model->path(), kWeightPacked);
  return open_compressed_tensors(model, model->quantization_config());
}

}  // namespace

Result<std::unique_ptr<Checkpoint>> open_compressed_tensors(std::shared_ptr<const ModelFiles> model,
                                                            const nlohmann::json& settings) {
  base::MatchBudget budget;
  Result<CompressedTensorsConfig> config = CompressedTensorsConfig::parse(settings, model->path(), budget);
  if (!config) return config.error();
  std::vector<LayerInfo> layers;
  for (const TensorRef& tensor : model->tensors()) {
    if (!layer_of(tensor->name, kWeightPacked).empty()) {
      if (Result<void> added = add_layers(*model, *config, tensor, budget, layers); !added) return added.error();
    } else if (const std::string_view dense = layer_of(tensor->name, ".weight");
               !dense.empty() && is_dense_layer(*model, dense)) {
      layers.push_back(dense_layer_info(*model, dense));
    }
  }
  if (Result<void> whole = check_no_orphans(
          *model, kWeightPacked, {kWeightScale, kWeightShape, kWeightZeroPoint, kWeightGroupIndex, kWeightGlobalScale});
      !whole)
    return whole.error();
  if (std::none_of(layers.begin(), layers.end(), [](const LayerInfo& layer) { return layer.quantized; }))
    return invalid_data("{}: config.json says compressed-tensors, but no tensor is named *{}", model->path(),
                        kWeightPacked);
  if (Result<void> distinct = check_distinct(*model, layers); !distinct) return distinct.error();
  return std::unique_ptr<Checkpoint>(
      std::make_unique<CompressedTensorsCheckpoint>(std::move(model), std::move(*config), std::move(layers)));
}

const Format kCompressedTensorsFormat = {"compressed-tensors", recognizes_compressed_tensors, open_by_config};

}  // namespace nybble::checkpoint
