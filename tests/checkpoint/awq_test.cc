#include "checkpoint/test_model.h"

namespace nybble {
namespace {

using namespace nybble::testing;

std::string config(const std::string& settings) {
  return R"({"quantization_config":{"quant_method":"awq",)" + settings + "}}";
}
const std::string kConfig = config(R"("bits":4,"group_size":1,"zero_point":true,"version":"gemm")");

// 8 x 2 in groups of 1. Nibbles 0 to 7 of a word are columns 0, 2, 4, 6, 1, 3, 5, 7.
Tensors layer() {
  return {{"l.qweight", "I32", {2, 1}, i32({0x75316420, 0xFDB9ECA8})},
          {"l.qzeros", "I32", {2, 1}, i32({0x00000001, 0xF0000008})},
          {"l.scales", "F16", {2, 8}, u16(std::vector<uint16_t>(16, 0x3C00))}};
}

TEST(Awq, UndoesTheInterleavingOfColumns) {
  const auto weight = TestModel(layer(), kConfig).read("l");
  ASSERT_TRUE(weight) << weight.error().message;
  EXPECT_EQ(weight->codes, (std::vector<uint8_t>{0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15}));
  EXPECT_EQ(weight->int_zeros, (std::vector<uint8_t>{1, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 15}));
  EXPECT_EQ(dequantize(*weight), (std::vector<float>{-1, 0, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 0}));
}

TEST(Awq, WithoutZeroPointsTheyAre8) {
  const auto weight =
      TestModel(without(layer(), "l.qzeros"), config(R"("w_bit":4,"q_group_size":1,"zero_point":false)")).read("l");
  ASSERT_TRUE(weight) << weight.error().message;
  EXPECT_EQ(weight->zero_kind, ZeroKind::kNone);
  EXPECT_EQ(dequantize(*weight)[0], -8.0f);
}

// Zero points of 8 are dropped where the model has no others, and the weights stay what they were, bit for bit.
TEST(Awq, ZeroPointsOf8AloneAreSymmetric) {
  using ::testing::HasSubstr, ::testing::Not;
  const auto named = [](const std::string& name, std::vector<uint32_t> zeros) {
    Tensors tensors = layer();
    for (TestTensor& tensor : tensors) {
      tensor.name = name + tensor.name.substr(1);
      if (tensor.name.ends_with("qzeros")) tensor.bytes = i32(zeros);
    }
    return tensors;
  };
  const std::vector<uint32_t> eights = {0x88888888, 0x88888888}, others = {0x88888888, 0x88888887};
  const Tensors symmetric = named("l", eights);
  for (const char* zero_point : {"true", "false"}) {
    const TestModel model(symmetric, config(R"("bits":4,"group_size":1,"zero_point":)" + std::string(zero_point)));
    const auto weight = read_as_symmetric(model);
    ASSERT_TRUE(weight) << weight.error().message;
    QuantizedWeight with_zeros = *weight;
    with_zeros.zero_kind = ZeroKind::kInt;
    with_zeros.int_zeros.assign(16, 8);
    EXPECT_EQ(dequantize(*weight), dequantize(with_zeros));
  }
  // One zero point of one layer, and every layer keeps them.
  Tensors both = named("a", eights);
  for (const TestTensor& tensor : named("b", others)) both.push_back(tensor);
  const TestModel model(both, kConfig);
  const auto checkpoint = model.open();
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_THAT((*checkpoint)->convention(), Not(HasSubstr("symmetric")));
  for (const LayerInfo& info : (*checkpoint)->layers()) EXPECT_EQ(info.format.zero_kind, ZeroKind::kInt) << info.name;
  EXPECT_EQ((*checkpoint)->read_quantized("a")->int_zeros, std::vector<uint8_t>(16, 8));
  EXPECT_EQ((*checkpoint)->read_quantized("b")->int_zeros[1], 7);
}

// A model says what contradicts itself, and is read as it is stored.
TEST(Awq, WarnsOfContradictions) {
  using ::testing::AllOf, ::testing::ElementsAre, ::testing::HasSubstr, ::testing::IsEmpty;
  const auto warnings = [](const std::string& settings) {
    const TestModel model(layer(), config(R"("bits":4,"group_size":1,)" + settings));
    const auto checkpoint = model.open();
    EXPECT_TRUE(checkpoint && (*checkpoint)->check({}));
    return checkpoint ? (*checkpoint)->warnings() : std::vector<std::string>{checkpoint.error().message};
  };
  EXPECT_THAT(warnings(R"("zero_point":true,"modules_to_not_convert":["lm_head"])"), IsEmpty());
  EXPECT_THAT(warnings(R"("zero_point":true,"modules_to_not_convert":null)"), IsEmpty());
  EXPECT_THAT(
      warnings(R"("zero_point":false)"),
      ElementsAre(HasSubstr("zero_point is false, but zero points are stored and used: 1 layer, 'l' the first")));
  EXPECT_THAT(
      warnings(R"("modules_to_not_convert":["x","l"])"),
      ElementsAre(AllOf(HasSubstr("modules_to_not_convert names layers"), HasSubstr("1 layer, 'l' the first"))));
  expect_refused(TestModel(layer(), config(R"("bits":4,"group_size":1,"modules_to_not_convert":[1])")),
                 ErrorCode::kInvalidData, "modules_to_not_convert must be an array of strings", "modules");
}

TEST(Awq, SettingsInAFileOfTheirOwn) {
  const TestModel model(layer());
  write_text(model.path() + "/quant_config.json", R"({"zero_point":true,"q_group_size":1,"w_bit":4,"version":"GEMM"})");
  const auto weight = model.read("l");
  ASSERT_TRUE(weight) << weight.error().message;
  EXPECT_EQ(weight->codes[1], 8);
  write_text(model.path() + "/quant_config.json", "[]");
  expect_refused(model, ErrorCode::kInvalidData, "quant_config.json must be an object", "no object");
}

// 2 x 128 in groups of 64, of which there are two: their numbers stand in the first of two words, the rest is padding.
TEST(Awq, GemvKeepsWordsAlongInputFeatures) {
  std::vector<uint32_t> codes(2 * 16, 0x76543210);
  codes[16] = 0xFEDCBA98;  // row 1
  std::vector<uint16_t> scales(2 * 16, 0);
  scales[0] = scales[1] = 0x3C00;            // row 0: 1, 1
  scales[16] = 0x3800, scales[17] = 0xBC00;  // row 1: 0.5, -1
  const Tensors tensors = {{"l.qweight", "I32", {2, 16}, i32(codes)},
                           {"l.qzeros", "I32", {2, 2}, i32({0xFFFFFF10, 0xFFFFFFFF, 0x0000008F, 0})},
                           {"l.scales", "F16", {2, 16}, u16(scales)}};
  const std::string settings = config(R"("bits":4,"group_size":64,"version":"gemv")");
  const auto weight = TestModel(tensors, settings).read("l");
  ASSERT_TRUE(weight) << weight.error().message;
  EXPECT_EQ(weight->n, 2);
  EXPECT_EQ(weight->k, 128);
  EXPECT_EQ(weight->int_zeros, (std::vector<uint8_t>{0, 1, 15, 8}));
  const std::vector<float> values = dequantize(*weight);
  EXPECT_EQ(values[1], 1.0f);
  EXPECT_EQ(values[65], 0.0f);
  EXPECT_EQ(values[128], (8 - 15) * 0.5f);
  EXPECT_EQ(values[192 + 2], -(2 - 8.0f));

  expect_refused(TestModel(with(tensors, {"l.qzeros", "I32", {2, 1}, i32({0, 0})}), settings), ErrorCode::kInvalidData,
                 "'l.qzeros'", "too narrow");
  expect_refused(TestModel(with(tensors, {"l.scales", "F16", {2, 8}, u16(std::vector<uint16_t>(16, 0))}), settings),
                 ErrorCode::kInvalidData, "'l.scales'", "too narrow");
  for (const char* size : {"8", "48", "256"})
    expect_refused(TestModel(tensors, config(R"("bits":4,"version":"gemv","group_size":)" + std::string(size))),
                   ErrorCode::kInvalidData, "whole groups of 16, 32, 64 or 128", size);
}

// 4 x 64 in one group of 64: bits 4 e to 4 e + 3 of word 16 r + t are row r, column 32 (t / 8) + 8 e + t % 8.
TEST(Awq, GemvFastKeepsOffsets) {
  std::vector<uint16_t> codes(64, 0);
  codes[0] = 0x4321;       // row 0: columns 0, 8, 16, 24
  codes[16 + 9] = 0x8765;  // row 1: columns 33, 41, 49, 57
  const std::vector<uint16_t> scales(16 * 4, 0x3800);
  std::vector<uint16_t> offsets(16 * 4, 0);
  offsets[0] = 0xC000, offsets[1] = 0x3C00;  // -2, 1
  for (const auto& [version, zeros] : {std::pair{"gemv_fast", "l.qzeros"}, {"llm-awq", "l.scaled_zeros"}}) {
    const Tensors tensors = {{"l.qweight", "I16", {1, 64}, u16(codes)},
                             {"l.scales", "F16", {16, 4}, u16(scales)},
                             {zeros, "F16", {16, 4}, u16(offsets)}};
    const std::string settings = config(R"("bits":4,"group_size":64,"version":")" + std::string(version) + "\"");
    const TestModel model(tensors, settings);
    const auto weight = model.read("l");
    ASSERT_TRUE(weight) << weight.error().message;
    EXPECT_EQ(weight->zero_kind, ZeroKind::kOffset);
    const std::vector<float> values = dequantize(*weight);
    EXPECT_EQ(values[0], -1.5f);
    EXPECT_EQ(values[24], 0.0f);
    EXPECT_EQ(values[25], -2.0f);
    EXPECT_EQ(values[64 + 57], 5.0f);
    EXPECT_EQ(values[64 + 33], 3.5f);
    EXPECT_EQ((*model.open())->other_tensors().size(), 0u);
    expect_refused(TestModel(without(tensors, zeros), settings), ErrorCode::kInvalidData, zeros, "no offsets");
    expect_refused(TestModel(tensors, config(R"("bits":4,"group_size":64,"version":"gemm")")), ErrorCode::kInvalidData,
                   "packs 4-bit codes as I32 [k, n / 8] (gemm", "another version");
  }
}

TEST(Awq, RefusesByName) {
  for (const char* version : {"exllama", "ipex", "marlin"})
    expect_refused(TestModel(layer(), config(R"("bits":4,"group_size":1,"version":")" + std::string(version) + "\"")),
                   ErrorCode::kUnsupported, "version '" + std::string(version) + "' is not read", version);
  expect_refused(TestModel(layer(), config(R"("bits":8,"group_size":1)")), ErrorCode::kUnsupported, "bits is 8", "8");
  expect_refused(TestModel(without(layer(), "l.qzeros"), kConfig), ErrorCode::kInvalidData, "l.qzeros", "no zeros");
  expect_refused(TestModel(layer(), config(R"("bits":4,"group_size":2)")), ErrorCode::kInvalidData, "'l.scales'", "g");
}

}  // namespace
}  // namespace nybble
