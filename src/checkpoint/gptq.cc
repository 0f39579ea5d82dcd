// GPTQ: 4-bit codes with a scale and an integer zero point for each group. For a layer of n x k with G groups along k
// (GPTQModel, gptqmodel/nn_modules/qlinear; AutoGPTQ writes the same tensors):
//   qweight  I32 [ceil(k / 8), n]   eight codes along k in a word, the first in the lowest bits
//   qzeros   I32 [G, ceil(n / 8)]   eight zero points along n in a word: less 1 in format "gptq" (v1), as they are in
//                                   "gptq_v2"
//   scales   float [G, n]           w = (code - zero) * scale
//   g_idx    I32 [k]                the group of each input feature; may be absent
#include "checkpoint/gptq.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/format.h"
#include "checkpoint/int4_words.h"
#include "checkpoint/layers.h"

namespace nybble::checkpoint {
namespace {

constexpr char kCodes[] = ".qweight";
constexpr char kZeros[] = ".qzeros";
constexpr char kScales[] = ".scales";
constexpr char kGroupIndex[] = ".g_idx";
constexpr char kOwnConfigFile[] = "quantize_config.json";  // of models older than config.json's settings
constexpr char kWayOut[] = "Quantize the unquantized model again with 4 bits in format gptq or gptq_v2";

const char* rule_words(ZeroRule rule) {
  switch (rule) {
    case ZeroRule::kTrue:
      return "as they are";
    case ZeroRule::kWholeWord:
      return "plus 1 across whole words, as GPTQModel reads them";
    case ZeroRule::kNibble:
      return "plus 1 modulo 16 each, as AutoGPTQ reads them";
    case ZeroRule::kUnmasked:
      return "plus 1 up to 16, as AutoRound reads them";
  }
  return "";
}

// Layers that `dynamic` names by patterns: GPTQModel takes the first that matches, in the order of the file.
Result<void> read_exceptions(const QuantizationSettings& from, ModelSettings& to, base::MatchBudget& budget) {
  to.member = "dynamic";
  const nlohmann::json* dynamic = find_member(from.object, {"dynamic"});
  if (dynamic == nullptr) return {};
  if (!dynamic->is_object()) return invalid_data("{}: dynamic must be an object", to.subject);
  for (const std::string& key : from.keys_in_order("dynamic")) {
    const bool marked = key.starts_with("-:") || key.starts_with("+:");
    const std::string subject = fmt::format("{}: dynamic {}", to.subject, base::printable(key));
    Result<base::NamePattern> pattern = base::NamePattern::compile(marked ? key.substr(2) : key, budget);
    if (!pattern) return unsupported("{}: {}", subject, pattern.error().message);
    LayerException exception{.key = key, .settings = to.common};
    exception.excluded = key.starts_with("-:");
    if (!exception.excluded) {
      const nlohmann::json& own = dynamic->at(key);
      if (!own.is_object()) return invalid_data("{} must be an object", subject);
      if (Result<void> read = read_layer_settings(own, subject, exception.settings); !read) return read;
    }
    to.by_pattern.push_back({.pattern = std::move(*pattern), .exception = std::move(exception)});
  }
  return {};
}

// Who wrote the model, as far as that decides how zero points are read.
ZeroRule v1_rule(const nlohmann::json& object) {
  if (find_member(object, {"autoround_version"}) != nullptr) return ZeroRule::kUnmasked;
  const nlohmann::json* meta = find_member(object, {"meta"});
  const nlohmann::json* writer = meta != nullptr && meta->is_object() ? find_member(*meta, {"quantizer"}) : nullptr;
  if (writer == nullptr) return ZeroRule::kNibble;
  std::string name = writer->dump();  // a string or an array of them
  for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return name.find("gptqmodel") != std::string::npos ? ZeroRule::kWholeWord : ZeroRule::kNibble;
}

Result<GptqSettings> parse_settings(const QuantizationSettings& from, base::MatchBudget& budget) {
  GptqSettings settings;
  settings.format = kGptqFormat.name;
  settings.layers.subject = from.subject;
  settings.layers.way_out = std::string(kWayOut) + ", or leave the layer as it is";
  const nlohmann::json& object = from.object;
  const std::string& subject = from.subject;
  if (object.is_null()) return settings;
  if (const nlohmann::json* marlin = find_member(object, {"is_marlin_format"}); marlin != nullptr && *marlin != false)
    return unsupported("{}: is_marlin_format: the weights are in one kernel's own layout. {}", subject, kWayOut);
  settings.stated = string_member(object, "checkpoint_format");
  if (settings.stated.empty()) settings.stated = string_member(object, "format");
  if (settings.stated.empty()) settings.stated = "gptq";
  if (settings.stated != "gptq" && settings.stated != "gptq_v2")
    return unsupported("{}: format {} is not read. {}", subject, base::printable(settings.stated), kWayOut);
  settings.rule = settings.stated == "gptq_v2" ? ZeroRule::kTrue : v1_rule(object);
  if (const std::string type = string_member(object, "pack_dtype"); !type.empty() && type != "int32")
    return unsupported("{}: pack_dtype {} is not read, only int32. {}", subject, base::printable(type), kWayOut);
  if (Result<void> read = read_layer_settings(object, subject, settings.layers.common); !read) return read.error();
  if (!settings.layers.common.bits) return invalid_data("{}: has no bits", subject);
  if (Result<void> read = read_exceptions(from, settings.layers, budget); !read) return read.error();
  return settings;
}

// One layer: its tensors, shapes checked, and all but its codes and scales.
struct GptqLayer {
  TensorRef codes, scales;
  int64_t n = 0, k = 0, groups = 0;
  int group_size = kPerColumn;
  std::vector<int32_t> order;  // canonical k_order
  std::vector<uint8_t> zeros;  // canonical int_zeros; empty: symmetric
  std::vector<std::string> warnings;
};

Result<void> read_order(const TensorRef& tensor, bool act_order, GptqLayer& layer) {
  std::vector<int32_t> group_of(static_cast<size_t>(layer.k));
  if (Result<void> read = tensor.read(0, std::as_writable_bytes(std::span(group_of))); !read) return read;
  for (size_t i = 0; i < group_of.size(); ++i)
    if (group_of[i] < 0 || group_of[i] >= layer.groups)
      return invalid_data("{}: element {} is {}; the layer has groups 0 to {}", tensor.where(), i, group_of[i],
                          layer.groups - 1);
  std::vector<int32_t> order(group_of.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return group_of[a] < group_of[b]; });
  const int64_t group = layer.group_size == kPerColumn ? layer.k : layer.group_size;
  for (size_t p = 0; p < order.size(); ++p)
    if (group_of[order[p]] != static_cast<int64_t>(p) / group)
      return unsupported(
          "{}: the group of element {} has another number of members than {}; only equal groups are read. Quantize the "
          "unquantized model again",
          tensor.where(), order[p], group);
  if (std::is_sorted(order.begin(), order.end())) return {};
  if (!act_order)
    layer.warnings.push_back(
        fmt::format("{}: reorders the input features though the configuration does not say desc_act; it is followed",
                    tensor.where()));
  layer.order = std::move(order);
  return {};
}

// The layer's zero points; a symmetric layer's own numbers say which format it is, whatever the configuration says.
Result<void> read_zeros(const TensorRef& tensor, const GptqSettings& settings, const LayerSettings& own,
                        GptqLayer& layer) {
  const int64_t row_words = words_for(layer.n);
  std::vector<uint32_t> words(static_cast<size_t>(row_words * layer.groups));
  if (Result<void> read = tensor.read(0, std::as_writable_bytes(std::span(words))); !read) return read;
  std::vector<uint8_t> zeros(static_cast<size_t>(layer.n * layer.groups));  // [n, groups]
  const auto unpack = [&](uint32_t word_add) {
    for (int64_t n = 0; n < layer.n; ++n)
      for (int64_t group = 0; group < layer.groups; ++group)
        zeros[static_cast<size_t>(n * layer.groups + group)] = nibble_of(
            words[static_cast<size_t>(group * row_words + n / kNibblesPerWord)] + word_add, n % kNibblesPerWord);
  };
  unpack(0);
  const bool alike = std::all_of(zeros.begin(), zeros.end(), [&](uint8_t zero) { return zero == zeros[0]; });
  if (own.symmetric.value_or(true) && alike && (zeros[0] == 7 || zeros[0] == 8)) {
    if (!settings.stated.empty() && (zeros[0] == 8) != (settings.rule == ZeroRule::kTrue))
      layer.warnings.push_back(fmt::format(
          "{}: every zero point is stored as {}, which is a symmetric layer of {}, but the configuration says {}; the "
          "stored numbers are believed",
          tensor.where(), zeros[0], zeros[0] == 8 ? "gptq_v2" : "gptq", settings.stated));
    return {};
  }
  if (settings.stated.empty())
    return invalid_data(
        "{}: without a config.json or quantize_config.json only zero points that are all 7 or all 8 tell which format "
        "it is. Put the model's configuration beside it",
        tensor.where());
  if (own.symmetric.value_or(false))
    layer.warnings.push_back(
        fmt::format("{}: the configuration says sym, but the zero points are not all 7 or all 8; they are read {}",
                    tensor.where(), rule_words(settings.rule)));
  if (settings.rule == ZeroRule::kWholeWord) {
    unpack(0x11111111u);
  } else if (settings.rule != ZeroRule::kTrue) {
    for (uint8_t& zero : zeros)
      zero = static_cast<uint8_t>(settings.rule == ZeroRule::kNibble ? (zero + 1) & 15 : zero + 1);
  }
  layer.zeros = std::move(zeros);
  return {};
}

Result<void> find_group_size(const GptqSettings& settings, const LayerSettings& own, const std::string& name,
                             GptqLayer& layer) {
  if (own.group_size) {
    layer.group_size = *own.group_size == -1 ? kPerColumn : static_cast<int>(*own.group_size);
    const int64_t groups = layer.group_size == kPerColumn ? 1 : (layer.k - 1) / layer.group_size + 1;
    if (groups != layer.groups)
      return invalid_data("{}: has {} rows, but k = {} in groups of {} ({}) needs {}", layer.scales.where(),
                          layer.groups, layer.k, *own.group_size, settings.layers.subject, groups);
    return {};
  }
  if (layer.groups == 1) return {};
  // Where k / G is a power of two no other size of common use gives G groups.
  const int64_t size = layer.k / layer.groups;
  if (layer.k % layer.groups != 0 || (size & (size - 1)) != 0)
    return invalid_data(
        "{}: layer {}: k = {} in {} groups does not tell the group size. Put the model's configuration "
        "beside it",
        settings.layers.subject, base::printable(name), layer.k, layer.groups);
  layer.group_size = static_cast<int>(size);
  return {};
}

Result<GptqLayer> find_layer(const ModelFiles& model, const GptqSettings& settings, const std::string& name,
                             base::MatchBudget& budget) {
  const Result<LayerSettings> own = settings.layers.of(name, budget);
  if (!own) return own.error();
  GptqLayer layer;
  layer.codes = model.find(name + kCodes);
  const std::vector<int64_t>& shape = layer.codes->shape;
  if (layer.codes->type != TensorType::kI32 || shape.size() != 2 || shape[0] < 1 || shape[1] < 1 ||
      shape[0] > INT32_MAX / kNibblesPerWord || shape[1] > INT32_MAX)
    return invalid_data("{}: is {} {}, but 4-bit codes are packed as I32 [ceil(k / 8), n]", layer.codes.where(),
                        tensor_type_name(layer.codes->type), shape_text(shape));
  layer.n = shape[1];
  layer.k = shape[0] * kNibblesPerWord;
  const TensorRef group_index = model.find(name + kGroupIndex);
  if (group_index) {  // the only tensor that tells a k which is no multiple of 8
    if (group_index->type != TensorType::kI32 || group_index->shape.size() != 1 ||
        words_for(group_index->shape[0]) != shape[0])
      return invalid_data("{}: is {} {}, but {} needs I32 [k] with k = {} to {}", group_index.where(),
                          tensor_type_name(group_index->type), shape_text(group_index->shape), layer.codes.where(),
                          layer.k - kNibblesPerWord + 1, layer.k);
    layer.k = group_index->shape[0];
  } else if (own->act_order.value_or(false)) {
    return required_tensor(model, name, kGroupIndex, kCodes).error();
  }

  const Result<TensorRef> scales = required_tensor(model, name, kScales, kCodes);
  if (!scales) return scales.error();
  layer.scales = *scales;
  if (!float_type((*scales)->type) || (*scales)->shape.size() != 2 || (*scales)->shape[0] < 1 ||
      (*scales)->shape[0] > layer.k || (*scales)->shape[1] != layer.n)
    return invalid_data("{}: is {} {}, but n = {} needs BF16, F16 or F32 [groups, {}]", scales->where(),
                        tensor_type_name((*scales)->type), shape_text((*scales)->shape), layer.n, layer.n);
  layer.groups = (*scales)->shape[0];
  if (Result<void> found = find_group_size(settings, *own, name, layer); !found) return found.error();

  const Result<TensorRef> zeros = required_tensor(model, name, kZeros, kCodes);
  if (!zeros) return zeros.error();
  if (Result<void> fits = expect_tensor(*zeros, TensorType::kI32, {layer.groups, words_for(layer.n)},
                                        fmt::format("n = {} in {} groups", layer.n, layer.groups));
      !fits)
    return fits.error();
  if (Result<void> read = read_zeros(*zeros, settings, *own, layer); !read) return read.error();
  if (group_index)
    if (Result<void> read = read_order(group_index, own->act_order.value_or(false), layer); !read) return read.error();
  return layer;
}

Result<std::vector<uint8_t>> unpack_codes(const GptqLayer& layer) {
  std::vector<uint32_t> words(static_cast<size_t>(layer.n));
  std::vector<uint8_t> codes(static_cast<size_t>(layer.n * layer.k));
  for (int64_t row = 0; row < words_for(layer.k); ++row) {
    if (Result<void> read =
            layer.codes.read(static_cast<uint64_t>(row * layer.n * 4), std::as_writable_bytes(std::span(words)));
        !read)
      return read.error();
    const int64_t first = row * kNibblesPerWord, count = std::min(kNibblesPerWord, layer.k - first);
    for (int64_t n = 0; n < layer.n; ++n)
      for (int64_t i = 0; i < count; ++i)
        codes[static_cast<size_t>(n * layer.k + first + i)] = nibble_of(words[static_cast<size_t>(n)], i);
  }
  return codes;
}

class GptqCheckpoint final : public LayerCheckpoint {
 public:
  // `all_symmetric`: settings say that layers have zero points, but all of these are the symmetric one.
  GptqCheckpoint(std::shared_ptr<const ModelFiles> model, std::vector<LayerInfo> layers, GptqSettings settings,
                 bool all_symmetric, std::vector<std::string> warnings)
      : LayerCheckpoint(std::move(model), std::move(layers)),
        settings_(std::move(settings)),
        all_symmetric_(all_symmetric),
        warnings_(std::move(warnings)) {}

  std::string format() const override { return settings_.format; }
  std::string convention() const override {
    if (settings_.stated.empty())
      return "GPTQ by its tensors, without a configuration: every layer's zero points are all 7 (v1) or all 8 (v2), so "
             "it is symmetric";
    return fmt::format(
        "GPTQ's tensors in format {}, as the configuration says: zero points of asymmetric layers are read {}; "
        "symmetric layers by their zero points, all 7 or all 8{}",
        settings_.stated, rule_words(settings_.rule), all_symmetric_ ? kAllSymmetric : "");
  }
  std::vector<std::string> warnings() const override { return warnings_; }

 protected:
  std::span<const std::string_view> weight_suffixes() const override {
    static constexpr std::string_view kSuffixes[] = {kCodes, kZeros, kScales, kGroupIndex};
    return kSuffixes;
  }
  Result<QuantizedWeight> read_codes(const LayerInfo& info) const override {
    base::MatchBudget budget;  // which this layer did not spend when all were found
    Result<GptqLayer> layer = find_layer(model(), settings_, info.name, budget);
    if (!layer) return layer.error();
    QuantizedWeight weight = empty_weight(info);
    Result<std::vector<uint8_t>> codes = unpack_codes(*layer);
    if (!codes) return codes.error();
    weight.codes = std::move(*codes);
    const Result<FloatArray> scales = read_finite_floats(layer->scales);
    if (!scales) return scales.error();
    weight.scales = arranged(*scales, layer->n, layer->groups, 1, layer->n);
    if (info.format.zero_kind == ZeroKind::kInt || !are_symmetric(layer->zeros))
      weight.int_zeros = std::move(layer->zeros);
    weight.k_order = std::move(layer->order);
    return weight;
  }

 private:
  GptqSettings settings_;
  bool all_symmetric_;
  std::vector<std::string> warnings_;
};

// Without settings by the shapes: other formats with these names have another number of columns in qweight and scales.
bool recognizes_gptq(const ModelFiles& model) {
  const nlohmann::json& settings = model.quantization_config();
  if (!settings.is_null())
    return string_member(settings, "quant_method") == "gptq" || string_member(settings, "method") == "gptq";
  return std::any_of(model.tensors().begin(), model.tensors().end(), [&](const TensorRef& tensor) {
    const std::string_view name = layer_of(tensor->name, kCodes);
    const TensorRef scales = name.empty() ? TensorRef{} : model.find(std::string(name) + kScales);
    return scales && scales->shape.size() == 2 && tensor->shape.size() == 2 && scales->shape[1] == tensor->shape[1];
  });
}

Result<std::unique_ptr<Checkpoint>> open_gptq(std::shared_ptr<const ModelFiles> model) {
  const Result<QuantizationSettings> found = find_quantization_settings(*model, kOwnConfigFile);
  if (!found) return found.error();
  base::MatchBudget budget;
  Result<GptqSettings> settings = parse_settings(*found, budget);
  if (!settings) return settings.error();
  return open_gptq_tensors(std::move(model), std::move(*settings), budget);
}

}  // namespace

Result<std::unique_ptr<Checkpoint>> open_gptq_tensors(std::shared_ptr<const ModelFiles> model, GptqSettings settings,
                                                      base::MatchBudget& budget) {
  if (Result<void> whole = check_no_orphans(*model, kCodes, {kZeros, kScales}); !whole) return whole.error();
  std::vector<std::string> warnings = settings.warnings;
  bool has_zeros = false, asymmetric = false;
  Result<std::vector<LayerInfo>> layers =
      list_layers(*model, kCodes, settings.format, [&](const std::string& name) -> Result<LayerInfo> {
        const Result<GptqLayer> layer = find_layer(*model, settings, name, budget);
        if (!layer) return layer.error();
        warnings.insert(warnings.end(), layer->warnings.begin(), layer->warnings.end());
        has_zeros |= !layer->zeros.empty();
        asymmetric |= !are_symmetric(layer->zeros);
        return quantized_layer_info(*model, name, layer->codes, layer->n, layer->k,
                                    {.scale_dtype = *float_type(layer->scales->type),
                                     .zero_kind = layer->zeros.empty() ? ZeroKind::kNone : ZeroKind::kInt,
                                     .group_size = layer->group_size,
                                     .k_order = !layer->order.empty()});
      });
  if (!layers) return layers.error();
  if (!asymmetric) list_as_symmetric(*layers);
  if (asymmetric && settings.rule != ZeroRule::kTrue)
    warnings.push_back(fmt::format(
        "{}: asymmetric layers in format {}: libraries differ where a zero point is 0 or 16; they are read {}",
        settings.layers.subject, settings.stated, rule_words(settings.rule)));
  return std::unique_ptr<Checkpoint>(std::make_unique<GptqCheckpoint>(
      std::move(model), std::move(*layers), std::move(settings), has_zeros && !asymmetric, std::move(warnings)));
}

const Format kGptqFormat = {"gptq", recognizes_gptq, open_gptq};

}  // namespace nybble::checkpoint
