// StreamConfig: everything that tells one instance of the streaming kernel (stream_sm90.cuh) from another. Host-only
// C++.
#pragma once

#include <string>

#include "kernels/gemm_config.h"

namespace nybble::kernels {

// One line per tile. A CTA's warps stand in row_warps x k_warps: each takes row_tiles pieces of 16 output features and
// one slice of k.
struct StreamTile {
  int tile_m = 8;     // most tokens: 8 or 16
  int row_tiles = 2;  // pieces of 16 output features per warp
  int row_warps = 1;
  int k_warps = 8;
  int stages = 4;        // blocks of 128 input features in each warp's ring
  int cluster = 1;       // CTAs that share their output features and split k once more
  int ctas_per_sm = 1;   // of one launch: the grid is this times the SMs
  int slots_per_sm = 2;  // CTAs that fit an SM: more than ctas_per_sm lets the next launch fill its rings early

  constexpr int warps() const { return row_warps * k_warps; }
  constexpr int threads() const { return 32 * warps(); }
  constexpr int tile_n() const { return layout::kPieceN * row_tiles * row_warps; }
  constexpr int k_slices() const { return k_warps * cluster; }
};

struct StreamConfig {
  StreamTile tile;
  GemmFormat format;
};

// "sm90_stream_bf16_g128_zp_t8x32_w1x16_s2_c1_o1of2": tokens x output features of a CTA, warps along n x along k,
// stages, cluster, CTAs per SM of one launch and in all.
inline std::string kernel_name(const StreamConfig& config) {
  const StreamTile& tile = config.tile;
  std::string name = std::string("sm90_stream_") + dtype_name(config.format.act);
  name += config.format.groups == 0 ? "_col" : "_g" + std::to_string(layout::kBlockK / config.format.groups);
  if (config.format.zero_point) name += "_zp";
  name += "_t" + std::to_string(tile.tile_m) + "x" + std::to_string(tile.tile_n());
  name += "_w" + std::to_string(tile.row_warps) + "x" + std::to_string(tile.k_warps);
  name += "_s" + std::to_string(tile.stages) + "_c" + std::to_string(tile.cluster);
  name += "_o" + std::to_string(tile.ctas_per_sm) + "of" + std::to_string(tile.slots_per_sm);
  return name;
}

// Why a config makes no kernel; nullptr: it does. A requires-clause refuses what this refuses.
constexpr const char* why_invalid(const StreamConfig& config) {
  const StreamTile& tile = config.tile;
  if (tile.tile_m != 8 && tile.tile_m != 16) return "tile_m is 8 or 16: one or two n tiles of mma.m16n8k16";
  if (tile.row_tiles < 1 || tile.row_tiles > 4) return "a warp takes 1 to 4 pieces of 16 output features";
  if (tile.row_warps < 1 || tile.k_warps < 1 || tile.warps() > 32) return "1 to 32 warps";
  if (tile.row_warps > 1 && tile.k_warps > 15) return "a slice of k shared by warps has a named barrier: there are 15";
  if (tile.stages < 2) return "a ring has at least two stages";
  if (tile.cluster != 1 && tile.cluster != 2) return "larger clusters put their CTAs on one SM";
  if (tile.tile_n() % (layout::kPieceN * tile.cluster) != 0)
    return "the CTAs of a cluster share the tile in whole pieces";
  if (tile.ctas_per_sm < 1 || tile.slots_per_sm < tile.ctas_per_sm) return "slots_per_sm is at least ctas_per_sm";
  if (tile.slots_per_sm * tile.threads() > 2048) return "an SM holds 2048 threads";
  const int groups = config.format.groups;
  if (groups != 0 && groups != 1 && groups != 2 && groups != 4 && groups != 8)
    return "groups of 16, 32, 64, 128 or per column";
  return nullptr;
}

}  // namespace nybble::kernels

// As for GemmConfig: the name by which nvcc (13.0) writes this type in host code.
using _ZN6nybble7kernels12StreamConfigE = nybble::kernels::StreamConfig;  // NOLINT
