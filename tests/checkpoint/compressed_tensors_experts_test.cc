// compressed-tensors beyond one layer of integers: experts in one tensor, formats by config group.
#include "checkpoint/test_model.h"

namespace nybble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;
using namespace nybble::testing;

std::string model_config(const std::string& format, const std::string& groups, const std::string& ignore = "[]") {
  return R"({"quantization_config":{"quant_method":"compressed-tensors","format":")" + format +
         R"(","quantization_status":"compressed","ignore":)" + ignore + R"(,"config_groups":{)" + groups + "}}}";
}
std::string group(const std::string& name, const std::string& targets, const std::string& format,
                  const std::string& weights) {
  return "\"" + name + R"(":{"targets":)" + targets + (format.empty() ? "" : R"(,"format":")" + format + "\"") +
         R"(,"input_activations":null,"weights":{)" + weights + "}}";
}
const std::string kInt16Zeros = R"("num_bits":4,"type":"int","symmetric":false,"strategy":"group","group_size":16)";
const std::string kNvfp4 = R"("num_bits":4,"type":"float","symmetric":true,"strategy":"tensor_group","group_size":16)";
const std::string kMxfp4 = R"("num_bits":4,"type":"float","symmetric":true,"strategy":"group","group_size":32)";
const std::string kLinear = R"(["Linear"])";

// Three experts of 2 x 16 in groups of 16; expert e's codes begin with e, its zeros are e and 8 + e.
Tensors experts() {
  return {{"m.experts.up.weight_packed",
           "I32",
           {3, 2, 2},
           i32({0x76543210, 0xFEDCBA98, 0, 0, 0x76543211, 0xFEDCBA98, 1, 0, 0x76543212, 0xFEDCBA98, 2, 0})},
          {"m.experts.up.weight_scale", "BF16", {3, 2, 1}, u16({0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0})},
          {"m.experts.up.weight_shape", "I64", {3}, i64({3, 2, 16})},
          {"m.experts.up.weight_zero_point", "I32", {3, 1, 1}, i32({0x80, 0x91, 0xA2})},
          {"m.experts.up.bias", "F32", {3, 2}, f32({1, 2, 3, 4, 5, 6})},
          {"m.router.weight", "F32", {1, 2}, f32({1, 2})}};
}

TEST(CompressedTensorsExperts, AreLayersOfTheirOwn) {
  const TestModel model(experts(), model_config("pack-quantized", group("g", kLinear, "", kInt16Zeros)));
  const auto checkpoint = model.open();
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  std::vector<std::string> names;
  for (const LayerInfo& layer : (*checkpoint)->layers()) names.push_back(layer.name);
  EXPECT_THAT(names, ElementsAre("m.experts.up.0", "m.experts.up.1", "m.experts.up.2", "m.router"));
  for (int64_t expert = 0; expert < 3; ++expert) {
    const auto weight = (*checkpoint)->read_quantized("m.experts.up." + std::to_string(expert));
    ASSERT_TRUE(weight) << weight.error().message;
    EXPECT_EQ(weight->name, "m.experts.up." + std::to_string(expert));
    EXPECT_EQ(weight->n, 2);
    EXPECT_EQ(weight->k, 16);
    EXPECT_EQ(weight->codes[0], expert);
    EXPECT_EQ(weight->codes[9], 9);
    EXPECT_EQ(weight->codes[16], expert);
    EXPECT_THAT(weight->int_zeros, ElementsAre(expert, 8 + expert));
    EXPECT_EQ(weight->scales.at(0), 2 * expert + 1);
    EXPECT_EQ(weight->bias.at(1), 2 * expert + 2);
  }
  EXPECT_TRUE((*checkpoint)->check({}));
  std::vector<std::string> others;
  for (const OtherTensor& tensor : (*checkpoint)->other_tensors()) others.push_back(tensor.name);
  EXPECT_THAT(others, UnorderedElementsAre("m.experts.up.bias", "m.router.weight"));
  EXPECT_EQ((*checkpoint)->read_quantized("m.experts.up").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ((*checkpoint)->read_quantized("m.experts.up.3").error().code, ErrorCode::kInvalidArgument);
}

// Names that end in a number are no experts where there is no tensor of several.
TEST(CompressedTensorsExperts, DenseLayersWithNumbersKeepTheirBias) {
  Tensors tensors = experts();
  tensors.push_back({"m.mlp.0.weight", "F32", {2, 1}, f32({1, 2})});
  tensors.push_back({"m.mlp.0.bias", "F32", {2}, f32({3, 4})});
  tensors.push_back({"m.mlp.bias", "F32", {1, 2}, f32({5, 6})});
  const TestModel model(tensors, model_config("pack-quantized", group("g", kLinear, "", kInt16Zeros)));
  const auto dense = (*model.open())->read_dense("m.mlp.0");
  ASSERT_TRUE(dense) << dense.error().message;
  EXPECT_EQ(dense->bias.at(1), 4.0f);
}

TEST(CompressedTensorsExperts, MayBeNamedOneByOne) {
  Tensors tensors;
  for (const char* name : {"m.experts.0.up", "m.experts.1.up"}) {
    tensors.push_back({name + std::string(".weight_packed"), "I32", {1, 2}, i32({0x76543210, 0xFEDCBA98})});
    tensors.push_back({name + std::string(".weight_scale"), "BF16", {1, 1}, u16({0x3F80})});
    tensors.push_back({name + std::string(".weight_shape"), "I64", {2}, i64({1, 16})});
    tensors.push_back({name + std::string(".weight_zero_point"), "I32", {1, 1}, i32({8})});
  }
  const TestModel model(tensors, model_config("pack-quantized", group("g", kLinear, "", kInt16Zeros)));
  EXPECT_TRUE(model.read("m.experts.0.up"));
  EXPECT_TRUE(model.read("m.experts.1.up"));
}

TEST(CompressedTensorsExperts, RefusesWhatDoesNotFit) {
  const std::string config = model_config("pack-quantized", group("g", kLinear, "", kInt16Zeros));
  const struct {
    Tensors tensors;
    const char* words;
  } cases[] = {
      {with(experts(), {"m.experts.up.weight_shape", "I64", {2}, i64({2, 16})}), "needs I64 [3]"},
      {with(experts(), {"m.experts.up.weight_shape", "I64", {3}, i64({2, 2, 16})}), "holds [2, 2, 16]"},
      {with(experts(), {"m.experts.up.weight_shape", "I64", {3}, i64({3, 1, 16})}), "holds [3, 1, 16]"},
      {with(experts(), {"m.experts.up.weight_scale", "BF16", {2, 2, 1}, u16({1, 1, 1, 1})}),
       "the layer m.experts.up.2 is index 2 of it"},
      {with(experts(), {"m.experts.up.weight_scale", "BF16", {3, 1, 2}, u16({1, 1, 1, 1, 1, 1})}), "[2, 1]"},
      {with(experts(), {"m.experts.up.weight_scale", "BF16", {}, u16({1})}),
       "is BF16 [], but the layer m.experts.up.0 is index 0"},
      {with(experts(), {"m.experts.up.weight_zero_point", "I32", {3, 2, 1}, std::string(24, '\0')}), "I32 [1, 1]"},
      {with(experts(), {"m.experts.up.bias", "F32", {3, 1}, f32({1, 2, 3})}), "2 output features need [2]"},
      {with(experts(), {"m.experts.up.bias", "F32", {3, 2}, f32({1, 2, 3, 4, NAN, 6})}), "index 2: element 0"},
      {with(experts(), {"m.experts.up.weight_packed", "I32", {3, 0, 2}, ""}), "holds nothing"},
      {with(experts(), {"m.experts.up.weight_packed", "I32", {1, 3, 2, 2}, std::string(48, '\0')}), "packed as I32"},
      {with(experts(), {"m.experts.up.weight_packed", "F4", {3, 2, 2}, "123456"}), "is F4 [3, 2, 2], but the layer"},
      {with(experts(), {"m.experts.up.bias", "F32", {2, 2}, f32({1, 2, 3, 4})}), "layer m.experts.up.2 is index 2"},
      {with(experts(), {"m.experts.up.bias", "F4", {3, 2}, "123"}), "bias': is F4 [3, 2]"},
      {without(experts(), "m.experts.up.weight_zero_point"), "but no m.experts.up.weight_zero_point"},
  };
  for (const auto& broken : cases)
    expect_refused(TestModel(broken.tensors, config), ErrorCode::kInvalidData, broken.words, broken.words);

  Tensors twice = experts();
  twice.push_back({"m.experts.up.1.weight_packed", "I32", {1, 2}, i32({0, 0})});
  twice.push_back({"m.experts.up.1.weight_scale", "BF16", {1, 1}, u16({0x3F80})});
  twice.push_back({"m.experts.up.1.weight_shape", "I64", {2}, i64({1, 16})});
  twice.push_back({"m.experts.up.1.weight_zero_point", "I32", {1, 1}, i32({8})});
  expect_refused(TestModel(twice, config), ErrorCode::kInvalidData, "is stored twice", "twice");
}

// 2 x 32 codes, NVFP4: row 0 counts up, row 1 is all code 3 (1.5).
Tensors nvfp4_layer() {
  const std::string up = "\x10\x32\x54\x76\x98\xBA\xDC\xFE", threes(16, '\x33');
  return {{"l.weight_packed", "U8", {2, 16}, up + up + threes},
          {"l.weight_scale", "F8_E4M3", {2, 2}, "\x38\x40\xB8\x01"},  // 1, 2, -1, 2^-9
          {"l.weight_global_scale", "F32", {1}, f32({3})}};
}

TEST(CompressedTensorsFp4, ReadsNvfp4DividingFirst) {
  for (const auto& config : {model_config("nvfp4-pack-quantized", group("g", kLinear, "", kNvfp4)),
                             model_config("mixed-precision", group("g", kLinear, "nvfp4-pack-quantized", kNvfp4)),
                             model_config("nvfp4-pack-quantized", R"("NVFP4A16":["Linear"])")}) {
    const TestModel model(nvfp4_layer(), config);
    const auto checkpoint = model.open();
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    EXPECT_THAT((*checkpoint)->convention(), HasSubstr("weight_scale / weight_global_scale"));
    EXPECT_THAT((*checkpoint)->warnings(), IsEmpty());
    ASSERT_EQ((*checkpoint)->layers().size(), 1u);
    EXPECT_EQ((*checkpoint)->layers()[0].format,
              (WeightFormat{.scale_dtype = DType::kFp32, .zero_kind = ZeroKind::kTable, .group_size = 16}));
    const auto weight = (*checkpoint)->read_quantized("l");
    ASSERT_TRUE(weight) << weight.error().message;
    EXPECT_EQ(weight->scales,
              FloatArray::from_floats(DType::kFp32, std::vector<float>{1 / 3.0f, 2 / 3.0f, -1 / 3.0f, 0x1p-9f / 3.0f}));
    const std::vector<float> dense = dequantize(*weight);
    const float e2m1[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    for (int i = 0; i < 16; ++i) {
      EXPECT_EQ(dense[i], e2m1[i] * (1 / 3.0f));
      EXPECT_EQ(dense[16 + i], e2m1[i] * (2 / 3.0f));
      EXPECT_EQ(dense[32 + i], 1.5f * (-1 / 3.0f));
    }
    EXPECT_TRUE((*checkpoint)->check({}));
    EXPECT_THAT((*checkpoint)->other_tensors(), IsEmpty());
  }
}

// 1 x 64 in groups of 32: E8M0 bytes 0 (2^-127) and 254 (2^127).
Tensors mxfp4_layer() {
  return {{"l.weight_packed", "U8", {1, 32}, std::string(16, '\x21') + std::string(16, '\x9A')},
          {"l.weight_scale", "U8", {1, 2}, std::string("\x00\xFE", 2)}};
}

TEST(CompressedTensorsFp4, ReadsMxfp4) {
  for (const char* type : {"U8", "F8_E8M0"}) {
    const TestModel model(with(mxfp4_layer(), {"l.weight_scale", type, {1, 2}, std::string("\x00\xFE", 2)}),
                          model_config("mxfp4-pack-quantized", group("g", kLinear, "", kMxfp4)));
    const auto checkpoint = model.open();
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    EXPECT_THAT((*checkpoint)->convention(), HasSubstr("1 layers of E2M1 codes in groups of 32 with E8M0 scales"));
    const auto weight = (*checkpoint)->read_quantized("l");
    ASSERT_TRUE(weight) << weight.error().message;
    EXPECT_EQ(weight->format(),
              (WeightFormat{.scale_dtype = DType::kBf16, .zero_kind = ZeroKind::kTable, .group_size = 32}));
    EXPECT_EQ(weight->scales.at(0), 0x1p-127f);
    EXPECT_EQ(weight->scales.at(1), 0x1p127f);
    const std::vector<float> dense = dequantize(*weight);
    EXPECT_EQ(dense[0], 0x1p-128f);
    EXPECT_EQ(dense[1], 0x1p-127f);
    EXPECT_EQ(dense[32], -0x1p127f);
    EXPECT_EQ(dense[33], -0x1p126f);
  }
}

TEST(CompressedTensorsFp4, ReadsExperts) {
  const Tensors experts = {
      {"e.weight_packed", "U8", {2, 1, 8}, std::string(8, '\x22') + std::string(8, '\x44')},
      {"e.weight_scale", "F8_E4M3", {2, 1, 1}, "\x38\x40"},
      {"e.weight_global_scale", "F32", {2, 1}, f32({1, 2})},
  };
  const TestModel model(experts, model_config("nvfp4-pack-quantized", group("g", kLinear, "", kNvfp4)));
  EXPECT_EQ(dequantize(*model.read("e.0")), std::vector<float>(16, 1.0f));
  EXPECT_EQ(dequantize(*model.read("e.1")), std::vector<float>(16, 2.0f));
}

TEST(CompressedTensorsFp4, EveryE4M3NumberIsExact) {
  std::string scales;
  for (int byte = 0; byte < 256; ++byte) scales += static_cast<char>((byte & 0x7F) == 0x7F ? 0 : byte);
  const TestModel model({{"l.weight_packed", "U8", {256, 8}, std::string(2048, '\x22')},
                         {"l.weight_scale", "F8_E4M3", {256, 1}, scales},
                         {"l.weight_global_scale", "F32", {}, f32({1})}},
                        model_config("nvfp4-pack-quantized", group("g", kLinear, "", kNvfp4)));
  const auto weight = model.read("l");
  ASSERT_TRUE(weight) << weight.error().message;
  for (int byte = 0; byte < 256; ++byte) {
    if ((byte & 0x7F) == 0x7F) continue;
    const int exponent = byte >> 3 & 15;
    const double mantissa = (byte & 7) / 8.0;
    const double value =
        (byte & 128 ? -1 : 1) * (exponent == 0 ? mantissa / 64 : (1 + mantissa) * std::pow(2, exponent - 7));
    EXPECT_EQ(weight->scales.at(byte), value) << byte;
  }
}

TEST(CompressedTensorsFp4, RefusesWhatDoesNotFit) {
  const std::string nvfp4 = model_config("nvfp4-pack-quantized", group("g", kLinear, "", kNvfp4)),
                    mxfp4 = model_config("mxfp4-pack-quantized", group("g", kLinear, "", kMxfp4));
  const auto weights = [](const std::string& format, const std::string& settings) {
    return model_config(format, group("g", kLinear, "", settings));
  };
  using enum ErrorCode;
  const struct {
    Tensors tensors;
    std::string config;
    ErrorCode code;
    const char* words;
  } cases[] = {
      {without(nvfp4_layer(), "l.weight_scale"), nvfp4, kInvalidData, "but no l.weight_scale"},
      {without(nvfp4_layer(), "l.weight_global_scale"), nvfp4, kInvalidData, "but no l.weight_global_scale"},
      {with(nvfp4_layer(), {"l.weight_global_scale", "F32", {1}, f32({0})}), nvfp4, kInvalidData,
       "is 0; scales are divided"},
      {with(nvfp4_layer(), {"l.weight_global_scale", "F32", {1}, f32({NAN})}), nvfp4, kInvalidData, "is nan"},
      {with(nvfp4_layer(), {"l.weight_global_scale", "F32", {1}, f32({0x1p-149f})}), nvfp4, kInvalidData,
       "is inf when the tensor's own scale is applied"},
      {with(nvfp4_layer(), {"l.weight_global_scale", "BF16", {1}, u16({1})}), nvfp4, kInvalidData, "needs F32 [1]"},
      {with(nvfp4_layer(), {"l.weight_global_scale", "F32", {2}, f32({1, 1})}), nvfp4, kInvalidData, "needs F32 [1]"},
      {with(nvfp4_layer(), {"l.weight_scale", "F8_E4M3", {2, 2}, "\x38\x40\x7F\x38"}), nvfp4, kInvalidData,
       "element 2 of shape [2, 2] is nan"},
      {with(nvfp4_layer(), {"l.weight_scale", "F8_E4M3", {2, 1}, "\x38\x40"}), nvfp4, kInvalidData, "F8_E4M3 [2, 2]"},
      {with(nvfp4_layer(), {"l.weight_scale", "F8_E5M2", {2, 2}, "\x38\x40\x38\x38"}), nvfp4, kInvalidData, "F8_E4M3"},
      {with(nvfp4_layer(), {"l.weight_packed", "I32", {2, 4}, std::string(32, '\0')}), nvfp4, kInvalidData,
       "packed as U8 [n, k / 2]"},
      {with(nvfp4_layer(), {"l.weight_packed", "U8", {2, 0}, ""}), nvfp4, kInvalidData, "packed as U8"},
      {with(nvfp4_layer(), {"l.weight_packed", "U8", {2, 12}, std::string(24, '\0')}), nvfp4, kInvalidData,
       "k = 24, which is no multiple"},
      {with(nvfp4_layer(), {"l.weight_zero_point", "U8", {1}, "x"}), nvfp4, kUnsupported, "zero points are not read"},
      {with(mxfp4_layer(), {"l.weight_scale", "U8", {1, 2}, "\x7F\xFF"}), mxfp4, kInvalidData,
       "element 1 of shape [1, 2] is 255, which is NaN"},
      {with(mxfp4_layer(), {"l.weight_scale", "F8_E4M3", {1, 2}, "\x38\x38"}), mxfp4, kInvalidData, "needs U8 [1, 2]"},
      {nvfp4_layer(), weights("nvfp4-pack-quantized", kMxfp4), kUnsupported, "strategy 'group' is not read"},
      {nvfp4_layer(), weights("mxfp4-pack-quantized", kNvfp4), kUnsupported, "strategy 'tensor_group' is not read"},
      {nvfp4_layer(), weights("pack-quantized", kNvfp4), kUnsupported, "are 'float' of '4' bits; only 4-bit integers"},
      {nvfp4_layer(), weights("nvfp4-pack-quantized", kInt16Zeros), kUnsupported, "only 4-bit floats"},
      {nvfp4_layer(), weights("nvfp4-pack-quantized", kNvfp4 + R"(,"symmetric_":0,"actorder":"group")"), kUnsupported,
       "zero points or actorder"},
      {nvfp4_layer(),
       weights("nvfp4-pack-quantized",
               R"("num_bits":4,"type":"float","symmetric":true,"strategy":"tensor_group","group_size":32)"),
       kInvalidData, "group_size is 32, but its format has groups of 16"},
      {nvfp4_layer(), model_config("nvfp4-pack-quantized", R"("NVFP4":["Linear"])"), kUnsupported,
       "the preset is not read"},
  };
  for (const auto& broken : cases)
    expect_refused(TestModel(broken.tensors, broken.config), broken.code, broken.words, broken.words);
}

TEST(CompressedTensorsFp4, ReadsWeightsThatWantFloat4ActivationsWithAWarning) {
  const auto config = [](const std::string& activations) {
    return model_config("nvfp4-pack-quantized", R"("g":{"targets":["Linear"],"input_activations":)" + activations +
                                                    R"(,"weights":{)" + kNvfp4 + "}}");
  };
  const Tensors tensors = with(nvfp4_layer(), {"l.input_global_scale", "F32", {1}, f32({5})});
  const TestModel model(tensors, config(R"({"num_bits":4,"type":"float"})"));
  const auto checkpoint = model.open();
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_THAT((*checkpoint)->warnings(),
              ElementsAre(HasSubstr("input_activations asks for activations in 4-bit floats")));
  EXPECT_TRUE((*checkpoint)->read_quantized("l"));
  for (const char* other : {R"({"num_bits":8,"type":"float"})", R"({"num_bits":4,"type":"int"})", "{}", "true"})
    expect_refused(TestModel(tensors, config(other)), ErrorCode::kUnsupported, "wants quantized activations", other);
}

TEST(CompressedTensors, ReadsAFormatForEachGroup) {
  Tensors tensors = nvfp4_layer();
  for (TestTensor tensor : experts()) tensors.push_back(tensor);
  tensors.push_back({"x.weight_packed", "U8", {1, 16}, std::string(16, '\x22')});
  tensors.push_back({"x.weight_scale", "U8", {1, 1}, "\x80"});
  const std::string groups = group("a", R"(["re:.*experts.*"])", "pack-quantized", kInt16Zeros) + "," +
                             group("b", R"(["l"])", "nvfp4-pack-quantized", kNvfp4) + "," +
                             group("c", R"(["Linear"])", "mxfp4-pack-quantized", kMxfp4);
  const TestModel model(tensors, model_config("mixed-precision", groups, R"(["m.router"])"));
  const auto checkpoint = model.open();
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_TRUE((*checkpoint)->check({}));
  EXPECT_EQ((*checkpoint)->read_quantized("m.experts.up.1")->zero_kind, ZeroKind::kInt);
  EXPECT_EQ((*checkpoint)->read_quantized("l")->group_size, 16);
  EXPECT_EQ(dequantize(*(*checkpoint)->read_quantized("x")), std::vector<float>(32, 2.0f));
  for (const char* words : {"pack-quantized, 3 layers of 4-bit integers", "nvfp4-pack-quantized, 1 layers",
                            "mxfp4-pack-quantized, 1 layers", "1 dense layers"})
    EXPECT_THAT((*checkpoint)->convention(), HasSubstr(words));

  const std::string eight_bits =
      group("a", R"(["re:.*experts.*"])", "float-quantized", R"("num_bits":8,"type":"float","strategy":"channel")");
  expect_refused(TestModel(tensors, model_config("mixed-precision", eight_bits)), ErrorCode::kUnsupported,
                 "format 'float-quantized' is not read: its weights are 8-bit floats", "a group of another format");
}

}  // namespace
}  // namespace nybble
