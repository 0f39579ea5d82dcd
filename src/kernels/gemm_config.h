// GemmConfig: everything that tells one instance of the wgmma kernel (gemm_sm90.cuh) from another. Host-only C++.
#pragma once

#include <string>

#include "layout/packed.h"
#include "nybble/types.h"

namespace nybble::kernels {

// What an instance reads: the tile does not depend on it, so every tile is built for each of these.
struct GemmFormat {
  DType act = DType::kBf16;  // also the type of scales and out
  int groups = 1;            // layout::groups_per_block; 0: per column
  bool zero_point = false;   // ZeroKind::kInt, else kNone

  constexpr layout::BlockShape block() const { return {groups, 2, zero_point ? 1 : 0}; }
};

// One line per tile; tile_m and the members after it are what tuning chooses.
struct GemmTile {
  int tile_m = 128;    // tokens of a CTA: wgmma's N
  int warpgroups = 2;  // math warpgroups, each with `row_blocks` blocks of 64 output features
  int row_blocks = 1;
  int k_warpgroups = 1;        // of the math warpgroups, so many share output features and take k steps in turn
  int stages = 4;              // k steps of 128 in shared memory
  int stages_per_barrier = 1;  // stages that share a barrier and one bulk copy per row block
  int multicast = 1;           // CTAs of a cluster that share their tokens, each with its own output features
  int split_k = 1;             // CTAs of a cluster that share a tile and split k
  int ctas_per_sm = 1;
  int batch = 4;  // k16 steps per wgmma group
  // The last row block of a pair's first CTA is also the first of the second; each takes half of the tokens.
  bool shared_block = false;
  bool fp32_out = false;  // out and residual are fp32, otherwise of act's type

  constexpr int row_warpgroups() const { return warpgroups / k_warpgroups; }
  // Output features of a CTA; of a block that two share, half.
  constexpr int tile_n() const { return 64 * row_warpgroups() * row_blocks - (shared_block ? 32 : 0); }
  constexpr int cluster() const { return multicast * split_k; }
  // Whether a launch may cut tiles where it likes: split_k has a schedule of its own, and half a row block has no place
  // for partial sums.
  constexpr bool stream_k() const { return split_k == 1 && !shared_block; }
  constexpr int threads() const { return 128 * warpgroups + 128; }
};

struct GemmConfig {
  GemmTile tile;
  GemmFormat format;
};

// "sm90_gemm_bf16_g128_zp_t128x256x128_s4_c2k1_o1": tile_m x tile_n x tile_k, stages, cluster (multicast, split_k),
// CTAs per SM; "_fp32" behind it where outputs are.
inline std::string kernel_name(const GemmConfig& config) {
  const GemmTile& tile = config.tile;
  std::string name = std::string("sm90_gemm_") + dtype_name(config.format.act);
  name += config.format.groups == 0 ? "_col" : "_g" + std::to_string(layout::kBlockK / config.format.groups);
  if (config.format.zero_point) name += "_zp";
  name +=
      "_t" + std::to_string(tile.tile_m) + "x" + std::to_string(tile.tile_n()) + "x" + std::to_string(layout::kBlockK);
  name += "_s" + std::to_string(tile.stages);
  name += "_c" + std::to_string(tile.multicast) + "k" + std::to_string(tile.split_k);
  if (tile.k_warpgroups > 1) name += "w" + std::to_string(tile.k_warpgroups);
  name += "_o" + std::to_string(tile.ctas_per_sm);
  if (tile.fp32_out) name += "_fp32";
  return name;
}

// Registers per thread of the math warpgroups and of the producer's (setmaxnreg); together they fit the register file.
constexpr int math_registers(const GemmTile& tile) {
  if (tile.ctas_per_sm == 2) return tile.warpgroups == 1 ? 168 : tile.tile_m < 64 ? 96 : 104;
  return tile.warpgroups == 1 ? 240 : tile.warpgroups == 2 ? 232 : tile.warpgroups == 3 ? 152 : 104;
}
constexpr int producer_registers(const GemmTile& tile) {
  if (tile.ctas_per_sm == 2) return tile.warpgroups == 1 ? 64 : tile.tile_m < 64 ? 40 : 32;
  return tile.warpgroups == 1 ? 80 : tile.warpgroups == 2 ? 40 : tile.warpgroups == 3 ? 56 : 64;
}

// Whether codes minus zero points are multiplied and the fp32 sums of a group scaled (Numerics::kExactWeight), instead
// of weights rounded once: what costs a multiplication less for each pair of weights, but for symmetric bf16, and one
// more for each sum and group, so it pays with few tokens.
constexpr bool exact_weights(const GemmConfig& config) {
  const GemmFormat& format = config.format;
  return format.groups == 0 ||
         ((format.zero_point || format.act == DType::kFp16) && config.tile.tile_m * format.groups <= 32);
}

// Shared memory a CTA may have so that ctas_per_sm of them share an SM.
constexpr int smem_limit(int ctas_per_sm) { return ctas_per_sm == 1 ? 232448 : 115712; }

// Why a config makes no kernel; nullptr: it does. A requires-clause refuses what this refuses.
constexpr const char* why_invalid(const GemmConfig& config) {
  const GemmTile& tile = config.tile;
  // Between two multiples of 16 wgmma takes as long as for the larger one (H200, 2026-11-30: t104x128 as t112x128).
  if (tile.tile_m % 16 != 0 || tile.tile_m < 16 || tile.tile_m > 256) return "tile_m is a multiple of 16 up to 256";
  if (tile.warpgroups < 1 || tile.warpgroups > 4) return "1 to 4 math warpgroups";
  if (tile.row_blocks < 1 || tile.row_blocks > 2) return "1 or 2 row blocks a warpgroup";
  if (tile.k_warpgroups < 1 || tile.warpgroups % tile.k_warpgroups != 0)
    return "as many math warpgroups for every part of the output features";
  if (tile.stages % (tile.stages_per_barrier * tile.k_warpgroups) != 0 ||
      tile.stages / (tile.stages_per_barrier * tile.k_warpgroups) < 2)
    return "at least two groups of stages for every k warpgroup, of its own";
  if (tile.multicast != 1 && tile.multicast != 2) return "tokens are shared by one or two CTAs";
  if (tile.cluster() > 8) return "a cluster has at most 8 CTAs";
  if (tile.ctas_per_sm < 1 || tile.ctas_per_sm > 2) return "one or two CTAs per SM";
  // setmaxnreg hands out what the launch got; a warpgroup that asks for more waits for ever.
  const int registers = 65536 / tile.ctas_per_sm / tile.threads() / 8 * 8 * (tile.warpgroups + 1);
  if (tile.warpgroups * math_registers(tile) + producer_registers(tile) > registers)
    return "the warpgroups' registers are more than the CTA's";
  if (tile.shared_block &&
      (tile.multicast != 2 || tile.split_k > 1 || tile.k_warpgroups > 1 || tile.row_blocks > 1 || tile.warpgroups < 2))
    return "a shared row block is one of several warpgroups of a pair that shares tokens and splits no k";
  if (tile.shared_block && tile.tile_m % 32 != 0) return "of a shared row block each CTA takes a multiple of 16 tokens";
  if (8 % tile.batch != 0) return "batch divides the 8 k16 steps of a stage";
  if (tile.split_k > 1 && tile.row_blocks * tile.tile_m / 8 < tile.split_k)
    return "every CTA of split_k finishes some of a warpgroup's blocks of 64 x 8";
  const int groups = config.format.groups;
  if (groups != 0 && groups != 1 && groups != 2 && groups != 4) return "groups of 128, 64, 32, or per column";
  return nullptr;
}

}  // namespace nybble::kernels

// nvcc (13.0) writes a class-type template argument of a __global__ function by the mangled name of its type when that
// lives in a namespace; this gives the host compiler that name.
using _ZN6nybble7kernels10GemmConfigE = nybble::kernels::GemmConfig;  // NOLINT
