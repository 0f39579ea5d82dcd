// Checkpoints made by the format's own library (tests/data/make_compressed_tensors.py) against what it reads in them.
#include <gtest/gtest.h>

#include "checkpoint/model_files.h"
#include "nybble/checkpoint.h"

namespace nybble {
namespace {

std::vector<uint8_t> unsigned_codes(const checkpoint::TensorRef& signed_codes) {
  const Result<std::vector<std::byte>> bytes = signed_codes.read_all();
  std::vector<uint8_t> codes;
  for (const std::byte byte : *bytes) codes.push_back(static_cast<uint8_t>(static_cast<int8_t>(byte) + 8));
  return codes;
}

class UpstreamFixture : public ::testing::TestWithParam<const char*> {};

TEST_P(UpstreamFixture, ReadsWhatTheLibraryReads) {
  const std::string folder = std::string(NYBBLE_SOURCE_DIR "/tests/data/") + GetParam();
  const auto checkpoint = open_checkpoint(folder);
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_TRUE((*checkpoint)->check({}));
  const auto expected = checkpoint::ModelFiles::open(folder + "/expected.safetensors");
  ASSERT_TRUE(expected) << expected.error().message;
  ASSERT_EQ((*checkpoint)->layers().size(), 2u);
  for (const LayerInfo& layer : (*checkpoint)->layers()) {
    const auto weight = (*checkpoint)->read_quantized(layer.name);
    ASSERT_TRUE(weight) << weight.error().message;
    EXPECT_EQ(weight->codes, unsigned_codes((*expected)->find(layer.name + ".codes"))) << layer.name;
    const checkpoint::TensorRef zeros = (*expected)->find(layer.name + ".zeros");
    EXPECT_EQ(weight->zero_kind, zeros ? ZeroKind::kInt : ZeroKind::kNone);
    if (zeros) {
      EXPECT_EQ(weight->int_zeros, unsigned_codes(zeros)) << layer.name;
    }
    // The library multiplies in the scales' type, which rounds once: so does this.
    const checkpoint::TensorRef values = (*expected)->find(layer.name + ".weight");
    EXPECT_EQ(FloatArray::from_floats(weight->scales.dtype, dequantize(*weight)).bytes, *values.read_all())
        << layer.name;
  }
  const std::vector<OtherTensor> others = (*checkpoint)->other_tensors();
  ASSERT_EQ(others.size(), 1u);
  EXPECT_EQ(others[0].name, "norm.weight");
  EXPECT_EQ((*checkpoint)->read_other_tensor("norm.weight")->size(), (others[0].dtype == "F32" ? 32u : 16u));
  EXPECT_EQ((*checkpoint)->read_other_tensor((*checkpoint)->layers()[0].name + ".weight_packed").error().code,
            ErrorCode::kInvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(CompressedTensors, UpstreamFixture,
                         ::testing::Values("ct_group_symmetric", "ct_group_asymmetric", "ct_channel_symmetric",
                                           "ct_channel_asymmetric"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace nybble
