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

TEST(Awq, RefusesByName) {
  for (const char* version : {"gemv", "gemv_fast", "marlin"})
    expect_refused(TestModel(layer(), config(R"("bits":4,"group_size":1,"version":")" + std::string(version) + "\"")),
                   ErrorCode::kUnsupported, "version '" + std::string(version) + "' is not read", version);
  expect_refused(TestModel(layer(), config(R"("bits":8,"group_size":1)")), ErrorCode::kUnsupported, "bits is '8'", "8");
  expect_refused(TestModel(without(layer(), "l.qzeros"), kConfig), ErrorCode::kInvalidData, "l.qzeros", "no zeros");
  expect_refused(TestModel(layer(), config(R"("bits":4,"group_size":2)")), ErrorCode::kInvalidData, "'l.scales'", "g");
}

}  // namespace
}  // namespace nybble
