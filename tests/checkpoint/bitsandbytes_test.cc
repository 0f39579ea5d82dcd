#include "checkpoint/test_model.h"

namespace nybble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using namespace nybble::testing;

const std::string kConfig = R"({"quantization_config":{"quant_method":"bitsandbytes","load_in_4bit":true}})";
const std::string kState = R"({"quant_type":"nf4","blocksize":4,"dtype":"bfloat16","shape":[2,8],"nested_blocksize":3,)"
                           R"("nested_dtype":"float32","nested_offset":0.5})";

std::vector<float> table() {
  std::vector<float> values;
  for (int code = 0; code < 16; ++code) values.push_back(static_cast<float>(code) - 7);
  return values;
}
TestTensor state(const std::string& text, const std::string& type = "nf4") {
  return {"l.weight.quant_state.bitsandbytes__" + type, "U8", {static_cast<int64_t>(text.size())}, text};
}

// 2 x 8 in blocks of 4: codes 0, 1, ... 15.
Tensors layer() {
  return {{"l.weight", "U8", {8, 1}, "\x01\x23\x45\x67\x89\xAB\xCD\xEF"},
          {"l.weight.absmax", "F32", {4}, f32({1, 2, 0.5f, -1})},
          {"l.weight.quant_map", "F32", {16}, f32(table())},
          state(kState),
          {"l.bias", "F32", {2}, f32({1, 2})},
          {"norm.weight", "F32", {2}, f32({1, 1})}};
}

// The same with scales that are codes 0 to 3 into a table of 256.
Tensors nested_layer() {
  std::vector<float> map(256);
  for (int code = 0; code < 256; ++code) map[code] = 0.1f * static_cast<float>(code);
  Tensors tensors = with(layer(), {"l.weight.absmax", "U8", {4}, std::string("\x00\x01\x02\xFF", 4)});
  tensors.push_back({"l.weight.nested_absmax", "F32", {2}, f32({3, 7})});
  tensors.push_back({"l.weight.nested_quant_map", "F32", {256}, f32(map)});
  return tensors;
}

TEST(BitsAndBytes, ReadsTheFirstCodeFromTheHighBits) {
  for (const std::string& config : {kConfig, std::string()})
    for (const char* type : {"nf4", "fp4"}) {
      Tensors tensors = without(layer(), "l.weight.quant_state.bitsandbytes__nf4");
      tensors.push_back(state(kState, type));
      const TestModel model(tensors, config);
      const auto checkpoint = model.open();
      ASSERT_TRUE(checkpoint) << checkpoint.error().message;
      EXPECT_EQ((*checkpoint)->format(), "bitsandbytes");
      EXPECT_THAT((*checkpoint)->convention(), HasSubstr(type == std::string("nf4") ? "1 layers of NF4 and 0 of FP4"
                                                                                    : "0 layers of NF4 and 1 of FP4"));
      ASSERT_EQ((*checkpoint)->layers().size(), 1u);
      EXPECT_EQ((*checkpoint)->layers()[0].format,
                (WeightFormat{.scale_dtype = DType::kFp32, .zero_kind = ZeroKind::kTable, .group_size = 4}));
      const auto weight = (*checkpoint)->read_quantized("l");
      ASSERT_TRUE(weight) << weight.error().message;
      EXPECT_THAT(weight->codes, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
      EXPECT_EQ(weight->table, table());
      EXPECT_EQ(weight->bias.at(1), 2.0f);
      EXPECT_EQ(dequantize(*weight),
                (std::vector<float>{-7, -6, -5, -4, -6, -4, -2, 0, 0.5f, 1, 1.5f, 2, -5, -6, -7, -8}));
      EXPECT_TRUE((*checkpoint)->check({}));
      ASSERT_EQ((*checkpoint)->other_tensors().size(), 2u);  // bias and norm
    }
}

TEST(BitsAndBytes, RoundsEachStepOfNestedScales) {
  const auto weight = TestModel(nested_layer(), kConfig).read("l");
  ASSERT_TRUE(weight) << weight.error().message;
  const auto scale = [](int code, float absmax) {
    const float product = 0.1f * static_cast<float>(code) * absmax;
    return product + 0.5f;
  };
  EXPECT_EQ(weight->scales, FloatArray::from_floats(DType::kFp32, std::vector<float>{scale(0, 3), scale(1, 3),
                                                                                     scale(2, 3), scale(255, 7)}));
}

TEST(BitsAndBytes, TakesBytesStoredUnderAnotherType) {
  const auto weight =
      TestModel(with(layer(), {"l.weight", "BF16", {4, 1}, "\x01\x23\x45\x67\x89\xAB\xCD\xEF"}), kConfig).read("l");
  ASSERT_TRUE(weight) << weight.error().message;
  EXPECT_EQ(weight->codes[15], 15);
}

TEST(BitsAndBytes, RefusesWhatDoesNotFit) {
  const auto changed = [](const std::string& what, const std::string& by) {
    std::string text = kState;
    EXPECT_NE(text.find(what), std::string::npos) << what;
    return state(text.replace(text.find(what), what.size(), by));
  };
  using enum ErrorCode;
  const struct {
    Tensors tensors;
    ErrorCode code;
    const char* words;
  } cases[] = {
      {without(layer(), "l.weight"), kInvalidData, "but no l.weight"},
      {without(layer(), "l.weight.absmax"), kInvalidData, "but no l.weight.absmax"},
      {without(layer(), "l.weight.quant_map"), kInvalidData, "but no l.weight.quant_map"},
      {without(layer(), "l.weight.quant_state.bitsandbytes__nf4"), kInvalidData, "would be a guess"},
      {without(nested_layer(), "l.weight.nested_quant_map"), kInvalidData, "but no l.weight.nested_quant_map"},
      {with(layer(), state("{")), kInvalidData, "quant_state.bitsandbytes__nf4"},
      {with(layer(), state("[1]")), kInvalidData, "must be one object"},
      {with(layer(), {"l.weight.quant_state.bitsandbytes__nf4", "I32", {1}, i32({1})}), kInvalidData, "JSON as U8"},
      {with(layer(), state(std::string((1 << 16) + 1, ' '))), kInvalidData, "at most 65536 bytes"},
      {with(layer(), changed("[2,8]", "[2,8,1]")), kUnsupported, "has 3 dimensions"},
      {with(layer(), changed("[2,8]", "null")), kInvalidData, "it must be [n, k]"},
      {with(layer(), changed("[2,8]", "[2,-8]")), kInvalidData, "shape[1] is '-8'"},
      {with(layer(), changed("[2,8]", "[2,8.0]")), kInvalidData, "shape[1] is '8.0'"},
      {with(layer(), changed("[2,8]", "[2147483647,2147483647]")), kInvalidData, "holds 8 bytes, but"},
      {with(layer(), changed("[2,8]", "[2,12]")), kInvalidData, "holds 8 bytes, but a weight of 2 x 12"},
      {with(layer(), changed("[2,8]", "[16,1]")), kUnsupported, "straddle rows of 1"},
      {with(layer(), changed("\"blocksize\":4", "\"blocksize\":16")), kUnsupported, "blocks of 16 straddle rows of 8"},
      {with(layer(), changed("\"blocksize\":4", "\"blocksize\":0")), kInvalidData, "blocksize is '0'"},
      {with(layer(), changed("\"blocksize\":4", "\"blocksize\":8")), kInvalidData, "needs F32 [2]"},
      {with(layer(), {"l.weight", "U8", {7, 1}, "1234567"}), kInvalidData, "holds 7 bytes"},
      {with(layer(), {"l.weight.absmax", "F32", {3}, f32({1, 2, 3})}), kInvalidData, "needs F32 [4]"},
      {with(layer(), {"l.weight.absmax", "U8", {4}, "1234"}), kInvalidData, "is U8 [4], but"},
      {with(layer(), {"l.weight.absmax", "F32", {4}, f32({1, NAN, 3, 4})}), kInvalidData, "scales[0, 1] is nan"},
      {with(layer(), {"l.weight.quant_map", "F32", {15}, f32(std::vector<float>(15))}), kInvalidData, "needs F32 [16]"},
      {with(layer(), {"l.weight.quant_map", "F32", {16}, f32(std::vector<float>(16, INFINITY))}), kInvalidData,
       "table[0] is inf"},
      {with(layer(), {"l.weight.nested_absmax", "F32", {2}, f32({1, 2})}), kInvalidData, "needs U8 [4]"},
      {with(nested_layer(), {"l.weight.nested_absmax", "F32", {1}, f32({1})}), kInvalidData, "needs F32 [2]"},
      {with(nested_layer(), {"l.weight.nested_absmax", "F32", {2}, f32({1, INFINITY})}), kInvalidData, "is inf"},
      {with(nested_layer(), {"l.weight.nested_quant_map", "F32", {2}, f32({1, 2})}), kInvalidData, "needs F32 [256]"},
      {with(nested_layer(), changed("\"float32\"", "\"float16\"")), kUnsupported, "nested_dtype is 'float16'"},
      {with(nested_layer(), changed("0.5", "\"x\"")), kInvalidData, "nested_offset is"},
      {with(nested_layer(), changed("0.5", "1e300")), kInvalidData, "nested_offset is"},
      {with(nested_layer(), changed("\"nested_blocksize\":3", "\"nested_blocksize\":-3")), kInvalidData,
       "nested_blocksize is '-3'"},
      {with(layer(), {"m.SCB", "F32", {1}, f32({1})}), kUnsupported, "8-bit integers"},
      {with(layer(), {"experts.quant_state.bitsandbytes__nf4", "U8", {1}, "x"}), kUnsupported,
       "no linear layer's weight"},
      {with(layer(), {"l.bias", "F32", {3}, f32({1, 2, 3})}), kInvalidData, "2 output features need [2]"},
      {{{"l.weight", "BF16", {1, 1}, u16({0})}}, kInvalidData, "the weights are not quantized yet"},
  };
  for (const auto& broken : cases)
    expect_refused(TestModel(broken.tensors, kConfig), broken.code, broken.words, broken.words);

  Tensors both = layer();
  both.push_back(state(kState, "fp4"));
  expect_refused(TestModel(both, kConfig), kInvalidData, "stored twice", "NF4 and FP4");
}

}  // namespace
}  // namespace nybble
