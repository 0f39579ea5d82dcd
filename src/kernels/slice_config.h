// SliceConfig: everything that tells one instance of the sliced-k kernel (slice_sm90.cuh) from another. Host-only C++.
#pragma once

#include <string>

#include "kernels/gemm_config.h"

namespace nybble::kernels {

// One line per tile. A CTA takes a block of 64 output features.
struct SliceTile {
  int tile_m = 16;  // most tokens: a multiple of 8
  int warps = 8;    // each with its own blocks of input features
  int stages = 3;   // blocks of 128 input features in each warp's ring
  int cluster = 1;  // CTAs that share their output features and split k once more

  constexpr int threads() const { return 32 * warps; }
  constexpr int token_tiles() const { return tile_m / 8; }
  constexpr int units() const { return layout::kPiecesPerBlock * token_tiles(); }  // of 16 output features x 8 tokens
};

struct SliceConfig {
  SliceTile tile;
  GemmFormat format;
};

// "sm90_slice_bf16_g128_zp_t16x64_w8_s3_c1": tokens x output features of a CTA, warps, stages, cluster.
inline std::string kernel_name(const SliceConfig& config) {
  const SliceTile& tile = config.tile;
  std::string name = std::string("sm90_slice_") + dtype_name(config.format.act);
  name += config.format.groups == 0 ? "_col" : "_g" + std::to_string(layout::kBlockK / config.format.groups);
  if (config.format.zero_point) name += "_zp";
  name += "_t" + std::to_string(tile.tile_m) + "x" + std::to_string(layout::kBlockN);
  name += "_w" + std::to_string(tile.warps);
  name += "_s" + std::to_string(tile.stages) + "_c" + std::to_string(tile.cluster);
  return name;
}

// Why a config makes no kernel; nullptr: it does. A requires-clause refuses what this refuses.
constexpr const char* why_invalid(const SliceConfig& config) {
  const SliceTile& tile = config.tile;
  if (tile.tile_m % 8 != 0 || tile.tile_m < 8 || tile.tile_m > 32) return "tile_m is a multiple of 8 up to 32";
  if (tile.warps < 1 || tile.warps > 16) return "1 to 16 warps";
  if (tile.stages < 2) return "a ring has at least two stages";
  if (tile.cluster != 1 && tile.cluster != 2) return "larger clusters put their CTAs on one SM";
  if (tile.units() % tile.cluster != 0) return "CTAs divide the units of 16 x 8";
  const int groups = config.format.groups;
  if (groups != 0 && groups != 1 && groups != 2 && groups != 4) return "groups of 128, 64, 32, or per column";
  return nullptr;
}

}  // namespace nybble::kernels

// As for GemmConfig: the name by which nvcc (13.0) writes this type in host code.
using _ZN6nybble7kernels11SliceConfigE = nybble::kernels::SliceConfig;  // NOLINT
