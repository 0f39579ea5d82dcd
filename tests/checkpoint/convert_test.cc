#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "checkpoint/model_building.h"
#include "nybble/checkpoint.h"
#include "nybble/convert.h"
#include "support/temp_folder.h"

namespace nybble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using namespace nybble::testing;

constexpr char kSymmetric16[] =
    R"({"targets":["Linear"],"weights":{"num_bits":4,"type":"int","symmetric":true,"strategy":"group","group_size":16}})";
constexpr char kZeros16[] =
    R"({"targets":["Linear"],"weights":{"num_bits":4,"type":"int","symmetric":false,"strategy":"group","group_size":16}})";

std::string config_of(const std::string& groups) {
  return R"({"model_type":"llama","quantization_config":{"quant_method":"compressed-tensors","format":"pack-quantized",)"
         R"("config_groups":{)" +
         groups + R"(},"ignore":["embed","head"]}})";
}

std::vector<uint32_t> random_words(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint32_t> words(count);
  for (uint32_t& word : words) word = static_cast<uint32_t>(random());
  return words;
}

// Scales in fp16 bits: 2^-14 and up, all finite.
std::vector<uint16_t> random_scales(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint16_t> scales(count);
  for (uint16_t& scale : scales) scale = static_cast<uint16_t>(0x0400 + random() % 0x3C00);
  return scales;
}

// A layer as compressed-tensors stores it.
void add_layer(std::vector<TestTensor>& tensors, const std::string& name, int64_t n, int64_t k, int64_t group,
               bool zeros, const std::string& scale_dtype = "F16") {
  const int64_t words = (k + 7) / 8, groups = k / group;
  const auto seed = static_cast<uint32_t>(n * 7 + k);
  tensors.push_back(
      {name + ".weight_packed", "I32", {n, words}, i32(random_words(static_cast<size_t>(n * words), seed))});
  tensors.push_back({name + ".weight_scale",
                     scale_dtype,
                     {n, groups},
                     u16(random_scales(static_cast<size_t>(n * groups), seed + 1))});
  tensors.push_back({name + ".weight_shape", "I64", {2}, i64({n, k})});
  if (zeros)
    tensors.push_back({name + ".weight_zero_point",
                       "I32",
                       {(n + 7) / 8, groups},
                       i32(random_words(static_cast<size_t>((n + 7) / 8 * groups), seed + 2))});
}

// A permutation of k features over equal groups, as weight_g_idx.
TestTensor group_order(const std::string& name, int64_t k, int64_t group) {
  std::vector<uint32_t> index;
  for (int64_t i = 0; i < k; ++i) index.push_back(static_cast<uint32_t>(i / group));
  std::shuffle(index.begin(), index.end(), std::mt19937(5));
  return {name + ".weight_g_idx", "I32", {k}, i32(index)};
}

void write_model(const TempFolder& in, std::vector<TestTensor> tensors, const std::string& config) {
  tensors.push_back({"embed.weight", "BF16", {1, 2}, u16({0x3F80, 0x4000})});
  tensors.push_back({"head.weight", "F16", {2, 2}, u16({1, 2, 3, 4})});
  tensors.push_back({"l.bias", "F16", {16}, u16(std::vector<uint16_t>(16, 0x3C00))});
  tensors.push_back({"flags", "BOOL", {3}, std::string("\1\0\1", 3)});
  write_text(in / "model.safetensors", safetensors(tensors, R"({"format":"pt"})"));
  write_text(in / "config.json", config);
  write_text(in / "tokenizer.json", "{}");
  write_text(in / "quantize_config.json", "{}");
}

// Two layers with zero points in shards of their own.
void write_two_shards(const TempFolder& in) {
  std::vector<TestTensor> first, second;
  add_layer(first, "a", 16, 32, 16, true);
  add_layer(second, "b", 8, 48, 16, true);
  second.push_back({"embed.weight", "BF16", {1, 2}, u16({0x3F80, 0x4000})});
  nlohmann::json map;
  for (const TestTensor& tensor : first) map[tensor.name] = "one.safetensors";
  for (const TestTensor& tensor : second) map[tensor.name] = "two.safetensors";
  write_text(in / "one.safetensors", safetensors(first));
  write_text(in / "two.safetensors", safetensors(second));
  write_text(in / "model.safetensors.index.json", nlohmann::json{{"weight_map", map}}.dump());
  write_text(in / "config.json", config_of(std::string(R"("g":)") + kZeros16));
}

struct Stored {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;

  uint32_t word(size_t i) const {
    uint32_t value = 0;
    std::memcpy(&value, bytes.data() + 4 * i, 4);
    return value;
  }
  uint16_t half(size_t i) const {
    uint16_t value = 0;
    std::memcpy(&value, bytes.data() + 2 * i, 2);
    return value;
  }
  friend bool operator==(const Stored&, const Stored&) = default;
};

// `aligned`: every tensor begins at a multiple of its element size, as a writer should see to.
std::map<std::string, Stored> tensors_of(const std::string& file, bool aligned = false) {
  const std::string bytes = read_text(file);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  std::map<std::string, Stored> tensors;
  const nlohmann::json header = nlohmann::json::parse(bytes.substr(8, length));
  for (const auto& [name, entry] : header.items())
    if (name != "__metadata__") {
      const size_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
      if (aligned) {
        EXPECT_EQ((8 + length + begin) % (entry["dtype"] == "BOOL" ? 1 : entry["dtype"] == "I32" ? 4 : 2), 0u) << name;
      }
      tensors[name] = {entry["dtype"], entry["shape"].get<std::vector<int64_t>>(),
                       bytes.substr(8 + length + begin, end - begin)};
    }
  return tensors;
}

QuantizedWeight layer_of(const std::string& path, const std::string& name) {
  const auto checkpoint = open_checkpoint(path);
  EXPECT_TRUE(checkpoint) << checkpoint.error().message;
  Result<QuantizedWeight> weight = (*checkpoint)->read_quantized(name);
  EXPECT_TRUE(weight) << weight.error().message;
  return weight ? std::move(*weight) : QuantizedWeight{};
}

nlohmann::json settings_of(const std::string& folder) {
  return nlohmann::json::parse(read_text(folder + "/config.json"))["quantization_config"];
}

// What is no part of a quantized weight came through as it was.
void expect_others_kept(const TempFolder& in, const std::string& out) {
  const auto before = tensors_of(in / "model.safetensors"), after = tensors_of(out + "/model.safetensors", true);
  for (const char* name : {"embed.weight", "head.weight", "l.bias", "flags"})
    EXPECT_EQ(after.at(name), before.at(name));
  EXPECT_EQ(files_in(out), (std::set<std::string>{"config.json", "model.safetensors", "tokenizer.json"}));
}

Result<WrittenModel> convert(const std::string& in, const std::string& out, const ConvertOptions& options) {
  return convert_model(in, out, options, {});
}

void expect_refused(const TempFolder& in, const ConvertOptions& options, const std::string& words) {
  const TempFolder folder;
  const Result<WrittenModel> written = convert(in.path(), folder / "out", options);
  ASSERT_FALSE(written) << words;
  EXPECT_THAT(written.error().message, HasSubstr(words));
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
}

TEST(ConvertToDense, WritesDequantizedWeights) {
  for (const DType dtype : {DType::kFp32, DType::kBf16, DType::kFp16}) {
    const TempFolder in, folder;
    std::vector<TestTensor> tensors;
    add_layer(tensors, "l", 16, 32, 16, true);
    write_model(in, tensors, config_of(std::string(R"("g":)") + kZeros16));
    const std::string out = folder / "out";
    int64_t last = 0, total = -1;
    const auto written = convert_model(in.path(), out, {.dense_dtype = dtype},
                                       [&](int64_t done, int64_t all) { last = done, total = all; });
    ASSERT_TRUE(written) << written.error().message;
    EXPECT_EQ(last, total);
    EXPECT_THAT(written->quantized, ElementsAre("l"));
    EXPECT_THAT(written->left_out, ElementsAre(HasSubstr("quantize_config.json")));
    const Stored stored = tensors_of(out + "/model.safetensors").at("l.weight");
    const FloatArray expected = FloatArray::from_floats(dtype, dequantize(layer_of(in.path(), "l")));
    EXPECT_EQ(stored.shape, (std::vector<int64_t>{16, 32}));
    EXPECT_EQ(stored.bytes, std::string(reinterpret_cast<const char*>(expected.bytes.data()), expected.bytes.size()));
    EXPECT_TRUE(settings_of(out).is_null());
    expect_others_kept(in, out);
    const auto dense = open_checkpoint(out);
    ASSERT_TRUE(dense) << dense.error().message;
    EXPECT_EQ((*dense)->format(), "dense");
    EXPECT_TRUE((*dense)->read_dense("l"));
  }
}

TEST(ConvertToDense, RefusesWhatTheTypeCannotHold) {
  const TempFolder in;
  std::vector<TestTensor> tensors;
  add_layer(tensors, "l", 16, 32, 16, false, "BF16");
  tensors[1].bytes = u16(std::vector<uint16_t>(32, 0x4780));  // 65536
  tensors[0].bytes = i32(std::vector<uint32_t>(64, 0));
  write_model(in, tensors, config_of(std::string(R"("g":)") + kSymmetric16));
  expect_refused(in, {.dense_dtype = DType::kFp16}, "layer 'l': the weight of row 0, column 0 is -524288");
}

TEST(ConvertToDense, ResumesAndDividesIntoShards) {
  const TempFolder in, folder;
  write_two_shards(in);
  const std::string out = folder / "out";
  ASSERT_TRUE(convert(in.path(), out, {}));
  EXPECT_EQ(files_in(out), (std::set<std::string>{"config.json", "model.safetensors.index.json", "one.safetensors",
                                                  "two.safetensors"}));
  EXPECT_THAT(convert(in.path(), out, {}).error().message, HasSubstr("is not empty"));
  const std::string first = read_text(out + "/one.safetensors"), second = read_text(out + "/two.safetensors");
  std::filesystem::remove(out + "/two.safetensors");  // as after an interruption
  std::filesystem::remove(out + "/config.json");
  std::filesystem::remove(out + "/model.safetensors.index.json");
  const auto resumed = convert(in.path(), out, {.resume = true});
  ASSERT_TRUE(resumed) << resumed.error().message;
  EXPECT_EQ(resumed->kept_shards, 1);
  EXPECT_EQ(read_text(out + "/one.safetensors"), first);
  EXPECT_EQ(read_text(out + "/two.safetensors"), second);
  EXPECT_EQ(convert(in.path(), out, {.dense_dtype = DType::kBf16, .resume = true})->kept_shards, 0);

  // One changed byte of the input is seen.
  ASSERT_TRUE(convert(in.path(), out, {.force = true}));
  std::string bytes = read_text(in / "one.safetensors");
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  write_text(in / "one.safetensors", bytes);
  EXPECT_EQ(convert(in.path(), out, {.resume = true})->kept_shards, 1);

  const std::string small = folder / "small";
  ASSERT_TRUE(convert(in.path(), small, {.shard_bytes = 1000}));
  EXPECT_EQ(files_in(small),
            (std::set<std::string>{"config.json", "model.safetensors.index.json", "model-00001-of-00003.safetensors",
                                   "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"}));
  const auto whole = open_checkpoint(out), divided = open_checkpoint(small);
  ASSERT_TRUE(divided) << divided.error().message;
  for (const char* layer : {"a", "b"})
    EXPECT_EQ((*divided)->read_dense(layer)->values, (*whole)->read_dense(layer)->values);
}

// The same weight: act-order may list a group's input features in another order, so its groups are compared.
void expect_same(const QuantizedWeight& a, const QuantizedWeight& b) {
  EXPECT_EQ(a.n, b.n);
  EXPECT_EQ(a.k, b.k);
  EXPECT_EQ(a.group_size, b.group_size);
  EXPECT_EQ(a.zero_kind, b.zero_kind);
  EXPECT_EQ(a.codes, b.codes);
  EXPECT_EQ(a.scales, b.scales);
  EXPECT_EQ(a.int_zeros, b.int_zeros);
  EXPECT_EQ(a.k_order, b.k_order);
  EXPECT_EQ(a.bias, b.bias);
}

TEST(ConvertToCompressedTensors, ReadsBackBitForBit) {
  for (const bool zeros : {false, true})
    for (const bool ordered : {false, true}) {
      const TempFolder in, folder;
      std::vector<TestTensor> tensors;
      add_layer(tensors, "l", 16, 32, 16, zeros, "BF16");
      add_layer(tensors, "m.up", 9, 64, 16, zeros, "BF16");
      std::string group = zeros ? kZeros16 : kSymmetric16;
      if (ordered) {
        tensors.push_back(group_order("l", 32, 16));
        tensors.push_back(group_order("m.up", 64, 16));
        group.insert(group.find("\"num_bits\""), "\"actorder\":\"group\",");
      }
      write_model(in, tensors, config_of("\"g\":" + group));
      const std::string out = folder / "out";
      const auto written = convert(in.path(), out, {.target = ModelTarget::kCompressedTensors});
      ASSERT_TRUE(written) << written.error().message;
      for (const char* layer : {"l", "m.up"}) expect_same(layer_of(out, layer), layer_of(in.path(), layer));
      expect_others_kept(in, out);
      const nlohmann::json groups = settings_of(out)["config_groups"];
      ASSERT_EQ(groups.size(), 1u);
      EXPECT_EQ(groups["group_0"]["targets"], nlohmann::json{"Linear"});
      EXPECT_EQ(groups["group_0"]["weights"]["actorder"], ordered ? nlohmann::json("group") : nlohmann::json());
      EXPECT_EQ(settings_of(out)["ignore"], (nlohmann::json{"embed", "head"}));
    }
}

TEST(ConvertToCompressedTensors, NamesTheLayersOfSeveralSchemesAndLeavesExcludedOnesDense) {
  const TempFolder in, folder;
  std::vector<TestTensor> tensors;
  add_layer(tensors, "l", 16, 32, 16, true);
  add_layer(tensors, "wide", 8, 64, 32, false);
  add_layer(tensors, "out", 8, 64, 32, false);
  std::string wide = kSymmetric16;
  wide.replace(wide.find("16"), 2, "32");
  wide.replace(wide.find("\"Linear\""), 8, R"("wide","out")");
  std::string narrow = kZeros16;
  narrow.replace(narrow.find("Linear"), 6, "l");
  write_model(in, tensors, config_of("\"a\":" + narrow + ",\"b\":" + wide));
  const std::string out = folder / "out";
  const auto written = convert(
      in.path(), out, {.target = ModelTarget::kCompressedTensors, .scale_dtype = DType::kFp32, .exclude = {"^out$"}});
  ASSERT_TRUE(written) << written.error().message;
  EXPECT_THAT(written->quantized, ElementsAre("l", "wide"));
  EXPECT_THAT(written->ignored, ElementsAre("embed", "head", "out"));
  const nlohmann::json groups = settings_of(out)["config_groups"];
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups["group_0"]["targets"], nlohmann::json{"l"});
  EXPECT_EQ(groups["group_1"]["targets"], nlohmann::json{"wide"});
  EXPECT_EQ(groups["group_1"]["weights"]["group_size"], 32);
  for (const char* layer : {"l", "wide"}) {
    const QuantizedWeight before = layer_of(in.path(), layer), after = layer_of(out, layer);
    EXPECT_EQ(after.codes, before.codes);
    EXPECT_EQ(after.scales.dtype, DType::kFp32);
    EXPECT_EQ(dequantize(after), dequantize(before));  // fp32 holds every fp16 number
  }
  EXPECT_EQ(tensors_of(out + "/model.safetensors").at("out.weight").dtype, "F32");
}

// GPTQ's words as docs/formats.md draws them.
void expect_gptq_layer(const std::map<std::string, Stored>& tensors, const std::string& name,
                       const QuantizedWeight& weight) {
  const Stored &qweight = tensors.at(name + ".qweight"), &qzeros = tensors.at(name + ".qzeros"),
               &scales = tensors.at(name + ".scales"), &g_idx = tensors.at(name + ".g_idx");
  const int64_t n = weight.n, k = weight.k, groups = weight.groups(), zero_words = (n + 7) / 8;
  EXPECT_EQ(qweight.shape, (std::vector<int64_t>{(k + 7) / 8, n}));
  EXPECT_EQ(qzeros.shape, (std::vector<int64_t>{groups, zero_words}));
  EXPECT_EQ(scales.shape, (std::vector<int64_t>{groups, n}));
  EXPECT_EQ(g_idx.shape, std::vector<int64_t>{k});
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t i = 0; i < k; ++i)
      ASSERT_EQ(qweight.word(static_cast<size_t>(i / 8 * n + row)) >> (i % 8 * 4) & 15,
                weight.codes[static_cast<size_t>(row * k + i)]);
    for (int64_t group = 0; group < groups; ++group) {
      const auto at = static_cast<size_t>(row * groups + group);
      ASSERT_EQ(qzeros.word(static_cast<size_t>(group * zero_words + row / 8)) >> (row % 8 * 4) & 15,
                weight.int_zeros.empty() ? 8 : weight.int_zeros[at]);
      ASSERT_EQ(scales.half(static_cast<size_t>(group * n + row)), weight.scales.bits_at(at));
    }
  }
  std::vector<uint32_t> group_of(static_cast<size_t>(k));
  const int64_t size = weight.group_size == kPerColumn ? k : weight.group_size;
  for (int64_t p = 0; p < k; ++p)
    group_of[weight.k_order.empty() ? static_cast<size_t>(p) : static_cast<size_t>(weight.k_order[p])] =
        static_cast<uint32_t>(p / size);
  for (size_t i = 0; i < group_of.size(); ++i) ASSERT_EQ(g_idx.word(i), group_of[i]) << i;
}

TEST(ConvertToGptq, WritesTheSecondConvention) {
  for (const bool zeros : {false, true})
    for (const bool ordered : {false, true}) {
      const TempFolder in, folder;
      std::vector<TestTensor> tensors;
      add_layer(tensors, "l", 16, 32, 16, zeros);
      add_layer(tensors, "m.up", 9, 64, 16, zeros);
      std::string group = zeros ? kZeros16 : kSymmetric16;
      if (ordered) {
        tensors.push_back(group_order("l", 32, 16));
        tensors.push_back(group_order("m.up", 64, 16));
        group.insert(group.find("\"num_bits\""), "\"actorder\":\"group\",");
      }
      write_model(in, tensors, config_of("\"g\":" + group));
      const std::string out = folder / "out";
      const auto written = convert(in.path(), out, {.target = ModelTarget::kGptq});
      ASSERT_TRUE(written) << written.error().message;
      const auto stored = tensors_of(out + "/model.safetensors");
      EXPECT_EQ(stored.size(), 12u);
      for (const char* layer : {"l", "m.up"}) expect_gptq_layer(stored, layer, layer_of(in.path(), layer));
      expect_others_kept(in, out);
      const nlohmann::json expected = {{"quant_method", "gptq"},
                                       {"bits", 4},
                                       {"group_size", 16},
                                       {"desc_act", ordered},
                                       {"sym", !zeros},
                                       {"lm_head", false},
                                       {"pack_dtype", "int32"},
                                       {"format", "gptq_v2"},
                                       {"checkpoint_format", "gptq_v2"},
                                       {"dynamic", {{"-:^head$", nlohmann::json::object()}}}};
      EXPECT_EQ(settings_of(out), expected);
    }
}

TEST(ConvertToGptq, AsksBeforeItRoundsScales) {
  const TempFolder in, folder;
  std::vector<TestTensor> tensors;
  add_layer(tensors, "l", 16, 32, 16, false, "BF16");
  std::vector<uint16_t> scales(32, 0x3F81);  // 1.0078125, which fp16 holds
  tensors[1].bytes = u16(scales);
  write_model(in, tensors, config_of(std::string(R"("g":)") + kSymmetric16));
  ASSERT_TRUE(convert(in.path(), folder / "exact", {.target = ModelTarget::kGptq}));
  EXPECT_EQ(tensors_of(folder / "exact/model.safetensors").at("l.scales").half(0), 0x3C08);
  EXPECT_EQ(tensors_of(folder / "exact/model.safetensors").at("l.scales").dtype, "F16");

  scales[5] = 0x3281;  // 1.5e-8: between two of fp16's smallest numbers
  tensors[1].bytes = u16(scales);
  write_model(in, tensors, config_of(std::string(R"("g":)") + kSymmetric16));
  expect_refused(in, {.target = ModelTarget::kGptq}, "layer 'l': the scale of row 2, group 1 is");
  ASSERT_TRUE(convert(in.path(), folder / "fp16", {.target = ModelTarget::kGptq, .scale_dtype = DType::kFp16}));
  ASSERT_TRUE(convert(in.path(), folder / "bf16", {.target = ModelTarget::kGptq, .scale_dtype = DType::kBf16}));
  EXPECT_EQ(tensors_of(folder / "bf16/model.safetensors").at("l.scales").half(16 + 2), 0x3281);
  expect_refused(in, {.target = ModelTarget::kGptq, .scale_dtype = DType::kFp32}, "GPTQ takes fp16 and bf16");

  scales[5] = 0x4780;  // 65536
  tensors[1].bytes = u16(scales);
  write_model(in, tensors, config_of(std::string(R"("g":)") + kSymmetric16));
  expect_refused(in, {.target = ModelTarget::kGptq, .scale_dtype = DType::kFp16}, "beyond the range of fp16");
}

TEST(ConvertToAwq, WritesTheGemmVersion) {
  for (const bool zeros : {false, true}) {
    const TempFolder in, folder;
    std::vector<TestTensor> tensors;
    add_layer(tensors, "l", 16, 32, 16, zeros);
    write_model(in, tensors, config_of(std::string(R"("g":)") + (zeros ? kZeros16 : kSymmetric16)));
    const std::string out = folder / "out";
    const auto written = convert(in.path(), out, {.target = ModelTarget::kAwq});
    ASSERT_TRUE(written) << written.error().message;
    const auto stored = tensors_of(out + "/model.safetensors");
    const Stored &qweight = stored.at("l.qweight"), &qzeros = stored.at("l.qzeros"), &scales = stored.at("l.scales");
    EXPECT_EQ(qweight.shape, (std::vector<int64_t>{32, 2}));
    EXPECT_EQ(qzeros.shape, (std::vector<int64_t>{2, 2}));
    EXPECT_EQ(scales.shape, (std::vector<int64_t>{2, 16}));
    EXPECT_EQ(scales.dtype, "F16");
    // Nibble i of a word belongs to output feature kColumn[i] of its eight.
    constexpr size_t kColumn[] = {0, 2, 4, 6, 1, 3, 5, 7};
    const QuantizedWeight weight = layer_of(in.path(), "l");
    for (size_t word = 0; word < 2; ++word)
      for (size_t nibble = 0; nibble < 8; ++nibble) {
        const size_t row = word * 8 + kColumn[nibble];
        for (size_t i = 0; i < 32; ++i)
          ASSERT_EQ(qweight.word(i * 2 + word) >> (4 * nibble) & 15, weight.codes[row * 32 + i]);
        for (size_t group = 0; group < 2; ++group) {
          ASSERT_EQ(qzeros.word(group * 2 + word) >> (4 * nibble) & 15, zeros ? weight.int_zeros[row * 2 + group] : 8);
          ASSERT_EQ(scales.half(group * 16 + row), weight.scales.bits_at(row * 2 + group));
        }
      }
    expect_others_kept(in, out);
    const nlohmann::json expected = {{"quant_method", "awq"}, {"bits", 4},
                                     {"group_size", 16},      {"zero_point", true},
                                     {"version", "gemm"},     {"modules_to_not_convert", {"embed", "head"}}};
    EXPECT_EQ(settings_of(out), expected);
  }
}

TEST(ConvertToAwq, RefusesWhatItHasNoPlaceFor) {
  const TempFolder in;
  std::vector<TestTensor> tensors;
  add_layer(tensors, "m", 9, 32, 16, false);
  write_model(in, tensors, config_of(std::string(R"("g":)") + kSymmetric16));
  expect_refused(in, {.target = ModelTarget::kAwq}, "layer 'm': has 9 output features");
  tensors.clear();
  add_layer(tensors, "m", 8, 32, 16, false);
  tensors.push_back(group_order("m", 32, 16));
  std::string ordered = kSymmetric16;
  ordered.insert(ordered.find("\"num_bits\""), "\"actorder\":\"group\",");
  write_model(in, tensors, config_of("\"g\":" + ordered));
  expect_refused(in, {.target = ModelTarget::kAwq}, "layer 'm': has reordered input features");
  tensors.clear();
  add_layer(tensors, "block.headline", 8, 32, 16, false);
  write_model(in, tensors, config_of(std::string(R"("g":)") + kSymmetric16));
  expect_refused(in, {.target = ModelTarget::kAwq}, "its name holds that of 'head'");
  expect_refused(in, {.target = ModelTarget::kAwq, .exclude = {"block"}}, "none of the model's 1 4-bit layers");
  expect_refused(in, {.target = ModelTarget::kAwq, .scale_dtype = DType::kBf16}, "AWQ fp16");
}

TEST(Convert, PointsDenseModelsAtQuantize) {
  const TempFolder in;
  write_model(in, {{"l.weight", "F16", {16, 16}, u16(std::vector<uint16_t>(256, 0x3C00))}},
              R"({"model_type":"llama"})");
  expect_refused(in, {.target = ModelTarget::kGptq}, "nybble quantize");
}

// What the converters write is what the readers of those formats read.
TEST(ConvertRoundTrip, ReadersReadTheSameWeights) {
  for (const auto& [zeros, ordered] : {std::pair(true, false), {false, false}, {true, true}, {false, true}}) {
    const TempFolder folder;
    const TempFolder in;
    std::vector<TestTensor> tensors;
    add_layer(tensors, "a", 24, 32, 16, zeros);
    add_layer(tensors, "l", 16, 64, 16, zeros);
    std::string group = zeros ? kZeros16 : kSymmetric16;
    if (ordered) {  // one layer with an order, one whose order is that of the columns
      std::vector<uint32_t> columns(32, 0);
      std::fill(columns.begin() + 16, columns.end(), 1);
      tensors.push_back({"a.weight_g_idx", "I32", {32}, i32(columns)});
      tensors.push_back(group_order("l", 64, 16));
      group.insert(group.find("\"num_bits\""), "\"actorder\":\"group\",");
    }
    write_model(in, tensors, config_of("\"g\":" + group));
    const auto original = open_checkpoint(in.path());
    ASSERT_TRUE(original) << original.error().message;
    for (const auto& [target, format] : {std::pair{ModelTarget::kCompressedTensors, "compressed-tensors"},
                                         {ModelTarget::kGptq, "gptq"},
                                         {ModelTarget::kAwq, "awq"}}) {
      if (ordered && target == ModelTarget::kAwq) continue;  // AWQ has no place for it: ConvertToAwq
      const std::string out = folder / format;
      const auto written = convert_model(in.path(), out, {.target = target}, {});
      ASSERT_TRUE(written) << format << ": " << written.error().message;
      const auto read = open_checkpoint(out);
      ASSERT_TRUE(read) << format << ": " << read.error().message;
      EXPECT_EQ((*read)->format(), format);
      EXPECT_TRUE((*read)->check({})) << format;
      for (const char* layer : {"a", "l"}) {
        const auto before = (*original)->read_quantized(layer), after = (*read)->read_quantized(layer);
        ASSERT_TRUE(before) << before.error().message;
        ASSERT_TRUE(after) << format << ": " << after.error().message;
        EXPECT_EQ(before->k_order.empty(), !ordered || layer == std::string("a"));
        EXPECT_EQ(*after, *before) << format << " " << layer;
      }
    }
  }
}

}  // namespace
}  // namespace nybble
