#include "checkpoint/compressed_tensors_config.h"

#include <algorithm>

#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/compressed_tensors.h"
#include "checkpoint/model_files.h"

namespace nybble::checkpoint {
namespace {

// Formats of this method that exist but are not read, and what to do with a model in one of them.
struct ForeignFormat {
  const char* name;
  const char* why;
};
constexpr ForeignFormat kForeignFormats[] = {
    {"marlin-24", "it holds 2:4 sparse weights in one kernel's own layout; quantize the unquantized model again"},
    {"sparse-24-bitmask", "it holds 2:4 sparse weights; quantize the unquantized model again"},
    {"sparse-bitmask", "it holds sparse weights; decompress the model with compressed-tensors first"},
    {"mxfp6-pack-quantized", "its weights are 6-bit floats; quantize the unquantized model again"},
    {"mxfp8-quantized", "its weights are 8-bit floats; quantize the unquantized model again"},
    {"int-quantized", "its weights are 8-bit integers; quantize the unquantized model again"},
    {"float-quantized", "its weights are 8-bit floats; quantize the unquantized model again"},
    {"naive-quantized", "its weights are not packed; quantize the unquantized model again"},
    {"dense",
     "its weights are not compressed; remove quantization_config from config.json to read it as a dense model"},
};

Error foreign_format(const std::string& subject, const std::string& format) {
  for (const ForeignFormat& foreign : kForeignFormats)
    if (format == foreign.name)
      return unsupported("{}: format '{}' is not read: {}", subject, foreign.name, foreign.why);
  return unsupported("{}: format {} is not read; known are '{}' with 4-bit integers, '{}' and '{}'", subject,
                     base::printable(format), kPackQuantized, kNvfp4PackQuantized, kMxfp4PackQuantized);
}

Result<LayerPacking> packing_of(const std::string& format, const std::string& subject) {
  if (format == kPackQuantized) return LayerPacking::kInt4;
  if (format == kNvfp4PackQuantized) return LayerPacking::kNvfp4;
  if (format == kMxfp4PackQuantized) return LayerPacking::kMxfp4;
  return foreign_format(subject, format);
}

bool is_null(const nlohmann::json& object, const char* key) {
  const auto member = object.find(key);
  return member == object.end() || member->is_null();
}

// actorder: null, false, "weight" and "static" change nothing on disk; true, "group" and "dynamic" bring weight_g_idx.
Result<bool> act_order_of(const nlohmann::json& weights, const std::string& subject) {
  if (is_null(weights, "actorder")) return false;
  const nlohmann::json& order = weights["actorder"];
  if (order.is_boolean()) return order.get<bool>();
  const std::string word = string_member(weights, "actorder");
  if (word == "weight" || word == "static") return false;
  if (word == "group" || word == "dynamic") return true;
  return invalid_data("{}: weights.actorder is {}; known are null, \"weight\" and \"group\"", subject,
                      base::printable(order.dump()));
}

// One scale for a whole layer. That no strategy and no group size mean this one is the method's own rule.
bool is_per_tensor(const nlohmann::json& weights, LayerPacking packing) {
  if (packing != LayerPacking::kInt4) return false;
  const std::string strategy = string_member(weights, "strategy");
  return strategy == "tensor" || (is_null(weights, "strategy") && is_null(weights, "group_size"));
}

Result<int> group_size_of(const nlohmann::json& weights, LayerPacking packing, const std::string& subject) {
  constexpr int64_t kMaxGroup = 1 << 24;
  std::optional<int64_t> size;
  if (!is_null(weights, "group_size")) {
    const nlohmann::json& member = weights["group_size"];
    if (!member.is_number_integer() || member.get<double>() < -1 || member.get<double>() > kMaxGroup || member == 0)
      return invalid_data("{}: weights.group_size is {}; it must be -1, null or 1 to {}", subject,
                          base::printable(member.dump()), kMaxGroup);
    size = member.get<int64_t>();
  }
  const std::string strategy = string_member(weights, "strategy");
  if (strategy == "channel" || is_per_tensor(weights, packing) || (strategy.empty() && size == -1)) {
    if (size && *size != -1)
      return invalid_data("{}: weights.strategy is '{}', but group_size is {}", subject, strategy, *size);
    return kPerColumn;
  }
  // "tensor_group": groups, and one more scale for the tensor.
  if (strategy == (packing == LayerPacking::kNvfp4 ? "tensor_group" : "group") || (strategy.empty() && size)) {
    if (!size || *size == -1)
      return invalid_data("{}: weights.strategy is '{}', but there is no positive group_size", subject, strategy);
    return static_cast<int>(*size);
  }
  return unsupported(
      "{}: weights.strategy {} is not read; known are 'group', 'channel' and 'tensor' for integers, 'group' for MXFP4 "
      "and 'tensor_group' for NVFP4. Quantize the unquantized model again",
      subject, base::printable(strategy.empty() ? "tensor" : strategy));
}

Result<LayerScheme> parse_scheme(const nlohmann::json& weights, LayerPacking packing, const std::string& subject) {
  if (!weights.is_object()) return invalid_data("{}: weights must be an object", subject);
  const bool integers = packing == LayerPacking::kInt4;
  std::string type = string_member(weights, "type");
  if (type.empty()) type = "int";
  const auto bits = weights.find("num_bits");
  if (bits == weights.end() || !bits->is_number_integer())
    return invalid_data("{}: weights.num_bits must be a whole number", subject);
  if (type != (integers ? "int" : "float") || *bits != 4)
    return unsupported(
        "{}: its weights are {} of {} bits; only 4-bit {} are read in this format. Quantize the unquantized model "
        "again",
        subject, base::printable(type), base::printable(bits->dump()), integers ? "integers" : "floats");
  if (const auto dynamic = weights.find("dynamic");
      dynamic != weights.end() && *dynamic != false && !dynamic->is_null())
    return invalid_data("{}: weights.dynamic must be false: weights are quantized once", subject);
  LayerScheme scheme;
  scheme.packing = packing;
  if (const auto symmetric = weights.find("symmetric"); symmetric != weights.end() && !symmetric->is_null()) {
    if (!symmetric->is_boolean()) return invalid_data("{}: weights.symmetric must be true or false", subject);
    scheme.symmetric = symmetric->get<bool>();
  }
  const Result<bool> act_order = act_order_of(weights, subject);
  if (!act_order) return act_order.error();
  scheme.act_order = *act_order;
  const Result<int> group_size = group_size_of(weights, packing, subject);
  if (!group_size) return group_size.error();
  scheme.group_size = *group_size;
  scheme.per_tensor = is_per_tensor(weights, packing);
  if (integers) return scheme;

  if (!scheme.symmetric || scheme.act_order)
    return unsupported(
        "{}: 4-bit floats with zero points or actorder \"group\" are not read. Quantize the unquantized "
        "model again with symmetric weights",
        subject);
  const int expected = packing == LayerPacking::kNvfp4 ? kNvfp4Group : kMxfp4Group;
  if (scheme.group_size != expected)
    return invalid_data("{}: weights.group_size is {}, but its format has groups of {}", subject, scheme.group_size,
                        expected);
  return scheme;
}

// transform_config: rotations. Those that the weights were multiplied by need nothing; those of activations and caches
// happen when the model runs.
Result<void> check_transforms(const nlohmann::json& settings, const std::string& subject) {
  if (is_null(settings, "transform_config")) return {};
  const auto refuse = [&](const std::string& what) {
    return unsupported(
        "{}: transform_config {}: activations would have to be rotated when the model runs, which nybble does not do. "
        "Quantize the unquantized model again without online transforms",
        subject, what);
  };
  const nlohmann::json& transforms = settings["transform_config"];
  if (!transforms.is_object()) return refuse("is " + base::printable(transforms.dump()));
  const auto groups = transforms.find("config_groups");
  if (groups == transforms.end() || groups->is_null()) return {};
  for (const nlohmann::json& group : *groups) {
    const auto apply = group.is_object() ? group.find("apply") : group.end();
    if (!group.is_object() || apply == group.end() || !apply->is_array())
      return refuse("has a group without \"apply\"");
    for (const nlohmann::json& place : *apply)
      if (const std::string location = string_member(place, "location"); !location.starts_with("weight"))
        return refuse("applies to " + base::printable(location));
  }
  return {};
}

// A word that begins with a capital and has no dot is a class: module names of the models in this world do neither.
bool is_class(const std::string& word) {
  return !word.empty() && word[0] >= 'A' && word[0] <= 'Z' && word.find('.') == std::string::npos;
}

}  // namespace

Result<CompressedTensorsConfig::Targets> CompressedTensorsConfig::Targets::parse(const nlohmann::json& list,
                                                                                 const std::string& what,
                                                                                 base::MatchBudget& budget) {
  constexpr std::string_view kPatternMark = "re:";
  Targets targets;
  if (list.is_null()) return targets;
  if (!list.is_array()) return invalid_data("{} must be an array of strings", what);
  for (const nlohmann::json& entry : list) {
    if (!entry.is_string()) return invalid_data("{} must be an array of strings", what);
    const std::string& word = entry.get_ref<const std::string&>();
    if (!word.starts_with(kPatternMark)) {
      targets.words.push_back(word);
      continue;
    }
    Result<base::NamePattern> pattern = base::NamePattern::compile(word.substr(kPatternMark.size()), budget);
    if (!pattern) return unsupported("{}: {}", what, pattern.error().message);
    targets.patterns.push_back(std::move(*pattern));
  }
  std::sort(targets.words.begin(), targets.words.end());
  targets.has_class = std::any_of(targets.words.begin(), targets.words.end(), is_class);
  return targets;
}

bool CompressedTensorsConfig::Targets::names(const std::string& layer) const {
  return std::binary_search(words.begin(), words.end(), layer);
}

bool CompressedTensorsConfig::Targets::matches(const std::string& layer, base::MatchBudget& budget) const {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const base::NamePattern& p) { return p.matches_start(layer, budget); });
}

Result<CompressedTensorsConfig> CompressedTensorsConfig::parse(const nlohmann::json& settings, const std::string& path,
                                                               base::MatchBudget& budget) {
  const std::string subject = path + ": config.json: quantization_config";
  if (!settings.is_object()) return invalid_data("{} must be an object", subject);
  CompressedTensorsConfig config;
  config.path_ = path;

  const std::string format = string_member(settings, "format");
  if (format != kMixedPrecision)
    if (const Result<LayerPacking> packing = packing_of(format, subject); !packing) return packing.error();
  if (const auto sparsity = settings.find("sparsity_config"); sparsity != settings.end() && sparsity->is_object()) {
    const std::string sparse = string_member(*sparsity, "format");
    if (!sparse.empty() && sparse != "dense") return foreign_format(subject + ": sparsity_config", sparse);
  }
  if (!is_null(settings, "quantization_status") && string_member(settings, "quantization_status") != "compressed")
    return unsupported(
        "{}: quantization_status is {}, not 'compressed': the weights are not stored in 4 bits. Save the model "
        "with save_pretrained(..., save_compressed=True)",
        subject, base::printable(settings["quantization_status"].dump()));
  if (Result<void> fine = check_transforms(settings, subject); !fine) return fine.error();
  const auto groups = settings.find("config_groups");
  if (groups == settings.end() || !groups->is_object() || groups->empty())
    return invalid_data("{}: has no config_groups, which say how layers are quantized", subject);
  for (const auto& [name, group] : groups->items())
    if (Result<void> added = config.add_group(name, group, format, budget); !added) return added.error();

  Result<Targets> ignore =
      Targets::parse(is_null(settings, "ignore") ? nlohmann::json() : settings["ignore"], subject + ": ignore", budget);
  if (!ignore) return ignore.error();
  config.ignore_ = std::move(*ignore);
  return config;
}

// A preset by name, mapped to its targets.
Result<void> CompressedTensorsConfig::add_preset(const std::string& name, const nlohmann::json& targets,
                                                 const std::string& subject, base::MatchBudget& budget) {
  constexpr std::pair<const char*, LayerScheme> kPresets[] = {
      {"W4A16", {}},
      {"W4A16_ASYM", {.symmetric = false}},
      {"NVFP4A16", {.packing = LayerPacking::kNvfp4, .group_size = kNvfp4Group}},
      {"MXFP4A16", {.packing = LayerPacking::kMxfp4, .group_size = kMxfp4Group}},
  };
  const auto preset =
      std::find_if(std::begin(kPresets), std::end(kPresets), [&](const auto& known) { return name == known.first; });
  if (preset == std::end(kPresets))
    return unsupported(
        "{}: the preset is not read; known are W4A16, W4A16_ASYM, NVFP4A16 and MXFP4A16. Quantize the unquantized "
        "model again with one of them",
        subject);
  Result<Targets> parsed = Targets::parse(targets, subject, budget);
  if (!parsed) return parsed.error();
  groups_.push_back({name, std::move(*parsed), preset->second});
  return {};
}

// Quantized activations are refused, but those of the 4-bit float formats: whoever has no tensor cores for them reads
// the same weights with 16-bit activations, which loses nothing.
Result<void> CompressedTensorsConfig::check_activations(const nlohmann::json& group, LayerPacking packing,
                                                        const std::string& subject) {
  for (const char* key : {"input_activations", "output_activations"}) {
    if (is_null(group, key)) continue;
    const nlohmann::json& activations = group[key];
    const auto bits = activations.find("num_bits");
    if (packing != LayerPacking::kInt4 && activations.is_object() && bits != activations.end() && *bits == 4 &&
        string_member(activations, "type") == "float") {
      warnings_.push_back(
          fmt::format("{}: {} asks for activations in 4-bit floats; nybble multiplies these weights with 16-bit ones",
                      subject, key));
      continue;
    }
    return unsupported(
        "{}: {} is set: the model wants quantized activations, and nybble multiplies 16-bit activations "
        "with 4-bit weights. Quantize the unquantized model again with a weight-only scheme (W4A16)",
        subject, key);
  }
  return {};
}

Result<void> CompressedTensorsConfig::add_group(const std::string& name, const nlohmann::json& group,
                                                const std::string& model_format, base::MatchBudget& budget) {
  const std::string subject = path_ + ": config.json: quantization_config.config_groups." + name;
  if (group.is_array()) return add_preset(name, group, subject, budget);
  if (!group.is_object()) return invalid_data("{} must be an object", subject);
  if (is_null(group, "weights")) return {};  // a group for activations or the cache: no weights of its own
  const std::string own = string_member(group, "format");
  const Result<LayerPacking> packing = packing_of(own.empty() ? model_format : own, subject);
  if (!packing) return packing.error();
  if (Result<void> checked = check_activations(group, *packing, subject); !checked) return checked;
  const Result<LayerScheme> scheme = parse_scheme(group["weights"], *packing, subject);
  if (!scheme) return scheme.error();
  Result<Targets> targets =
      Targets::parse(is_null(group, "targets") ? nlohmann::json() : group["targets"], subject + ": targets", budget);
  if (!targets) return targets.error();
  groups_.push_back({name, std::move(*targets), *scheme});
  return {};
}

Result<LayerScheme> CompressedTensorsConfig::scheme_of(const std::string& layer, base::MatchBudget& budget) const {
  constexpr int64_t kStepsPerGroup = 16;  // three ways to look at it
  const bool ignored = ignore_.names(layer) || ignore_.matches(layer, budget);
  budget.spend(static_cast<int64_t>(groups_.size()) * kStepsPerGroup);
  const auto within_budget = [&] { return budget.check(path_ + ": config.json: quantization_config"); };
  if (Result<void> fine = within_budget(); !fine) return fine.error();
  if (ignored)
    return invalid_data("{}: layer {} is stored packed, but config.json's ignore list says that it is not quantized",
                        path_, base::printable(layer));
  // The most particular way of matching decides, as in the method's own library.
  const auto by_name = [&](const Group& group) { return group.targets.names(layer); };
  const auto by_pattern = [&](const Group& group) { return group.targets.matches(layer, budget); };
  const auto by_class = [](const Group& group) { return group.targets.has_class; };
  const auto choose = [&](const auto& matches) -> Result<std::optional<LayerScheme>> {
    const Group* first = nullptr;
    for (const Group& group : groups_) {
      if (!matches(group)) continue;
      if (first != nullptr && group.scheme != first->scheme)
        return invalid_data(
            "{}: layer {} matches both {} and {} of config.json's config_groups, which differ; say by name "
            "which one it is",
            path_, base::printable(layer), base::printable(first->name), base::printable(group.name));
      if (first == nullptr) first = &group;
    }
    return first == nullptr ? std::optional<LayerScheme>() : std::optional(first->scheme);
  };
  for (const Result<std::optional<LayerScheme>>& chosen : {choose(by_name), choose(by_pattern), choose(by_class)}) {
    if (Result<void> fine = within_budget(); !fine) return fine.error();
    if (!chosen) return chosen.error();
    if (*chosen) return **chosen;
  }
  return invalid_data("{}: layer {} is stored packed, but no target of config.json's config_groups matches it", path_,
                      base::printable(layer));
}

}  // namespace nybble::checkpoint
