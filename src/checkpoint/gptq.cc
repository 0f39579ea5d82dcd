// GPTQ: 4-bit codes with a scale and an integer zero point for each group. For a layer of n x k with G groups along k
// (GPTQModel, gptqmodel/nn_modules/qlinear; AutoGPTQ writes the same tensors):
//   qweight  I32 [ceil(k / 8), n]   eight codes along k in a word, the first in the lowest bits
//   qzeros   I32 [G, ceil(n / 8)]   eight zero points along n in a word: less 1 in format "gptq" (v1), as they are in
//                                   "gptq_v2"
//   scales   float [G, n]           w = (code - zero) * scale
//   g_idx    I32 [k]                the group of each input feature; may be absent
#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "base/json_text.h"
#include "base/name_pattern.h"
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

// How a stored zero point of an asymmetric layer becomes the true one. Writers of v1 differ where a zero point is 0 or
// 16, so who wrote the file decides.
enum class ZeroRule {
  kTrue,       // v2
  kWholeWord,  // GPTQModel: 0x11111111 is added to the word, the inverse of its packer's subtraction
  kNibble,     // AutoGPTQ: (z + 1) mod 16
  kUnmasked,   // AutoRound: z + 1, up to 16
};

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

// What the configuration says of one layer.
struct LayerSettings {
  std::optional<int64_t> group_size;  // -1: one for each row; none: unknown
  std::optional<bool> symmetric, act_order;
};

// An entry of `dynamic`: layers whose names match have settings of their own, or are not quantized.
struct Override {
  base::NamePattern pattern;
  bool excluded = false;
  LayerSettings settings;
};

struct Settings {
  std::string subject;  // to begin an error with
  bool known = false;   // whether there is a configuration
  LayerSettings common;
  std::vector<Override> overrides;
  bool v2 = false;
  ZeroRule rule = ZeroRule::kNibble;
};

const nlohmann::json* member(const nlohmann::json& object, std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (const auto found = object.find(name); found != object.end() && !found->is_null()) return &*found;
  return nullptr;
}

Result<void> read_flag(const nlohmann::json& object, const char* key, const std::string& subject,
                       std::optional<bool>& to) {
  const nlohmann::json* value = member(object, {key});
  if (value == nullptr) return {};
  if (!value->is_boolean()) return invalid_data("{}: {} must be true or false", subject, key);
  to = value->get<bool>();
  return {};
}

// Keys that the model and an override share; what `object` does not name stays.
Result<void> read_layer_settings(const nlohmann::json& object, const std::string& subject, LayerSettings& to) {
  if (const nlohmann::json* bits = member(object, {"bits", "w_bit", "wbits"}); bits != nullptr && *bits != 4)
    return unsupported("{}: bits is {}; only 4 is read. {}", subject, base::printable(bits->dump()), kWayOut);
  if (const nlohmann::json* size = member(object, {"group_size", "q_group_size"})) {
    constexpr int64_t kMaxGroup = 1 << 24;
    if (!size->is_number_integer() || size->get<double>() < -1 || size->get<double>() > kMaxGroup || *size == 0)
      return invalid_data("{}: group_size is {}; it must be -1 or 1 to {}", subject, base::printable(size->dump()),
                          kMaxGroup);
    to.group_size = size->get<int64_t>();
  }
  if (Result<void> read = read_flag(object, "sym", subject, to.symmetric); !read) return read;
  return read_flag(object, "desc_act", subject, to.act_order);
}

Result<void> read_overrides(const nlohmann::json& object, Settings& to) {
  const nlohmann::json* dynamic = member(object, {"dynamic"});
  if (dynamic == nullptr) return {};
  if (!dynamic->is_object()) return invalid_data("{}: dynamic must be an object", to.subject);
  for (const auto& [key, value] : dynamic->items()) {
    const bool marked = key.starts_with("-:") || key.starts_with("+:");
    const std::string subject = fmt::format("{}: dynamic {}", to.subject, base::printable(key));
    Result<base::NamePattern> pattern = base::NamePattern::compile(marked ? key.substr(2) : key);
    if (!pattern) return unsupported("{}: {}", subject, pattern.error().message);
    Override entry{std::move(*pattern), key.starts_with("-:"), to.common};
    if (!entry.excluded) {
      if (!value.is_object()) return invalid_data("{} must be an object", subject);
      if (Result<void> read = read_layer_settings(value, subject, entry.settings); !read) return read;
    }
    to.overrides.push_back(std::move(entry));
  }
  return {};
}

// Who wrote the model, as far as that decides how zero points are read.
ZeroRule v1_rule(const nlohmann::json& object) {
  if (member(object, {"autoround_version"}) != nullptr) return ZeroRule::kUnmasked;
  const nlohmann::json* meta = member(object, {"meta"});
  const nlohmann::json* writer = meta != nullptr && meta->is_object() ? member(*meta, {"quantizer"}) : nullptr;
  if (writer == nullptr) return ZeroRule::kNibble;
  std::string name = writer->dump();  // a string or an array of them
  for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return name.find("gptqmodel") != std::string::npos ? ZeroRule::kWholeWord : ZeroRule::kNibble;
}

Result<Settings> parse_settings(const nlohmann::json& object, const std::string& subject) {
  Settings settings;
  settings.subject = subject;
  settings.known = true;
  if (!object.is_object()) return invalid_data("{} must be an object", subject);
  if (const nlohmann::json* marlin = member(object, {"is_marlin_format"}); marlin != nullptr && *marlin != false)
    return unsupported("{}: is_marlin_format: the weights are in one kernel's own layout. {}", subject, kWayOut);
  std::string format = string_member(object, "checkpoint_format");
  if (format.empty()) format = string_member(object, "format");
  if (!format.empty() && format != "gptq" && format != "gptq_v2")
    return unsupported("{}: format {} is not read. {}", subject, base::printable(format), kWayOut);
  settings.v2 = format == "gptq_v2";
  settings.rule = settings.v2 ? ZeroRule::kTrue : v1_rule(object);
  if (const std::string type = string_member(object, "pack_dtype"); !type.empty() && type != "int32")
    return unsupported("{}: pack_dtype {} is not read, only int32. {}", subject, base::printable(type), kWayOut);
  if (member(object, {"bits", "w_bit", "wbits"}) == nullptr) return invalid_data("{}: has no bits", subject);
  if (Result<void> read = read_layer_settings(object, subject, settings.common); !read) return read.error();
  if (Result<void> read = read_overrides(object, settings); !read) return read.error();
  return settings;
}

Result<Settings> find_settings(const ModelFiles& model) {
  if (!model.quantization_config().is_null())
    return parse_settings(model.quantization_config(), model.path() + ": config.json: quantization_config");
  if (!model.is_folder() || !model.folder().has(kOwnConfigFile)) return Settings{.subject = model.path()};
  const Result<base::File> file = model.folder().open_file(kOwnConfigFile);
  if (!file) return file.error();
  constexpr uint64_t kMaxBytes = 1 << 20;
  const Result<std::string> text = base::read_file(*file, kMaxBytes);
  if (!text) return text.error();
  const Result<nlohmann::json> object = base::parse_json(*text, file->path(), {.max_depth = 16});
  if (!object) return object.error();
  return parse_settings(*object, file->path());
}

Result<LayerSettings> settings_of(const Settings& settings, const std::string& layer) {
  for (const Override& entry : settings.overrides) {
    if (!entry.pattern.matches_start(layer)) continue;
    if (entry.excluded)
      return invalid_data("{}: layer {} is stored in 4 bits, but dynamic says that it is not quantized",
                          settings.subject, base::printable(layer));
    return entry.settings;
  }
  return settings.common;
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
Result<void> read_zeros(const TensorRef& tensor, const Settings& settings, const LayerSettings& own, GptqLayer& layer) {
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
    if (settings.known && (zeros[0] == 8) != settings.v2)
      layer.warnings.push_back(fmt::format(
          "{}: every zero point is stored as {}, which is a symmetric layer of {}, but the configuration says {}; the "
          "stored numbers are believed",
          tensor.where(), zeros[0], zeros[0] == 8 ? "gptq_v2" : "gptq", settings.v2 ? "gptq_v2" : "gptq"));
    return {};
  }
  if (!settings.known)
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

Result<void> find_group_size(const Settings& settings, const LayerSettings& own, const std::string& name,
                             GptqLayer& layer) {
  if (own.group_size) {
    layer.group_size = *own.group_size == -1 ? kPerColumn : static_cast<int>(*own.group_size);
    const int64_t groups = layer.group_size == kPerColumn ? 1 : (layer.k - 1) / layer.group_size + 1;
    if (groups != layer.groups)
      return invalid_data("{}: has {} rows, but k = {} in groups of {} ({}) needs {}", layer.scales.where(),
                          layer.groups, layer.k, *own.group_size, settings.subject, groups);
    return {};
  }
  if (layer.groups == 1) return {};
  // Where k / G is a power of two no other size of common use gives G groups.
  const int64_t size = layer.k / layer.groups;
  if (layer.k % layer.groups != 0 || (size & (size - 1)) != 0)
    return invalid_data(
        "{}: layer {}: k = {} in {} groups does not tell the group size. Put the model's configuration "
        "beside it",
        settings.subject, base::printable(name), layer.k, layer.groups);
  layer.group_size = static_cast<int>(size);
  return {};
}

Result<GptqLayer> find_layer(const ModelFiles& model, const Settings& settings, const std::string& name) {
  const Result<LayerSettings> own = settings_of(settings, name);
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

LayerInfo layer_info(const ModelFiles& model, const std::string& name, const GptqLayer& layer) {
  LayerInfo info;
  info.name = name;
  info.n = layer.n;
  info.k = layer.k;
  info.quantized = true;
  info.format = {.scale_dtype = *float_type(layer.scales->type),
                 .zero_kind = layer.zeros.empty() ? ZeroKind::kNone : ZeroKind::kInt,
                 .group_size = layer.group_size,
                 .k_order = !layer.order.empty()};
  info.file = model.shard_name(layer.codes);
  return info;
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

// [groups, n] as stored to [n, groups].
FloatArray transposed(const FloatArray& stored, int64_t n, int64_t groups) {
  FloatArray scales;
  scales.dtype = stored.dtype;
  scales.resize(stored.size());
  for (int64_t row = 0; row < n; ++row)
    for (int64_t group = 0; group < groups; ++group)
      scales.set_bits(static_cast<size_t>(row * groups + group), stored.bits_at(static_cast<size_t>(group * n + row)));
  return scales;
}

class GptqCheckpoint final : public LayerCheckpoint {
 public:
  GptqCheckpoint(std::shared_ptr<const ModelFiles> model, std::vector<LayerInfo> layers, Settings settings,
                 std::vector<std::string> warnings)
      : LayerCheckpoint(std::move(model), std::move(layers)),
        settings_(std::move(settings)),
        warnings_(std::move(warnings)) {}

  std::string format() const override { return kGptqFormat.name; }
  std::string convention() const override {
    if (!settings_.known)
      return "GPTQ by its tensors, without a configuration: every layer's zero points are all 7 (v1) or all 8 (v2), so "
             "it is symmetric";
    return fmt::format(
        "GPTQ {}, as the configuration says: zero points of asymmetric layers are read {}; symmetric layers by their "
        "zero points, all 7 or all 8",
        settings_.v2 ? "v2" : "v1", rule_words(settings_.rule));
  }
  std::vector<std::string> warnings() const override { return warnings_; }

 protected:
  std::span<const std::string_view> weight_suffixes() const override {
    static constexpr std::string_view kSuffixes[] = {kCodes, kZeros, kScales, kGroupIndex};
    return kSuffixes;
  }
  Result<QuantizedWeight> read_codes(const LayerInfo& info) const override {
    Result<GptqLayer> layer = find_layer(model(), settings_, info.name);
    if (!layer) return layer.error();
    QuantizedWeight weight;
    weight.name = info.name;
    weight.n = layer->n;
    weight.k = layer->k;
    weight.group_size = layer->group_size;
    weight.zero_kind = info.format.zero_kind;
    Result<std::vector<uint8_t>> codes = unpack_codes(*layer);
    if (!codes) return codes.error();
    weight.codes = std::move(*codes);
    const Result<FloatArray> scales = read_floats(layer->scales);
    if (!scales) return scales.error();
    if (Result<void> finite = check_finite(*scales, layer->scales); !finite) return finite.error();
    weight.scales = transposed(*scales, layer->n, layer->groups);
    weight.int_zeros = std::move(layer->zeros);
    weight.k_order = std::move(layer->order);
    return weight;
  }

 private:
  Settings settings_;
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
  Result<Settings> settings = find_settings(*model);
  if (!settings) return settings.error();
  std::vector<LayerInfo> layers;
  std::vector<std::string> warnings;
  bool asymmetric = false;
  for (const TensorRef& tensor : model->tensors()) {
    const std::string name(layer_of(tensor->name, kCodes));
    if (name.empty()) continue;
    const Result<GptqLayer> layer = find_layer(*model, *settings, name);
    if (!layer) return layer.error();
    layers.push_back(layer_info(*model, name, *layer));
    warnings.insert(warnings.end(), layer->warnings.begin(), layer->warnings.end());
    asymmetric |= !layer->zeros.empty();
  }
  if (layers.empty())
    return invalid_data("{}: config.json says gptq, but no tensor is named *{}", model->path(), kCodes);
  if (asymmetric && !settings->v2)
    warnings.push_back(fmt::format(
        "{}: asymmetric layers in format gptq: libraries differ where a zero point is 0 or 16; they are read {}",
        settings->subject, rule_words(settings->rule)));
  add_dense_layers(*model, layers);
  return std::unique_ptr<Checkpoint>(
      std::make_unique<GptqCheckpoint>(std::move(model), std::move(layers), std::move(*settings), std::move(warnings)));
}

}  // namespace

const Format kGptqFormat = {"gptq", recognizes_gptq, open_gptq};

}  // namespace nybble::checkpoint
