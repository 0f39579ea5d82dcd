// Plain models: linear layers are 2-D `*.weight` tensors in fp16, bf16 or fp32.
#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "checkpoint/format.h"
#include "checkpoint/layers.h"

namespace nybble::checkpoint {
namespace {

// Tensors by which other quantization formats are known, where no config.json names them. A model that has them would
// look like a dense one with some layers missing.
constexpr const char* kForeignSuffixes[] = {
    ".qweight", ".weight_packed", ".W_q", ".weight.absmax", "._weight_qdata", ".weight_scale", ".weight_scale_inv"};

bool recognizes_dense(const ModelFiles& model) {
  if (!model.quantization_config().is_null()) return false;
  return std::none_of(model.tensors().begin(), model.tensors().end(), [](const TensorRef& tensor) {
    return std::any_of(std::begin(kForeignSuffixes), std::end(kForeignSuffixes),
                       [&](const char* suffix) { return tensor->name.ends_with(suffix); });
  });
}

class DenseCheckpoint final : public LayerCheckpoint {
 public:
  using LayerCheckpoint::LayerCheckpoint;

  std::string format() const override { return kDenseFormat.name; }
  std::string convention() const override {
    return fmt::format("dense: {} 2-D *.weight tensors in fp16, bf16 or fp32; {}", layers().size(),
                       model().has_config() ? "config.json names no quantization" : "there is no config.json");
  }

 protected:
  std::span<const std::string_view> weight_suffixes() const override { return {}; }
  Result<QuantizedWeight> read_codes(const LayerInfo&) const override {
    NYBBLE_CHECK(false, "a dense checkpoint lists no quantized layer");
    return QuantizedWeight{};
  }
};

Result<std::unique_ptr<Checkpoint>> open_dense(std::shared_ptr<const ModelFiles> model) {
  std::vector<LayerInfo> layers;
  for (const TensorRef& tensor : model->tensors())
    if (const std::string_view layer = layer_of(tensor->name, ".weight");
        !layer.empty() && is_dense_layer(*model, layer))
      layers.push_back(dense_layer_info(*model, layer));
  return std::unique_ptr<Checkpoint>(std::make_unique<DenseCheckpoint>(std::move(model), std::move(layers)));
}

}  // namespace

const Format kDenseFormat = {"dense", recognizes_dense, open_dense};

}  // namespace nybble::checkpoint
