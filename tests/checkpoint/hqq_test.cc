#include "checkpoint/test_model.h"

namespace nybble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using namespace nybble::testing;

const std::string kConfig = R"({"quantization_config":{"quant_method":"hqq","quant_config":{}}})";

TestTensor number(const std::string& name, uint32_t value) { return {"l." + name, "I32", {}, i32({value})}; }
TestTensor flag(const std::string& name, char value) { return {"l." + name, "U8", {}, std::string(1, value)}; }
TestTensor text(const std::string& name, const std::string& value) {
  return {"l." + name, "U8", {static_cast<int64_t>(value.size())}, value};
}

// 2 x 8 in groups of 4: codes 0 to 15; four groups, of which bytes hold the first two high and the last two low.
Tensors layer() {
  return {{"l.W_q", "U8", {2, 4}, "\x08\x19\x2A\x3B\x4C\x5D\x6E\x7F"},
          {"l.scale", "F16", {4, 1}, u16({0x3C00, 0x4000, 0x3800, 0xBC00})},  // 1, 2, 0.5, -1
          {"l.zero", "F16", {4, 1}, u16({0x3800, 0x4000, 0x4880, 0})},        // 0.5, 2, 9, 0
          {"l.shape", "I64", {2}, i64({2, 8})},
          number("nbits", 4),
          number("axis", 1),
          number("group_size", 4),
          text("packing", "4bit_u8"),
          text("unpack_view_dtype", "torch.uint8"),
          flag("view_as_float", 0),
          flag("channel_wise", 1),
          flag("round_zero", 1),
          {"l.bias", "F16", {2}, u16({0x3C00, 0x4000})},
          {"lm_head.weight", "F32", {1, 2}, f32({1, 2})}};
}

TEST(Hqq, ReadsHalvesOfTheGroupsFromBothHalvesOfAByte) {
  for (const std::string& config : {kConfig, std::string()}) {
    const TestModel model(layer(), config);
    const auto checkpoint = model.open();
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    EXPECT_EQ((*checkpoint)->format(), "hqq");
    EXPECT_THAT((*checkpoint)->convention(), HasSubstr("1 layers of 4-bit codes along axis 1"));
    ASSERT_EQ((*checkpoint)->layers().size(), 2u);
    EXPECT_EQ((*checkpoint)->layers()[0].format,
              (WeightFormat{.scale_dtype = DType::kFp16, .zero_kind = ZeroKind::kFloat, .group_size = 4}));
    const auto weight = (*checkpoint)->read_quantized("l");
    ASSERT_TRUE(weight) << weight.error().message;
    EXPECT_THAT(weight->codes, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    EXPECT_EQ(dequantize(*weight),
              (std::vector<float>{-0.5f, 0.5f, 1.5f, 2.5f, 4, 6, 8, 10, -0.5f, 0, 0.5f, 1, -12, -13, -14, -15}));
    EXPECT_EQ(weight->bias.at(1), 2.0f);
    EXPECT_TRUE((*checkpoint)->check({}));
    EXPECT_EQ((*checkpoint)->other_tensors().size(), 2u);  // bias and lm_head
  }
}

TEST(Hqq, TakesBytesViewedAsFloats) {
  const Tensors tensors =
      with(with(layer(), {"l.W_q", "BF16", {2, 2}, "\x08\x19\x2A\x3B\x4C\x5D\x6E\x7F"}), flag("view_as_float", 1));
  const auto weight = TestModel(tensors, kConfig).read("l");
  ASSERT_TRUE(weight) << weight.error().message;
  EXPECT_EQ(weight->codes[15], 15);
}

TEST(Hqq, WithoutAGroupSizeARowIsAGroup) {
  const Tensors tensors = {{"l.W_q", "U8", {1, 8}, "\x08\x19\x2A\x3B\x4C\x5D\x6E\x7F"},
                           {"l.scale", "F32", {2, 1}, f32({1, 2})},
                           {"l.zero", "F32", {2, 1}, f32({0, 8})},
                           {"l.shape", "I64", {2}, i64({2, 8})},
                           number("nbits", 4),
                           number("axis", 1),
                           text("packing", "4bit_u8")};
  const auto weight = TestModel(tensors, kConfig).read("l");
  ASSERT_TRUE(weight) << weight.error().message;
  EXPECT_EQ(weight->group_size, 8);
  EXPECT_EQ(dequantize(*weight), (std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7, 0, 2, 4, 6, 8, 10, 12, 14}));
}

TEST(Hqq, RefusesOtherSettingsByName) {
  const struct {
    TestTensor tensor;
    const char* words;
  } cases[] = {
      {number("nbits", 3), "tensor 'l.nbits': is 3; only 4 is read"},
      {number("axis", 0), "tensor 'l.axis': is 0; only 1 is read"},
      {flag("channel_wise", 0), "tensor 'l.channel_wise': is 0"},
      {flag("quant_scale", 1), "tensor 'l.quant_scale': is 1; only 0 is read"},
      {flag("quant_zero", 1), "tensor 'l.quant_zero': is 1"},
      {{"l.zero_q", "U8", {1}, "x"}, "a quantized scale or zero point"},
      {text("packing", "2bit_u8"), "is '2bit_u8'; only 4bit_u8 is read"},
      {number("group_size", 16), "groups of 16 straddle rows of 8"},
      {number("group_size", 3), "groups of 3 straddle rows of 8"},
  };
  for (const auto& foreign : cases)
    expect_refused(TestModel(with(layer(), foreign.tensor), kConfig), ErrorCode::kUnsupported, foreign.words,
                   foreign.words);
}

TEST(Hqq, RefusesWhatDoesNotFit) {
  const struct {
    Tensors tensors;
    const char* words;
  } cases[] = {
      {without(layer(), "l.scale"), "but no l.scale"},
      {without(layer(), "l.zero"), "but no l.zero"},
      {without(layer(), "l.shape"), "but no l.shape"},
      {without(layer(), "l.nbits"), "but no l.nbits"},
      {without(layer(), "l.axis"), "but no l.axis"},
      {without(layer(), "l.packing"), "but no l.packing"},
      {without(layer(), "l.group_size"), "needs U8 [1, 8]"},
      {without(layer(), "l.W_q"), "codes are missing: there is no l.W_q"},
      {with(layer(), {"l.nbits", "F32", {}, f32({4})}), "one whole number is wanted"},
      {with(layer(), {"l.nbits", "I32", {2}, i32({4, 4})}), "one whole number is wanted"},
      {with(layer(), number("group_size", 0)), "is 0; a group has 1 to"},
      {with(layer(), number("group_size", 0xFFFFFFFF)), "is -1; a group has 1 to"},
      {with(layer(), {"l.packing", "I32", {1}, i32({1})}), "a packing is text as U8"},
      {with(layer(), text("packing", std::string(65, 'x'))), "a packing is text as U8"},
      {with(layer(), {"l.shape", "I64", {3}, i64({2, 8, 1})}), "needs I64 [2]"},
      {with(layer(), {"l.shape", "I64", {2}, i64({2, -8})}), "holds [2, -8]"},
      {with(layer(), {"l.shape", "I64", {2}, i64({2, INT64_MAX})}), "n and k are 1 to"},
      {with(layer(), {"l.shape", "I64", {2}, i64({INT32_MAX, 2147483644})}), "has shape [2, 4] and 8 bytes"},
      {with(layer(), {"l.shape", "I64", {2}, i64({1, 4})}), "for pairs of groups"},
      {with(layer(), {"l.W_q", "U8", {1, 8}, "12345678"}), "needs U8 [2, 4]"},
      {with(layer(), {"l.W_q", "U8", {2, 3}, "123456"}), "needs U8 [2, 4]"},
      {with(layer(), {"l.scale", "F16", {4}, u16({1, 1, 1, 1})}), "needs BF16, F16 or F32 [4, 1]"},
      {with(layer(), {"l.scale", "U8", {4, 1}, "1234"}), "needs BF16, F16 or F32 [4, 1]"},
      {with(layer(), {"l.scale", "BF16", {4, 1}, u16({1, 1, 1, 1})}), "both have one type"},
      {with(layer(), {"l.scale", "F16", {4, 1}, u16({1, 1, 0x7C00, 1})}),
       "'l.scale': element 2 of shape [4, 1] is inf"},
      {with(layer(), {"l.zero", "F16", {4, 1}, u16({1, 0x7E00, 1, 1})}), "'l.zero': element 1 of shape [4, 1] is nan"},
      {with(layer(), {"l.bias", "F16", {1}, u16({1})}), "2 output features need [2]"},
  };
  for (const auto& broken : cases)
    expect_refused(TestModel(broken.tensors, kConfig), ErrorCode::kInvalidData, broken.words, broken.words);
}

}  // namespace
}  // namespace nybble
