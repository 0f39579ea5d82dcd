// The wgmma kernel's parameters, as host and device see them.
#pragma once

#include <cstdint>

#include "kernels/epilogue_params.h"
#include "kernels/gemm_config.h"

namespace nybble::kernels {

struct GemmParams {
  const uint8_t* weight;  // packed blob
  int64_t column_scales;  // offset in the blob, per column only
  int64_t column_zeros;   // per column with zero points only
  int m, n;
  int n_blocks, k_blocks;  // of 64 output features, of 128 input features
  int n_tiles, m_tiles;    // tiles of a cluster: tile_n * multicast output features, tile_m tokens
  int last_token0;         // first token of the last m tile, which overlaps the one before it
  int raster;              // n tiles that are walked together before the next m tile: their tokens stay in L2
  bool act_whole;          // k is a multiple of 64: a group of stages' tokens are one copy
  int act_half_bytes;      // of a copy's tokens for 64 input features: tile_m, or if that is less m rounded up to 8
  int trigger;             // groups of k blocks left to copy when the next launch may start; kTriggerAtStart
  void* out;               // (m, n), leading dimension ld_out; of act's type, or fp32 (GemmTile::fp32_out)
  int64_t ld_out;
  uint8_t* workspace;    // PartialSumsMap: flags first; null: no stream-K
  int64_t partial_sums;  // offset in it
  EpilogueParams epilogue;
};

inline constexpr int kOutChunkTokens = 16;
inline constexpr int kTriggerAtStart = -1;

}  // namespace nybble::kernels
