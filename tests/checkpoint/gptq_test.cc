#include "checkpoint/test_model.h"

namespace nybble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using namespace nybble::testing;

std::string config(const std::string& settings) {
  return R"({"quantization_config":{"quant_method":"gptq","bits":4,)" + settings + "}}";
}
const std::string kV1 = config(R"("group_size":8,"sym":true,"desc_act":false)");
const std::string kV2 = config(R"("group_size":8,"sym":true,"checkpoint_format":"gptq_v2")");
const std::string kAsymmetric = config(R"("group_size":8,"sym":false)");

TestTensor zeros(std::vector<uint32_t> words) { return {"l.qzeros", "I32", {2, 1}, i32(words)}; }
TestTensor order(std::vector<uint32_t> groups) {
  return {"l.g_idx", "I32", {static_cast<int64_t>(groups.size())}, i32(groups)};
}

// 2 x 16 in groups of 8: the codes of row 0 rise from 0, those of row 1 fall from 15.
Tensors layer() {
  return {{"l.qweight", "I32", {2, 2}, i32({0x76543210, 0x89ABCDEF, 0xFEDCBA98, 0x01234567})},
          {"l.scales", "F16", {2, 2}, u16({0x3C00, 0x4000, 0x3800, 0xBC00})},  // 1, 2 then 0.5, -1
          zeros({0x77777777, 0x77777777}),
          {"l.bias", "F16", {2}, u16({0x3C00, 0x4000})},
          {"lm_head.weight", "F32", {1, 2}, f32({1, 2})}};
}

TEST(Gptq, SymmetricLayersOfBothFormatsReadAlike) {
  for (const auto& [words, settings] : {std::pair{0x77777777u, kV1}, {0x88888888u, kV2}}) {
    const TestModel model(with(layer(), zeros({words, words})), settings);
    const auto checkpoint = model.open();
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    EXPECT_EQ((*checkpoint)->format(), "gptq");
    EXPECT_THAT((*checkpoint)->warnings(), IsEmpty());
    ASSERT_EQ((*checkpoint)->layers().size(), 2u);
    EXPECT_EQ((*checkpoint)->layers()[0].format,
              (WeightFormat{.scale_dtype = DType::kFp16, .zero_kind = ZeroKind::kNone, .group_size = 8}));
    const auto weight = (*checkpoint)->read_quantized("l");
    ASSERT_TRUE(weight) << weight.error().message;
    EXPECT_EQ(dequantize(*weight),
              (std::vector<float>{-8, -7, -6, -5, -4, -3, -2, -1, 0, 0.5f, 1, 1.5f, 2, 2.5f, 3, 3.5f,  //
                                  14, 12, 10, 8,  6,  4,  2,  0,  1, 2,    3, 4,    5, 6,    7, 8}));
    EXPECT_EQ(weight->bias.at(1), 2.0f);
    EXPECT_TRUE((*checkpoint)->check({}));
    EXPECT_EQ((*checkpoint)->other_tensors().size(), 2u);  // bias and lm_head
  }
}

TEST(Gptq, StoredZerosOfSymmetricLayersAreBelievedOverTheConfiguration) {
  const TestModel model(with(layer(), zeros({0x88888888, 0x88888888})), kV1);
  const auto checkpoint = model.open();
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_THAT((*checkpoint)->warnings(), ElementsAre(HasSubstr("stored as 8, which is a symmetric layer of gptq_v2")));
  EXPECT_EQ((*checkpoint)->layers()[0].format.zero_kind, ZeroKind::kNone);
}

// Old configurations lack sym, and their libraries take the model for symmetric.
TEST(Gptq, WithoutSymTheStoredZerosDecide) {
  for (const uint32_t word : {0x77777777u, 0x88888888u}) {
    const TestModel model(with(layer(), zeros({word, word})), config(R"("group_size":8)"));
    const auto checkpoint = model.open();
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    EXPECT_EQ((*checkpoint)->warnings().size(), word == 0x77777777u ? 0u : 1u);
    const auto weight = (*checkpoint)->read_quantized("l");
    ASSERT_TRUE(weight) << weight.error().message;
    EXPECT_EQ(weight->zero_kind, ZeroKind::kNone);
  }
}

// Asymmetric by the configuration, but every zero point is 8 once it is read as its writer meant it: nothing is left to
// warn of, and no zero points to multiply with.
TEST(Gptq, ZeroPointsOf8AloneAreSymmetric) {
  const struct {
    uint32_t word;
    const char* settings;
  } cases[] = {{0x77777777, ""},
               {0x77777777, R"(,"meta":{"quantizer":["gptqmodel:7.7.0"]})"},
               {0x77777777, R"(,"autoround_version":"0.9")"},
               {0x88888888, R"(,"format":"gptq_v2")"}};
  for (const auto& [word, settings] : cases) {
    SCOPED_TRACE(settings);
    // n = 2: what stands in the words' other nibbles is no zero point.
    const TestModel model(with(layer(), zeros({word, word & 0xFF})),
                          config(R"("group_size":8,"sym":false)" + std::string(settings)));
    const auto weight = read_as_symmetric(model);
    ASSERT_TRUE(weight) << weight.error().message;
    EXPECT_EQ(*weight, *TestModel(layer(), kV1).read("l"));
  }
}

// Zero points 0 and 8 as GPTQModel stores them: 8 - 1 borrowed by the word's subtraction; and 15, stored as 14.
TEST(Gptq, AsymmetricZerosAreReadAsTheirWriterReadsThem) {
  const Tensors tensors = with(layer(), zeros({0x0000006F, 0x000000FE}));
  const struct {
    std::string settings;
    std::vector<uint8_t> zeros;  // [n, groups]
    size_t warnings;
  } cases[] = {
      {R"(,"meta":{"quantizer":["gptqmodel:7.7.0"]})", {0, 15, 8, 0}, 1},
      {"", {0, 15, 7, 0}, 1},
      {R"(,"autoround_version":"0.9")", {16, 15, 7, 16}, 1},
      {R"(,"format":"gptq_v2")", {15, 14, 6, 15}, 0},
  };
  for (const auto& [settings, expected, warnings] : cases) {
    const TestModel model(tensors, config(R"("group_size":8,"sym":false)" + settings));
    const auto checkpoint = model.open();
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    EXPECT_EQ((*checkpoint)->warnings().size(), warnings) << settings;
    const auto weight = (*checkpoint)->read_quantized("l");
    ASSERT_TRUE(weight) << weight.error().message;
    EXPECT_EQ(weight->zero_kind, ZeroKind::kInt);
    EXPECT_EQ(weight->int_zeros, expected) << settings;
  }
}

TEST(Gptq, ActOrderSortsInputFeaturesByGroup) {
  const std::vector<uint32_t> groups = {1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0};
  for (const bool declared : {true, false}) {
    const TestModel model(with(layer(), order(groups)), config(std::string(R"("group_size":8,"sym":true,"desc_act":)") +
                                                               (declared ? "true" : "false")));
    const auto checkpoint = model.open();
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    EXPECT_EQ((*checkpoint)->warnings().size(), declared ? 0u : 1u);
    EXPECT_TRUE((*checkpoint)->layers()[0].format.k_order);
    const auto weight = (*checkpoint)->read_quantized("l");
    ASSERT_TRUE(weight) << weight.error().message;
    EXPECT_THAT(weight->k_order, ElementsAre(1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6, 8, 10, 12, 14));
    EXPECT_EQ(dequantize(*weight)[0], -4.0f);  // code 0 in group 1
    EXPECT_EQ(dequantize(*weight)[1], -7.0f);  // code 1 in group 0
  }
}

TEST(Gptq, TailsOfWordsAndGroups) {  // k = 13: the last word is not full, nor the last group
  const TestModel model(with(layer(), order({0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1})), kV1);
  const auto weight = model.read("l");
  ASSERT_TRUE(weight) << weight.error().message;
  EXPECT_EQ(weight->k, 13);
  EXPECT_THAT(weight->k_order, IsEmpty());
  EXPECT_EQ(weight->codes[12], 12);
  EXPECT_EQ(weight->codes[13], 15);
}

TEST(Gptq, WithoutAConfigurationOnlyWhatIsCertain) {
  const TestModel model(layer());
  const auto weight = model.read("l");
  ASSERT_TRUE(weight) << weight.error().message;
  EXPECT_EQ(weight->group_size, 8);
  EXPECT_EQ(weight->zero_kind, ZeroKind::kNone);
  expect_refused(TestModel(with(layer(), zeros({0x77777770, 0x77777777}))), ErrorCode::kInvalidData,
                 "only zero points that are all 7 or all 8", "mixed zeros");
}

TEST(Gptq, ExceptionsByName) {
  const std::string start = R"("group_size":64,"sym":true,"dynamic":)";
  const auto weight = TestModel(layer(), config(start + R"({"+:l":{"group_size":8}})")).read("l");
  ASSERT_TRUE(weight) << weight.error().message;
  EXPECT_EQ(weight->group_size, 8);
  expect_refused(TestModel(layer(), config(start + R"({"-:l":{}})")), ErrorCode::kInvalidData,
                 "dynamic '-:l' says that it is not quantized", "excluded");
  expect_refused(TestModel(layer(), config(start + R"({"l":{"bits":8}})")), ErrorCode::kUnsupported,
                 "layer 'l': bits is 8", "8 bits");
  EXPECT_TRUE(TestModel(layer(), config(R"("group_size":8,"dynamic":{"other":{"bits":8}})")).check());
}

// GPTQModel takes the first pattern that matches, as they stand in the file: 'l' sorts before 'l.*' and after '.*'.
TEST(Gptq, TheFirstExceptionOfTheFileDecides) {
  for (const auto& [dynamic, group] : {std::pair{R"({"l":{"group_size":8},".*":{"group_size":16}})", 8},
                                       {R"({".*":{"group_size":8},"l":{"group_size":16}})", 8},
                                       {R"({"l.*":{"group_size":8},"l":{"group_size":16}})", 8}}) {
    const auto weight = TestModel(layer(), config(std::string(R"("group_size":64,"dynamic":)") + dynamic)).read("l");
    ASSERT_TRUE(weight) << weight.error().message;
    EXPECT_EQ(weight->group_size, group) << dynamic;
  }
  // The settings may stand deeper, or in a file of their own.
  const std::string inside = R"({"quant_method":"gptq","bits":4,"group_size":64,
                                 "dynamic":{"l.*":{"group_size":8},"l":{"group_size":16}}})";
  EXPECT_TRUE(TestModel(layer(), R"({"text_config":{"quantization_config":)" + inside + "}}").check());
  const TestModel own(layer());
  write_text(own.path() + "/quantize_config.json", inside);
  EXPECT_TRUE(own.check());
}

TEST(Gptq, RefusesOtherFormatsByName) {
  for (const char* format : {"marlin", "bitblas", "gptq_p", "qqq"})
    expect_refused(TestModel(layer(), config(R"("group_size":8,"checkpoint_format":")" + std::string(format) + "\"")),
                   ErrorCode::kUnsupported, "format '" + std::string(format) + "' is not read", format);
  expect_refused(TestModel(layer(), config(R"("is_marlin_format":true)")), ErrorCode::kUnsupported, "is_marlin_format",
                 "marlin");
  expect_refused(TestModel(layer(), config(R"("pack_dtype":"int16")")), ErrorCode::kUnsupported, "pack_dtype 'int16'",
                 "pack_dtype");
  for (const char* bits : {"2", "3", "8"})
    expect_refused(
        TestModel(layer(), std::string(R"({"quantization_config":{"quant_method":"gptq","bits":)") + bits + "}}"),
        ErrorCode::kUnsupported, std::string("bits is ") + bits, bits);
}

TEST(Gptq, RefusesTensorsThatDoNotFit) {
  const struct {
    TestTensor tensor;
    ErrorCode code;
    const char* words;
  } cases[] = {
      {{"l.qweight", "I64", {2, 1}, i64({0, 0})}, ErrorCode::kInvalidData, "'l.qweight': is I64 [2, 1]"},
      {{"l.scales", "F16", {1, 2}, u16({0, 0})}, ErrorCode::kInvalidData, "has 1 rows, but k = 16 in groups of 8"},
      {{"l.scales", "F16", {2, 1}, u16({0, 0})}, ErrorCode::kInvalidData, "needs BF16, F16 or F32 [groups, 2]"},
      {{"l.scales", "F16", {2, 2}, u16({0, 0, 0x7C00, 0})}, ErrorCode::kInvalidData, "element 2"},
      {{"l.qzeros", "I32", {1, 1}, i32({0})}, ErrorCode::kInvalidData, "'l.qzeros'"},
      {order({0, 1}), ErrorCode::kInvalidData, "needs I32 [k] with k = 9 to 16"},
      {order({0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2}), ErrorCode::kInvalidData, "element 15 is 2"},
      {order({0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1}), ErrorCode::kUnsupported, "only equal groups are read"},
  };
  for (const auto& [tensor, code, words] : cases)
    expect_refused(TestModel(with(layer(), tensor), kV1), code, words, tensor.name);
  for (const char* name : {"l.scales", "l.qzeros"})
    expect_refused(TestModel(without(layer(), name), kV1), ErrorCode::kInvalidData, name, "missing");
  expect_refused(TestModel(layer(), config(R"("group_size":8,"desc_act":true)")), ErrorCode::kInvalidData, "l.g_idx",
                 "act-order without an order");
}

}  // namespace
}  // namespace nybble
