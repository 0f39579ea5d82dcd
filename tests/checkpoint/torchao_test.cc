#include "checkpoint/test_model.h"

namespace nybble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using namespace nybble::testing;

const std::string kConfig = R"({"quantization_config":{"quant_method":"torchao","quant_type":{"default":{}}}})";

// __metadata__ whose values are JSON within strings.
std::string metadata(std::string entry) {
  std::string quoted;
  for (const char c : entry) quoted += c == '"' ? std::string("\\\"") : std::string(1, c);
  return R"({"l.weight":")" + quoted + R"(","tensor_names":"[\"l.weight\"]"})";
}
std::string entry(const std::string& type, const std::string& data) {
  return R"({"_type":")" + type + R"(","_data":{)" + data + R"(},"_tensor_data_names":["qdata"]})";
}
const std::string kPlain = entry("Int4Tensor", R"("block_size":[1,4],"shape":[2,8])");

// 2 x 8 in groups of 4: codes -8 to 7; scales 1, 2, 3, 4 and zeros 10, 20, 30, 40 for (row, group) in order.
Tensors plain_layer() {
  return {{"l._weight_qdata", "I8", {2, 4}, "\x98\xBA\xDC\xFE\x10\x32\x54\x76"},
          {"l._weight_scale", "BF16", {2, 2}, u16({0x3F80, 0x4040, 0x4000, 0x4080})},
          {"l._weight_zero_point", "BF16", {2, 2}, u16({0x4120, 0x41F0, 0x41A0, 0x4220})},
          {"l.bias", "BF16", {2}, u16({0x3F80, 0x4000})},
          {"lm_head.weight", "F32", {1, 2}, f32({1, 2})}};
}

TEST(Torchao, ReadsPlainCodesWithTheGroupsMiddleAsZero) {
  for (const std::string& config : {kConfig, std::string()}) {
    const TestModel model(plain_layer(), config, metadata(kPlain));
    const auto checkpoint = model.open();
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    EXPECT_EQ((*checkpoint)->format(), "torchao");
    EXPECT_THAT((*checkpoint)->convention(), HasSubstr("1 layers of Int4Tensor, 0 of Int4TilePackedTo4dTensor"));
    ASSERT_EQ((*checkpoint)->layers().size(), 2u);
    EXPECT_EQ((*checkpoint)->layers()[0].format,
              (WeightFormat{.scale_dtype = DType::kFp32, .zero_kind = ZeroKind::kOffset, .group_size = 4}));
    const auto weight = (*checkpoint)->read_quantized("l");
    ASSERT_TRUE(weight) << weight.error().message;
    EXPECT_THAT(weight->codes, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    std::vector<float> expected;  // q * scale + zero
    for (int i = 0; i < 16; ++i) expected.push_back(static_cast<float>((i - 8) * (1 + i / 4) + 10 * (1 + i / 4)));
    EXPECT_EQ(dequantize(*weight), expected);
    EXPECT_EQ(weight->bias.at(1), 2.0f);
    EXPECT_TRUE((*checkpoint)->check({}));
    EXPECT_EQ((*checkpoint)->other_tensors().size(), 2u);
  }
}

// 8 x 1024 with every word holding its own place; what is read is n = 5, k = 1000 of it.
Tensors tile_layer() {
  std::vector<uint32_t> words;
  for (uint32_t i = 0; i < 8 * 32 * 4; ++i) words.push_back(i * 0x9E3779B9u);
  std::vector<uint16_t> numbers;
  for (uint16_t i = 0; i < 32 * 8; ++i) {
    numbers.push_back(static_cast<uint16_t>(0x3F80 + i % 8 * 16));  // scale
    numbers.push_back(static_cast<uint16_t>(0x4000 + i / 8));       // zero
  }
  return {{"l._weight_qdata", "I32", {1, 8, 32, 4}, i32(words)},
          {"l._weight_scale_and_zero", "BF16", {32, 8, 2}, u16(numbers)}};
}
const std::string kTiles = entry("Int4TilePackedTo4dTensor", R"("block_size":[1,32],"shape":[5,1000])");

TEST(Torchao, ReadsTilesAndLeavesThePaddingOut) {
  const TestModel model(tile_layer(), kConfig, metadata(kTiles));
  const auto weight = model.read("l");
  ASSERT_TRUE(weight) << weight.error().message;
  EXPECT_EQ(weight->n, 5);
  EXPECT_EQ(weight->k, 1000);
  EXPECT_EQ(weight->groups(), 32);
  // From a word's place to the features it holds: the other way round than the reader.
  for (uint32_t tile = 0; tile < 8; ++tile)
    for (uint32_t lane = 0; lane < 32; ++lane)
      for (uint32_t p = 0; p < 4; ++p) {
        const uint32_t word = ((tile * 32 + lane) * 4 + p) * 0x9E3779B9u, n = lane / 4;
        for (uint32_t nibble = 0; nibble < 8; ++nibble) {
          const uint32_t k = 128 * tile + 32 * p + 2 * (lane % 4) + nibble % 4 * 8 + nibble / 4;
          if (n < 5 && k < 1000) {
            ASSERT_EQ(weight->codes[n * 1000 + k], word >> (4 * nibble) & 15) << n << " " << k;
          }
        }
      }
  const std::vector<float> dense = dequantize(*weight);
  for (int n = 0; n < 5; ++n)
    for (int k = 0; k < 1000; ++k) {
      const float scale = 1 + static_cast<float>(n) / 8, zero = 2 + static_cast<float>(k / 32) / 64;
      ASSERT_EQ(dense[n * 1000 + k], (weight->codes[n * 1000 + k] - 8) * scale + zero) << n << ' ' << k;
    }
}

TEST(Torchao, RefusesOtherClassesByName) {
  for (const char* type : {"Int4PlainInt32Tensor", "Int4PreshuffledTensor", "Int8Tensor", "IntxUnpackedToInt8Tensor",
                           "Float8Tensor", "MXTensor", "NVFP4Tensor", "Tomorrow"}) {
    expect_refused(TestModel(plain_layer(), kConfig, metadata(entry(type, R"("block_size":[1,4],"shape":[2,8])"))),
                   ErrorCode::kUnsupported, "_type '" + std::string(type) + "' is not read", type);
  }
  const struct {
    Tensors tensors;
    std::string data;
    const char* words;
  } cases[] = {
      {with(plain_layer(), {"l._weight_act_pre_scale", "BF16", {8}, u16(std::vector<uint16_t>(8, 0x3F80))}),
       R"("block_size":[1,4],"shape":[2,8])", "multiplies the activations beside the weight"},
      {plain_layer(),
       R"("block_size":[1,4],"shape":[2,8],"activation_dtype":{"_type":"torch.dtype","_data":"float8_e4m3fn"})",
       "activation_dtype is 'float8_e4m3fn'"},
      {plain_layer(), R"("block_size":[2,4],"shape":[2,8])", "only groups within a row"},
      {plain_layer(), R"("block_size":[1,1,4],"shape":[1,2,8])", "experts in one tensor"},
      {with(plain_layer(), {"e._up_proj_qdata", "I8", {1}, "x"}), R"("block_size":[1,4],"shape":[2,8])",
       "no linear layer's weight"},
  };
  for (const auto& foreign : cases)
    expect_refused(TestModel(foreign.tensors, kConfig, metadata(entry("Int4Tensor", foreign.data))),
                   ErrorCode::kUnsupported, foreign.words, foreign.words);
}

TEST(Torchao, RefusesWhatDoesNotFit) {
  const auto plain = [](const std::string& data) { return metadata(entry("Int4Tensor", data)); };
  const auto tiles = [](const std::string& data) { return metadata(entry("Int4TilePackedTo4dTensor", data)); };
  const std::string fine = metadata(kPlain);
  const struct {
    Tensors tensors;
    std::string metadata;
    const char* words;
  } cases[] = {
      {plain_layer(), "", "no shard's header says what it is"},
      {plain_layer(), metadata("{"), "__metadata__ of l.weight"},
      {plain_layer(), metadata(R"({"_type":"Int4Tensor"})"), "has no object _data"},
      {plain_layer(), plain(R"("block_size":[1,4])"), "shape is 'missing'"},
      {plain_layer(), plain(R"("shape":[2,8])"), "block_size is 'missing'"},
      {plain_layer(), plain(R"("block_size":[1,0],"shape":[2,8])"), "block_size is '[1,0]'"},
      {plain_layer(), plain(R"("block_size":[1,4],"shape":[2,-8])"), "shape is '[2,-8]'"},
      {plain_layer(), plain(R"("block_size":[1,4],"shape":[2,99999999999])"), "shape is"},
      {plain_layer(), plain(R"("block_size":[1,4],"shape":[2147483647,2147483644])"),
       "needs I8 [2147483647, 1073741822]"},
      {plain_layer(), plain(R"("block_size":[1,4],"shape":[2,16])"), "needs I8 [2, 8]"},
      {plain_layer(), plain(R"("block_size":[1,3],"shape":[2,8])"), "no multiple of 3"},
      {plain_layer(), plain(R"("block_size":[1,1],"shape":[2,7])"), "no multiple of 2"},
      {plain_layer(), plain(R"("block_size":[1,8],"shape":[2,8])"), "needs BF16, F16 or F32 [1, 2]"},
      {without(plain_layer(), "l._weight_scale"), fine, "but no l._weight_scale"},
      {without(plain_layer(), "l._weight_zero_point"), fine, "but no l._weight_zero_point"},
      {without(plain_layer(), "l._weight_qdata"), fine, "codes are missing: there is no l._weight_qdata"},
      {with(plain_layer(), {"l._weight_qdata", "I32", {2, 4}, std::string(32, '1')}), fine, "needs I8 [2, 4]"},
      {with(plain_layer(), {"l._weight_zero_point", "I8", {2, 2}, "1234"}), fine, "needs BF16, F16 or F32"},
      {with(plain_layer(), {"l._weight_scale", "BF16", {2, 2}, u16({0, 0, 0x7F80, 0})}), fine, "element 2 of shape"},
      {with(plain_layer(), {"l._weight_zero_point", "BF16", {2, 2}, u16({0, 0x7FC0, 0, 0})}), fine, "is nan"},
      {plain_layer(), tiles(R"("block_size":[1,32],"shape":[2,8])"), "but no l._weight_scale_and_zero"},
      {tile_layer(), tiles(R"("block_size":[1,32],"shape":[9,1000])"), "needs I32 [2, 8, 32, 4]"},
      {tile_layer(), tiles(R"("block_size":[1,32],"shape":[5,1025])"), "needs I32 [1, 16, 32, 4]"},
      {tile_layer(), tiles(R"("block_size":[1,96],"shape":[5,1000])"), "does not divide the padded k"},
      {tile_layer(), tiles(R"("block_size":[1,64],"shape":[5,1000])"), "needs BF16 [16, 8, 2]"},
  };
  for (const auto& broken : cases)
    expect_refused(TestModel(broken.tensors, kConfig, broken.metadata), ErrorCode::kInvalidData, broken.words,
                   broken.words);
}

}  // namespace
}  // namespace nybble
