// SweepConfig: everything that tells one instance of the sweeping kernel (sweep_sm90.cuh) from another. Host-only C++.
#pragma once

#include <string>

#include "kernels/gemm_config.h"

namespace nybble::kernels {

// One line per tile. A stage of the ring is a few blocks of 64 x 128 with their tokens; row_warps math warps work on
// each block. A launch has as many stages as its tokens leave room for.
struct SweepTile {
  int tile_m = 8;            // most tokens: 8 or 16
  int blocks_per_stage = 4;  // consecutive in memory
  int row_warps = 2;         // that share the output features of a block
  int slots_per_sm = 2;      // CTAs that fit an SM; a launch has one CTA per SM, so 2 lets the next one fill its ring

  constexpr int math_warps() const { return blocks_per_stage * row_warps; }
  constexpr int math_threads() const { return 32 * math_warps(); }
  constexpr int threads() const { return math_threads() + 32; }                    // a producer
  constexpr int row_tiles() const { return layout::kPiecesPerBlock / row_warps; }  // pieces of 16 rows per warp
  constexpr int token_tiles() const { return tile_m / 8; }
  constexpr int handed_over() const { return tile_m * (layout::kBlockN / 2); }  // tagged pairs of sums, by a share
};

struct SweepConfig {
  SweepTile tile;
  GemmFormat format;

  // For __launch_bounds__. Registers are held by scheduler, of which an SM has four: where one has three of a CTA's
  // warps, with 88 registers for each, there is no room beside a kernel with four warps of 64 (docs/decisions/0010).
  // Zero points of several groups a block want more than is left for three, and get it.
  constexpr int threads_held() const {
    return format.zero_point && format.groups > 1 ? tile.threads() + 32 : (tile.threads() + 127) / 128 * 128;
  }
};

// "sm90_sweep_bf16_g128_zp_t8x64_w4x2_o2": tokens x output features of a block, blocks of a stage x warps on each, CTAs
// that fit an SM.
inline std::string kernel_name(const SweepConfig& config) {
  const SweepTile& tile = config.tile;
  std::string name = std::string("sm90_sweep_") + dtype_name(config.format.act);
  name += config.format.groups == 0 ? "_col" : "_g" + std::to_string(layout::kBlockK / config.format.groups);
  if (config.format.zero_point) name += "_zp";
  name += "_t" + std::to_string(tile.tile_m) + "x" + std::to_string(layout::kBlockN);
  name += "_w" + std::to_string(tile.blocks_per_stage) + "x" + std::to_string(tile.row_warps);
  name += "_o" + std::to_string(tile.slots_per_sm);
  return name;
}

// Why a config makes no kernel; nullptr: it does. A requires-clause refuses what this refuses.
constexpr const char* why_invalid(const SweepConfig& config) {
  const SweepTile& tile = config.tile;
  if (tile.tile_m != 8 && tile.tile_m != 16) return "tile_m is 8 or 16: one or two n tiles of mma.m16n8k16";
  if (tile.row_warps != 1 && tile.row_warps != 2 && tile.row_warps != 4) return "a block has four pieces to share";
  if (tile.blocks_per_stage < 1 || tile.math_warps() > 16) return "1 to 16 math warps";
  if (tile.slots_per_sm < 1 || tile.slots_per_sm > 2) return "one or two CTAs fit an SM";
  const int groups = config.format.groups;
  if (groups != 0 && groups != 1 && groups != 2 && groups != 4) return "groups of 128, 64, 32, or per column";
  return nullptr;
}

}  // namespace nybble::kernels

// As for GemmConfig: the name by which nvcc (13.0) writes this type in host code.
using _ZN6nybble7kernels11SweepConfigE = nybble::kernels::SweepConfig;  // NOLINT
