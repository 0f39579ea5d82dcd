#include "checkpoint/compressed_layer.h"

#include <algorithm>
#include <span>

#include "base/error.h"
#include "checkpoint/compressed_tensors.h"
#include "checkpoint/int4_words.h"

namespace nybble::checkpoint {
namespace {

using OrderedJson = nlohmann::ordered_json;

template <class T> std::vector<std::byte> bytes_of(std::span<const T> values) {
  const auto bytes = std::as_bytes(values);
  return {bytes.begin(), bytes.end()};
}

OrderedJson config_group(const CompressedGroup& group) {
  const bool per_column = group.group_size == kPerColumn;
  const OrderedJson weights = {
      {"num_bits", 4},
      {"type", "int"},
      {"symmetric", group.symmetric},
      {"strategy", per_column ? "channel" : "group"},
      {"group_size", per_column ? OrderedJson() : OrderedJson(group.group_size)},
      {"dynamic", false},
      {"actorder", group.act_order ? OrderedJson("group") : OrderedJson()},
  };
  return {
      {"targets", group.targets},
      {"weights", weights},
      {"input_activations", nullptr},
      {"output_activations", nullptr},
  };
}

}  // namespace

std::vector<std::byte> packed_codes(const QuantizedWeight& weight) {
  const int64_t row_words = words_for(weight.k);
  std::vector<uint32_t> words(static_cast<size_t>(weight.n * row_words));
  for (int64_t row = 0; row < weight.n; ++row)
    pack_words(std::span(weight.codes).subspan(static_cast<size_t>(row * weight.k), static_cast<size_t>(weight.k)),
               std::span(words).subspan(static_cast<size_t>(row * row_words), static_cast<size_t>(row_words)));
  return bytes_of(std::span<const uint32_t>(words));
}

std::vector<std::byte> packed_zeros(const QuantizedWeight& weight) {
  const int64_t groups = weight.groups();
  std::vector<uint32_t> words(static_cast<size_t>(words_for(weight.n) * groups));
  for (int64_t n = 0; n < weight.n; ++n)
    for (int64_t group = 0; group < groups; ++group)
      words[static_cast<size_t>(n / kNibblesPerWord * groups + group)] |=
          nibble_at(weight.int_zeros[static_cast<size_t>(n * groups + group)], n % kNibblesPerWord);
  return bytes_of(std::span<const uint32_t>(words));
}

OrderedJson compressed_settings(const std::vector<CompressedGroup>& groups, const std::vector<std::string>& ignore) {
  OrderedJson config_groups = OrderedJson::object();
  for (size_t i = 0; i < groups.size(); ++i) config_groups[fmt::format("group_{}", i)] = config_group(groups[i]);
  return {
      {"quant_method", kQuantMethod},        {"format", kPackQuantized}, {"quantization_status", "compressed"},
      {"config_groups", config_groups},      {"ignore", ignore},         {"kv_cache_scheme", nullptr},
      {"global_compression_ratio", nullptr},
  };
}

bool has_shared_head(const ModelFiles& model) {
  if (model.find("lm_head.weight")) return false;
  const auto architectures = model.config().find("architectures");
  if (architectures == model.config().end() || !architectures->is_array()) return false;
  return std::any_of(architectures->begin(), architectures->end(), [](const nlohmann::json& entry) {
    if (!entry.is_string()) return false;
    const std::string& name = entry.get_ref<const std::string&>();
    return name.find("ForCausalLM") != std::string::npos || name.find("LMHead") != std::string::npos ||
           name.find("ForConditionalGeneration") != std::string::npos;
  });
}

}  // namespace nybble::checkpoint
