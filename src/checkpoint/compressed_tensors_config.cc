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
    {"nvfp4-pack-quantized", "its codes are 4-bit floats, not integers; quantize the unquantized model again"},
    {"mxfp4-pack-quantized", "its codes are 4-bit floats, not integers; quantize the unquantized model again"},
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
  return unsupported("{}: format {} is not read; the one known is '{}' with 4-bit integers", subject,
                     base::printable(format), kPackQuantized);
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

Result<int> group_size_of(const nlohmann::json& weights, const std::string& subject) {
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
  if (strategy == "channel" || (strategy.empty() && size == -1)) {
    if (size && *size != -1)
      return invalid_data("{}: weights.strategy is 'channel', but group_size is {}", subject, *size);
    return kPerColumn;
  }
  if (strategy == "group" || (strategy.empty() && size)) {
    if (!size || *size == -1)
      return invalid_data("{}: weights.strategy is 'group', but there is no positive group_size", subject);
    return static_cast<int>(*size);
  }
  return unsupported(
      "{}: weights.strategy {} is not read; known are 'group' and 'channel'. Quantize the unquantized model "
      "again",
      subject, base::printable(strategy.empty() ? "tensor" : strategy));
}

Result<Int4Scheme> parse_scheme(const nlohmann::json& weights, const std::string& subject) {
  if (!weights.is_object()) return invalid_data("{}: weights must be an object", subject);
  std::string type = string_member(weights, "type");
  if (type.empty()) type = "int";
  const auto bits = weights.find("num_bits");
  if (bits == weights.end() || !bits->is_number_integer())
    return invalid_data("{}: weights.num_bits must be a whole number", subject);
  if (type != "int" || *bits != 4)
    return unsupported(
        "{}: its weights are {} of {} bits; only 4-bit integers are read. Quantize the unquantized model "
        "again",
        subject, base::printable(type), base::printable(bits->dump()));
  if (const auto dynamic = weights.find("dynamic");
      dynamic != weights.end() && *dynamic != false && !dynamic->is_null())
    return invalid_data("{}: weights.dynamic must be false: weights are quantized once", subject);
  Int4Scheme scheme;
  if (const auto symmetric = weights.find("symmetric"); symmetric != weights.end() && !symmetric->is_null()) {
    if (!symmetric->is_boolean()) return invalid_data("{}: weights.symmetric must be true or false", subject);
    scheme.symmetric = symmetric->get<bool>();
  }
  const Result<bool> act_order = act_order_of(weights, subject);
  if (!act_order) return act_order.error();
  scheme.act_order = *act_order;
  const Result<int> group_size = group_size_of(weights, subject);
  if (!group_size) return group_size.error();
  scheme.group_size = *group_size;
  return scheme;
}

}  // namespace

Result<CompressedTensorsConfig::Targets> CompressedTensorsConfig::Targets::parse(const nlohmann::json& list,
                                                                                 const std::string& what) {
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
    Result<base::NamePattern> pattern = base::NamePattern::compile(word.substr(kPatternMark.size()));
    if (!pattern) return unsupported("{}: {}", what, pattern.error().message);
    targets.patterns.push_back(std::move(*pattern));
  }
  std::sort(targets.words.begin(), targets.words.end());
  return targets;
}

bool CompressedTensorsConfig::Targets::names(const std::string& layer) const {
  return std::binary_search(words.begin(), words.end(), layer);
}

bool CompressedTensorsConfig::Targets::matches(const std::string& layer) const {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const base::NamePattern& p) { return p.matches_start(layer); });
}

// A word that begins with a capital and has no dot is a class: module names of the models in this world do neither.
bool CompressedTensorsConfig::Targets::has_class() const {
  return std::any_of(words.begin(), words.end(), [](const std::string& word) {
    return !word.empty() && word[0] >= 'A' && word[0] <= 'Z' && word.find('.') == std::string::npos;
  });
}

Result<CompressedTensorsConfig> CompressedTensorsConfig::parse(const nlohmann::json& settings,
                                                               const std::string& path) {
  const std::string subject = path + ": config.json: quantization_config";
  if (!settings.is_object()) return invalid_data("{} must be an object", subject);
  CompressedTensorsConfig config;
  config.path_ = path;

  const std::string format = string_member(settings, "format");
  if (format != kPackQuantized && format != "mixed-precision") return foreign_format(subject, format);
  if (const auto sparsity = settings.find("sparsity_config"); sparsity != settings.end() && sparsity->is_object()) {
    const std::string sparse = string_member(*sparsity, "format");
    if (!sparse.empty() && sparse != "dense") return foreign_format(subject + ": sparsity_config", sparse);
  }
  if (!is_null(settings, "quantization_status") && string_member(settings, "quantization_status") != "compressed")
    return unsupported(
        "{}: quantization_status is {}, not 'compressed': the weights are not stored in 4 bits. Save the model "
        "with save_pretrained(..., save_compressed=True)",
        subject, base::printable(settings["quantization_status"].dump()));
  const auto groups = settings.find("config_groups");
  if (groups == settings.end() || !groups->is_object() || groups->empty())
    return invalid_data("{}: has no config_groups, which say how layers are quantized", subject);
  for (const auto& [name, group] : groups->items())
    if (Result<void> added = config.add_group(name, group, format); !added) return added.error();

  Result<Targets> ignore =
      Targets::parse(is_null(settings, "ignore") ? nlohmann::json() : settings["ignore"], subject + ": ignore");
  if (!ignore) return ignore.error();
  config.ignore_ = std::move(*ignore);
  return config;
}

Result<void> CompressedTensorsConfig::add_group(const std::string& name, const nlohmann::json& group,
                                                const std::string& model_format) {
  const std::string subject = path_ + ": config.json: quantization_config.config_groups." + name;
  Group added;
  added.name = name;
  if (group.is_array()) {  // a preset by name, mapped to its targets
    if (name != "W4A16" && name != "W4A16_ASYM")
      return unsupported("{}: the preset is not read; known are W4A16 and W4A16_ASYM", subject);
    added.scheme.symmetric = name == "W4A16";
    Result<Targets> targets = Targets::parse(group, subject);
    if (!targets) return targets.error();
    added.targets = std::move(*targets);
    groups_.push_back(std::move(added));
    return {};
  }
  if (!group.is_object()) return invalid_data("{} must be an object", subject);
  if (is_null(group, "weights")) return {};  // a group for activations or the cache: no weights of its own
  const std::string own = string_member(group, "format");
  const std::string& format = own.empty() ? model_format : own;
  if (format != kPackQuantized) return foreign_format(subject, format);
  for (const char* key : {"input_activations", "output_activations"})
    if (!is_null(group, key))
      return unsupported(
          "{}: {} is set: the model wants quantized activations, and nybble multiplies 16-bit activations "
          "with 4-bit weights. Quantize the unquantized model again with a weight-only scheme (W4A16)",
          subject, key);
  const Result<Int4Scheme> scheme = parse_scheme(group["weights"], subject);
  if (!scheme) return scheme.error();
  added.scheme = *scheme;
  Result<Targets> targets =
      Targets::parse(is_null(group, "targets") ? nlohmann::json() : group["targets"], subject + ": targets");
  if (!targets) return targets.error();
  added.targets = std::move(*targets);
  groups_.push_back(std::move(added));
  return {};
}

Result<Int4Scheme> CompressedTensorsConfig::scheme_of(const std::string& layer) const {
  if (ignore_.names(layer) || ignore_.matches(layer))
    return invalid_data("{}: layer {} is stored packed, but config.json's ignore list says that it is not quantized",
                        path_, base::printable(layer));
  // The most particular way of matching decides, as in the method's own library.
  const auto by_name = [&](const Group& group) { return group.targets.names(layer); };
  const auto by_pattern = [&](const Group& group) { return group.targets.matches(layer); };
  const auto by_class = [](const Group& group) { return group.targets.has_class(); };
  const auto choose = [&](const auto& matches) -> Result<std::optional<Int4Scheme>> {
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
    return first == nullptr ? std::optional<Int4Scheme>() : std::optional(first->scheme);
  };
  for (const Result<std::optional<Int4Scheme>>& chosen : {choose(by_name), choose(by_pattern), choose(by_class)}) {
    if (!chosen) return chosen.error();
    if (*chosen) return **chosen;
  }
  return invalid_data("{}: layer {} is stored packed, but no target of config.json's config_groups matches it", path_,
                      base::printable(layer));
}

}  // namespace nybble::checkpoint
