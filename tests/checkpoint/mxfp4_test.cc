#include "checkpoint/test_model.h"

namespace nybble {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;
using namespace nybble::testing;

const std::string kConfig = R"({"quantization_config":{"quant_method":"mxfp4","modules_to_not_convert":["lm_head"]}})";

// Two experts of 3 x 64 whose every code is 2 (1.0) and 5 (3.0); scales count up from 2^0.
Tensors experts(bool split = true) {
  const std::vector<int64_t> shape = split ? std::vector<int64_t>{2, 3, 2, 16} : std::vector<int64_t>{2, 3, 32};
  std::string scales;
  for (int i = 0; i < 12; ++i) scales += static_cast<char>(127 + i);
  return {{"m.experts.up_proj_blocks", "U8", shape, std::string(96, '\x22') + std::string(96, '\x52')},
          {"m.experts.up_proj_scales", "U8", {2, 3, 2}, scales},
          {"m.experts.up_proj_bias", "BF16", {2, 3}, u16({0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0})},
          {"lm_head.weight", "F32", {1, 2}, f32({1, 2})}};
}

TEST(Mxfp4, ReadsEachExpertAsALayer) {
  for (const bool split : {true, false})
    for (const std::string& config : {kConfig, std::string()}) {
      const TestModel model(experts(split), config);
      const auto checkpoint = model.open();
      ASSERT_TRUE(checkpoint) << checkpoint.error().message;
      EXPECT_EQ((*checkpoint)->format(), "mxfp4");
      EXPECT_THAT((*checkpoint)->convention(), HasSubstr("2 experts and projections"));
      ASSERT_EQ((*checkpoint)->layers().size(), 3u);
      EXPECT_EQ((*checkpoint)->layers()[2].format,
                (WeightFormat{.scale_dtype = DType::kBf16, .zero_kind = ZeroKind::kTable, .group_size = 32}));
      const auto first = (*checkpoint)->read_quantized("m.experts.up_proj.0"),
                 second = (*checkpoint)->read_quantized("m.experts.up_proj.1");
      ASSERT_TRUE(first) << first.error().message;
      ASSERT_TRUE(second) << second.error().message;
      EXPECT_EQ(first->n, 3);
      EXPECT_EQ(first->k, 64);
      const std::vector<float> ones = dequantize(*first), mixed = dequantize(*second);
      for (int i = 0; i < 192; ++i) {
        EXPECT_EQ(ones[i], std::ldexp(1.0f, i / 32));
        EXPECT_EQ(mixed[i], std::ldexp(i % 2 == 0 ? 1.0f : 3.0f, 6 + i / 32));
      }
      EXPECT_EQ(second->bias.at(0), 4.0f);
      EXPECT_TRUE((*checkpoint)->check({}));
      std::vector<std::string> others;
      for (const OtherTensor& tensor : (*checkpoint)->other_tensors()) others.push_back(tensor.name);
      EXPECT_THAT(others, UnorderedElementsAre("m.experts.up_proj_bias", "lm_head.weight"));
    }
}

TEST(Mxfp4, RefusesWhatDoesNotFit) {
  std::string nan(12, '\x7F');
  nan[11] = '\xFF';
  const struct {
    Tensors tensors;
    const char* words;
  } cases[] = {
      {without(experts(), "m.experts.up_proj_scales"), "but no m.experts.up_proj_scales"},
      {with(experts(), {"m.experts.up_proj_scales", "U8", {2, 3, 2}, nan}),
       "index 1: element 5 of shape [3, 2] is 255"},
      {with(experts(), {"m.experts.up_proj_scales", "U8", {2, 2, 3}, nan}), "needs U8 [3, 2]"},
      {with(experts(), {"m.experts.up_proj_scales", "U8", {1, 3, 2}, "123456"}),
       "the layer m.experts.up_proj.1 is index 1 of it"},
      {with(experts(), {"m.experts.up_proj_scales", "I8", {2, 3, 2}, std::string(12, '1')}), "needs U8 [3, 2]"},
      {with(experts(), {"m.experts.up_proj_blocks", "U8", {2, 3, 4, 8}, std::string(192, '1')}), "[n, k / 32, 16]"},
      {with(experts(), {"m.experts.up_proj_blocks", "U8", {2, 96}, std::string(192, '1')}), "[n, k / 32, 16]"},
      {with(experts(), {"m.experts.up_proj_blocks", "U8", {2, 4, 24}, std::string(192, '1')}), "[n, k / 32, 16]"},
      {with(experts(), {"m.experts.up_proj_blocks", "I32", {2, 3, 2, 16}, std::string(768, '1')}), "[n, k / 32, 16]"},
      {with(experts(), {"m.experts.up_proj_blocks", "U8", {2, 0, 2, 16}, ""}), "holds no expert"},
      {with(experts(), {"m.experts.up_proj_blocks", "U8", {}, "x"}), "has shape [], which holds no expert"},
      {with(experts(), {"m.experts.up_proj_bias", "BF16", {2, 2}, u16({0, 0, 0, 0})}), "3 output features need [3]"},
      {with(experts(), {"m.experts.up_proj_bias", "BF16", {2, 3}, u16({0, 0, 0, 0, 0x7F80, 0})}),
       "index 1: element 1 of shape [3] is inf"},
      {with(experts(), {"m.experts.up_proj_blocks", "F4", {2, 3, 2, 16}, std::string(96, '1')}), "is F4 [2, 3, 2, 16]"},
      {with(experts(), {"m.experts.up_proj_bias", "BF16", {1, 3}, u16({0, 0, 0})}), "m.experts.up_proj.1 is index 1"},
      {{{"lm_head.weight", "F32", {1, 2}, f32({1, 2})}}, "no tensor is named *_blocks"},
  };
  for (const auto& broken : cases)
    expect_refused(TestModel(broken.tensors, kConfig), ErrorCode::kInvalidData, broken.words, broken.words);
}

}  // namespace
}  // namespace nybble
