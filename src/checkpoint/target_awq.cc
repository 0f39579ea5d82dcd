// Quantized layers as AWQ's "gemm" version, after AutoAWQ's and GPTQModel's packing_utils. For a layer of n x k, G
// groups:
//   qweight  I32 [k, n / 8]   code of (n, k) in nibble kAwqNibbleOf[n % 8] of word [k][n / 8]
//   qzeros   I32 [G, n / 8]   zero of (n, group) in nibble kAwqNibbleOf[n % 8] of word [group][n / 8]: the true one
//   scales   F16 [G, n]
#include <algorithm>

#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/awq.h"
#include "checkpoint/int4_words.h"
#include "checkpoint/target.h"

namespace nybble::checkpoint {
namespace {

constexpr char kFormat[] = "AWQ";

class AwqTarget final : public Target {
 public:
  explicit AwqTarget(bool exact) : exact_(exact) {}

  Result<void> check(const LayerInfo& layer) const override {
    if (Result<void> fine = check_integer_zeros(layer, kFormat); !fine) return fine;
    if (Result<void> fine = check_whole_groups(layer, kFormat); !fine) return fine;
    const std::string name = base::printable(layer.name);
    if (layer.n % kNibblesPerWord != 0)
      return unsupported(
          "layer {}: has {} output features, but AWQ packs them by eight; exclude the layer, which "
          "writes it dense",
          name, layer.n);
    if (layer.format.k_order)
      return unsupported(
          "layer {}: has reordered input features (act-order), which AWQ has no place for; convert to "
          "gptq, or exclude the layer, which writes it dense",
          name);
    return {};
  }
  Result<void> check_together(const std::vector<LayerInfo>& quantized,
                              const std::vector<std::string>& dense) const override {
    for (const LayerInfo& layer : quantized) {
      const LayerInfo& first = quantized.front();
      if (layer.format.group_size != first.format.group_size)
        return unsupported(
            "layer {}: has groups of {}, but layer {} of {} (0: per output feature), and AWQ has one size for a whole "
            "model; exclude the layers of one size, which writes them dense",
            base::printable(layer.name), layer.format.group_size, base::printable(first.name), first.format.group_size);
      for (const std::string& other : dense)  // readers search these names within module paths
        if (layer.name.find(other) != std::string::npos)
          return unsupported(
              "layer {}: AWQ's list of dense layers would take it for one, as its name holds that of {}, which is "
              "dense; exclude the layer, which writes it dense",
              base::printable(layer.name), base::printable(other));
    }
    return {};
  }
  bool depends_on_values(const LayerInfo& layer) const override {
    return layer.format.zero_kind == ZeroKind::kInt || layer.format.scale_dtype != DType::kFp16;
  }
  std::vector<LayerPart> parts(const LayerInfo& layer) const override {
    const int64_t groups = groups_of(layer), words = layer.n / kNibblesPerWord;
    return {{{layer.name + ".qweight", TensorType::kI32, {layer.k, words}}, {}},
            {{layer.name + ".qzeros", TensorType::kI32, {groups, words}}, {}},
            {{layer.name + ".scales", TensorType::kF16, {groups, layer.n}}, {}}};
  }
  Result<PartBytes> make(const LayerInfo& layer, QuantizedWeight weight) const override {
    if (Result<void> fit = check_zeros_fit(weight, layer, kFormat); !fit) return fit.error();
    const Result<FloatArray> scales = scales_as(weight.scales, DType::kFp16, exact_, layer);
    if (!scales) return scales.error();
    const int64_t n = layer.n, k = layer.k, groups = groups_of(layer), words = n / kNibblesPerWord;
    std::vector<uint32_t> codes(static_cast<size_t>(k * words)), zeros(static_cast<size_t>(groups * words));
    for (int64_t row = 0; row < n; ++row) {
      const int64_t word = row / kNibblesPerWord, place = kAwqNibbleOf[row % kNibblesPerWord];
      for (int64_t i = 0; i < k; ++i)
        codes[static_cast<size_t>(i * words + word)] |=
            nibble_at(weight.codes[static_cast<size_t>(row * k + i)], place);
      for (int64_t group = 0; group < groups; ++group)
        zeros[static_cast<size_t>(group * words + word)] |=
            nibble_at(zero_of(weight, static_cast<size_t>(row * groups + group)), place);
    }
    return PartBytes{bytes_of(codes), bytes_of(zeros), transposed(*scales, n, groups)};
  }
  nlohmann::ordered_json settings(const std::vector<LayerInfo>& quantized,
                                  const std::vector<std::string>& dense) const override {
    const int group = quantized.front().format.group_size;
    return {{"quant_method", "awq"},
            {"bits", 4},
            {"group_size", group == kPerColumn ? -1 : group},
            {"zero_point", true},
            {"version", "gemm"},
            {"modules_to_not_convert", dense.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(dense)}};
  }
  std::string recipe() const override { return exact_ ? "awq gemm, scales fp16, exact" : "awq gemm, scales fp16"; }

 private:
  bool exact_;  // no scale may change by being stored
};

}  // namespace

std::unique_ptr<Target> awq_target(std::optional<DType> scale_dtype) {
  return std::make_unique<AwqTarget>(!scale_dtype);
}

}  // namespace nybble::checkpoint
