#include "model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

namespace llama {
namespace {

const nybble::LayerInfo* find_layer(const nybble::Checkpoint& checkpoint, const std::string& name) {
  const auto& layers = checkpoint.layers();
  const auto at =
      std::find_if(layers.begin(), layers.end(), [&](const nybble::LayerInfo& info) { return info.name == name; });
  return at == layers.end() ? nullptr : &*at;
}

std::optional<nybble::OtherTensor> find_tensor(const nybble::Checkpoint& checkpoint, const std::string& name) {
  for (nybble::OtherTensor& tensor : checkpoint.other_tensors())
    if (tensor.name == name) return std::move(tensor);
  return std::nullopt;
}

// Reads hyperparameters one after the other and keeps the first error.
class Reader {
 public:
  explicit Reader(const nybble::GgufMetadata& metadata) : metadata_(metadata) {}

  int64_t integer(const std::string& key, int64_t least, int64_t most) {
    const Result<int64_t> value = metadata_.integer(key);
    if (!value) return fail(value.error()), least;
    if (*value < least || *value > most)
      return fail({ErrorCode::kInvalidData,
                   fmt::format("{}: {} is {}; {} to {} are allowed", metadata_.path(), key, *value, least, most)}),
             least;
    return *value;
  }
  double positive(const std::string& key) {
    const Result<double> value = metadata_.number(key);
    if (!value) return fail(value.error()), 1;
    if (!(*value > 0) || !std::isfinite(*value))
      return fail({ErrorCode::kInvalidData,
                   fmt::format("{}: {} is {}; a positive number is needed", metadata_.path(), key, *value)}),
             1;
    return *value;
  }
  const std::optional<Error>& error() const { return error_; }

 private:
  void fail(const Error& error) {
    if (!error_) error_ = error;
  }

  const nybble::GgufMetadata& metadata_;
  std::optional<Error> error_;
};

}  // namespace

bool is_hugging_face_folder(const std::string& model) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(std::filesystem::path(model) / "config.json", ignored);
}

Result<Config> read_config(const std::string& model) {
  if (is_hugging_face_folder(model)) return read_folder_config(model);
  const Result<nybble::GgufMetadata> metadata = nybble::GgufMetadata::read(model);
  if (!metadata) return metadata.error();
  return read_config(*metadata);
}

Result<Config> read_config(const nybble::GgufMetadata& metadata) {
  const Result<std::string> architecture = metadata.text("general.architecture");
  if (!architecture) return architecture.error();
  const auto refuse = [&](const std::string& words) {
    return Error{ErrorCode::kUnsupported, fmt::format("{}: {}", metadata.path(), words)};
  };
  if (*architecture != "llama")
    return refuse(fmt::format("its architecture is '{}'; this program runs 'llama'", *architecture));
  if (metadata.has("llama.expert_count") && metadata.integer("llama.expert_count").ok() &&
      *metadata.integer("llama.expert_count") > 0)
    return refuse("it is a mixture of experts; this program runs dense models");

  constexpr int64_t kMost = 1 << 20;
  Reader read(metadata);
  Config config;
  config.blocks = read.integer("llama.block_count", 1, 4096);
  config.embedding = read.integer("llama.embedding_length", 1, kMost);
  config.feed_forward = read.integer("llama.feed_forward_length", 1, kMost);
  config.heads = read.integer("llama.attention.head_count", 1, 4096);
  config.kv_heads = metadata.has("llama.attention.head_count_kv")
                        ? read.integer("llama.attention.head_count_kv", 1, config.heads)
                        : config.heads;
  config.head_dim = metadata.has("llama.attention.key_length") ? read.integer("llama.attention.key_length", 2, 4096)
                                                               : config.embedding / config.heads;
  config.rope_dim = metadata.has("llama.rope.dimension_count")
                        ? read.integer("llama.rope.dimension_count", 2, config.head_dim)
                        : config.head_dim;
  config.context = read.integer("llama.context_length", 1, int64_t{1} << 30);
  config.rms_epsilon = static_cast<float>(read.positive("llama.attention.layer_norm_rms_epsilon"));
  if (metadata.has("llama.rope.freq_base")) config.rope_base = read.positive("llama.rope.freq_base");
  if (metadata.has("llama.rope.scaling.factor")) config.rope_scale = read.positive("llama.rope.scaling.factor");
  if (read.error()) return *read.error();
  if (const Result<std::string> scaling = metadata.text("llama.rope.scaling.type"); scaling) {
    if (*scaling == "none")
      config.rope_scale = 1;
    else if (*scaling != "linear")
      return refuse(fmt::format("its positions are scaled by '{}'; 'linear' can be done", *scaling));
  }
  if (config.heads % config.kv_heads != 0 || config.rope_dim % 2 != 0 || config.head_dim % 2 != 0)
    return Error{ErrorCode::kInvalidData,
                 fmt::format("{}: {} query heads, {} key heads, heads of {} with {} rotated do not fit together",
                             metadata.path(), config.heads, config.kv_heads, config.head_dim, config.rope_dim)};
  return config;
}

Result<WeightSource> WeightSource::open(const std::string& model, const std::optional<std::string>& weights) {
  WeightSource source;
  source.hugging_face_ = is_hugging_face_folder(model);
  Result<std::unique_ptr<nybble::Checkpoint>> opened = nybble::open_checkpoint(model);
  if (!opened) return opened.error();
  source.model_ = std::move(*opened);
  if (weights) {
    opened = nybble::open_checkpoint(*weights);
    if (!opened) return opened.error();
    source.weights_ = std::move(*opened);
  }
  return source;
}

std::vector<const nybble::Checkpoint*> WeightSource::in_order() const {
  if (weights_ == nullptr) return {model_.get()};
  return {weights_.get(), model_.get()};
}

std::string WeightSource::stored_name(const std::string& name) const {
  if (!hugging_face_) return name;
  constexpr std::pair<const char*, const char*> kWhole[] = {
      {"token_embd", "model.embed_tokens"}, {"output", "lm_head"}, {"output_norm.weight", "model.norm.weight"}};
  for (const auto& [gguf, ours] : kWhole)
    if (name == gguf) return ours;
  constexpr std::pair<std::string_view, const char*> kOfBlock[] = {
      {"attn_norm.weight", "input_layernorm.weight"},
      {"attn_q", "self_attn.q_proj"},
      {"attn_k", "self_attn.k_proj"},
      {"attn_v", "self_attn.v_proj"},
      {"attn_output", "self_attn.o_proj"},
      {"ffn_norm.weight", "post_attention_layernorm.weight"},
      {"ffn_gate", "mlp.gate_proj"},
      {"ffn_up", "mlp.up_proj"},
      {"ffn_down", "mlp.down_proj"}};
  const size_t number = name.find('.') + 1, part = name.find('.', number) + 1;  // blk.NUMBER.PART
  for (const auto& [gguf, ours] : kOfBlock)
    if (name.starts_with("blk.") && name.substr(part) == gguf)
      return fmt::format("model.layers.{}.{}", name.substr(number, part - number - 1), ours);
  return name;
}

bool WeightSource::has_layer(const std::string& asked) const {
  const auto order = in_order();
  const std::string name = stored_name(asked);
  return std::any_of(order.begin(), order.end(),
                     [&](const nybble::Checkpoint* checkpoint) { return find_layer(*checkpoint, name) != nullptr; });
}

Result<int64_t> WeightSource::layer_rows(const std::string& asked) const {
  const std::string name = stored_name(asked);
  for (const nybble::Checkpoint* checkpoint : in_order())
    if (const nybble::LayerInfo* info = find_layer(*checkpoint, name)) return info->n;
  return Error{ErrorCode::kInvalidData, fmt::format("the model has no layer {}", name)};
}

Result<LayerWeight> WeightSource::layer(const std::string& asked, int64_t n, int64_t k) const {
  const std::string name = stored_name(asked);
  for (const nybble::Checkpoint* checkpoint : in_order()) {
    const nybble::LayerInfo* info = find_layer(*checkpoint, name);
    if (info == nullptr) continue;
    if (info->n != n || info->k != k)
      return Error{ErrorCode::kInvalidData,
                   fmt::format("{}: layer {} is {} x {}; the model's hyperparameters need {} x {}", info->file, name,
                               info->n, info->k, n, k)};
    if (checkpoint == weights_.get()) ++*from_weights_;
    if (info->quantized) {
      Result<nybble::QuantizedWeight> weight = checkpoint->read_quantized(name);
      if (!weight) return weight.error();
      return LayerWeight(std::move(*weight));
    }
    Result<nybble::DenseWeight> weight = checkpoint->read_dense(name);
    if (!weight) return weight.error();
    return LayerWeight(std::move(*weight));
  }
  return Error{ErrorCode::kInvalidData, fmt::format("the model has no layer {}", name)};
}

bool WeightSource::has_vector(const std::string& asked) const {
  const auto order = in_order();
  const std::string name = stored_name(asked);
  return std::any_of(order.begin(), order.end(),
                     [&](const nybble::Checkpoint* checkpoint) { return find_tensor(*checkpoint, name).has_value(); });
}

Result<std::vector<float>> WeightSource::vector(const std::string& asked, int64_t count) const {
  const std::string name = stored_name(asked);
  for (const nybble::Checkpoint* checkpoint : in_order()) {
    const std::optional<nybble::OtherTensor> tensor = find_tensor(*checkpoint, name);
    if (!tensor) continue;
    nybble::FloatArray values;
    if (tensor->dtype == "F32")
      values.dtype = nybble::DType::kFp32;
    else if (tensor->dtype == "F16")
      values.dtype = nybble::DType::kFp16;
    else if (tensor->dtype == "BF16")
      values.dtype = nybble::DType::kBf16;
    else
      return Error{ErrorCode::kUnsupported,
                   fmt::format("{}: tensor {} is {}; F32, F16 or BF16 is needed", tensor->file, name, tensor->dtype)};
    if (tensor->shape != std::vector<int64_t>{count})
      return Error{ErrorCode::kInvalidData,
                   fmt::format("{}: tensor {} must be one row of {} numbers", tensor->file, name, count)};
    Result<std::vector<std::byte>> bytes = checkpoint->read_other_tensor(name);
    if (!bytes) return bytes.error();
    values.bytes = std::move(*bytes);
    std::vector<float> floats(values.size());
    for (size_t i = 0; i < floats.size(); ++i) floats[i] = values.at(i);
    return floats;
  }
  return Error{ErrorCode::kInvalidData, fmt::format("the model has no tensor {}", name)};
}

}  // namespace llama
