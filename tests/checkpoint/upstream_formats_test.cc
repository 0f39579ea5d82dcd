// Checkpoints of other formats than plain compressed-tensors, made by each format's own library (tests/data/make_*.py),
// against what that library reads in them: codes and weights, bit by bit.
#include <gtest/gtest.h>

#include "checkpoint/model_files.h"
#include "nybble/checkpoint.h"

namespace nybble {
namespace {

struct Fixture {
  const char* folder;
  const char* format;
  size_t layers;
};

class UpstreamFormat : public ::testing::TestWithParam<Fixture> {};

// Zeros of either sign are equal: libraries differ in what E2M1's negative zero becomes.
void expect_weights(const std::vector<float>& values, const checkpoint::TensorRef& expected, const std::string& layer) {
  const Result<DType> dtype = checkpoint::float_type(expected->type);
  ASSERT_TRUE(dtype) << layer;
  FloatArray read;
  read.dtype = *dtype;
  read.bytes = *expected.read_all();
  const FloatArray rounded = FloatArray::from_floats(*dtype, values);
  ASSERT_EQ(rounded.size(), read.size()) << layer;
  for (size_t i = 0; i < read.size(); ++i) ASSERT_EQ(rounded.at(i), read.at(i)) << layer << " element " << i;
}

TEST_P(UpstreamFormat, ReadsWhatTheLibraryReads) {
  const std::string folder = std::string(NYBBLE_SOURCE_DIR "/tests/data/") + GetParam().folder;
  const auto checkpoint = open_checkpoint(folder);
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ((*checkpoint)->format(), GetParam().format);
  const Result<void> checked = (*checkpoint)->check({});
  EXPECT_TRUE(checked) << checked.error().message;
  const auto expected = checkpoint::ModelFiles::open(folder + "/expected.safetensors");
  ASSERT_TRUE(expected) << expected.error().message;
  ASSERT_EQ((*checkpoint)->layers().size(), GetParam().layers);
  EXPECT_EQ((*expected)->tensors().size(), 2 * GetParam().layers);
  for (const LayerInfo& layer : (*checkpoint)->layers()) {
    const auto weight = (*checkpoint)->read_quantized(layer.name);
    ASSERT_TRUE(weight) << weight.error().message;
    EXPECT_EQ(weight->format(), layer.format) << layer.name;
    const checkpoint::TensorRef codes = (*expected)->find(layer.name + ".codes"),
                                values = (*expected)->find(layer.name + ".weight");
    ASSERT_TRUE(codes && values) << layer.name;
    EXPECT_EQ(codes->shape, (std::vector{weight->n, weight->k})) << layer.name;
    const std::vector<std::byte> bytes = *codes.read_all();
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), weight->codes.begin(), weight->codes.end(),
                           [](std::byte byte, uint8_t code) { return static_cast<uint8_t>(byte) == code; }))
        << layer.name;
    expect_weights(dequantize(*weight), values, layer.name);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Fixtures, UpstreamFormat,
    ::testing::Values(
        Fixture{"ct_nvfp4", "compressed-tensors", 2}, Fixture{"ct_nvfp4_activations", "compressed-tensors", 1},
        Fixture{"ct_mxfp4", "compressed-tensors", 2}, Fixture{"ct_preset", "compressed-tensors", 1},
        Fixture{"ct_preset_asymmetric", "compressed-tensors", 1},
        Fixture{"ct_actorder_static", "compressed-tensors", 2}, Fixture{"ct_actorder_group", "compressed-tensors", 1},
        Fixture{"ct_actorder_group_unfilled", "compressed-tensors", 1}, Fixture{"ct_experts", "compressed-tensors", 3},
        Fixture{"ct_mixed", "compressed-tensors", 3}, Fixture{"ct_tensor", "compressed-tensors", 1},
        Fixture{"ct_tensor_asymmetric", "compressed-tensors", 1}, Fixture{"bnb_nf4", "bitsandbytes", 2},
        Fixture{"bnb_nf4_nested", "bitsandbytes", 2}, Fixture{"bnb_nf4_stored_as_bf16", "bitsandbytes", 1},
        Fixture{"bnb_fp4", "bitsandbytes", 1}, Fixture{"bnb_fp4_nested", "bitsandbytes", 1},
        Fixture{"hqq_fp16", "hqq", 2}, Fixture{"hqq_bf16", "hqq", 1}, Fixture{"hqq_viewed_as_floats", "hqq", 1},
        Fixture{"hqq_fp32", "hqq", 1}, Fixture{"hqq_fp32_positive", "hqq", 1}, Fixture{"torchao_plain", "torchao", 2},
        Fixture{"torchao_plain_g64", "torchao", 1}, Fixture{"torchao_tiles", "torchao", 1},
        Fixture{"torchao_tiles_g64", "torchao", 1}, Fixture{"modelopt_nvfp4", "modelopt", 2},
        Fixture{"modelopt_nvfp4_own_file", "modelopt", 2}, Fixture{"gpt_oss_mxfp4", "mxfp4", 4},
        Fixture{"gptq_v2_symmetric_g32", "gptq", 2}, Fixture{"gptq_v2_asymmetric_g64", "gptq", 2},
        Fixture{"gptq_v2_act_order_g32", "gptq", 1}, Fixture{"gptq_v2_tails", "gptq", 2},
        Fixture{"gptq_v2_act_order_tails", "gptq", 1}, Fixture{"gptq_v2_row_bf16", "gptq", 1},
        Fixture{"gptq_v2_mixed_groups", "gptq", 3}, Fixture{"gptq_v1_symmetric_g128", "gptq", 1},
        Fixture{"gptq_v1_asymmetric_g32", "gptq", 2}, Fixture{"gptq_v1_act_order_g64", "gptq", 1},
        Fixture{"autogptq_symmetric_g128", "gptq", 1}, Fixture{"autogptq_asymmetric_g32", "gptq", 1},
        Fixture{"autogptq_act_order_row", "gptq", 1}, Fixture{"autogptq_act_order_g32", "gptq", 1},
        Fixture{"awq_gemm_g128", "awq", 1}, Fixture{"awq_gemm_g32", "awq", 1}, Fixture{"awq_gemm_bf16", "awq", 1},
        Fixture{"awq_gemm_row", "awq", 1}, Fixture{"awq_gemv_g128", "awq", 2}, Fixture{"awq_gemv_g64", "awq", 1},
        Fixture{"awq_gemv_g32", "awq", 1}, Fixture{"awq_gemv_fast_g128", "awq", 2},
        Fixture{"awq_gemv_fast_g32", "awq", 1}, Fixture{"awq_llm_awq", "awq", 1},
        Fixture{"autoround_gptq_symmetric", "auto-round", 1}, Fixture{"autoround_gptq_asymmetric", "auto-round", 1},
        Fixture{"autoround_gptqmodel", "auto-round", 1}, Fixture{"autoround_plain", "auto-round", 1},
        Fixture{"autoround_awq", "auto-round", 1}, Fixture{"autoround_mixed_groups", "auto-round", 3},
        Fixture{"autoround_mxfp4", "compressed-tensors", 1}, Fixture{"autoround_nvfp4", "compressed-tensors", 1}),
    [](const auto& info) { return std::string(info.param.folder); });

}  // namespace
}  // namespace nybble
