#include "checkpoint/test_model.h"

namespace nybble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using namespace nybble::testing;

std::string config(const std::string& packing, const std::string& more = "") {
  return R"({"quantization_config":{"quant_method":"auto-round","bits":4,"group_size":8,"packing_format":")" + packing +
         "\"" + more + "}}";
}

// 8 x 8 in one group: all codes 9, zero points 0 to 7 as they are stored.
Tensors layer(const std::string& name = "l") {
  return {{name + ".qweight", "I32", {1, 8}, i32(std::vector<uint32_t>(8, 0x99999999))},
          {name + ".scales", "F16", {1, 8}, u16(std::vector<uint16_t>(8, 0x3C00))},
          {name + ".qzeros", "I32", {1, 1}, i32({0xF6543210})}};
}

Tensors joined(Tensors a, const Tensors& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

std::vector<uint8_t> zeros_of(const TestModel& model) {
  const auto weight = model.read("l");
  EXPECT_TRUE(weight) << weight.error().message;
  return weight ? weight->int_zeros : std::vector<uint8_t>{};
}

TEST(AutoRound, PackingFormatSaysHowZeroPointsAreStored) {
  const std::vector<uint8_t> stored = {0, 1, 2, 3, 4, 5, 6, 15}, less_one = {1, 2, 3, 4, 5, 6, 7, 16};
  for (const char* packing : {"auto_round:auto_gptq", "auto_round:gptq", "auto", "auto_round:auto_gptq:exllamav2"})
    EXPECT_EQ(zeros_of(TestModel(layer(), config(packing))), less_one) << packing;
  for (const char* packing :
       {"auto_round", "auto_round:gptqmodel", "auto_round:exllamav2", "auto_round:tritonv2", "autoround:exllamav2"})
    EXPECT_EQ(zeros_of(TestModel(layer(), config(packing))), stored) << packing;
  // Older models.
  EXPECT_EQ(zeros_of(TestModel(layer(), R"({"quantization_config":{"quant_method":"intel/auto-round","bits":4,
                                            "group_size":8,"backend":"auto_round:gptq"}})")),
            less_one);
  EXPECT_EQ(zeros_of(TestModel(layer(), R"({"quantization_config":{"quant_method":"auto-round","bits":4}})")),
            less_one);
}

TEST(AutoRound, AwqTensors) {
  const Tensors tensors = {{"l.qweight", "I32", {8, 1}, i32(std::vector<uint32_t>(8, 0x75316420))},
                           {"l.scales", "F16", {1, 8}, u16(std::vector<uint16_t>(8, 0x3C00))},
                           {"l.qzeros", "I32", {1, 1}, i32({0x88888888})}};
  const TestModel model(tensors, config("auto_round:auto_awq", R"(,"sym":true)"));
  const auto checkpoint = model.open();
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ((*checkpoint)->format(), "auto-round");
  EXPECT_THAT((*checkpoint)->warnings(), IsEmpty());  // symmetric layers have zero points, too
  const auto weight = (*checkpoint)->read_quantized("l");
  ASSERT_TRUE(weight) << weight.error().message;
  EXPECT_EQ(weight->codes[8], 1);  // row 1, interleaved
  EXPECT_EQ(dequantize(*weight)[8], -7.0f);
}

TEST(AutoRound, LayersWithSettingsOfTheirOwn) {
  const Tensors two = joined(layer("a.l"), layer("b.l"));
  const auto group_of = [&](const std::string& extra) {
    const auto weight = TestModel(two, config("auto_round", R"(,"extra_config":)" + extra)).read("a.l");
    return weight ? std::to_string(weight->group_size) : weight.error().message;
  };
  EXPECT_EQ(group_of(R"({"a.l":{"group_size":-1}})"), std::to_string(kPerColumn));
  EXPECT_EQ(group_of(R"({"x.*":{"group_size":-1}})"), "8");
  // A whole name comes before expressions, and of these the first of the file that is found in the name.
  EXPECT_EQ(group_of(R"({"a":{"group_size":-1},"a.l":{"group_size":16}})"), "16");
  EXPECT_EQ(group_of(R"({"\\.l$":{"group_size":16},"a":{"group_size":-1}})"), "16");
  EXPECT_EQ(group_of(R"({"a":{"group_size":16},"\\.l$":{"group_size":-1}})"), "16");

  const auto refused = [&](const std::string& extra, ErrorCode code, const char* words) {
    expect_refused(TestModel(two, config("auto_round", R"(,"extra_config":)" + extra)), code, words, extra);
  };
  refused(R"({"b.l":{"bits":8}})", ErrorCode::kUnsupported,
          "layer 'b.l': bits is 8; only 4 is read. Quantize the unquantized model again with the scheme W4A16");
  refused(R"({"b.l":{"bits":16}})", ErrorCode::kInvalidData,
          "layer 'b.l' is stored in 4 bits, but extra_config 'b.l' says that it is not quantized");
  refused(R"({"b.l":{"data_type":"mx_fp"}})", ErrorCode::kUnsupported, "extra_config 'b.l': data_type is 'mx_fp'");
  refused(R"({"b.l":7})", ErrorCode::kInvalidData, "extra_config 'b.l' must be an object");
  refused("[]", ErrorCode::kInvalidData, "extra_config must be an object");
  refused(R"({"(":{}})", ErrorCode::kUnsupported, "extra_config '('");
  EXPECT_TRUE(TestModel(joined(layer(), {{"head.weight", "F32", {1, 2}, f32({1, 2})}}),
                        config("auto_round", R"(,"extra_config":{"head":{"bits":16,"data_type":"fp"}})"))
                  .check());
}

TEST(AutoRound, WarnsOfLayersOutsideTheQuantizedBlocks) {
  const auto warnings = [](const std::string& more) {
    const TestModel model(joined(layer("model.layers.0.l"), layer("lm_head")), config("auto_round", more));
    const auto checkpoint = model.open();
    EXPECT_TRUE(checkpoint && (*checkpoint)->check({}));
    return checkpoint ? (*checkpoint)->warnings() : std::vector<std::string>{checkpoint.error().message};
  };
  EXPECT_THAT(warnings(""), IsEmpty());
  for (const char* blocks : {R"("model.layers")", R"("other, model.layers")", R"(["model.layers"])",
                             R"([["model.layers.0","model.layers.1"]])"}) {
    const std::string settings = std::string(R"(,"block_name_to_quantize":)") + blocks;
    EXPECT_THAT(warnings(settings), ElementsAre(HasSubstr("leaves out 1 layer that is stored in 4 bits and read so, "
                                                          "'lm_head' the first")));
    EXPECT_THAT(warnings(settings + R"(,"extra_config":{"lm_head":{"bits":4}})"), IsEmpty());
  }
  EXPECT_THAT(warnings(R"(,"to_quant_block_names":"model")"), ElementsAre(HasSubstr("lm_head")));
  expect_refused(TestModel(layer(), config("auto_round", R"(,"block_name_to_quantize":[[1]])")),
                 ErrorCode::kInvalidData, "block_name_to_quantize", "a number");
}

// Two layers of 1 x 32, one of them with its tensors' names alone.
TEST(AutoRound, FloatFormatsAreCompressedTensors) {
  const Tensors tensors = {{"l.weight_packed", "U8", {1, 16}, std::string(16, '\x21')},
                           {"l.weight_scale", "U8", {1, 1}, std::string(1, '\x80')}};
  const std::string more = R"(,"data_type":"mx_fp","extra_config":{"h":{"bits":16}})";
  const std::string settings = R"({"quantization_config":{"quant_method":"auto-round","bits":4,"group_size":32,
      "packing_format":"auto_round:llm_compressor")";
  const TestModel model(tensors, settings + more + "}}");
  const auto weight = model.read("l");
  ASSERT_TRUE(weight) << weight.error().message;
  EXPECT_EQ(dequantize(*weight)[0], 1.0f);
  EXPECT_EQ(dequantize(*weight)[1], 2.0f);
  EXPECT_THAT((*TestModel(tensors, settings + more + R"(,"act_bits":4}})").open())->warnings(),
              ElementsAre(HasSubstr("activations in 4-bit floats")));
  expect_refused(TestModel(tensors, settings + more + R"(,"act_bits":8}})"), ErrorCode::kUnsupported,
                 "input_activations", "8-bit activations");
  expect_refused(TestModel(tensors, settings + R"(,"data_type":"int"}})"), ErrorCode::kUnsupported,
                 "data_type is 'int'", "integers");
  expect_refused(TestModel(tensors, settings + R"(,"data_type":"mx_fp","extra_config":{"l":{"bits":16}}}})"),
                 ErrorCode::kInvalidData, "layer 'l' is stored in 4 bits", "not quantized");
  const Tensors mixed = joined(tensors, {{"m.weight", "F8_E4M3", {1, 32}, std::string(32, '\1')},
                                         {"m.weight_scale", "U8", {1, 1}, std::string(1, '\x80')}});
  expect_refused(TestModel(mixed, settings + R"(,"data_type":"mx_fp","extra_config":{"m":{"bits":8}}}})"),
                 ErrorCode::kUnsupported, "layer 'm': bits is 8", "8-bit floats");
}

TEST(AutoRound, RefusesByName) {
  for (const char* packing : {"auto_round:fp8_static", "auto_round:llm_compressor_nvfp4_e5m3", "mlx", "auto_rounds"})
    expect_refused(TestModel(layer(), config(packing)), ErrorCode::kUnsupported,
                   "packing_format '" + std::string(packing) + "' is not read", packing);
  const auto refused = [](const std::string& more, ErrorCode code, const char* words) {
    expect_refused(TestModel(layer(), config("auto_round", more)), code, words, more);
  };
  refused(R"(,"data_type":"fp")", ErrorCode::kUnsupported, "data_type is 'fp'");
  refused(R"(,"act_bits":8)", ErrorCode::kUnsupported, "act_bits is '8'");
  refused(R"(,"rotation_config":{"kind":"hadamard"})", ErrorCode::kUnsupported, "rotation_config");
  EXPECT_TRUE(
      TestModel(layer(), config("auto_round", R"(,"act_bits":16,"rotation_config":{},"data_type":"int")")).check());
  for (const char* bits : {"2", "3", "8"})
    expect_refused(TestModel(layer(), std::string(R"({"quantization_config":{"quant_method":"auto-round",
                                                   "packing_format":"auto_round","bits":)") +
                                          bits + "}}"),
                   ErrorCode::kUnsupported, std::string("bits is ") + bits, bits);
  expect_refused(TestModel({}, config("auto_round")), ErrorCode::kInvalidData, "no tensor is named *.qweight", "empty");
}

}  // namespace
}  // namespace nybble
