// AWQ over a model: the scales cancel in what the model computes, the written model has them in the right tensors, and
// blocks that are built differently are left alone.
#include "nybble/scale_folds.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "calibration/llama_block.h"

namespace nybble {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using namespace testing;

constexpr GridOptions kGrid{.group_size = 16, .scale_dtype = DType::kFp32};

DenseWeight dense(const LlamaModel& model, const std::string& layer) {
  const auto& [shape, values] = model.tensors.at(layer + ".weight");
  DenseWeight weight{.name = layer, .n = shape[0], .k = shape[1]};
  weight.values = FloatArray::from_floats(DType::kFp32, values);
  return weight;
}

std::vector<std::string> folded_from(const ScaleFolds& folds) {
  std::vector<std::string> names;
  for (const ScaleFold& fold : folds.folds()) names.push_back(fold.from);
  return names;
}

// What a model's tensors become: those of layers by apply(), those that are copied by edits().
std::vector<float> changed(const ScaleFolds& folds, const LlamaModel& model, const std::string& tensor) {
  const std::string layer = tensor.substr(0, tensor.rfind('.'));
  const auto& [shape, values] = model.tensors.at(tensor);
  FloatArray array = FloatArray::from_floats(DType::kFp32, values);
  if (shape.size() == 2) {
    array = folds.apply(dense(model, layer), 0)->values;
  } else {
    const TensorEdits edits = folds.edits();
    if (std::find(edits.names.begin(), edits.names.end(), tensor) != edits.names.end()) {
      EXPECT_TRUE(edits.apply(tensor, array));
    }
  }
  std::vector<float> result;
  for (size_t i = 0; i < array.size(); ++i) result.push_back(array.at(i));
  return result;
}

TEST(ScaleFolds, CancelInWhatTheModelComputes) {
  const TempFolder folder;
  const LlamaModel model = LlamaModel::of_one_block();
  model.write(folder);
  const StatisticsFile statistics = write_statistics(folder);
  const Result<ScaleFolds> folds = ScaleFolds::search(folder / "model", {}, statistics, kGrid, {}, {});
  ASSERT_TRUE(folds) << folds.error().message;
  const std::string block = kBlock;
  EXPECT_THAT(folded_from(*folds), ElementsAre(block + "input_layernorm", block + "self_attn.v_proj",
                                               block + "post_attention_layernorm", block + "mlp.up_proj"));
  EXPECT_THAT(folds->warnings(), IsEmpty());
  const auto now = [&](const char* tensor) { return changed(*folds, model, block + tensor); };
  const auto before = [&](const char* tensor) { return model.tensors.at(block + tensor).second; };
  // norm[j] * weight[., j] stays, though the weight does not.
  const auto expect_product = [&](const char* norm, const char* weight) {
    const std::vector<float> a = now(norm), b = now(weight), a0 = before(norm), b0 = before(weight);
    double moved = 0;
    for (size_t i = 0; i < b.size(); ++i) {
      const size_t j = i % a.size();
      ASSERT_NEAR(double{a[j]} * b[i] / (double{a0[j]} * b0[i]), 1, 1e-5) << weight << " " << i;
      moved = std::max(moved, std::abs(double{b[i]} / b0[i] - 1));
    }
    EXPECT_GT(moved, 0.1) << weight;
  };
  expect_product("input_layernorm.weight", "self_attn.q_proj.weight");
  expect_product("input_layernorm.weight", "self_attn.k_proj.weight");
  expect_product("post_attention_layernorm.weight", "mlp.gate_proj.weight");
  // v's and up's rows are divided as well: the product over three stays.
  struct Chain {
    const char *norm, *first, *second;
    int64_t features;
  };
  for (const Chain& chain :
       {Chain{"input_layernorm.weight", "self_attn.v_proj.weight", "self_attn.o_proj.weight", kHidden},
        Chain{"post_attention_layernorm.weight", "mlp.up_proj.weight", "mlp.down_proj.weight", kInner}}) {
    const auto norm = now(chain.norm), first = now(chain.first), second = now(chain.second);
    const auto norm0 = before(chain.norm), first0 = before(chain.first), second0 = before(chain.second);
    for (int64_t out = 0; out < kHidden; ++out)
      for (int64_t j = 0; j < chain.features; ++j)
        for (int64_t i = 0; i < kHidden; ++i)
          ASSERT_NEAR(double{second[out * chain.features + j]} * first[j * kHidden + i] * norm[i] /
                          (double{second0[out * chain.features + j]} * first0[j * kHidden + i] * norm0[i]),
                      1, 1e-5);
  }
  const std::vector<float> bias = now("self_attn.v_proj.bias"), bias0 = before("self_attn.v_proj.bias");
  const std::vector<float> o = now("self_attn.o_proj.weight"), o0 = before("self_attn.o_proj.weight");
  for (int64_t j = 0; j < kHidden; ++j) EXPECT_NEAR(double{bias[j]} * o[j] / (double{bias0[j]} * o0[j]), 1, 1e-5);
  EXPECT_EQ(changed(*folds, model, "model.embed_tokens.weight"), model.tensors.at("model.embed_tokens.weight").second);

  const std::string q = block + "self_attn.q_proj";
  const LayerStatistics input = *statistics.read(q), scaled = *folds->apply(input);
  const std::vector<float>& scales = folds->folds()[0].found.scales;
  for (int64_t i = 0; i < kHidden; ++i)
    EXPECT_FLOAT_EQ(scaled.mean_square[i], input.mean_square[i] / (scales[i] * scales[i]));
}

TEST(ScaleFolds, TheWrittenModelHasThem) {
  const TempFolder folder;
  const LlamaModel model = LlamaModel::of_one_block();
  model.write(folder);
  const std::string block = kBlock, out = folder / "out";
  const QuantizeModelOptions choice{.exclude = {"gate_proj", "up_proj", "k_proj"}};
  const StatisticsFile statistics = write_statistics(folder);
  const ScaleFolds folds = *ScaleFolds::search(folder / "model", choice, statistics, kGrid, {}, {});
  EXPECT_THAT(folded_from(folds),
              ElementsAre(block + "input_layernorm", block + "self_attn.v_proj", block + "mlp.up_proj"));
  CompressedTensorsScheme scheme{.group_size = 16, .recipe = "awq", .edits = folds.edits()};
  const LayerQuantizer quantizer = [&](const DenseWeight& weight) -> Result<QuantizedWeight> {
    return quantize_range(*folds.apply(weight, 0), kGrid, {.rule = RangeRule::kFull});
  };
  const Result<WrittenModel> written = write_compressed_tensors(folder / "model", out, scheme, quantizer, choice, {});
  ASSERT_TRUE(written) << written.error().message;
  const Result<std::unique_ptr<Checkpoint>> opened = open_checkpoint(out);
  ASSERT_TRUE(opened) << opened.error().message;
  const Checkpoint* read = opened->get();
  const auto floats = [&](const std::string& name) {
    const std::vector<std::byte> bytes = *read->read_other_tensor(name);
    std::vector<float> values(bytes.size() / 4);
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  };
  for (const char* tensor : {"input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.v_proj.bias"})
    EXPECT_EQ(floats(block + tensor), changed(folds, model, block + tensor)) << tensor;
  EXPECT_EQ(floats(block + "post_attention_layernorm.weight"),
            model.tensors.at(block + "post_attention_layernorm.weight").second);
  EXPECT_EQ(floats("model.embed_tokens.weight"), model.tensors.at("model.embed_tokens.weight").second);
  // What is copied beside them: k, whose columns take q's and v's scales, and up, whose rows are divided by down's.
  for (const char* layer : {"self_attn.k_proj", "mlp.up_proj"}) {
    const DenseWeight was = dense(model, block + layer);
    EXPECT_EQ(read->read_dense(block + layer)->values, folds.apply(was, 0)->values) << layer;
    EXPECT_NE(read->read_dense(block + layer)->values, was.values) << layer;
  }
  EXPECT_EQ(read->read_dense(block + "mlp.gate_proj")->values, dense(model, block + "mlp.gate_proj").values);
  for (const char* layer : {"self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"})
    EXPECT_EQ(read->read_quantized(block + layer)->codes, (*quantizer(dense(model, block + layer))).codes) << layer;
}

TEST(ScaleFolds, GroupedQueriesLeaveOutTheirPlace) {
  const TempFolder folder;
  LlamaModel::of_one_block(true).write(folder);
  const ScaleFolds folds = *ScaleFolds::search(folder / "model", {}, write_statistics(folder), kGrid, {}, {});
  EXPECT_EQ(folds.folds().size(), 3u);
  EXPECT_THAT(folds.warnings(), ElementsAre(HasSubstr("grouped queries")));
}

TEST(ScaleFolds, BlocksBuiltDifferentlyAreLeftAlone) {
  const TempFolder folder;
  const auto warnings = [&](const LlamaModel& model) {
    model.write(folder);
    const ScaleFolds folds =
        *ScaleFolds::search(folder / "model", {.include = {"proj"}}, write_statistics(folder), kGrid, {}, {});
    EXPECT_THAT(folds.folds(), IsEmpty());
    return folds.warnings();
  };
  const std::string block = kBlock;
  for (const char* norm : {"pre_feedforward_layernorm.weight", "self_attn.attn_sub_norm.weight"}) {
    LlamaModel model = LlamaModel::of_one_block();
    model.add(block + norm, {kHidden}, 1);
    EXPECT_THAT(warnings(model), ElementsAre(HasSubstr(norm)));
  }
  LlamaModel model = LlamaModel::of_one_block();
  model.add(block + "mlp.router.weight", {4, kHidden});
  EXPECT_THAT(warnings(model), ElementsAre(HasSubstr("router")));
  for (const char* missing : {"post_attention_layernorm.weight", "mlp.gate_proj.weight"}) {
    model = LlamaModel::of_one_block();
    model.tensors.erase(block + missing);
    EXPECT_THAT(warnings(model), ElementsAre(HasSubstr(missing)));
  }
  // Norms of queries and keys are in nobody's way.
  model = LlamaModel::of_one_block();
  model.add(block + "self_attn.q_norm.weight", {8}, 1);
  model.write(folder, "qwen3");
  EXPECT_EQ(ScaleFolds::search(folder / "model", {}, write_statistics(folder), kGrid, {}, {})->folds().size(), 4u);
  model.write(folder, "gemma2");
  EXPECT_THAT(ScaleFolds::search(folder / "model", {}, write_statistics(folder), kGrid, {}, {}).error().message,
              HasSubstr("'gemma2'"));
}

TEST(ScaleFolds, WithoutAGpu) {
  if (Device::cuda()) GTEST_SKIP() << "this machine has a GPU; tests/gpu_quantize holds its results against the CPU's";
  const TempFolder folder;
  LlamaModel::of_one_block().write(folder);
  const Result<ScaleFolds> folds =
      ScaleFolds::search(folder / "model", {}, write_statistics(folder), kGrid, {}, {}, DeviceKind::kCuda);
  ASSERT_FALSE(folds);
  EXPECT_EQ(folds.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(folds.error().message, HasSubstr("self_attn.q_proj' on the GPU"));
}

TEST(ScaleFolds, MissingStatisticsLeaveOutTheirPlace) {
  const TempFolder folder;
  LlamaModel::of_one_block().write(folder);
  StatisticsCollector collector;
  ASSERT_TRUE(collector.declare("another", 4, StatisticsKind::kMeanSquare));
  ASSERT_TRUE(collector.add("another", std::vector<float>(4, 1), 0));
  ASSERT_TRUE(collector.write(folder / "s"));
  const ScaleFolds folds =
      *ScaleFolds::search(folder / "model", {}, *StatisticsFile::open(folder / "s"), kGrid, {}, {});
  EXPECT_THAT(folds.folds(), IsEmpty());
  EXPECT_EQ(folds.warnings().size(), 4u);
  EXPECT_THAT(folds.warnings(), Contains(HasSubstr("lacks a layer")));
  EXPECT_THAT(folds.edits().names, IsEmpty());
}

}  // namespace
}  // namespace nybble
