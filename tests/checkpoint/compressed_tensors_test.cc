#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "checkpoint/compressed_tensors_config.h"
#include "checkpoint/model_building.h"
#include "nybble/checkpoint.h"
#include "support/temp_folder.h"

namespace nybble {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using namespace nybble::testing;

constexpr uint16_t kBf16One = 0x3F80, kBf16Two = 0x4000, kBf16Half = 0x3F00, kBf16Nan = 0x7FC0, kBf16Infinity = 0x7F80;

std::string config_json(const std::string& weights, const std::string& more = "", const std::string& group_more = "") {
  return R"({"quantization_config":{"quant_method":"compressed-tensors","format":"pack-quantized",)"
         R"("quantization_status":"compressed","ignore":["lm_head"],"config_groups":{"group_0":{"targets":["Linear"],)"
         R"("input_activations":null,"output_activations":null,)" +
         group_more + R"("weights":{"num_bits":4,"type":"int",)" + weights + "}}}" + more + "}}";
}
const std::string kGroup16 = R"("symmetric":true,"strategy":"group","group_size":16)";
const std::string kGroup16Zeros = R"("symmetric":false,"strategy":"group","group_size":16)";
const std::string kChannel = R"("symmetric":true,"strategy":"channel","group_size":null)";

// 2 x 32, groups of 16: row 0 counts up, row 1 counts down.
std::vector<TestTensor> group_layer() {
  return {{"l.weight_shape", "I64", {2}, i64({2, 32})},
          {"l.weight_packed",
           "I32",
           {2, 4},
           i32({0x76543210, 0xFEDCBA98, 0x76543210, 0xFEDCBA98,  //
                0x89ABCDEF, 0x01234567, 0x89ABCDEF, 0x01234567})},
          {"l.weight_scale", "BF16", {2, 2}, u16({kBf16One, kBf16Two, kBf16Half, 0xBF80})}};
}
TestTensor group_zeros() { return {"l.weight_zero_point", "I32", {1, 2}, i32({0x000000F3, 0x000000A8})}; }

void write_model(const TempFolder& folder, const std::vector<TestTensor>& tensors, const std::string& config) {
  write_text(folder / "model.safetensors", safetensors(tensors));
  write_text(folder / "config.json", config);
}

std::vector<uint8_t> counting_codes() {
  std::vector<uint8_t> codes(64);
  for (int i = 0; i < 32; ++i)
    codes[i] = static_cast<uint8_t>(i % 16), codes[32 + i] = static_cast<uint8_t>(15 - i % 16);
  return codes;
}

TEST(CompressedTensors, ReadsASymmetricLayerWordByWord) {
  const TempFolder folder;
  std::vector<TestTensor> tensors = group_layer();
  tensors.push_back({"l.bias", "F16", {2}, u16({0x3C00, 0xC000})});
  tensors.push_back({"lm_head.weight", "F32", {1, 2}, f32({1, 2})});
  tensors.push_back({"norm.weight", "F32", {2}, f32({1, 1})});
  write_model(folder, tensors, config_json(kGroup16));
  const auto checkpoint = open_checkpoint(folder.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ((*checkpoint)->format(), "compressed-tensors");
  EXPECT_THAT((*checkpoint)->convention(), HasSubstr("1 layers of 4-bit integers"));
  EXPECT_THAT((*checkpoint)->convention(), HasSubstr("1 dense layers"));

  ASSERT_EQ((*checkpoint)->layers().size(), 2u);
  const LayerInfo& info = (*checkpoint)->layers()[0];
  EXPECT_EQ(info.name, "l");
  EXPECT_TRUE(info.quantized);
  EXPECT_EQ(info.n, 2);
  EXPECT_EQ(info.k, 32);
  EXPECT_EQ(info.file, "model.safetensors");
  EXPECT_EQ(info.format, (WeightFormat{.scale_dtype = DType::kBf16, .zero_kind = ZeroKind::kNone, .group_size = 16}));
  EXPECT_FALSE((*checkpoint)->layers()[1].quantized);

  const auto weight = (*checkpoint)->read_quantized("l");
  ASSERT_TRUE(weight) << weight.error().message;
  EXPECT_EQ(weight->codes, counting_codes());
  EXPECT_EQ(weight->group_size, 16);
  EXPECT_EQ(weight->zero_kind, ZeroKind::kNone);
  EXPECT_EQ(weight->scales.dtype, DType::kBf16);
  EXPECT_EQ(weight->scales.at(3), -1.0f);
  EXPECT_TRUE(weight->k_order.empty());
  EXPECT_EQ(weight->bias.dtype, DType::kFp16);
  EXPECT_EQ(weight->bias.at(1), -2.0f);
  EXPECT_EQ(dequantize(*weight)[17], (1 - 8) * 2.0f);

  const auto head = (*checkpoint)->read_dense("lm_head");
  ASSERT_TRUE(head) << head.error().message;
  EXPECT_EQ(head->values.at(1), 2.0f);
  EXPECT_THAT((*checkpoint)->read_dense("l").error().message, HasSubstr("read it with read_quantized()"));
  EXPECT_THAT((*checkpoint)->read_quantized("lm_head").error().message, HasSubstr("read it with read_dense()"));
  EXPECT_THAT((*checkpoint)->read_dense("norm").error().message, HasSubstr("has no linear layer 'norm'"));

  int64_t last = 0, total = -1;
  ASSERT_TRUE((*checkpoint)->check([&](int64_t done, int64_t all) {
    EXPECT_GE(done, last);
    last = done;
    total = all;
  }));
  EXPECT_EQ(last, total);
}

TEST(CompressedTensors, ReadsZeroPointsPackedAlongN) {
  const TempFolder folder;
  std::vector<TestTensor> tensors = group_layer();
  tensors.push_back(group_zeros());
  write_model(folder, tensors, config_json(kGroup16Zeros));
  const auto checkpoint = open_checkpoint(folder.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  const auto weight = (*checkpoint)->read_quantized("l");
  ASSERT_TRUE(weight) << weight.error().message;
  EXPECT_EQ(weight->zero_kind, ZeroKind::kInt);
  EXPECT_THAT(weight->int_zeros, ElementsAre(3, 8, 15, 10));  // [n][group]
  EXPECT_EQ(dequantize(*weight)[0], (0 - 3) * 1.0f);
  EXPECT_EQ(dequantize(*weight)[63], (0 - 10) * -1.0f);
}

// n = 9 and k = 12: the last word of each row and the second row of zero words are half empty.
TEST(CompressedTensors, ReadsChannelsOfOddShapes) {
  const TempFolder folder;
  std::vector<uint32_t> packed;
  for (uint32_t n = 0; n < 9; ++n) packed.insert(packed.end(), {0x11111111u * n, 0xFFFF0000u | 0x3210u});
  const std::vector<uint16_t> scales(9, kBf16One);
  write_model(folder,
              {{"l.weight_packed", "I32", {9, 2}, i32(packed)},
               {"l.weight_scale", "F16", {9, 1}, u16(scales)},
               {"l.weight_shape", "I64", {2}, i64({9, 12})},
               {"l.weight_zero_point", "I32", {2, 1}, i32({0x76543210, 0xFFFFFFF9})}},
              config_json(R"("symmetric":false,"strategy":"channel")"));
  const auto checkpoint = open_checkpoint(folder / "model.safetensors");
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  const auto weight = (*checkpoint)->read_quantized("l");
  ASSERT_TRUE(weight) << weight.error().message;
  EXPECT_EQ(weight->group_size, kPerColumn);
  EXPECT_EQ(weight->scales.dtype, DType::kFp16);
  EXPECT_THAT(weight->int_zeros, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 9));
  EXPECT_THAT(std::vector<uint8_t>(weight->codes.end() - 12, weight->codes.end()),
              ElementsAre(8, 8, 8, 8, 8, 8, 8, 8, 0, 1, 2, 3));
}

// One scale for the whole layer, which is also what no strategy and no group size mean; its zero point is not packed.
TEST(CompressedTensors, ReadsOneScaleForAllOutputFeatures) {
  for (const char* strategy : {R"("strategy":"tensor")", R"("group_size":null)"})
    for (const bool symmetric : {true, false}) {
      const TempFolder folder;
      std::vector<TestTensor> tensors = group_layer();
      tensors.back() = {"l.weight_scale", "BF16", {1}, u16({kBf16Two})};
      if (!symmetric) tensors.push_back({"l.weight_zero_point", "I8", {1}, "\xFD"});  // -3
      write_model(folder, tensors, config_json(std::string(symmetric ? "" : R"("symmetric":false,)") + strategy));
      const auto checkpoint = open_checkpoint(folder.path());
      ASSERT_TRUE(checkpoint) << checkpoint.error().message;
      const auto weight = (*checkpoint)->read_quantized("l");
      ASSERT_TRUE(weight) << weight.error().message;
      EXPECT_EQ(weight->codes, counting_codes());
      EXPECT_EQ(weight->group_size, kPerColumn);
      EXPECT_EQ(weight->zero_kind, symmetric ? ZeroKind::kNone : ZeroKind::kInt);
      EXPECT_EQ(weight->scales.size(), 2u);
      EXPECT_EQ(weight->int_zeros, symmetric ? std::vector<uint8_t>() : (std::vector<uint8_t>{5, 5}));
      for (const size_t i : {0u, 31u, 63u})
        EXPECT_EQ(dequantize(*weight)[i], 2.0f * static_cast<float>(weight->codes[i] - (symmetric ? 8 : 5))) << i;
    }
  const TempFolder folder;
  std::vector<TestTensor> tensors = group_layer();
  tensors.back() = {"l.weight_scale", "BF16", {1}, u16({kBf16Two})};
  const auto refusal = [&](const TestTensor& zero) {
    std::vector<TestTensor> all = tensors;
    all.push_back(zero);
    write_model(folder, all, config_json(R"("symmetric":false,"strategy":"tensor")"));
    const auto checkpoint = open_checkpoint(folder.path());
    const auto read = checkpoint ? (*checkpoint)->check({}) : checkpoint.error();
    return read ? std::string("accepted") : read.error().message;
  };
  EXPECT_THAT(refusal({"l.weight_zero_point", "I8", {1}, "\x08"}), HasSubstr("is 8; a zero point of 4-bit integers"));
  EXPECT_THAT(refusal({"l.weight_zero_point", "I8", {2}, "\x01\x01"}), HasSubstr("needs I8 [1]"));
  EXPECT_THAT(refusal(group_zeros()), HasSubstr("the strategy 'tensor'"));
}

TEST(CompressedTensors, TurnsGroupIndicesIntoAnOrder) {
  const auto read = [](const std::vector<uint32_t>& g_idx, const std::string& actorder) {
    const TempFolder folder;
    std::vector<TestTensor> tensors = group_layer();
    tensors.push_back({"l.weight_g_idx", "I32", {static_cast<int64_t>(g_idx.size())}, i32(g_idx)});
    write_model(folder, tensors, config_json(kGroup16 + ",\"actorder\":" + actorder));
    const auto checkpoint = open_checkpoint(folder.path());
    if (!checkpoint) return Result<QuantizedWeight>(checkpoint.error());
    EXPECT_EQ((*checkpoint)->layers()[0].format.k_order, !(*checkpoint)->read_quantized("l")->k_order.empty());
    return (*checkpoint)->read_quantized("l");
  };
  std::vector<uint32_t> alternating(32), trivial(32);
  std::vector<int32_t> evens_first(32);
  for (uint32_t i = 0; i < 32; ++i) {
    alternating[i] = i % 2;
    trivial[i] = i / 16;
    evens_first[i] = static_cast<int32_t>(i < 16 ? 2 * i : 2 * (i - 16) + 1);
  }
  for (const char* word : {"\"group\"", "\"dynamic\"", "true"}) {
    const auto weight = read(alternating, word);
    ASSERT_TRUE(weight) << weight.error().message;
    EXPECT_EQ(weight->k_order, evens_first);
    EXPECT_EQ(weight->codes, counting_codes());  // still in the checkpoint's order
  }
  EXPECT_TRUE(read(trivial, "\"group\"")->k_order.empty());
  EXPECT_TRUE(read(trivial, "null")->k_order.empty());
  std::vector<uint32_t> unfilled = alternating;
  unfilled[5] = UINT32_MAX;  // -1 anywhere: the tensor was never filled
  EXPECT_TRUE(read(unfilled, "\"weight\"")->k_order.empty());

  EXPECT_THAT(read(alternating, "null").error().message, HasSubstr("reorders the input features, but config.json"));
  for (const uint32_t bad : {2u, 0x7FFFFFFFu, 0x80000000u, 0xFFFFFFFEu}) {
    std::vector<uint32_t> broken = alternating;
    broken[7] = bad;
    EXPECT_THAT(read(broken, "\"group\"").error().message, HasSubstr("element 7 is")) << bad;
  }
  std::vector<uint32_t> lopsided = alternating;
  lopsided[1] = 0;
  EXPECT_THAT(read(lopsided, "\"group\"").error().message, HasSubstr("its groups are not equal"));
  EXPECT_THAT(read(std::vector<uint32_t>(31), "\"group\"").error().message, HasSubstr("needs I32 [32]"));
  EXPECT_THAT(read(alternating, "\"sideways\"").error().message, HasSubstr("weights.actorder is"));
}

TEST(CompressedTensors, RefusesLayersThatContradictThemselves) {
  using Tensors = std::vector<TestTensor>;
  const auto without = [](const std::string& name) {
    Tensors tensors = group_layer();
    std::erase_if(tensors, [&](const TestTensor& tensor) { return tensor.name == name; });
    return tensors;
  };
  const auto with = [](TestTensor replacement) {
    Tensors tensors = group_layer();
    for (TestTensor& tensor : tensors)
      if (tensor.name == replacement.name) return tensor = replacement, tensors;
    tensors.push_back(replacement);
    return tensors;
  };
  const std::string group16 = config_json(kGroup16), zeros = config_json(kGroup16Zeros);
  const struct {
    const char* what;
    Tensors tensors;
    std::string config;
    const char* words;
  } cases[] = {
      {"no scale", without("l.weight_scale"), group16, "but no l.weight_scale"},
      {"no shape", without("l.weight_shape"), group16, "but no l.weight_shape"},
      {"no zeros", group_layer(), zeros, "but no l.weight_zero_point"},
      {"no order", group_layer(), config_json(kGroup16 + R"(,"actorder":"group")"), "but no l.weight_g_idx"},
      {"no packed layer", {{"l.weight", "F32", {1, 1}, f32({1})}}, group16, "no tensor is named *.weight_packed"},
      {"both forms", with({"l.weight", "F32", {1, 1}, f32({1})}), group16, "has both a .weight and a .weight_packed"},
      {"packed bytes", with({"l.weight_packed", "U8", {2, 16}, std::string(32, 'x')}), group16,
       "packed as I32 [n, ceil(k / 8)]"},
      {"experts with the shape of one", with({"l.weight_packed", "I32", {1, 2, 4}, std::string(32, 'x')}), group16,
       "the shape of a layer needs I64 [3]"},
      {"no experts", with({"l.weight_packed", "I32", {0, 2, 4}, ""}), group16, "which holds nothing"},
      {"flat words", with({"l.weight_packed", "I32", {8}, std::string(32, 'x')}), group16, "packed as I32"},
      {"shape of 3", with({"l.weight_shape", "I64", {3}, i64({2, 32, 1})}), group16,
       "the shape of a layer needs I64 [2]"},
      {"shape as float", with({"l.weight_shape", "F32", {2}, f32({2, 32})}), group16, "needs I64 [2]"},
      {"too many rows", with({"l.weight_shape", "I64", {2}, i64({3, 32})}), group16,
       "holds [3, 32], which does not fit"},
      {"too many columns", with({"l.weight_shape", "I64", {2}, i64({2, 33})}), group16,
       "does not fit weight_packed's shape"},
      {"too few columns", with({"l.weight_shape", "I64", {2}, i64({2, 24})}), group16, "does not fit"},
      {"negative columns", with({"l.weight_shape", "I64", {2}, i64({2, -32})}), group16, "holds [2, -32]"},
      {"no rows", with({"l.weight_shape", "I64", {2}, i64({0, 32})}), group16, "holds [0, 32]"},
      {"enormous columns", with({"l.weight_shape", "I64", {2}, i64({2, INT64_MAX})}), group16, "does not fit"},
      {"wrong scale shape", with({"l.weight_scale", "BF16", {2, 4}, u16(std::vector<uint16_t>(8, kBf16One))}), group16,
       "n = 2, k = 32 in groups of 16 (config.json) needs BF16, F16 or F32 [2, 2]"},
      {"transposed scales", with({"l.weight_scale", "BF16", {4}, u16(std::vector<uint16_t>(4, kBf16One))}), group16,
       "[2, 2]"},
      {"integer scales", with({"l.weight_scale", "I16", {2, 2}, u16({1, 1, 1, 1})}), group16, "is I16 [2, 2]"},
      {"double scales", with({"l.weight_scale", "F64", {2, 2}, std::string(32, '\0')}), group16, "is F64 [2, 2]"},
      {"NaN scale", with({"l.weight_scale", "BF16", {2, 2}, u16({kBf16One, kBf16Nan, 0, 0})}), group16,
       "element 1 of shape [2, 2] is nan"},
      {"infinite scale", with({"l.weight_scale", "BF16", {2, 2}, u16({0, 0, 0, kBf16Infinity})}), group16,
       "element 3 of shape [2, 2] is inf"},
      {"minus infinite scale", with({"l.weight_scale", "F32", {2, 2}, f32({-INFINITY, 1, 1, 1})}), group16,
       "element 0 of shape [2, 2] is -inf"},
      {"a group that does not divide", group_layer(), config_json(R"("strategy":"group","group_size":24)"),
       "no multiple of config.json's group_size 24"},
      {"another group size", group_layer(), config_json(R"("strategy":"group","group_size":8)"),
       "needs BF16, F16 or F32 [2, 4]"},
      {"zeros of the wrong shape", with({"l.weight_zero_point", "I32", {2, 2}, std::string(16, '\0')}), zeros,
       "needs I32 [1, 2]"},
      {"zeros unpacked", with({"l.weight_zero_point", "I8", {2, 2}, std::string(4, '\0')}), zeros, "is I8 [2, 2]"},
      {"stray zeros", with(group_zeros()), group16, "row 0, group 0 is -5, but config.json calls the layer symmetric"},
      {"a bias of another length", with({"l.bias", "F32", {3}, f32({1, 2, 3})}), group16,
       "the layer's 2 output features need [2]"},
      {"an integer bias", with({"l.bias", "I32", {2}, i32({1, 2})}), group16, "is none of BF16, F16 and F32"},
      {"a NaN bias", with({"l.bias", "F32", {2}, f32({1, NAN})}), group16, "bias"},
      {"a dense layer with NaN", with({"d.weight", "F32", {1, 2}, f32({1, NAN})}), group16,
       "tensor 'd.weight': element 1"},
  };
  for (const auto& broken : cases) {
    const TempFolder folder;
    write_model(folder, broken.tensors, broken.config);
    const auto checkpoint = open_checkpoint(folder.path());
    const Result<void> checked = checkpoint ? (*checkpoint)->check({}) : checkpoint.error();
    ASSERT_FALSE(checked) << broken.what;
    EXPECT_THAT(checked.error().message, HasSubstr(broken.words)) << broken.what;
    EXPECT_THAT(checked.error().message, HasSubstr(folder.path())) << broken.what;
    EXPECT_EQ(checked.error().code, ErrorCode::kInvalidData) << broken.what;
  }
}

TEST(CompressedTensors, RefusesForeignConfigurationsByNameWithTheWayOut) {
  const auto settings = [](const std::string& inside) { return R"({"quantization_config":{)" + inside + "}}"; };
  const auto format = [&](const std::string& name) {
    return settings(R"("quant_method":"compressed-tensors","format":")" + name + R"(","config_groups":{})");
  };
  const auto replaced = [](std::string text, std::string_view what, std::string_view by) {
    EXPECT_NE(text.find(what), std::string::npos) << what;
    return text.replace(text.find(what), what.size(), by);
  };
  const std::string fine = config_json(kGroup16);
  using enum ErrorCode;
  const struct {
    std::string config;
    ErrorCode code;
    const char* words;
  } cases[] = {
      {format("marlin-24"), kUnsupported,
       "format 'marlin-24' is not read: it holds 2:4 sparse weights in one kernel's own layout"},
      {format("sparse-24-bitmask"), kUnsupported, "'sparse-24-bitmask' is not read"},
      {format("sparse-bitmask"), kUnsupported, "'sparse-bitmask' is not read"},
      {format("mxfp6-pack-quantized"), kUnsupported, "its weights are 6-bit floats"},
      {format("mxfp8-quantized"), kUnsupported, "its weights are 8-bit floats"},
      {format("int-quantized"), kUnsupported, "its weights are 8-bit integers"},
      {format("float-quantized"), kUnsupported, "its weights are 8-bit floats"},
      {format("dense"), kUnsupported, "remove quantization_config"},
      {format("tomorrow"), kUnsupported, "format 'tomorrow' is not read"},
      {settings(R"("quant_method":"compressed-tensors")"), kUnsupported, "format '' is not read"},
      {settings(R"("quant_method":"tomorrow","bits":4)"), kUnsupported,
       "it is quantized with 'tomorrow'; known formats are compressed-tensors"},
      {settings(R"("bits":4)"), kUnsupported, "an unnamed method"},
      {format("pack-quantized"), kInvalidData, "has no config_groups"},
      {replaced(fine, "\"num_bits\":4", "\"num_bits\":8"), kUnsupported, "are 'int' of '8' bits; only 4-bit integers"},
      {replaced(fine, "\"num_bits\":4", "\"num_bits\":4.0"), kInvalidData, "num_bits must be a whole number"},
      {replaced(fine, "\"num_bits\":4", "\"bits\":4"), kInvalidData, "num_bits must be a whole number"},
      {replaced(fine, "\"type\":\"int\"", "\"type\":\"float\""), kUnsupported, "are 'float' of '4' bits"},
      {replaced(fine, "\"input_activations\":null", R"("input_activations":{"num_bits":8})"), kUnsupported,
       "input_activations is set"},
      {replaced(fine, "\"output_activations\":null", R"("output_activations":{})"), kUnsupported,
       "output_activations is set"},
      {replaced(fine, "\"quantization_status\":\"compressed\"", R"("quantization_status":"frozen")"), kUnsupported,
       "quantization_status is '\"frozen\"', not 'compressed'"},
      {replaced(fine, "\"ignore\"", R"("sparsity_config":{"format":"sparse-24-bitmask"},"ignore")"), kUnsupported,
       "sparsity_config"},
      {replaced(fine, "\"ignore\"",
                R"("transform_config":{"config_groups":{"R4":{"type":"hadamard","apply":[)"
                R"({"location":"weight_input"},{"location":"input"}]}}},"ignore")"),
       kUnsupported, "transform_config applies to 'input'"},
      {replaced(fine, "\"ignore\"", R"("transform_config":{"config_groups":{"R4":7}},"ignore")"), kUnsupported,
       "transform_config has a group without"},
      {replaced(fine, "\"ignore\"", R"("transform_config":true,"ignore")"), kUnsupported, "transform_config is"},
      {replaced(fine, "\"group\"", "\"block\""), kUnsupported, "weights.strategy 'block' is not read"},
      {replaced(fine, "\"group\"", "\"tensor\""), kInvalidData, "weights.strategy is 'tensor', but group_size is 16"},
      {replaced(fine, "\"group\"", "\"block\""), kUnsupported, "weights.strategy 'block' is not read"},
      {replaced(fine, "\"group_size\":16", "\"group_size\":0"), kInvalidData, "weights.group_size is '0'"},
      {replaced(fine, "\"group_size\":16", "\"group_size\":-2"), kInvalidData, "weights.group_size is '-2'"},
      {replaced(fine, "\"group_size\":16", "\"group_size\":1e9"), kInvalidData, "weights.group_size is"},
      {replaced(fine, "\"group_size\":16", "\"group_size\":99999999999"), kInvalidData, "weights.group_size is"},
      {replaced(fine, "\"group_size\":16", "\"group_size\":null"), kInvalidData, "no positive group_size"},
      {replaced(fine, "\"strategy\":\"group\"", "\"strategy\":\"channel\""), kInvalidData,
       "'channel', but group_size is 16"},
      {replaced(fine, "\"symmetric\":true", "\"symmetric\":\"yes\""), kInvalidData, "symmetric must be true or false"},
      {replaced(fine, "\"symmetric\":true", "\"symmetric\":true,\"dynamic\":true"), kInvalidData,
       "dynamic must be false"},
      {replaced(fine, "[\"Linear\"]", "\"Linear\""), kInvalidData, "targets must be an array of strings"},
      {replaced(fine, "[\"Linear\"]", "[1]"), kInvalidData, "targets must be an array of strings"},
      {replaced(fine, "[\"Linear\"]", "[]"), kInvalidData, "no target of config.json's config_groups matches it"},
      {replaced(fine, "[\"Linear\"]", "[\"re:other.*\"]"), kInvalidData,
       "no target of config.json's config_groups matches it"},
      {replaced(fine, "[\"Linear\"]", "[\"re:(\"]"), kUnsupported, "is no regular expression"},
      {replaced(fine, "[\"Linear\"]", "[\"re:a{2,1}\"]"), kUnsupported, "is no regular expression"},
      {replaced(fine, "[\"Linear\"]", "[\"re:" + std::string(3000, 'a') + "\"]"), kUnsupported, "has 3000 bytes"},
      {replaced(fine, "[\"lm_head\"]", "[\"l\"]"), kInvalidData, "ignore list says that it is not quantized"},
      {replaced(fine, "[\"lm_head\"]", "[\"re:^l$\"]"), kInvalidData, "ignore list says that it is not quantized"},
      {replaced(fine, "[\"lm_head\"]", "7"), kInvalidData, "ignore must be an array of strings"},
      {replaced(fine, "\"weights\":{", "\"weights\":7,\"was\":{"), kInvalidData, "weights must be an object"},
      {replaced(fine, "\"group_0\":{", "\"group_0\":7,\"was\":{"), kInvalidData,
       "config_groups.group_0 must be an object"},
      {replaced(fine, "\"format\":\"pack-quantized\"", R"("format":"mixed-precision")"), kUnsupported,
       "format 'mixed-precision' is not read"},
  };
  for (const auto& foreign : cases) {
    const TempFolder folder;
    write_model(folder, group_layer(), foreign.config);
    const auto checkpoint = open_checkpoint(folder.path());
    ASSERT_FALSE(checkpoint) << foreign.config;
    EXPECT_EQ(checkpoint.error().code, foreign.code) << foreign.config << "\n" << checkpoint.error().message;
    EXPECT_THAT(checkpoint.error().message, HasSubstr(foreign.words)) << foreign.config;
    EXPECT_THAT(checkpoint.error().message, HasSubstr(folder.path()));
  }
  const TempFolder folder;  // no configuration at all
  write_text(folder / "model.safetensors", safetensors(group_layer()));
  EXPECT_THAT(open_checkpoint(folder.path()).error().message, HasSubstr("but no config.json beside it"));
}

TEST(CompressedTensors, RotatedWeightsNeedNothing) {
  for (const char* transforms : {"{}", "null", R"({"config_groups":{}})",
                                 R"({"config_groups":{"R1":{"apply":[{"location":"weight_output"}]}}})"}) {
    const TempFolder folder;
    write_model(folder, group_layer(), config_json(kGroup16, ",\"transform_config\":" + std::string(transforms)));
    const auto checkpoint = open_checkpoint(folder.path());
    EXPECT_TRUE(checkpoint) << checkpoint.error().message;
  }
}

TEST(CompressedTensors, FindsItsSettingsWhereverModelsKeepThem) {
  const std::string fine = config_json(kGroup16);
  const std::string inside = fine.substr(1, fine.size() - 2);
  for (const std::string& config : {R"({"text_config":{)" + inside + "}}", R"({"text_config":null,)" + inside + "}"}) {
    const TempFolder folder;
    write_model(folder, group_layer(), config);
    const auto checkpoint = open_checkpoint(folder.path());
    EXPECT_TRUE(checkpoint) << checkpoint.error().message;
  }
}

// The most particular target decides: a name before an expression before a class.
TEST(CompressedTensors, MatchesTargetsLikeTheMethodsOwnLibrary) {
  const auto group = [](const std::string& name, const std::string& targets, int size) {
    return "\"" + name + "\":{\"targets\":" + targets + R"(,"weights":{"num_bits":4,"group_size":)" +
           std::to_string(size) + "}}";
  };
  const auto parse = [](const std::string& groups, const std::string& ignore = "[]") {
    base::MatchBudget budget;
    return checkpoint::CompressedTensorsConfig::parse(
        nlohmann::json::parse(R"({"format":"pack-quantized","config_groups":{)" + groups + R"(},"ignore":)" + ignore +
                              "}"),
        "m", budget);
  };
  base::MatchBudget budget;
  const auto config = parse(group("a", R"(["Linear"])", 128) + "," + group("b", R"(["re:.*down_proj"])", 64) + "," +
                                group("c", R"(["layers.0.down_proj"])", 32),
                            R"(["lm_head","re:vision\\."])");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->scheme_of("layers.0.up_proj", budget)->group_size, 128);
  EXPECT_EQ(config->scheme_of("layers.1.down_proj", budget)->group_size, 64);
  EXPECT_EQ(config->scheme_of("layers.1.down_proj.extra", budget)->group_size, 64);  // re.match: not to the end
  EXPECT_EQ(config->scheme_of("layers.0.down_proj", budget)->group_size, 32);
  EXPECT_FALSE(config->scheme_of("lm_head", budget));
  EXPECT_FALSE(config->scheme_of("vision.blocks.0", budget));
  EXPECT_TRUE(config->scheme_of("model.vision.blocks.0", budget));  // re.match: from the beginning

  const auto ambiguous = parse(group("a", R"(["re:.*a.*"])", 128) + "," + group("b", R"(["re:.*b.*"])", 64));
  EXPECT_EQ(ambiguous->scheme_of("a", budget)->group_size, 128);
  EXPECT_THAT(ambiguous->scheme_of("ab", budget).error().message, HasSubstr("matches both 'a' and 'b'"));
  const auto agreeing = parse(group("a", R"(["re:.*a.*"])", 64) + "," + group("b", R"(["re:.*b.*"])", 64));
  EXPECT_EQ(agreeing->scheme_of("ab", budget)->group_size, 64);

  const auto preset = parse(R"("W4A16_ASYM":["Linear"])");
  ASSERT_TRUE(preset) << preset.error().message;
  EXPECT_EQ(*preset->scheme_of("x", budget), (checkpoint::LayerScheme{.symmetric = false, .group_size = 128}));
  EXPECT_FALSE(parse(R"("W8A8":["Linear"])"));
  EXPECT_EQ(parse(group("a", R"(["Linear"])", -1))->scheme_of("x", budget)->group_size, kPerColumn);
}

TEST(Dense, ListsLinearLayersOnly) {
  const TempFolder folder;
  write_text(folder / "model.safetensors", safetensors({{"a.weight", "F32", {2, 3}, f32({1, 2, 3, 4, 5, 6})},
                                                        {"a.bias", "F16", {2}, u16({0x3C00, 0x4000})},
                                                        {"b.weight", "BF16", {1, 2}, u16({kBf16One, kBf16Two})},
                                                        {"norm.weight", "F32", {2}, f32({1, 1})},
                                                        {"conv.weight", "F32", {1, 1, 1, 1}, f32({1})},
                                                        {"table.weight", "I32", {1, 1}, i32({1})},
                                                        {"fp8.weight", "F8_E4M3", {1, 1}, "x"},
                                                        {"double.weight", "F64", {1, 1}, std::string(8, '\0')},
                                                        {"empty.weight", "F32", {0, 4}, ""},
                                                        {"transposed.weight", "F32", {1, 2}, f32({1, 2})},
                                                        {"transposed.bias", "F32", {2}, f32({1, 2})},
                                                        {".weight", "F32", {1, 1}, f32({1})},
                                                        {"a.other", "F32", {1, 1}, f32({1})}}));
  const auto checkpoint = open_checkpoint(folder.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ((*checkpoint)->format(), "dense");
  EXPECT_THAT((*checkpoint)->convention(), HasSubstr("2 2-D *.weight tensors"));
  ASSERT_EQ((*checkpoint)->layers().size(), 2u);
  EXPECT_EQ((*checkpoint)->layers()[1].dense_dtype, DType::kBf16);
  const auto a = (*checkpoint)->read_dense("a");
  ASSERT_TRUE(a) << a.error().message;
  EXPECT_EQ(a->name, "a");
  EXPECT_EQ(a->n, 2);
  EXPECT_EQ(a->k, 3);
  EXPECT_EQ(a->values.at(5), 6.0f);
  EXPECT_EQ(a->bias.at(1), 2.0f);
  EXPECT_TRUE((*checkpoint)->check({}));
}

TEST(Dense, DoesNotTakeForeignModelsForDenseOnes) {
  for (const char* name : {"l.qweight", "l.weight.absmax", "l.weight_scale", "l.weight_scale_inv"}) {
    const TempFolder folder;
    write_text(folder / "model.safetensors",
               safetensors({{name, "U8", {1}, "x"}, {"lm_head.weight", "F32", {1, 1}, f32({1})}}));
    const auto checkpoint = open_checkpoint(folder.path());
    ASSERT_FALSE(checkpoint) << name;
    EXPECT_EQ(checkpoint.error().code, ErrorCode::kUnsupported);
    EXPECT_THAT(checkpoint.error().message, HasSubstr("that no config.json names"));
  }
}

TEST(Dense, ChecksThatWeightsAreFinite) {
  for (const auto& [dtype, bytes] : {std::pair<const char*, std::string>{"BF16", u16({kBf16One, kBf16Nan})},
                                     {"F16", u16({0x3C00, 0xFC00})},
                                     {"F32", f32({1, INFINITY})}}) {
    const TempFolder folder;
    write_text(folder / "model.safetensors", safetensors({{"l.weight", dtype, {1, 2}, bytes}}));
    const auto checkpoint = open_checkpoint(folder.path());
    ASSERT_TRUE(checkpoint);
    const Result<void> checked = (*checkpoint)->check({});
    ASSERT_FALSE(checked) << dtype;
    EXPECT_THAT(checked.error().message, HasSubstr("tensor 'l.weight': element 1 of shape [1, 2]"));
  }
}

}  // namespace
}  // namespace nybble
