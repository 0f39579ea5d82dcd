// Quantized layers as compressed-tensors "pack-quantized" (compressed_tensors.h). Input features in another order keep
// it as weight_g_idx and actorder "group", which releases of compressed-tensors before 0.19 read.
#include <algorithm>
#include <map>
#include <tuple>

#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/compressed_layer.h"
#include "checkpoint/compressed_tensors.h"
#include "checkpoint/int4_words.h"
#include "checkpoint/target.h"

namespace nybble::checkpoint {
namespace {

constexpr char kFormat[] = "compressed-tensors";

class CompressedTensorsTarget final : public Target {
 public:
  explicit CompressedTensorsTarget(std::optional<DType> scale_dtype) : scale_dtype_(scale_dtype) {}

  Result<void> check(const LayerInfo& layer) const override {
    if (Result<void> fine = check_integer_zeros(layer, kFormat); !fine) return fine;
    if (layer.format.k_order && layer.format.group_size == kPerColumn)
      return unsupported(
          "layer {}: has reordered input features, but one scale per output feature; exclude the layer, "
          "which writes it dense",
          base::printable(layer.name));
    return check_whole_groups(layer, kFormat);
  }
  bool depends_on_values(const LayerInfo& layer) const override {
    return layer.format.zero_kind == ZeroKind::kInt || scale_dtype(layer) != layer.format.scale_dtype;
  }
  std::vector<LayerPart> parts(const LayerInfo& layer) const override {
    const int64_t groups = groups_of(layer);
    std::vector<LayerPart> parts = {
        {{layer.name + kWeightPacked, TensorType::kI32, {layer.n, words_for(layer.k)}}, {}},
        {{layer.name + kWeightScale, tensor_type(scale_dtype(layer)), {layer.n, groups}}, {}},
        {{layer.name + kWeightShape, TensorType::kI64, {2}}, bytes_of(std::vector<int64_t>{layer.n, layer.k})}};
    if (layer.format.zero_kind == ZeroKind::kInt)
      parts.push_back({{layer.name + kWeightZeroPoint, TensorType::kI32, {words_for(layer.n), groups}}, {}});
    if (layer.format.k_order) parts.push_back({{layer.name + kWeightGroupIndex, TensorType::kI32, {layer.k}}, {}});
    return parts;
  }
  Result<PartBytes> make(const LayerInfo& layer, QuantizedWeight weight) const override {
    if (Result<void> fit = check_zeros_fit(weight, layer, kFormat); !fit) return fit.error();
    Result<FloatArray> scales = scales_as(weight.scales, scale_dtype(layer), false, layer);
    if (!scales) return scales.error();
    PartBytes bytes = {packed_codes(weight), std::move(scales->bytes), {}};
    if (layer.format.zero_kind == ZeroKind::kInt) bytes.push_back(packed_zeros(weight));
    if (layer.format.k_order) bytes.push_back(bytes_of(group_index(weight)));
    return bytes;
  }
  nlohmann::ordered_json settings(const std::vector<LayerInfo>& quantized,
                                  const std::vector<std::string>& dense) const override {
    std::map<std::tuple<int, bool, bool>, CompressedGroup> groups;
    for (const LayerInfo& layer : quantized) {
      const bool symmetric = layer.format.zero_kind == ZeroKind::kNone;
      CompressedGroup& group = groups[{layer.format.group_size, symmetric, layer.format.k_order}];
      group.group_size = layer.format.group_size;
      group.symmetric = symmetric;
      group.act_order = layer.format.k_order;
      group.targets.push_back(layer.name);
    }
    std::vector<CompressedGroup> list;
    for (auto& [scheme, group] : groups) list.push_back(std::move(group));
    if (list.size() == 1) list[0].targets = {"Linear"};
    return compressed_settings(list, dense);
  }
  std::string recipe() const override {
    return fmt::format("compressed-tensors, scales {}", scale_dtype_ ? dtype_name(*scale_dtype_) : "as read");
  }

 private:
  DType scale_dtype(const LayerInfo& layer) const { return scale_dtype_.value_or(layer.format.scale_dtype); }

  std::optional<DType> scale_dtype_;
};

}  // namespace

std::unique_ptr<Target> compressed_tensors_target(std::optional<DType> scale_dtype) {
  return std::make_unique<CompressedTensorsTarget>(scale_dtype);
}

}  // namespace nybble::checkpoint
