// What can be known of compiled kernels without a GPU.
#include <gtest/gtest.h>

#include "kernels/gemm_instance.h"

namespace nybble::kernels {
namespace {

TEST(GemmInstances, FitSharedMemoryAndTheRegisterFile) {
  int count = 0;
  for (const auto part :
       {gemm_instances_bf16(), gemm_instances_bf16_zp(), gemm_instances_fp16(), gemm_instances_fp16_zp()})
    for (const GemmInstance& instance : part) {
      const GemmTile& tile = instance.config.tile;
      const std::string name = kernel_name(instance.config);
      EXPECT_EQ(why_invalid(instance.config), nullptr) << name;
      EXPECT_LE(instance.smem_bytes, 227 * 1024) << name;
      EXPECT_LE((instance.smem_bytes + 1024) * tile.ctas_per_sm, 228 * 1024) << name;
      EXPECT_LE((tile.warpgroups * math_registers(tile) + producer_registers(tile)) * 128 * tile.ctas_per_sm, 64 * 1024)
          << name;
      EXPECT_LE(tile.threads() * tile.ctas_per_sm, 2048) << name;
      ++count;
    }
  EXPECT_GT(count, 0);
}

TEST(GemmConfig, RefusesWhatIsNoKernel) {
  EXPECT_EQ(why_invalid({{.tile_m = 128, .warpgroups = 2, .stages = 4}, {}}), nullptr);
  EXPECT_STREQ(why_invalid({{.tile_m = 20}, {}}), "tile_m is a multiple of 16 up to 256");
  EXPECT_STREQ(why_invalid({{.tile_m = 64, .stages = 3, .stages_per_barrier = 2}, {}}),
               "at least two groups of stages");
  EXPECT_STREQ(why_invalid({{.tile_m = 64, .split_k = 16}, {}}), "a cluster has at most 8 CTAs");
  EXPECT_STREQ(why_invalid({{}, {.groups = 3}}), "groups of 128, of 64, or per column");
}

TEST(GemmConfig, NamesTellInstancesApart) {
  EXPECT_EQ(kernel_name({{.tile_m = 128, .warpgroups = 2, .row_blocks = 2, .stages = 4, .multicast = 2},
                         {DType::kFp16, 0, true}}),
            "sm90_gemm_fp16_col_zp_t128x256x128_s4_c2k1_o1");
}

}  // namespace
}  // namespace nybble::kernels
