#include "checkpoint/test_model.h"

namespace nybble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using namespace nybble::testing;

std::string config(const std::string& algorithm) {
  return R"({"quantization_config":{"quant_method":"modelopt","quant_algo":")" + algorithm + R"(","group_size":16}})";
}
std::string own_file(const std::string& inside) {
  return R"({"producer":{"name":"modelopt"},"quantization":)" + inside + "}";
}

// 1 x 32: codes 1, 2, 1, 2, ... (0.5, 1), scales 1.5 and -2 times 0.1.
Tensors layer() {
  return {{"l.weight", "U8", {1, 16}, std::string(16, '\x21')},
          {"l.weight_scale", "F8_E4M3", {1, 2}, "\x3C\xC0"},
          {"l.weight_scale_2", "F32", {}, f32({0.1f})},
          {"lm_head.weight", "BF16", {1, 2}, u16({0x3F80, 0x3F80})}};
}

TEST(ModelOpt, ReadsNvfp4MultiplyingTheScalesFirst) {
  for (const char* algorithm : {"NVFP4", "W4A16_NVFP4", "MIXED_PRECISION"}) {
    const TestModel model(layer(), config(algorithm));
    const auto checkpoint = model.open();
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    EXPECT_EQ((*checkpoint)->format(), "modelopt");
    EXPECT_THAT((*checkpoint)->convention(), HasSubstr("weight_scale * weight_scale_2"));
    EXPECT_THAT((*checkpoint)->warnings(), IsEmpty());
    ASSERT_EQ((*checkpoint)->layers().size(), 2u);
    EXPECT_EQ((*checkpoint)->layers()[0].format,
              (WeightFormat{.scale_dtype = DType::kFp32, .zero_kind = ZeroKind::kTable, .group_size = 16}));
    const auto weight = (*checkpoint)->read_quantized("l");
    ASSERT_TRUE(weight) << weight.error().message;
    EXPECT_EQ(weight->scales, FloatArray::from_floats(DType::kFp32, std::vector<float>{1.5f * 0.1f, -2 * 0.1f}));
    const std::vector<float> dense = dequantize(*weight);
    EXPECT_EQ(dense[0], 0.5f * (1.5f * 0.1f));
    EXPECT_EQ(dense[17], -0.2f);
    EXPECT_TRUE((*checkpoint)->check({}));
  }
}

TEST(ModelOpt, FindsItsSettingsInItsOwnFile) {
  const auto open = [](const std::string& text) {
    const TempFolder folder;
    write_text(folder / "model.safetensors", safetensors(layer()));
    write_text(folder / "config.json", R"({"architectures":["LlamaForCausalLM"]})");
    if (!text.empty()) write_text(folder / "hf_quant_config.json", text);
    const auto checkpoint = open_checkpoint(folder.path());
    return checkpoint ? (*checkpoint)->check({}) : Result<void>(checkpoint.error());
  };
  EXPECT_TRUE(open(own_file(R"({"quant_algo":"NVFP4","group_size":16})")));
  EXPECT_TRUE(open(""));  // its tensors alone tell
  EXPECT_THAT(open(own_file(R"({"quant_algo":"FP8"})")).error().message, HasSubstr("quant_algo 'FP8' is not read"));
  EXPECT_THAT(open(own_file("7")).error().message, HasSubstr("has no object \"quantization\""));
  EXPECT_THAT(open("[]").error().message, HasSubstr("must be an object"));
  EXPECT_THAT(open("{").error().message, HasSubstr("hf_quant_config.json"));
}

TEST(ModelOpt, SettingsLeftBesideADenseModelDoNotCount) {
  const TempFolder folder;
  write_text(folder / "model.safetensors", safetensors({{"l.weight", "F32", {1, 2}, f32({1, 2})}}));
  write_text(folder / "hf_quant_config.json", own_file(R"({"quant_algo":"NVFP4"})"));
  const auto checkpoint = open_checkpoint(folder.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ((*checkpoint)->format(), "dense");
}

TEST(ModelOpt, WarnsOfScalesForActivations) {
  const TestModel model(with(layer(), {"l.input_scale", "F32", {}, f32({1})}), config("NVFP4"));
  const auto checkpoint = model.open();
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_THAT((*checkpoint)->warnings(), ElementsAre(HasSubstr("input_scale")));
}

TEST(ModelOpt, RefusesWhatDoesNotFit) {
  using enum ErrorCode;
  const struct {
    Tensors tensors;
    ErrorCode code;
    const char* words;
  } cases[] = {
      {without(layer(), "l.weight"), kInvalidData, "but no l.weight"},
      {without(layer(), "l.weight_scale"), kInvalidData, "but no l.weight_scale"},
      {without(layer(), "l.weight_scale_2"), kUnsupported, "not in NVFP4"},
      {with(layer(), {"f.weight_scale", "F32", {}, f32({1})}), kUnsupported,
       "layer 'f' is quantized, but not in NVFP4"},
      {with(layer(), {"l.weight", "U8", {2, 1, 16}, std::string(32, '1')}), kUnsupported, "experts in one tensor"},
      {with(layer(), {"l.weight", "I8", {1, 16}, std::string(16, '1')}), kInvalidData, "packed as U8 [n, k / 2]"},
      {with(layer(), {"l.weight", "U8", {0, 16}, ""}), kInvalidData, "packed as U8 [n, k / 2]"},
      {with(layer(), {"l.weight", "U8", {1, 12}, std::string(12, '1')}), kInvalidData, "k = 24, which is no multiple"},
      {with(layer(), {"l.weight_scale", "F8_E4M3", {2, 1}, "11"}), kInvalidData, "needs F8_E4M3 [1, 2]"},
      {with(layer(), {"l.weight_scale", "BF16", {1, 2}, u16({1, 1})}), kInvalidData, "needs F8_E4M3 [1, 2]"},
      {with(layer(), {"l.weight_scale", "F8_E4M3", {1, 2}, "1\x7F"}), kInvalidData, "element 1 of shape [1, 2] is nan"},
      {with(layer(), {"l.weight_scale_2", "F32", {2}, f32({1, 1})}), kInvalidData, "needs F32 []"},
      {with(layer(), {"l.weight_scale_2", "F32", {}, f32({INFINITY})}), kInvalidData, "is inf; scales are multiplied"},
      {with(layer(), {"l.weight_scale_2", "F32", {}, f32({3e38f})}), kInvalidData,
       "is inf when the tensor's own scale"},
      {with(layer(), {"l.pre_quant_scale", "BF16", {32}, std::string(64, '1')}), kUnsupported,
       "is applied to the activations"},
      {with(layer(), {"e.up_proj_weight_scale_2", "F32", {2}, f32({1, 1})}), kUnsupported, "experts in one tensor"},
      {{{"l.weight", "F32", {1, 1}, f32({1})}}, kInvalidData, "no tensor is named *.weight_scale_2"},
  };
  for (const auto& broken : cases)
    expect_refused(TestModel(broken.tensors, config("NVFP4")), broken.code, broken.words, broken.words);
  for (const char* algorithm : {"FP8", "W4A16_AWQ", "W4A8_AWQ", "NVFP4_SVD", "MXFP8", ""})
    expect_refused(TestModel(layer(), config(algorithm)), kUnsupported,
                   "quant_algo '" + std::string(algorithm) + "' is not read", algorithm);
}

}  // namespace
}  // namespace nybble
