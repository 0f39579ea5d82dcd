// AutoRound: settings of its own over tensors of other methods. `packing_format` says whose (auto_round/export;
// auto_round/inference/convert_model.py, which also says what older names mean):
//   auto_round:auto_gptq, auto_round:gptq          GPTQ's tensors, zero points stored less 1, read as z + 1 up to 16
//   auto_round:gptqmodel, auto_round, kernel names  GPTQ's tensors, zero points as they are
//   auto_round:auto_awq, auto_round:awq            AWQ's, version gemm
//   auto_round:llm_compressor                      compressed-tensors' NVFP4 and MXFP4
// `extra_config` holds settings of single layers: by the layer's name, else by the first expression that is found in
// it.
#include <algorithm>

#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/awq.h"
#include "checkpoint/compressed_tensors.h"
#include "checkpoint/compressed_tensors_layers.h"
#include "checkpoint/format.h"
#include "checkpoint/gptq.h"
#include "checkpoint/layers.h"

namespace nybble::checkpoint {
namespace {

constexpr char kCodes[] = ".qweight";
constexpr char kExtraConfig[] = "extra_config";
constexpr char kWayOut[] =
    "Quantize the unquantized model again with the scheme W4A16, or leave the layer unquantized (bits 16)";

enum class Packing { kGptq, kGptqTrueZeros, kAwq, kCompressedTensors };

bool is_autoround(const nlohmann::json& settings) {
  const std::string method = string_member(settings, "quant_method");
  return method == "auto-round" || method == "intel/auto-round";
}

Result<Packing> packing_of(const std::string& format, const std::string& subject) {
  if (format.empty() || format == "auto") return Packing::kGptq;  // transformers' default
  std::string_view rest = format;
  for (const std::string_view prefix : {"auto_round", "autoround", "auto-round"})
    if (rest.starts_with(prefix)) {
      rest.remove_prefix(prefix.size());
      break;
    }
  if (rest.empty()) return Packing::kGptqTrueZeros;
  if (rest[0] == ':') rest.remove_prefix(1);
  const std::string_view word = rest.substr(0, rest.find(':'));  // what follows names a kernel
  if (word == "auto_gptq" || word == "gptq") return Packing::kGptq;
  if (word == "gptqmodel" || word == "exllamav2" || word == "tritonv2" || word == "triton")
    return Packing::kGptqTrueZeros;
  if (word == "auto_awq" || word == "awq") return Packing::kAwq;
  if (word == "llm_compressor") return Packing::kCompressedTensors;
  return unsupported(
      "{}: packing_format {} is not read; known are auto_round, auto_round:auto_gptq, auto_round:gptqmodel, "
      "auto_round:auto_awq and auto_round:llm_compressor. {}",
      subject, base::printable(format), kWayOut);
}

// Whether the settings of a model, or of one layer, are of 4-bit weights that this packing holds, beside 16-bit
// activations.
Result<void> check_scheme(const nlohmann::json& object, Packing packing, const std::string& subject) {
  const std::string type = string_member(object, "data_type");
  const bool floats = packing == Packing::kCompressedTensors;
  if (const bool fits = floats ? type.starts_with("nv_fp") || type.starts_with("mx_fp") : type == "int";
      !type.empty() && !fits)
    return unsupported("{}: data_type is {}, but only {} are read in this packing format. {}", subject,
                       base::printable(type), floats ? "nv_fp and mx_fp" : "integers (int)", kWayOut);
  const nlohmann::json* act_bits = find_member(object, {"act_bits"});
  if (!floats && act_bits != nullptr && !(act_bits->is_number() && act_bits->get<double>() >= 16))
    return unsupported(
        "{}: act_bits is {}: the model wants quantized activations, and nybble multiplies 16-bit activations with "
        "4-bit weights. {}",
        subject, base::printable(act_bits->dump()), kWayOut);
  const nlohmann::json* rotation = find_member(object, {"rotation_config"});
  if (rotation != nullptr && !rotation->empty())
    return unsupported(
        "{}: rotation_config: activations would have to be rotated when the model runs, which nybble does not do. "
        "Quantize the unquantized model again without rotations",
        subject);
  return {};
}

bool is_layer(const ModelFiles& model, const std::string& name) {
  const char* suffixes[] = {kCodes, kWeightPacked, ".weight"};
  return std::any_of(std::begin(suffixes), std::end(suffixes),
                     [&](const char* suffix) { return static_cast<bool>(model.find(name + suffix)); });
}

Result<void> read_exceptions(const ModelFiles& model, const QuantizationSettings& from, Packing packing,
                             base::MatchBudget& budget, ModelSettings& to) {
  to.member = kExtraConfig;
  const nlohmann::json* extra = find_member(from.object, {kExtraConfig});
  if (extra == nullptr) return {};
  if (!extra->is_object()) return invalid_data("{}: {} must be an object", to.subject, kExtraConfig);
  for (const std::string& key : from.keys_in_order(kExtraConfig)) {
    const std::string subject = fmt::format("{}: {} {}", to.subject, kExtraConfig, base::printable(key));
    const nlohmann::json& own = extra->at(key);
    if (!own.is_object()) return invalid_data("{} must be an object", subject);
    LayerException exception{.key = key, .settings = to.common};
    if (Result<void> read = read_layer_settings(own, subject, exception.settings); !read) return read;
    constexpr int64_t kMostBits = 8;  // more are not quantized
    exception.excluded = exception.settings.bits.value_or(0) > kMostBits;
    if (!exception.excluded)
      if (Result<void> fine = check_scheme(own, packing, subject); !fine) return fine;
    if (is_layer(model, key)) {
      to.by_name[key] = std::move(exception);
      continue;
    }
    Result<base::NamePattern> pattern = base::NamePattern::compile(key, budget);
    if (!pattern) return unsupported("{}: {}", subject, pattern.error().message);
    to.by_pattern.push_back({.pattern = std::move(*pattern), .anywhere = true, .exception = std::move(exception)});
  }
  return {};
}

// The names that quantized layers begin with; empty where the settings do not say.
Result<std::vector<std::string>> read_blocks(const QuantizationSettings& from) {
  std::vector<std::string> blocks;
  const nlohmann::json* names = find_member(from.object, {"block_name_to_quantize", "to_quant_block_names"});
  if (names == nullptr) return blocks;
  if (names->is_string()) {
    std::string_view rest = names->get_ref<const std::string&>();
    while (!rest.empty()) {
      std::string_view name = rest.substr(0, rest.find(','));
      rest.remove_prefix(std::min(name.size() + 1, rest.size()));
      while (name.starts_with(' ')) name.remove_prefix(1);
      while (name.ends_with(' ')) name.remove_suffix(1);
      if (!name.empty()) blocks.emplace_back(name);
    }
    return blocks;
  }
  const auto refuse = [&] {
    return invalid_data("{}: block_name_to_quantize must be names, or lists of names", from.subject);
  };
  if (!names->is_array()) return refuse();
  for (const nlohmann::json& entry : *names) {  // names, or one list for each tower of a model of several
    const nlohmann::json list = entry.is_array() ? entry : nlohmann::json::array({entry});
    for (const nlohmann::json& name : list) {
      if (!name.is_string()) return refuse();
      blocks.push_back(name.get<std::string>());
    }
  }
  return blocks;
}

// Layers stored in 4 bits that the settings do not name. They are read all the same: a model's modules may have other
// names than its tensors.
Result<std::vector<std::string>> warn_of_blocks(const ModelFiles& model, const QuantizationSettings& from,
                                                const ModelSettings& settings, base::MatchBudget& budget) {
  const Result<std::vector<std::string>> blocks = read_blocks(from);
  if (!blocks) return blocks.error();
  std::vector<std::string> outside;
  for (const TensorRef& tensor : model.tensors()) {
    const std::string layer(layer_of(tensor->name, kCodes));
    if (layer.empty() || blocks->empty()) continue;
    const bool named =
        std::any_of(blocks->begin(), blocks->end(),
                    [&](const std::string& block) { return budget.spend(1) && layer.starts_with(block); }) ||
        settings.exception_of(layer, budget) != nullptr;
    if (Result<void> fine = budget.check(from.subject + ": block_name_to_quantize and extra_config"); !fine)
      return fine.error();
    if (!named) outside.push_back(layer);
  }
  if (outside.empty()) return std::vector<std::string>{};
  return std::vector{
      fmt::format("{}: block_name_to_quantize leaves out {} layer{} that {} stored in 4 bits and read so, {} the first",
                  from.subject, outside.size(), outside.size() == 1 ? "" : "s", outside.size() == 1 ? "is" : "are",
                  base::printable(outside[0]))};
}

// What these settings are in compressed-tensors' words.
nlohmann::json compressed_tensors_settings(const nlohmann::json& object, const ModelSettings& settings) {
  const bool nvfp4 = string_member(object, "data_type").starts_with("nv_fp");
  const nlohmann::json* act_bits = find_member(object, {"act_bits"});
  const bool act_quantized = act_bits != nullptr && !(act_bits->is_number() && act_bits->get<double>() >= 16);
  nlohmann::json group = {{"targets", {"Linear"}},
                          {"weights",
                           {{"num_bits", settings.common.bits.value_or(4)},
                            {"type", "float"},
                            {"symmetric", settings.common.symmetric.value_or(true)},
                            {"strategy", nvfp4 ? "tensor_group" : "group"},
                            {"group_size", settings.common.group_size.value_or(nvfp4 ? kNvfp4Group : kMxfp4Group)}}}};
  if (act_quantized) group["input_activations"] = {{"num_bits", *act_bits}, {"type", "float"}};
  nlohmann::json ignore = nlohmann::json::array();
  for (const auto& [name, exception] : settings.by_name)
    if (exception.excluded) ignore.push_back(name);
  for (const PatternException& named : settings.by_pattern)
    if (named.exception.excluded) ignore.push_back("re:.*(?:" + named.pattern.text() + ")");
  return {{"format", nvfp4 ? kNvfp4PackQuantized : kMxfp4PackQuantized},
          {"config_groups", {{"autoround", group}}},
          {"ignore", ignore}};
}

bool recognizes_autoround(const ModelFiles& model) { return is_autoround(model.quantization_config()); }

Result<std::unique_ptr<Checkpoint>> open_autoround(std::shared_ptr<const ModelFiles> model) {
  const Result<QuantizationSettings> from = find_quantization_settings(*model);
  if (!from) return from.error();
  const nlohmann::json& object = from->object;
  std::string stated = string_member(object, "packing_format");
  if (stated.empty()) stated = string_member(object, "backend");
  const Result<Packing> packing = packing_of(stated, from->subject);
  if (!packing) return packing.error();
  if (Result<void> fine = check_scheme(object, *packing, from->subject); !fine) return fine.error();
  ModelSettings settings{.subject = from->subject, .way_out = kWayOut};
  if (Result<void> read = read_layer_settings(object, from->subject, settings.common); !read) return read.error();
  base::MatchBudget budget;
  if (Result<void> read = read_exceptions(*model, *from, *packing, budget, settings); !read) return read.error();
  if (*packing == Packing::kCompressedTensors) {
    for (const TensorRef& tensor : model->tensors())  // 8-bit layers have scales, but no packed weight
      for (const char* suffix : {kWeightPacked, kWeightScale})
        if (const std::string layer(layer_of(tensor->name, suffix)); !layer.empty())
          if (const Result<LayerSettings> own = settings.of(layer, budget); !own) return own.error();
    return open_compressed_tensors(std::move(model), compressed_tensors_settings(object, settings));
  }

  const Result<std::vector<std::string>> warnings = warn_of_blocks(*model, *from, settings, budget);
  if (!warnings) return warnings.error();
  if (*packing == Packing::kAwq) {
    // Its packer writes the zero points of symmetric layers, too.
    settings.common.symmetric.reset();
    for (auto& [name, exception] : settings.by_name) exception.settings.symmetric.reset();
    for (PatternException& named : settings.by_pattern) named.exception.settings.symmetric.reset();
    return open_awq_tensors(
        std::move(model),
        {.format = kAutoRoundFormat.name, .layers = std::move(settings), .not_converted = {}, .warnings = *warnings},
        budget);
  }
  return open_gptq_tensors(std::move(model),
                           {.format = kAutoRoundFormat.name,
                            .stated = stated.empty() ? "auto_round:auto_gptq" : base::printable(stated),
                            .layers = std::move(settings),
                            .rule = *packing == Packing::kGptq ? ZeroRule::kUnmasked : ZeroRule::kTrue,
                            .warnings = *warnings},
                           budget);
}

}  // namespace

const Format kAutoRoundFormat = {"auto-round", recognizes_autoround, open_autoround};

}  // namespace nybble::checkpoint
