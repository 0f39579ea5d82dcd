#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "base/file.h"
#include "checkpoint/model_building.h"
#include "nybble/checkpoint.h"
#include "nybble/convert.h"
#include "support/failing_calls.h"
#include "support/temp_folder.h"

namespace nybble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using namespace nybble::testing;
using Names = std::set<std::string>;

const CompressedTensorsScheme kGroup16 = {.group_size = 16, .symmetric = true, .recipe = "absmax"};
const CompressedTensorsScheme kGroup16Zeros = {.group_size = 16, .symmetric = false, .recipe = "absmax"};

// A plain quantizer: enough to make every code, and scales of the dense type (bf16 for fp32).
LayerQuantizer quantizer_for(CompressedTensorsScheme scheme) {
  return [scheme](const DenseWeight& dense) -> Result<QuantizedWeight> {
    QuantizedWeight weight;
    weight.name = dense.name;
    weight.n = dense.n;
    weight.k = dense.k;
    weight.group_size = scheme.group_size;
    weight.zero_kind = scheme.symmetric ? ZeroKind::kNone : ZeroKind::kInt;
    const int64_t groups = weight.groups(), size = scheme.group_size == kPerColumn ? dense.k : scheme.group_size;
    std::vector<float> scales;
    for (int64_t n = 0; n < dense.n; ++n)
      for (int64_t group = 0; group < groups; ++group) {
        float largest = 0;
        for (int64_t k = group * size; k < (group + 1) * size; ++k)
          largest = std::max(largest, std::abs(dense.values.at(static_cast<size_t>(n * dense.k + k))));
        scales.push_back(std::max(largest, 0x1p-10f) / 8);
        if (!scheme.symmetric) weight.int_zeros.push_back(static_cast<uint8_t>((n + group) % 16));
      }
    weight.scales =
        FloatArray::from_floats(dense.values.dtype == DType::kFp32 ? DType::kBf16 : dense.values.dtype, scales);
    for (int64_t n = 0; n < dense.n; ++n)
      for (int64_t k = 0; k < dense.k; ++k) {
        const float scale = weight.scales.at(static_cast<size_t>(n * groups + k / size));
        const float code = std::round(dense.values.at(static_cast<size_t>(n * dense.k + k)) / scale) + 8;
        weight.codes.push_back(static_cast<uint8_t>(std::clamp(code, 0.0f, 15.0f)));
      }
    return weight;
  };
}

Result<WrittenModel> write(const std::string& in, const std::string& out,
                           const CompressedTensorsScheme& scheme = kGroup16, const QuantizeModelOptions& options = {}) {
  return write_compressed_tensors(in, out, scheme, quantizer_for(scheme), options, {});
}

// 2 x 16 in fp32: with a scale of 1 the codes are 0 .. 15 and 15 .. 0.
TestTensor counting(const std::string& name) {
  std::vector<float> values;
  for (int i = 0; i < 16; ++i) values.push_back(static_cast<float>(i - 8));
  for (int i = 0; i < 16; ++i) values.push_back(static_cast<float>(7 - i) * 0.5f);
  return {name, "F32", {2, 16}, f32(values)};
}

TestTensor random_floats(const std::string& name, int64_t n, int64_t k, const std::string& dtype = "F32") {
  std::mt19937 random(static_cast<unsigned>(n * 31 + k) + static_cast<unsigned>(name.size()));
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(n * k));
  for (float& value : values) value = normal(random);
  if (dtype == "F32") return {name, dtype, {n, k}, f32(values)};
  const FloatArray rounded = FloatArray::from_floats(*parse_dtype(dtype == "BF16" ? "bf16" : "fp16"), values);
  return {name, dtype, {n, k}, std::string(reinterpret_cast<const char*>(rounded.bytes.data()), rounded.bytes.size())};
}

constexpr char kConfig[] =
    "{\n  \"model_type\": \"llama\",\n  \"architectures\": [\"LlamaForCausalLM\"],\n  \"eps\": 1e-05\n}\n";

void write_small_model(const TempFolder& in) {
  write_text(in / "model.safetensors", safetensors({counting("layer.weight"),
                                                    {"layer.bias", "F32", {2}, f32({0.5f, -0.5f})},
                                                    {"embed_tokens.weight", "BF16", {1, 2}, u16({0x3F80, 0x4000})},
                                                    {"flags", "BOOL", {3}, std::string("\1\0\1", 3)}},
                                                   R"({"format":"pt","author":"someone"})"));
  write_text(in / "config.json", kConfig);
}

// Two shards of several layers and types.
void write_sharded_model(const std::string& in) {
  const TestTensor first[] = {random_floats("a.0.weight", 24, 64),
                              random_floats("a.1.weight", 17, 32, "BF16"),
                              random_floats("embed.weight", 8, 16, "BF16"),
                              {"norm.weight", "F32", {4}, f32({1, 2, 3, 4})}};
  const TestTensor second[] = {random_floats("b.0.weight", 64, 48, "F16"),
                               {"b.0.bias", "F16", {64}, std::string(128, '\x11')},
                               random_floats("b.1.weight", 5, 96),
                               {"steps", "I64", {1}, i64({7})}};
  write_text(in + "/model-1.safetensors", safetensors({std::begin(first), std::end(first)}, R"({"format":"pt"})"));
  write_text(in + "/model-2.safetensors", safetensors({std::begin(second), std::end(second)}, R"({"format":"pt"})"));
  nlohmann::json map;
  size_t total = 0;
  for (const TestTensor& tensor : first) map[tensor.name] = "model-1.safetensors", total += tensor.bytes.size();
  for (const TestTensor& tensor : second) map[tensor.name] = "model-2.safetensors", total += tensor.bytes.size();
  write_text(in + "/model.safetensors.index.json",
             nlohmann::json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump());
  write_text(in + "/config.json", kConfig);
  write_text(in + "/tokenizer.json", "{\"tokens\": []}");
}

// Stands in a folder until its model is whole.
constexpr char kUnfinished[] = ".nybble-unfinished";

std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const std::string& name : files_in(folder)) files[name] = read_text(folder + '/' + name);
  return files;
}

// The output's data by name, read with the tests' own eyes.
std::map<std::string, std::string> tensors_of(const std::string& file, nlohmann::json* header_out = nullptr) {
  const std::string bytes = read_text(file);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  const nlohmann::json header = nlohmann::json::parse(bytes.substr(8, length));
  std::map<std::string, std::string> tensors;
  for (const auto& [name, entry] : header.items())
    if (name != "__metadata__") {
      const size_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
      tensors[name] = bytes.substr(8 + length + begin, end - begin);
    }
  if (header_out != nullptr) *header_out = header;
  return tensors;
}

TEST(WriteCompressedTensors, WritesTheseWords) {
  const TempFolder in, folder;
  const std::string out = folder / "out";
  write_small_model(in);
  const Result<WrittenModel> written = write(in.path(), out);
  ASSERT_TRUE(written) << written.error().message;
  EXPECT_THAT(written->quantized, ElementsAre("layer"));
  EXPECT_THAT(written->ignored, ElementsAre("embed_tokens", "lm_head"));  // the head shares the embedding's weight
  EXPECT_THAT(written->left_out, IsEmpty());
  EXPECT_EQ(written->bytes_in, std::filesystem::file_size(in / "model.safetensors"));
  EXPECT_EQ(written->bytes_out, std::filesystem::file_size(out + "/model.safetensors"));
  EXPECT_EQ(files_in(out), (Names{"config.json", "model.safetensors"}));

  nlohmann::json header;
  const auto tensors = tensors_of(out + "/model.safetensors", &header);
  const std::map<std::string, std::string> expected = {
      {"layer.weight_packed", i32({0x76543210, 0xFEDCBA98, 0x89ABCDEF, 0x01234567})},
      {"layer.weight_scale", u16({0x3F80, 0x3F00})},  // 1 and 0.5
      {"layer.weight_shape", i64({2, 16})},
      {"layer.bias", f32({0.5f, -0.5f})},
      {"embed_tokens.weight", u16({0x3F80, 0x4000})},
      {"flags", std::string("\1\0\1", 3)}};
  EXPECT_EQ(tensors, expected);
  EXPECT_EQ(header["layer.weight_packed"]["dtype"], "I32");
  EXPECT_EQ(header["layer.weight_packed"]["shape"], (nlohmann::json{2, 2}));
  EXPECT_EQ(header["layer.weight_scale"]["dtype"], "BF16");
  EXPECT_EQ(header["layer.weight_scale"]["shape"], (nlohmann::json{2, 1}));
  EXPECT_EQ(header["layer.weight_shape"]["dtype"], "I64");
  EXPECT_EQ(header["__metadata__"]["format"], "pt");
  EXPECT_EQ(header["__metadata__"]["author"], "someone");
}

TEST(WriteCompressedTensors, WritesTheConfigurationThatLoadersExpect) {
  const TempFolder in, folder;
  const std::string out = folder / "out";
  write_small_model(in);
  ASSERT_TRUE(write(in.path(), out));
  EXPECT_EQ(read_text(out + "/config.json"), R"({
  "model_type": "llama",
  "architectures": ["LlamaForCausalLM"],
  "eps": 1e-05,
  "quantization_config": {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "config_groups": {
      "group_0": {
        "targets": [
          "Linear"
        ],
        "weights": {
          "num_bits": 4,
          "type": "int",
          "symmetric": true,
          "strategy": "group",
          "group_size": 16,
          "dynamic": false,
          "actorder": null
        },
        "input_activations": null,
        "output_activations": null
      }
    },
    "ignore": [
      "embed_tokens",
      "lm_head"
    ],
    "kv_cache_scheme": null,
    "global_compression_ratio": null
  }
}
)");
}

TEST(WriteCompressedTensors, KeepsWhateverConfigurationThereIs) {
  for (const auto& [before, model_type] : {std::pair("{}", ""),
                                           {"  { }\n", ""},
                                           {R"({"model_type":"bert"})", "bert"},
                                           {R"({"quantization_config": null, "model_type": "bert"})", "bert"}}) {
    const TempFolder in, folder;
    write_small_model(in);
    write_text(in / "config.json", before);
    ASSERT_TRUE(write(in.path(), folder / "out"));
    const nlohmann::json config = nlohmann::json::parse(read_text(folder / "out/config.json"));
    EXPECT_EQ(config["quantization_config"]["quant_method"], "compressed-tensors");
    EXPECT_EQ(config.value("model_type", ""), model_type);
    const auto checkpoint = open_checkpoint(folder / "out");
    EXPECT_TRUE(checkpoint) << checkpoint.error().message;
  }
}

TEST(WriteCompressedTensors, WritesChannelsAndZeroPoints) {
  const TempFolder in, folder;
  const std::string out = folder / "out";
  write_text(in / "model.safetensors", safetensors({random_floats("l.weight", 9, 12)}));
  const CompressedTensorsScheme scheme = {.group_size = kPerColumn, .symmetric = false};
  const Result<WrittenModel> written = write(in.path(), out, scheme);
  ASSERT_TRUE(written) << written.error().message;
  nlohmann::json header;
  const auto tensors = tensors_of(out + "/model.safetensors", &header);
  EXPECT_EQ(tensors.at("l.weight_zero_point"), i32({0x76543210, 0x00000008}));
  EXPECT_EQ(header["l.weight_zero_point"]["shape"], (nlohmann::json{2, 1}));
  EXPECT_EQ(header["l.weight_packed"]["shape"], (nlohmann::json{9, 2}));
  EXPECT_EQ(header["l.weight_scale"]["shape"], (nlohmann::json{9, 1}));
  EXPECT_EQ(header["__metadata__"]["format"], "pt");
  const nlohmann::json config = nlohmann::json::parse(read_text(out + "/config.json"));  // there was none to begin with
  const nlohmann::json& weights = config["quantization_config"]["config_groups"]["group_0"]["weights"];
  EXPECT_EQ(weights["strategy"], "channel");
  EXPECT_TRUE(weights["group_size"].is_null());
  EXPECT_EQ(weights["symmetric"], false);
}

TEST(WriteCompressedTensors, ReadsBackBitForBit) {
  for (const auto& [scheme, max_k] :
       {std::pair(kGroup16, 0), {kGroup16Zeros, 0}, {CompressedTensorsScheme{.group_size = kPerColumn}, 0}}) {
    const TempFolder in, folder;
    const std::string out = folder / "out";
    write_sharded_model(in.path());
    std::map<std::string, QuantizedWeight> made;
    const LayerQuantizer plain = quantizer_for(scheme);
    int64_t last = 0, total = 0;
    const Result<WrittenModel> written = write_compressed_tensors(
        in.path(), out, scheme,
        [&](const DenseWeight& dense) {
          Result<QuantizedWeight> weight = plain(dense);
          made[dense.name] = *weight;
          made[dense.name].bias = dense.bias;
          return weight;
        },
        {},
        [&](int64_t done, int64_t all) {
          EXPECT_GT(done, last);
          last = done;
          total = all;
        });
    ASSERT_TRUE(written) << written.error().message;
    EXPECT_EQ(last, total);
    EXPECT_THAT(written->quantized, ElementsAre("a.0", "a.1", "b.0", "b.1"));

    const auto checkpoint = open_checkpoint(out);
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    EXPECT_TRUE((*checkpoint)->check({}));
    ASSERT_EQ((*checkpoint)->layers().size(), 5u);
    for (const LayerInfo& info : (*checkpoint)->layers()) {
      if (info.name == "embed") {
        EXPECT_FALSE(info.quantized);
        continue;
      }
      const auto weight = (*checkpoint)->read_quantized(info.name);
      ASSERT_TRUE(weight) << weight.error().message;
      EXPECT_EQ(*weight, made.at(info.name)) << info.name;
      EXPECT_EQ(info.format, weight->format());
    }
    EXPECT_EQ((*checkpoint)->layers()[0].file, "model-1.safetensors");
    // What was not quantized is the same, byte for byte.
    for (const char* shard : {"/model-1.safetensors", "/model-2.safetensors"}) {
      const auto before = tensors_of(in.path() + shard), after = tensors_of(out + shard);
      for (const auto& [name, bytes] : before)
        if (!name.ends_with(".weight") || name.starts_with("embed") || name.starts_with("norm")) {
          EXPECT_EQ(after.at(name), bytes);
        }
    }
    EXPECT_EQ(read_text(out + "/tokenizer.json"), read_text(in / "tokenizer.json"));
  }
}

TEST(WriteCompressedTensors, AlignsEveryTensor) {
  const TempFolder in, folder;
  const std::string out = folder / "out";
  write_text(in / "model.safetensors", safetensors({{"byte", "U8", {3}, "abc"},
                                                    random_floats("a.weight", 3, 16),
                                                    random_floats("b.weight", 5, 16, "F16"),
                                                    {"half", "F16", {1}, u16({1})},
                                                    {"word", "I32", {1}, i32({1})},
                                                    {"nibbles", "F4", {2}, "x"},
                                                    {"long", "F64", {1}, std::string(8, 'd')}}));
  LayerQuantizer plain = quantizer_for(kGroup16Zeros);
  const Result<WrittenModel> written = write_compressed_tensors(
      in.path(), out, kGroup16Zeros,
      [&](const DenseWeight& dense) {  // one layer with 2-byte scales and a later one with 4-byte ones
        Result<QuantizedWeight> weight = plain(dense);
        if (dense.name == "b") weight->scales = FloatArray::from_floats(DType::kFp32, std::vector<float>(5, 0.25f));
        return weight;
      },
      {}, {});
  ASSERT_TRUE(written) << written.error().message;
  nlohmann::json header;
  tensors_of(out + "/model.safetensors", &header);
  const std::map<std::string, int> sizes = {{"F64", 8}, {"I64", 8},  {"I32", 4}, {"F32", 4},
                                            {"F16", 2}, {"BF16", 2}, {"U8", 1},  {"F4", 1}};
  for (const auto& [name, entry] : header.items())
    if (name != "__metadata__") {
      EXPECT_EQ(entry["data_offsets"][0].get<int>() % sizes.at(entry["dtype"]), 0) << name;
    }
  uint64_t length = 0;
  std::memcpy(&length, read_text(out + "/model.safetensors").data(), 8);
  EXPECT_EQ(length % 8, 0u);
  const auto checkpoint = open_checkpoint(out);
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ((*checkpoint)->read_quantized("b")->scales.dtype, DType::kFp32);
}

TEST(WriteCompressedTensors, ChoosesByNameAndExpression) {
  EXPECT_TRUE(is_default_quantized("model.layers.0.mlp.up_proj.weight", 2));
  EXPECT_FALSE(is_default_quantized("model.layers.0.mlp.up_proj.weight", 3));
  EXPECT_FALSE(is_default_quantized("model.layers.0.mlp.up_proj.bias", 2));
  for (const char* name : {"model.embed_tokens.weight", "bert.embeddings.word_embeddings.weight", "lm_head.weight",
                           "encoder.LayerNorm.weight", "model.norm.weight"})
    EXPECT_FALSE(is_default_quantized(name, 2)) << name;

  const TempFolder in;
  write_sharded_model(in.path());
  const auto chosen = [&](const QuantizeModelOptions& options) {
    const TempFolder folder;
    const Result<WrittenModel> written = write(in.path(), folder / "out", kGroup16, options);
    EXPECT_TRUE(written) << written.error().message;
    return written->quantized;
  };
  EXPECT_THAT(chosen({.include = {"^a\\."}}), ElementsAre("a.0", "a.1"));
  EXPECT_THAT(chosen({.exclude = {"^a\\.", "1$"}}), ElementsAre("b.0"));
  EXPECT_THAT(chosen({.include = {"embed", "a"}, .exclude = {"0"}}), ElementsAre("a.1", "embed"));
  EXPECT_THAT(chosen({.include = {"embed"}}), ElementsAre("embed"));
  const TempFolder folder;
  const auto refused = [&](const QuantizeModelOptions& options) {
    const Result<WrittenModel> written = write(in.path(), folder / "out", kGroup16, options);
    EXPECT_FALSE(written);
    return written ? "" : written.error().message;
  };
  EXPECT_THAT(refused({.include = {"nothing"}}), HasSubstr("none of its 5 2-D float weights is chosen"));
  EXPECT_THAT(refused({.include = {"("}}), HasSubstr("'(' is no regular expression"));
  EXPECT_THAT(refused({.exclude = {"[z-a]"}}), HasSubstr("is no regular expression"));
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
}

TEST(WriteCompressedTensors, RefusesBeforeItWrites) {
  const TempFolder in, folder;
  const std::string out = folder / "out";
  write_sharded_model(in.path());
  const auto refused = [&](ErrorCode code, const std::string& from, const CompressedTensorsScheme& scheme = kGroup16) {
    const Result<WrittenModel> written = write(from, out, scheme);
    EXPECT_FALSE(written);
    EXPECT_EQ(written.error().code, code) << written.error().message;
    EXPECT_FALSE(std::filesystem::exists(out));
    return written.error().message;
  };
  EXPECT_EQ(refused(ErrorCode::kUnsupported, in.path(), {.group_size = 64}),
            "compressed-tensors has no partial groups, and groups of 64 do not divide the input features of 3 of 4 "
            "layers. Group "
            "sizes that fit; 'a.1' has k = 32: 16, 32 or per column; 'b.0' has k = 48: 16, 48 or per column; 'b.1' has "
            "k = 96: 16, "
            "32, 48, 96 or per column. Take one that fits all, or exclude these layers");
  EXPECT_THAT(refused(ErrorCode::kInvalidArgument, in.path(), {.group_size = -1}), HasSubstr("positive number"));
  EXPECT_THAT(refused(ErrorCode::kInvalidArgument, in / "model-1.safetensors"), HasSubstr("give the model's folder"));
  EXPECT_EQ(write_compressed_tensors(in.path(), out, kGroup16, {}, {}, {}).error().code, ErrorCode::kInvalidArgument);

  const TempFolder quantized;
  ASSERT_TRUE(write(in.path(), quantized / "q"));
  EXPECT_THAT(refused(ErrorCode::kInvalidArgument, quantized / "q"),
              HasSubstr("is already quantized (compressed-tensors)"));

  const TempFolder taken;
  write_text(taken / "model.safetensors", safetensors({counting("l.weight"), {"l.weight_shape", "U8", {1}, "x"}}));
  EXPECT_THAT(refused(ErrorCode::kUnsupported, taken.path()), HasSubstr("that the quantized form of layer 'l' needs"));
  const TempFolder transposed;
  write_text(transposed / "model.safetensors", safetensors({random_floats("c_attn.weight", 16, 48),
                                                            {"c_attn.bias", "F32", {48}, std::string(192, '\0')}}));
  EXPECT_THAT(refused(ErrorCode::kUnsupported, transposed.path()), HasSubstr("stores its weights transposed (Conv1D)"));
}

TEST(WriteCompressedTensors, RefusesAnswersThatTheFormatHasNoRoomFor) {
  const TempFolder in;
  write_small_model(in);
  const auto refused = [&](const CompressedTensorsScheme& scheme, const std::function<void(QuantizedWeight&)>& change) {
    const TempFolder folder;
    const LayerQuantizer plain = quantizer_for(scheme);
    const Result<WrittenModel> written = write_compressed_tensors(in.path(), folder / "out", scheme,
                                                                  [&](const DenseWeight& dense) {
                                                                    Result<QuantizedWeight> weight = plain(dense);
                                                                    change(*weight);
                                                                    return weight;
                                                                  },
                                                                  {}, {});
    EXPECT_FALSE(written);
    EXPECT_EQ(files_in(folder / "out"), Names{kUnfinished});
    return written ? "" : written.error().message;
  };
  EXPECT_THAT(refused(kGroup16, [](QuantizedWeight& w) { w.n = 1; }),
              HasSubstr("returned 1 x 16, but the layer is 2 x 16"));
  EXPECT_THAT(refused(kGroup16, [](QuantizedWeight& w) { w.group_size = 8; }), HasSubstr("returned groups of 8"));
  EXPECT_THAT(refused(kGroup16, [](QuantizedWeight& w) { w.zero_kind = ZeroKind::kInt; }),
              HasSubstr("zero points of kind 'int'"));
  EXPECT_THAT(refused(kGroup16Zeros, [](QuantizedWeight& w) { w.zero_kind = ZeroKind::kFloat; }),
              HasSubstr("kind 'float'"));
  EXPECT_THAT(refused(kGroup16Zeros, [](QuantizedWeight& w) { w.int_zeros[1] = 16; }),
              HasSubstr("the zero point of row 1, group 0 is 16"));
  EXPECT_THAT(refused(kGroup16, [](QuantizedWeight& w) { w.codes[3] = 16; }), HasSubstr("layer"));
  EXPECT_THAT(refused(kGroup16, [](QuantizedWeight& w) { w.codes.pop_back(); }), HasSubstr("layer"));
  EXPECT_THAT(refused(kGroup16, [](QuantizedWeight& w) { w.scales.set_bits(0, 0x7FC0); }), HasSubstr("layer"));
  EXPECT_THAT(refused(kGroup16,
                      [](QuantizedWeight& w) {
                        w.k_order.resize(16);
                        for (int i = 0; i < 16; ++i) w.k_order[i] = 15 - i;
                      }),
              HasSubstr("no longer stores reordered input features"));
}

TEST(WriteCompressedTensors, PassesTheQuantizersErrorOnAndLeavesNoShard) {
  const TempFolder in, folder;
  write_sharded_model(in.path());
  int calls = 0;
  const LayerQuantizer plain = quantizer_for(kGroup16);
  const Result<WrittenModel> written =
      write_compressed_tensors(in.path(), folder / "out", kGroup16,
                               [&](const DenseWeight& dense) -> Result<QuantizedWeight> {
                                 if (++calls == 3) return Error{ErrorCode::kCuda, "the GPU is on fire"};
                                 return plain(dense);
                               },
                               {}, {});
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().message, "the GPU is on fire");
  EXPECT_EQ(files_in(folder / "out"), (Names{kUnfinished, "model-1.safetensors"}));
  // The one file that is there must not be taken for a whole model.
  const auto opened = open_checkpoint(folder / "out");
  ASSERT_FALSE(opened);
  EXPECT_THAT(opened.error().message, HasSubstr("--resume"));
}

TEST(WriteCompressedTensors, CopiesWhatBelongsToTheModel) {
  const TempFolder in, folder;
  const std::string out = folder / "out";
  write_small_model(in);
  write_text(in / "tokenizer.model", std::string(5 << 20, '\x7f'));
  write_text(in / "1_Pooling/config.json", "{}");
  write_text(in / "empty.txt", "");
  write_text(in / "pytorch_model.bin", "old weights");
  write_text(in / "onnx/model.onnx", "old weights");
  write_text(in / ".cache/lock", "");
  write_text(folder / "secret", "secret");
  std::filesystem::create_symlink(folder / "secret", in / "vocab.txt");
  std::filesystem::create_symlink("empty.txt", in / "alias.txt");
  ASSERT_EQ(::mkfifo((in / "pipe").c_str(), 0600), 0);
  const Result<WrittenModel> written = write(in.path(), out);
  ASSERT_TRUE(written) << written.error().message;
  EXPECT_EQ(files_in(out), (Names{"1_Pooling/config.json", "alias.txt", "config.json", "empty.txt", "model.safetensors",
                                  "tokenizer.model"}));
  EXPECT_EQ(read_text(out + "/tokenizer.model"), read_text(in / "tokenizer.model"));
  EXPECT_FALSE(std::filesystem::is_symlink(out + "/alias.txt"));
  EXPECT_THAT(
      written->left_out,
      ElementsAre("'.cache' (hidden)", "'onnx/model.onnx' (other weights, which would no longer be this model's)",
                  "'pipe' (no regular file)",
                  "'pytorch_model.bin' (other weights, which would no longer be this model's)",
                  HasSubstr("'vocab.txt' (")));
}

TEST(WriteCompressedTensors, WritesInsideTheInputFolder) {
  const TempFolder in;
  write_small_model(in);
  write_text(in / "docs/readme.txt", "hello");
  ASSERT_TRUE(write(in.path(), in / "4bit/model"));
  EXPECT_EQ(files_in(in / "4bit/model"), (Names{"config.json", "docs/readme.txt", "model.safetensors"}));
}

TEST(WriteCompressedTensors, RefusesToOverwrite) {
  const TempFolder in, folder;
  const std::string out = folder / "out";
  write_small_model(in);
  const auto before = contents(in.path());
  std::filesystem::create_directory_symlink(in.path(), folder / "alias");
  for (const std::string& same : {in.path(), in.path() + "/.", folder / "alias"})
    for (const bool force : {false, true}) {
      const Result<WrittenModel> written = write(in.path(), same, kGroup16, {.force = force});
      ASSERT_FALSE(written);
      EXPECT_THAT(written.error().message, HasSubstr("is the input folder"));
    }
  EXPECT_EQ(contents(in.path()), before);

  write_text(out + "/notes.txt", "mine");
  EXPECT_THAT(write(in.path(), out).error().message, HasSubstr("is not empty; resume goes on"));
  EXPECT_EQ(files_in(out), Names{"notes.txt"});
  ASSERT_TRUE(write(in.path(), out, kGroup16, {.force = true}));
  EXPECT_EQ(read_text(out + "/notes.txt"), "mine");
  ASSERT_TRUE(write(in.path(), out, kGroup16Zeros, {.force = true}));
  EXPECT_TRUE(tensors_of(out + "/model.safetensors").contains("layer.weight_zero_point"));

  write_text(out + "/other.safetensors", "x");
  for (const QuantizeModelOptions& options :
       {QuantizeModelOptions{.force = true}, QuantizeModelOptions{.resume = true}})
    EXPECT_THAT(write(in.path(), out, kGroup16, options).error().message,
                HasSubstr("other.safetensors: would be left beside"));
  std::filesystem::remove(out + "/other.safetensors");
  std::filesystem::copy_file(in / "model.safetensors", out + "/model.safetensors",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_THAT(write(in.path(), out, kGroup16, {.resume = true}).error().message,
              HasSubstr("was not written by an earlier run"));

  const Result<base::Directory> other = base::Directory::open(out);
  ASSERT_TRUE(*other->try_lock());
  EXPECT_THAT(write(in.path(), out, kGroup16, {.force = true}).error().message,
              HasSubstr("another process is writing"));
}

TEST(WriteCompressedTensors, ResumesWithWhatWasMadeInTheSameWay) {
  const TempFolder in, folder;
  const std::string out = folder / "out";
  write_sharded_model(in.path());
  ASSERT_TRUE(write(in.path(), out));
  const auto whole = contents(out);
  const auto resumed = [&](const CompressedTensorsScheme& scheme, QuantizeModelOptions options = {}) {
    options.resume = true;
    int64_t last = 0, total = -1;
    const Result<WrittenModel> written =
        write_compressed_tensors(in.path(), out, scheme, quantizer_for(scheme), options,
                                 [&](int64_t done, int64_t all) { last = done, total = all; });
    EXPECT_TRUE(written) << written.error().message;
    EXPECT_EQ(last, total);
    uint64_t bytes = 0;
    for (const char* shard : {"/model-1.safetensors", "/model-2.safetensors"})
      bytes += std::filesystem::file_size(out + shard);
    EXPECT_EQ(written->bytes_out, bytes);
    return written->kept_shards;
  };
  EXPECT_EQ(resumed(kGroup16), 2);
  EXPECT_EQ(contents(out), whole);

  std::filesystem::remove(out + "/model-2.safetensors");  // as after an interruption
  std::filesystem::remove(out + "/model.safetensors.index.json");
  std::filesystem::remove(out + "/config.json");
  write_text(out + "/.model-2.safetensors.nybble-tmp.1.0", "half a shard");
  EXPECT_EQ(resumed(kGroup16), 1);
  EXPECT_EQ(contents(out), whole);

  EXPECT_EQ(resumed({.group_size = 16, .recipe = "another"}), 0);
  EXPECT_EQ(resumed({.group_size = 16, .recipe = "another"}), 2);
  EXPECT_EQ(resumed(kGroup16Zeros), 0);
  EXPECT_EQ(resumed(kGroup16), 0);
  EXPECT_EQ(resumed(kGroup16, {.exclude = {"b\\.1"}}), 1);  // only the second shard has that layer
  EXPECT_EQ(resumed(kGroup16), 1);
  EXPECT_EQ(contents(out), whole);

  std::string shard = read_text(in / "model-1.safetensors");  // one bit of one weight of the input
  shard[shard.size() - 300] ^= 1;
  write_text(in / "model-1.safetensors", shard);
  EXPECT_EQ(resumed(kGroup16), 1);
}

// Every system call of a run fails in turn: an error with words, no temporary file, no index over missing shards, and a
// resumed run that ends with the same bytes.
TEST(WriteCompressedTensors, SurvivesEveryFailingCall) {
  const TempFolder in, reference;
  write_sharded_model(in.path());
  ASSERT_TRUE(write(in.path(), reference / "out"));
  const auto whole = contents(reference / "out");
  int failures = 0;
  for (int nth = 1;; ++nth) {
    const TempFolder folder;
    const std::string out = folder / "out";
    bool fired = false;
    {
      const FailingCall failing(nth, Fault::kError, EIO);
      const Result<WrittenModel> written = write(in.path(), out);
      fired = failing.fired();
      ASSERT_EQ(static_cast<bool>(written), !fired) << nth;
      if (!written) {
        EXPECT_EQ(written.error().code, ErrorCode::kIo) << nth << ": " << written.error().message;
      }
    }
    if (!fired) {
      EXPECT_EQ(contents(out), whole);
      break;
    }
    ++failures;
    if (std::filesystem::exists(out))
      for (const auto& [name, text] : contents(out)) {
        if (name == kUnfinished) continue;
        ASSERT_TRUE(whole.contains(name)) << nth << ": " << name;
        ASSERT_EQ(text, whole.at(name)) << nth << ": " << name;
      }
    const Result<WrittenModel> resumed = write(in.path(), out, kGroup16, {.resume = true});
    ASSERT_TRUE(resumed) << nth << ": " << resumed.error().message;
    ASSERT_EQ(contents(out), whole) << nth;
  }
  EXPECT_GT(failures, 60);
  RecordProperty("failing_calls", failures);
}

// The converters write through the same folder; here, because only one source may hold the failing calls.
TEST(ConvertModel, SurvivesEveryFailingCall) {
  const TempFolder dense, model;
  write_sharded_model(dense.path());
  const std::string in = model / "4bit";
  ASSERT_TRUE(write(dense.path(), in));
  for (const auto& [target, error] : {std::pair(ModelTarget::kDense, EIO), {ModelTarget::kGptq, ENOSPC}}) {
    ConvertOptions options{.target = target};
    if (target == ModelTarget::kGptq) options.scale_dtype = DType::kFp16;
    ASSERT_TRUE(convert_model(in, model / std::to_string(error), options, {}));
    const auto whole = contents(model / std::to_string(error));
    int failures = 0;
    for (int nth = 1;; ++nth) {
      const TempFolder folder;
      const std::string out = folder / "out";
      bool fired = false;
      {
        const FailingCall failing(nth, Fault::kError, error);
        const Result<WrittenModel> written = convert_model(in, out, options, {});
        fired = failing.fired();
        // Looking whether the input is a GGUF file may fail; what opens it next says so if it matters.
        ASSERT_TRUE(written || fired) << nth << ": " << written.error().message;
        failures += written ? 0 : 1;
        if (!written) {
          EXPECT_EQ(written.error().code, ErrorCode::kIo) << nth << ": " << written.error().message;
        }
      }
      if (std::filesystem::exists(out))
        for (const auto& [name, text] : contents(out)) {
          if (name == kUnfinished) continue;
          ASSERT_TRUE(whole.contains(name)) << nth << ": " << name;
          ASSERT_EQ(text, whole.at(name)) << nth << ": " << name;
        }
      options.resume = true;
      const Result<WrittenModel> resumed = convert_model(in, out, options, {});
      options.resume = false;
      ASSERT_TRUE(resumed) << nth << ": " << resumed.error().message;
      ASSERT_EQ(contents(out), whole) << nth;
      if (!fired) {
        EXPECT_GT(failures, 60);
        RecordProperty("failing_calls", failures);
        break;
      }
    }
  }
}

TEST(WriteCompressedTensors, SurvivesShortAndInterruptedCalls) {
  const TempFolder in, reference;
  write_sharded_model(in.path());
  ASSERT_TRUE(write(in.path(), reference / "out"));
  for (const Fault fault : {Fault::kShort, Fault::kInterrupted}) {
    const TempFolder folder;
    {
      const FailingCall failing(2, fault);
      const Result<WrittenModel> written = write(in.path(), folder / "out");
      ASSERT_TRUE(written) << written.error().message;
      EXPECT_TRUE(failing.fired());
    }
    EXPECT_EQ(contents(folder / "out"), contents(reference / "out"));
  }
}

TEST(WriteCompressedTensors, LeavesNoHalfFileWhenTheDiskIsFull) {
  const TempFolder in, folder;
  const std::string out = folder / "out";
  write_sharded_model(in.path());
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 1500;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const Result<WrittenModel> written = write(in.path(), out);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, ErrorCode::kIo);
  EXPECT_THAT(written.error().message, HasSubstr("File too large"));
  EXPECT_EQ(files_in(out), Names{kUnfinished});
  EXPECT_TRUE(write(in.path(), out));  // nothing is there that would have to be overwritten
}

// A child turns one model into another, back and forth, over the same folder. Wherever it is killed, every file is
// whole, only a whole model is without the mark, and a resumed run ends with the right bytes.
TEST(WriteCompressedTensors, IsWholeOrUnfinishedWheneverItIsKilled) {
  constexpr int kPoints = 100;
  const TempFolder in, folder;
  const std::string out = folder / "out";
  write_sharded_model(in.path());
  const auto start = std::chrono::steady_clock::now();
  ASSERT_TRUE(write(in.path(), folder / "symmetric", kGroup16));
  ASSERT_TRUE(write(in.path(), folder / "asymmetric", kGroup16Zeros));
  const auto one_write =
      std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start).count() / 2;
  const auto symmetric = contents(folder / "symmetric"), asymmetric = contents(folder / "asymmetric");
  std::mt19937 random(11);
  int unfinished = 0, finished = 0;
  // On a loaded machine a write may take many times what the first ones took: then the kills come later, too.
  const auto seen_both = [&] { return unfinished > 0 && finished > 0; };
  for (int point = 0; point < kPoints || (!seen_both() && point < 8 * kPoints); ++point) {
    const int64_t longest = 3 * one_write << (point / kPoints);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (int round = point;; ++round) {
        if (!write(in.path(), out, round % 2 == 0 ? kGroup16 : kGroup16Zeros, {.force = true})) ::_exit(1);
        ::usleep(static_cast<useconds_t>(one_write / 2));  // the model stands whole for a while
      }
    }
    ::usleep(static_cast<useconds_t>(std::uniform_int_distribution<int64_t>(0, longest)(random)));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child stopped by itself at point " << point;
    if (!std::filesystem::exists(out)) continue;
    const auto left = contents(out);
    for (const auto& [name, text] : left) {
      if (name == kUnfinished || name.find(base::AtomicFile::kTemporaryMark) != std::string::npos) continue;
      ASSERT_TRUE(symmetric.contains(name)) << name;
      ASSERT_TRUE(text == symmetric.at(name) || text == asymmetric.at(name)) << "point " << point << ": " << name;
    }
    if (left.contains(kUnfinished) || !left.contains("model.safetensors.index.json")) {
      ++unfinished;
      EXPECT_FALSE(open_checkpoint(out)) << "point " << point;
      continue;
    }
    ++finished;
    const auto checkpoint = open_checkpoint(out);
    ASSERT_TRUE(checkpoint) << "point " << point << ": " << checkpoint.error().message;
    ASSERT_TRUE((*checkpoint)->check({}));
  }
  EXPECT_GT(unfinished, 0);
  EXPECT_GT(finished, 0);
  RecordProperty("unfinished", unfinished);
  RecordProperty("finished", finished);
  ASSERT_TRUE(write(in.path(), out, kGroup16, {.resume = true}));
  EXPECT_EQ(contents(out), symmetric);  // the temporary files of killed writers are gone as well
}

}  // namespace
}  // namespace nybble
