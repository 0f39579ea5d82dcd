// What can be known of compiled kernels without a GPU.
#include <gtest/gtest.h>

#include "kernels/gemm_instance.h"
#include "kernels/partial_sums.h"
#include "kernels/sweep_instance.h"

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
      // What setmaxnreg hands out must be what the launch got, or a warpgroup waits for ever.
      const int launched = 64 * 1024 / tile.ctas_per_sm / tile.threads() / 8 * 8;
      EXPECT_LE((tile.warpgroups * math_registers(tile) + producer_registers(tile)) * 128, launched * tile.threads())
          << name;
      EXPECT_LE(tile.threads() * tile.ctas_per_sm, 2048) << name;
      ++count;
    }
  EXPECT_GT(count, 0);
}

TEST(GemmConfig, RefusesWhatIsNoKernel) {
  EXPECT_EQ(why_invalid(GemmConfig{{.tile_m = 128, .warpgroups = 2, .stages = 4}, {}}), nullptr);
  EXPECT_STREQ(why_invalid(GemmConfig{{.tile_m = 20}, {}}), "tile_m is a multiple of 16 up to 256");
  EXPECT_STREQ(why_invalid(GemmConfig{{.tile_m = 64, .stages = 3, .stages_per_barrier = 2}, {}}),
               "at least two groups of stages for every k warpgroup, of its own");
  EXPECT_STREQ(why_invalid(GemmConfig{{.tile_m = 64, .warpgroups = 4, .k_warpgroups = 4, .stages = 4}, {}}),
               "at least two groups of stages for every k warpgroup, of its own");
  EXPECT_STREQ(why_invalid(GemmConfig{{.tile_m = 64, .warpgroups = 3, .k_warpgroups = 2, .stages = 4}, {}}),
               "as many math warpgroups for every part of the output features");
  EXPECT_STREQ(why_invalid(GemmConfig{{.tile_m = 64, .split_k = 16}, {}}), "a cluster has at most 8 CTAs");
  EXPECT_STREQ(why_invalid(GemmConfig{{.tile_m = 64, .warpgroups = 4, .stages = 4, .shared_block = true}, {}}),
               "a shared row block is one of several warpgroups of a pair that shares tokens and splits no k");
  EXPECT_STREQ(
      why_invalid(GemmConfig{{.tile_m = 48, .warpgroups = 4, .stages = 4, .multicast = 2, .shared_block = true}, {}}),
      "of a shared row block each CTA takes a multiple of 16 tokens");
  EXPECT_STREQ(why_invalid(GemmConfig{{}, {.groups = 3}}), "groups of 128, 64, 32, or per column");
}

TEST(GemmConfig, NamesTellInstancesApart) {
  EXPECT_EQ(kernel_name(GemmConfig{{.tile_m = 128, .warpgroups = 2, .row_blocks = 2, .stages = 4, .multicast = 2},
                                   {DType::kFp16, 0, true}}),
            "sm90_gemm_fp16_col_zp_t128x256x128_s4_c2k1_o1");
  EXPECT_EQ(kernel_name(GemmConfig{{.tile_m = 32, .warpgroups = 4, .k_warpgroups = 2, .stages = 12, .split_k = 2}, {}}),
            "sm90_gemm_bf16_g128_t32x128x128_s12_c1k2w2_o1");
  EXPECT_EQ(kernel_name(GemmConfig{{.tile_m = 64, .warpgroups = 4, .multicast = 2, .shared_block = true}, {}}),
            "sm90_gemm_bf16_g128_t64x224x128_s4_c2k1_o1");
  EXPECT_EQ(kernel_name(GemmConfig{{.tile_m = 64, .warpgroups = 2, .fp32_out = true}, {}}),
            "sm90_gemm_bf16_g128_t64x128x128_s4_c1k1_o1_fp32");
}

TEST(SweepInstances, FitSharedMemory) {
  int count = 0;
  for (const auto part :
       {sweep_instances_bf16(), sweep_instances_bf16_zp(), sweep_instances_fp16(), sweep_instances_fp16_zp()})
    for (const SweepInstance& instance : part) {
      const SweepTile& tile = instance.config.tile;
      const std::string name = kernel_name(instance.config);
      EXPECT_EQ(why_invalid(instance.config), nullptr) << name;
      EXPECT_LE(tile.threads() * tile.slots_per_sm, 2048) << name;
      for (int m = 1; m <= tile.tile_m; ++m) {
        const SweepSmem smem = instance.smem(m);
        EXPECT_LE((smem.bytes + 1024) * tile.slots_per_sm, 228 * 1024) << name << " m = " << m;
        EXPECT_GE(smem.stages, 2) << name << " m = " << m;
        EXPECT_EQ(smem.act % 1024, 0) << name << " m = " << m;  // what the tensor map's swizzle counts from
        EXPECT_EQ(smem.act_stage % 1024, 0) << name << " m = " << m;
        EXPECT_LE(smem.act + smem.stages * smem.act_stage, smem.sums) << name << " m = " << m;
      }
      ++count;
    }
  EXPECT_GT(count, 0);
}

TEST(SweepConfig, RefusesWhatIsNoKernel) {
  EXPECT_EQ(why_invalid(SweepConfig{{}, {}}), nullptr);
  EXPECT_STREQ(why_invalid(SweepConfig{{.tile_m = 12}, {}}), "tile_m is 8 or 16: one or two n tiles of mma.m16n8k16");
  EXPECT_STREQ(why_invalid(SweepConfig{{.row_warps = 3}, {}}), "a block has four pieces to share");
  EXPECT_STREQ(why_invalid(SweepConfig{{.blocks_per_stage = 8, .row_warps = 4}, {}}), "1 to 16 math warps");
  EXPECT_STREQ(why_invalid(SweepConfig{{}, {.groups = 8}}), "groups of 128, 64, 32, or per column");
  EXPECT_EQ(
      kernel_name(SweepConfig{{.blocks_per_stage = 8, .row_warps = 1, .slots_per_sm = 1}, {DType::kFp16, 0, true}}),
      "sm90_sweep_fp16_col_zp_t8x64_w8x1_o1");
}

// Partial sums behind the flags, nothing shared.
TEST(PartialSumsMap, KeepsItsPartsApart) {
  for (const int ctas : {1, 7, 132, 264})
    for (const int warpgroups : {1, 2, 4}) {
      const PartialSumsMap map(ctas, warpgroups, 48, 64 * warpgroups);
      EXPECT_GE(map.partials, sizeof(uint64_t) * ctas * warpgroups);
      EXPECT_EQ(map.partials % 256, 0u);
      EXPECT_EQ(map.bytes, map.partials + sizeof(float) * ctas * 48 * 64 * warpgroups);
    }
}

}  // namespace
}  // namespace nybble::kernels
