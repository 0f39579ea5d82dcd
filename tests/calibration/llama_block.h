// A small model for tests of AWQ over a whole model, and its statistics.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/model_building.h"
#include "nybble/statistics.h"
#include "support/random.h"
#include "support/temp_folder.h"

namespace nybble::testing {

inline constexpr int64_t kHidden = 32, kInner = 48;
inline constexpr char kBlock[] = "model.layers.0.";

// A model of one decoder block as Llama has it; grouped queries halve k's and v's features.
struct LlamaModel {
  std::map<std::string, std::pair<std::vector<int64_t>, std::vector<float>>> tensors;

  void add(const std::string& name, std::vector<int64_t> shape, double mean = 0) {
    const RandomStream random(tensors.size() + 1, 3);
    std::vector<float> values(shape[0] * (shape.size() > 1 ? shape[1] : 1));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(mean + 0.1 * random.normal(i));
    tensors[name] = {std::move(shape), std::move(values)};
  }
  static LlamaModel of_one_block(bool grouped_queries = false) {
    LlamaModel model;
    const std::string block = kBlock;
    const int64_t kv = grouped_queries ? kHidden / 2 : kHidden;
    model.add("model.embed_tokens.weight", {64, kHidden});
    model.add(block + "input_layernorm.weight", {kHidden}, 1);
    model.add(block + "post_attention_layernorm.weight", {kHidden}, 1);
    model.add(block + "self_attn.q_proj.weight", {kHidden, kHidden});
    model.add(block + "self_attn.k_proj.weight", {kv, kHidden});
    model.add(block + "self_attn.v_proj.weight", {kv, kHidden});
    model.add(block + "self_attn.v_proj.bias", {kv});
    model.add(block + "self_attn.o_proj.weight", {kHidden, kHidden});
    model.add(block + "mlp.gate_proj.weight", {kInner, kHidden});
    model.add(block + "mlp.up_proj.weight", {kInner, kHidden});
    model.add(block + "mlp.down_proj.weight", {kHidden, kInner});
    return model;
  }
  void write(const TempFolder& folder, const std::string& type = "llama") const {
    std::vector<TestTensor> written;
    for (const auto& [name, tensor] : tensors) written.push_back({name, "F32", tensor.first, f32(tensor.second)});
    write_text(folder / "model/model.safetensors", safetensors(written));
    write_text(folder / "model/config.json", "{\"model_type\": \"" + type + "\"}\n");
  }
};

// Of the model's inputs, some of which are nine times as large as others.
inline StatisticsFile write_statistics(const TempFolder& folder) {
  StatisticsCollector collector;
  const std::string block = kBlock;
  const auto add = [&](const std::string& layer, int64_t k) {
    EXPECT_TRUE(collector.declare(block + layer, k, StatisticsKind::kHessian));
    const RandomStream random(k, 9 + layer.size());
    std::vector<float> act(200 * k);
    for (size_t i = 0; i < act.size(); ++i) act[i] = static_cast<float>(random.normal(i) * (i % k % 5 == 0 ? 9 : 1));
    EXPECT_TRUE(collector.add(block + layer, act, 0));
  };
  add("self_attn.q_proj", kHidden);
  EXPECT_TRUE(collector.share(block + "self_attn.k_proj", block + "self_attn.q_proj"));
  EXPECT_TRUE(collector.share(block + "self_attn.v_proj", block + "self_attn.q_proj"));
  add("self_attn.o_proj", kHidden);
  add("mlp.gate_proj", kHidden);
  EXPECT_TRUE(collector.share(block + "mlp.up_proj", block + "mlp.gate_proj"));
  add("mlp.down_proj", kInner);
  EXPECT_TRUE(collector.write(folder / "stats.safetensors"));
  return *StatisticsFile::open(folder / "stats.safetensors");
}

}  // namespace nybble::testing
