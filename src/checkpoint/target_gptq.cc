// Quantized layers as GPTQ's second convention ("gptq_v2"), after GPTQModel's _register_gptq_buffers and pack. For a
// layer of n x k, G groups:
//   qweight  I32 [ceil(k / 8), n]   code of (n, k) in nibble k % 8 of word [k / 8][n]
//   qzeros   I32 [G, ceil(n / 8)]   zero of (n, group) in nibble n % 8 of word [group][n / 8]: the true one
//   scales   F16 or BF16 [G, n]
//   g_idx    I32 [k]                the group of each input feature
#include <algorithm>
#include <cctype>

#include "base/error.h"
#include "checkpoint/int4_words.h"
#include "checkpoint/target.h"

namespace nybble::checkpoint {
namespace {

constexpr char kFormat[] = "GPTQ";

// A regular expression that matches this name alone.
std::string exactly(const std::string& name) {
  std::string pattern = "^";
  for (const char c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '_') pattern += '\\';
    pattern += c;
  }
  return pattern + '$';
}

int64_t stored_group(const LayerInfo& layer) {
  return layer.format.group_size == kPerColumn ? -1 : layer.format.group_size;
}

class GptqTarget final : public Target {
 public:
  explicit GptqTarget(std::optional<DType> scale_dtype)
      : scale_dtype_(scale_dtype.value_or(DType::kFp16)), exact_(!scale_dtype) {}

  Result<void> check(const LayerInfo& layer) const override { return check_integer_zeros(layer, kFormat); }
  bool depends_on_values(const LayerInfo& layer) const override {
    return layer.format.zero_kind == ZeroKind::kInt || layer.format.scale_dtype != scale_dtype_;
  }
  std::vector<LayerPart> parts(const LayerInfo& layer) const override {
    const int64_t groups = groups_of(layer);
    return {{{layer.name + ".qweight", TensorType::kI32, {words_for(layer.k), layer.n}}, {}},
            {{layer.name + ".qzeros", TensorType::kI32, {groups, words_for(layer.n)}}, {}},
            {{layer.name + ".scales", tensor_type(scale_dtype_), {groups, layer.n}}, {}},
            {{layer.name + ".g_idx", TensorType::kI32, {layer.k}}, {}}};
  }
  Result<PartBytes> make(const LayerInfo& layer, QuantizedWeight weight) const override {
    if (Result<void> fit = check_zeros_fit(weight, layer, kFormat); !fit) return fit.error();
    const Result<FloatArray> scales = scales_as(weight.scales, scale_dtype_, exact_, layer);
    if (!scales) return scales.error();
    const int64_t n = layer.n, k = layer.k, groups = groups_of(layer), zero_words = words_for(n);
    std::vector<uint32_t> codes(static_cast<size_t>(words_for(k) * n)), zeros(static_cast<size_t>(groups * zero_words));
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t i = 0; i < k; ++i)
        codes[static_cast<size_t>(i / kNibblesPerWord * n + row)] |=
            nibble_at(weight.codes[static_cast<size_t>(row * k + i)], i % kNibblesPerWord);
      for (int64_t group = 0; group < groups; ++group)
        zeros[static_cast<size_t>(group * zero_words + row / kNibblesPerWord)] |=
            nibble_at(zero_of(weight, static_cast<size_t>(row * groups + group)), row % kNibblesPerWord);
    }
    return PartBytes{bytes_of(codes), bytes_of(zeros), transposed(*scales, n, groups), bytes_of(group_index(weight))};
  }
  // Layers of other groups than the first one's, and dense ones, are exceptions in `dynamic`.
  nlohmann::ordered_json settings(const std::vector<LayerInfo>& quantized,
                                  const std::vector<std::string>& dense) const override {
    nlohmann::ordered_json dynamic = nlohmann::ordered_json::object();
    const int64_t group = stored_group(quantized.front());
    bool symmetric = true, ordered = false, head = false;
    for (const LayerInfo& layer : quantized) {
      symmetric &= layer.format.zero_kind == ZeroKind::kNone;
      ordered |= layer.format.k_order;
      head |= layer.name.ends_with("lm_head");
      if (stored_group(layer) != group) dynamic["+:" + exactly(layer.name)] = {{"group_size", stored_group(layer)}};
    }
    for (const std::string& layer : dense)
      if (is_default_quantized(layer + ".weight", 2)) dynamic["-:" + exactly(layer)] = nlohmann::ordered_json::object();
    nlohmann::ordered_json settings = {
        {"quant_method", "gptq"}, {"bits", 4},           {"group_size", group},
        {"desc_act", ordered},    {"sym", symmetric},    {"lm_head", head},
        {"pack_dtype", "int32"},  {"format", "gptq_v2"}, {"checkpoint_format", "gptq_v2"}};
    if (!dynamic.empty()) settings["dynamic"] = std::move(dynamic);
    return settings;
  }
  std::string recipe() const override {
    return fmt::format("gptq v2, scales {}{}", dtype_name(scale_dtype_), exact_ ? ", exact" : "");
  }

 private:
  DType scale_dtype_;
  bool exact_;  // no scale may change by being stored
};

}  // namespace

std::unique_ptr<Target> gptq_target(std::optional<DType> scale_dtype) {
  return std::make_unique<GptqTarget>(scale_dtype);
}

}  // namespace nybble::checkpoint
