// The tiny model of tests/data/llama_tiny, and the same as a Hugging Face folder.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model.h"
#include "nybble/checkpoint.h"
#include "support/temp_folder.h"

namespace llama {

inline const std::string kTiny = NYBBLE_SOURCE_DIR "/tests/data/llama_tiny/model.gguf";

template <class T> std::vector<T> tensor_of(const std::string& file, const std::string& name) {
  const auto checkpoint = nybble::open_checkpoint(file);
  EXPECT_TRUE(checkpoint) << checkpoint.error().message;
  const auto bytes = (*checkpoint)->read_other_tensor(name);
  EXPECT_TRUE(bytes) << bytes.error().message;
  std::vector<T> values(bytes->size() / sizeof(T));
  std::memcpy(values.data(), bytes->data(), bytes->size());
  return values;
}

// The tiny model as a folder: the same numbers in fp32 under Hugging Face's names, the rows of query and key in their
// original order, the tables as JSON.
inline void write_tiny_folder(const std::string& folder) {
  const auto checkpoint = nybble::open_checkpoint(kTiny);
  const auto metadata = nybble::GgufMetadata::read(kTiny);
  const Config config = *read_config(*metadata);
  nlohmann::json header;
  std::string data;
  const auto put = [&](const std::string& name, const std::vector<int64_t>& shape, const std::vector<float>& values) {
    const size_t begin = data.size();
    data.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    header[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {begin, data.size()}}};
  };
  const auto layer = [&](const std::string& from, const std::string& to, int64_t n, int64_t k, bool permuted) {
    const auto source = WeightSource::open(kTiny, std::nullopt);
    const std::vector<float> rows = [&] {
      const auto weight = source->layer(from, n, k);
      EXPECT_TRUE(weight) << weight.error().message;
      if (const auto* quantized = std::get_if<nybble::QuantizedWeight>(&*weight)) return nybble::dequantize(*quantized);
      const nybble::FloatArray& values = std::get<nybble::DenseWeight>(*weight).values;
      std::vector<float> floats(values.size());
      for (size_t i = 0; i < floats.size(); ++i) floats[i] = values.at(i);
      return floats;
    }();
    std::vector<float> ordered(rows.size());
    for (int64_t row = 0; row < n; ++row) {
      const int64_t head = row / config.head_dim, in_head = row % config.head_dim, half = config.head_dim / 2;
      const int64_t stored = !permuted ? row : head * config.head_dim + 2 * (in_head % half) + in_head / half;
      std::copy_n(rows.begin() + stored * k, k, ordered.begin() + row * k);
    }
    put(to + ".weight", {n, k}, ordered);
  };
  const auto vector = [&](const std::string& from, const std::string& to) {
    put(to, {config.embedding}, tensor_of<float>(kTiny, from));
  };
  const auto tokens = *metadata->texts("tokenizer.ggml.tokens");
  const int64_t width = config.embedding, query = config.heads * config.head_dim,
                key = config.kv_heads * config.head_dim;
  layer("token_embd", "model.embed_tokens", static_cast<int64_t>(tokens.size()), width, false);
  vector("output_norm.weight", "model.norm.weight");
  for (int64_t i = 0; i < config.blocks; ++i) {
    const std::string from = fmt::format("blk.{}.", i), to = fmt::format("model.layers.{}.", i);
    vector(from + "attn_norm.weight", to + "input_layernorm.weight");
    vector(from + "ffn_norm.weight", to + "post_attention_layernorm.weight");
    layer(from + "attn_q", to + "self_attn.q_proj", query, width, true);
    layer(from + "attn_k", to + "self_attn.k_proj", key, width, true);
    layer(from + "attn_v", to + "self_attn.v_proj", key, width, false);
    layer(from + "attn_output", to + "self_attn.o_proj", width, query, false);
    layer(from + "ffn_gate", to + "mlp.gate_proj", config.feed_forward, width, false);
    layer(from + "ffn_up", to + "mlp.up_proj", config.feed_forward, width, false);
    layer(from + "ffn_down", to + "mlp.down_proj", width, config.feed_forward, false);
  }
  const std::string text = header.dump();
  const uint64_t length = text.size();
  nybble::testing::write_text(folder + "/model.safetensors",
                              std::string(reinterpret_cast<const char*>(&length), 8) + text + data);
  nybble::testing::write_text(folder + "/config.json", nlohmann::json{{"model_type", "llama"},
                                                                      {"hidden_act", "silu"},
                                                                      {"num_hidden_layers", config.blocks},
                                                                      {"hidden_size", width},
                                                                      {"intermediate_size", config.feed_forward},
                                                                      {"num_attention_heads", config.heads},
                                                                      {"num_key_value_heads", config.kv_heads},
                                                                      {"head_dim", config.head_dim},
                                                                      {"max_position_embeddings", config.context},
                                                                      {"rms_norm_eps", config.rms_epsilon},
                                                                      {"rope_theta", config.rope_base},
                                                                      {"eos_token_id", 2}}
                                                           .dump());
  nlohmann::json vocabulary = nlohmann::json::object(), added = nlohmann::json::array(),
                 merges = nlohmann::json::array();
  for (size_t i = 0; i < tokens.size(); ++i) {
    vocabulary[tokens[i]] = i;
    if (i < 3) added.push_back({{"id", i}, {"content", tokens[i]}, {"special", true}});
  }
  const auto stored_merges = *metadata->texts("tokenizer.ggml.merges");
  for (const std::string& merge : stored_merges) {
    const size_t space = merge.find(' ', 1);
    if (merges.size() % 2 == 0)  // both spellings that the tokenizers library has had
      merges.push_back(merge);
    else
      merges.push_back({merge.substr(0, space), merge.substr(space + 1)});
  }
  const nlohmann::json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  nybble::testing::write_text(
      folder + "/tokenizer.json",
      nlohmann::json{
          {"normalizer", nullptr},
          {"post_processor", nullptr},
          {"added_tokens", added},
          {"pre_tokenizer",
           {{"type", "Sequence"}, {"pretokenizers", {{{"type", "Digits"}, {"individual_digits", true}}, byte_level}}}},
          {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", merges}}}}
          .dump());
}

}  // namespace llama
