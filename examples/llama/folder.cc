// A model as Hugging Face's libraries write it: config.json and tokenizer.json beside the weights.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "chat.h"
#include "model.h"
#include "tokenizer.h"

namespace llama {
namespace {

using nlohmann::json;

Result<json> read_json(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file.is_open() || file.bad()) return Error{ErrorCode::kIo, fmt::format("{}: cannot be read", path)};
  json parsed = json::parse(text, nullptr, false);
  if (!parsed.is_object()) return Error{ErrorCode::kInvalidData, fmt::format("{}: is no JSON object", path)};
  return parsed;
}

const json& member(const json& object, const char* key) {
  static const json kNull;
  if (!object.is_object()) return kNull;
  const auto at = object.find(key);
  return at == object.end() ? kNull : *at;
}

bool is_true(const json& value) { return value.is_boolean() && value.get<bool>(); }

std::string type_of(const json& object) {
  const json& type = member(object, "type");
  return type.is_string() ? type.get<std::string>() : "";
}

// Reads a config's numbers one after the other and keeps the first error.
class Reader {
 public:
  Reader(const json& config, std::string path) : config_(config), path_(std::move(path)) {}

  bool has(const char* key) const { return !member(config_, key).is_null(); }
  int64_t integer(const char* key, int64_t least, int64_t most) {
    const json& value = member(config_, key);
    if (value.is_number_integer()) {
      const auto number = value.get<int64_t>();
      if (number >= least && number <= most) return number;
    }
    return fail(key, value, fmt::format("an integer from {} to {}", least, most)), least;
  }
  double positive(const char* key) {
    const json& value = member(config_, key);
    if (value.is_number() && value.get<double>() > 0 && std::isfinite(value.get<double>())) return value.get<double>();
    return fail(key, value, "a positive number"), 1;
  }
  const std::optional<Error>& error() const { return error_; }

 private:
  void fail(const char* key, const json& value, const std::string& needed) {
    if (!error_)
      error_ = Error{ErrorCode::kInvalidData, fmt::format("{}: {} is {}; {} is needed", path_, key,
                                                          value.is_null() ? "not there" : value.dump(), needed)};
  }

  const json& config_;
  std::string path_;
  std::optional<Error> error_;
};

// Llama 3's pattern; PreTokenizer has it in PCRE2's words.
constexpr char kLlama3Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// The name of the rule, as GGUF files call it, by which tokenizer.json cuts text into words.
std::optional<std::string> rule_of(const json& pre_tokenizer) {
  const auto is_byte_level = [](const json& rule, bool cuts) {
    const json& regex = member(rule, "use_regex");
    return type_of(rule) == "ByteLevel" && !is_true(member(rule, "add_prefix_space")) &&
           (regex.is_null() || is_true(regex)) == cuts;
  };
  const auto is_gpt2 = [&](const json& rule) { return is_byte_level(rule, true); };
  if (is_gpt2(pre_tokenizer)) return "gpt-2";
  const json& parts = member(pre_tokenizer, "pretokenizers");
  if (type_of(pre_tokenizer) == "Sequence" && parts.is_array() && parts.size() == 2 && type_of(parts[0]) == "Digits" &&
      is_true(member(parts[0], "individual_digits")) && is_gpt2(parts[1]))
    return "smollm";
  if (type_of(pre_tokenizer) == "Sequence" && parts.is_array() && parts.size() == 2 && type_of(parts[0]) == "Split" &&
      member(member(parts[0], "pattern"), "Regex") == kLlama3Pattern && member(parts[0], "behavior") == "Isolated" &&
      !is_true(member(parts[0], "invert")) && is_byte_level(parts[1], false))
    return "llama-bpe";
  return std::nullopt;
}

// The token that a post_processor puts before every text; none where it adds nothing, an error where it does else.
Result<std::optional<std::string>> begin_of(const json& post, const std::string& source) {
  std::optional<std::string> begin;
  json steps = type_of(post) == "Sequence" ? member(post, "processors") : json::array({post});
  for (const json& step : steps) {
    if (step.is_null() || type_of(step) == "ByteLevel") continue;
    const json& single = member(step, "single");
    const bool one_before = type_of(step) == "TemplateProcessing" && !begin && single.is_array() &&
                            single.size() == 2 && member(member(single[0], "SpecialToken"), "id").is_string() &&
                            member(single[1], "Sequence").is_object();
    if (!one_before)
      return Error{ErrorCode::kUnsupported,
                   fmt::format("{}: its post_processor '{}' adds more to texts than one token at the beginning", source,
                               type_of(step))};
    begin = single[0]["SpecialToken"]["id"].get<std::string>();
  }
  return begin;
}

// The default one of a tokenizer_config.json: a text, or one of several with names.
std::optional<std::string> template_of(const json& config) {
  const json& chat_template = member(config, "chat_template");
  if (chat_template.is_string()) return chat_template.get<std::string>();
  if (chat_template.is_array())
    for (const json& named : chat_template)
      if (member(named, "name") == "default" && member(named, "template").is_string())
        return member(named, "template").get<std::string>();
  return std::nullopt;
}

}  // namespace

Result<ChatTemplate> ChatTemplate::from_folder(const std::string& folder) {
  const std::filesystem::path at = folder;
  std::error_code ignored;
  if (const std::string path = (at / "chat_template.jinja").string(); std::filesystem::exists(path, ignored)) {
    std::ifstream file(path, std::ios::binary);
    std::string text{std::istreambuf_iterator<char>(file), {}};
    if (!file.is_open() || file.bad()) return Error{ErrorCode::kIo, fmt::format("{}: cannot be read", path)};
    return ChatTemplate{path, std::move(text)};
  }
  const std::string path = (at / "tokenizer_config.json").string();
  if (std::filesystem::exists(path, ignored)) {
    const Result<json> config = read_json(path);
    if (!config) return config.error();
    if (std::optional<std::string> text = template_of(*config)) return ChatTemplate{path, std::move(*text)};
  }
  return Error{ErrorCode::kUnsupported,
               fmt::format("{}: has no chat template (chat_template.jinja, or in tokenizer_config.json), so it was not "
                           "trained for chats; give the whole text as a plain prompt",
                           folder)};
}

Result<Config> read_folder_config(const std::string& folder) {
  const std::string path = (std::filesystem::path(folder) / "config.json").string();
  const Result<json> file = read_json(path);
  if (!file) return file.error();
  const auto refuse = [&](const std::string& words) {
    return Error{ErrorCode::kUnsupported, fmt::format("{}: {}", path, words)};
  };
  if (member(*file, "model_type") != "llama")
    return refuse(fmt::format("its model_type is {}; this program runs \"llama\"", member(*file, "model_type").dump()));
  if (const json& act = member(*file, "hidden_act"); !act.is_null() && act != "silu")
    return refuse(fmt::format("its hidden_act is {}; \"silu\" can be done", act.dump()));

  constexpr int64_t kMost = 1 << 20;
  Reader read(*file, path);
  Config config;
  config.rotates_halves = true;
  config.blocks = read.integer("num_hidden_layers", 1, 4096);
  config.embedding = read.integer("hidden_size", 1, kMost);
  config.feed_forward = read.integer("intermediate_size", 1, kMost);
  config.heads = read.integer("num_attention_heads", 1, 4096);
  config.kv_heads =
      read.has("num_key_value_heads") ? read.integer("num_key_value_heads", 1, config.heads) : config.heads;
  config.head_dim = read.has("head_dim") ? read.integer("head_dim", 2, 4096) : config.embedding / config.heads;
  config.rope_dim = config.head_dim;
  config.context = read.integer("max_position_embeddings", 1, int64_t{1} << 30);
  config.rms_epsilon = static_cast<float>(read.positive("rms_norm_eps"));
  if (read.has("rope_theta")) config.rope_base = read.positive("rope_theta");
  if (read.error()) return *read.error();

  // transformers 5 puts base and scaling under rope_parameters, before it was rope_theta and rope_scaling.
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const json& scaling = member(*file, key);
    if (scaling.is_null()) continue;
    const json& type = member(scaling, scaling.contains("rope_type") ? "rope_type" : "type");
    Reader inner(scaling, path);
    if (type == "linear") {
      config.rope_scale = inner.positive("factor");
    } else if (type == "llama3") {
      config.llama3_rope = {.factor = inner.positive("factor"),
                            .low_frequency = inner.positive("low_freq_factor"),
                            .high_frequency = inner.positive("high_freq_factor"),
                            .original_context = inner.positive("original_max_position_embeddings")};
      if (!inner.error() && config.llama3_rope->low_frequency >= config.llama3_rope->high_frequency)
        return Error{ErrorCode::kInvalidData,
                     fmt::format("{}: low_freq_factor is {}; it must be below high_freq_factor, {}", path,
                                 config.llama3_rope->low_frequency, config.llama3_rope->high_frequency)};
    } else if (!type.is_null() && type != "default") {
      return refuse(fmt::format("its positions are scaled by {}; \"linear\" and \"llama3\" can be done", type.dump()));
    }
    if (inner.has("rope_theta")) config.rope_base = inner.positive("rope_theta");
    if (inner.error()) return *inner.error();
  }
  if (config.heads % config.kv_heads != 0 || config.head_dim < 2 || config.head_dim % 2 != 0)
    return Error{ErrorCode::kInvalidData,
                 fmt::format("{}: {} query heads, {} key heads, heads of {} do not fit together", path, config.heads,
                             config.kv_heads, config.head_dim)};
  return config;
}

Result<Tokenizer> Tokenizer::from_folder(const std::string& folder) {
  TokenizerTables tables;
  tables.source = (std::filesystem::path(folder) / "tokenizer.json").string();
  const Result<json> file = read_json(tables.source);
  if (!file) return file.error();
  const auto broken = [&](const std::string& words) {
    return Error{ErrorCode::kInvalidData, fmt::format("{}: {}", tables.source, words)};
  };
  const auto refuse = [&](const std::string& words) {
    return Error{ErrorCode::kUnsupported, fmt::format("{}: {}", tables.source, words)};
  };
  const json& model = member(*file, "model");
  if (type_of(model) != "BPE" || is_true(member(model, "byte_fallback")))
    return refuse(fmt::format("its model is '{}'; plain byte-level BPE can be done", type_of(model)));
  if (const json& normalizer = member(*file, "normalizer"); !normalizer.is_null())
    return refuse(fmt::format("it has a normalizer '{}'; none can be done", type_of(normalizer)));
  tables.whole_words = is_true(member(model, "ignore_merges"));
  const Result<std::optional<std::string>> begin = begin_of(member(*file, "post_processor"), tables.source);
  if (!begin) return begin.error();
  const std::optional<std::string> rule = rule_of(member(*file, "pre_tokenizer"));
  if (!rule)
    return refuse(
        "its pre_tokenizer is another than ByteLevel, alone, after Digits or after Llama 3's Split; these can be done");
  tables.pre = *rule;

  const json& vocabulary = member(model, "vocab");
  const json& added = member(*file, "added_tokens");
  if (!vocabulary.is_object() || !added.is_array()) return broken("model.vocab or added_tokens is missing");
  const size_t most = vocabulary.size() + added.size();
  std::vector<bool> given;
  const auto put = [&](const json& name, const json& number, bool special) {
    if (!name.is_string() || !number.is_number_unsigned() || number.get<uint64_t>() >= most) return false;
    const auto at = number.get<size_t>();
    if (at >= tables.tokens.size()) {
      tables.tokens.resize(at + 1);
      tables.special.resize(at + 1);
      given.resize(at + 1);
    }
    if (given[at] && tables.tokens[at] != name.get_ref<const std::string&>()) return false;
    tables.tokens[at] = name.get<std::string>();
    tables.special[at] = special;
    given[at] = true;
    return true;
  };
  for (const auto& [name, number] : vocabulary.items())
    if (!put(name, number, false))
      return broken(fmt::format("token {} has the number {}; below {} each number has one token", json(name).dump(),
                                number.dump(), most));
  for (const json& token : added)
    if (!put(member(token, "content"), member(token, "id"), true))
      return broken(fmt::format("added token {} does not fit into the vocabulary", token.dump()));
  if (std::find(given.begin(), given.end(), false) != given.end()) return broken("some numbers have no token");

  if (*begin) {
    const auto at = std::find(tables.tokens.begin(), tables.tokens.end(), **begin);
    if (at == tables.tokens.end())
      return broken(fmt::format("post_processor begins texts with {}, which is no token", json(**begin).dump()));
    tables.begin = static_cast<int32_t>(at - tables.tokens.begin());
  }

  const json& merges = member(model, "merges");
  if (!merges.is_array()) return broken("model.merges is missing");
  for (const json& merge : merges) {  // "a b", or, since tokenizers 0.20, ["a", "b"]
    const auto is_text = [](const json& part) { return part.is_string(); };
    if (merge.is_array() && merge.size() == 2 && std::all_of(merge.begin(), merge.end(), is_text)) {
      tables.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      continue;
    }
    const std::string text = merge.is_string() ? merge.get<std::string>() : "";
    const size_t space = text.find(' ', 1);
    if (text.empty() || space == std::string::npos)
      return broken(fmt::format("model.merges: number {} is not two tokens", tables.merges.size()));
    tables.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }

  const Result<json> config = read_json((std::filesystem::path(folder) / "config.json").string());
  if (!config) return config.error();
  const json& ends = member(*config, "eos_token_id");
  for (const json& end : ends.is_array() ? ends : json::array({ends})) {
    if (end.is_null()) continue;
    if (!end.is_number_unsigned() || end.get<uint64_t>() >= tables.tokens.size())
      return Error{ErrorCode::kInvalidData, fmt::format("{}/config.json: eos_token_id is {}; there are {} tokens",
                                                        folder, end.dump(), tables.tokens.size())};
    tables.ends.push_back(end.get<int32_t>());
  }
  return make(std::move(tables));
}

}  // namespace llama
