// The tiles of the wgmma family: one line each, built for every format; docs/architecture.md shows how to add one.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "kernels/gemm_instance.h"
#include "kernels/gemm_sm90.cuh"

namespace nybble::kernels {

// What decides from some 100 tokens on is how well a tile's tokens and output features divide the layer among the SMs,
// so there is a tile for nearly every multiple of 16 tokens (docs/decisions/0012); below, what a launch costs besides:
// parts of k in a cluster, rings of which two fit an SM (0013). Of more than eighty measured on H200s (24 shapes x m =
// 12 .. 4096, bf16 in groups of 128) these hold the best time: without any one of them some problem takes 3 % longer
// (0020). Five write fp32, one for each size of m.
inline constexpr GemmTile kGemmTiles[] = {
#if defined(NYBBLE_DEV_TILES)
    {.tile_m = 128, .warpgroups = 2, .row_blocks = 1, .stages = 5, .multicast = 2},
    {.tile_m = 16, .warpgroups = 2, .stages = 8, .split_k = 2, .ctas_per_sm = 2, .fp32_out = true},
#else
    {.tile_m = 16, .warpgroups = 2, .stages = 8, .stages_per_barrier = 2, .ctas_per_sm = 2},
    {.tile_m = 16, .warpgroups = 2, .stages = 8, .stages_per_barrier = 2, .split_k = 2, .ctas_per_sm = 2},
    {.tile_m = 16,
     .warpgroups = 2,
     .k_warpgroups = 2,
     .stages = 12,
     .stages_per_barrier = 2,
     .split_k = 2,
     .ctas_per_sm = 2},
    {.tile_m = 16, .warpgroups = 3, .row_blocks = 2, .stages = 6, .stages_per_barrier = 2},
    {.tile_m = 32, .warpgroups = 1, .stages = 8, .stages_per_barrier = 2, .split_k = 2, .ctas_per_sm = 2},
    {.tile_m = 32, .warpgroups = 1, .stages = 8, .stages_per_barrier = 2, .split_k = 4, .ctas_per_sm = 2},
    {.tile_m = 32, .warpgroups = 2, .stages = 6, .stages_per_barrier = 2, .ctas_per_sm = 2},
    {.tile_m = 32, .warpgroups = 2, .stages = 6, .stages_per_barrier = 2, .split_k = 2, .ctas_per_sm = 2},
    {.tile_m = 32, .warpgroups = 4, .k_warpgroups = 2, .stages = 12, .stages_per_barrier = 2, .split_k = 2},
    {.tile_m = 32, .warpgroups = 4, .k_warpgroups = 2, .stages = 10, .multicast = 2},
    {.tile_m = 32, .warpgroups = 3, .row_blocks = 2, .stages = 6, .stages_per_barrier = 2, .multicast = 2},
    {.tile_m = 48, .warpgroups = 1, .stages = 6, .stages_per_barrier = 2, .split_k = 2, .ctas_per_sm = 2},
    {.tile_m = 48, .warpgroups = 1, .stages = 6, .stages_per_barrier = 2, .split_k = 4, .ctas_per_sm = 2},
    {.tile_m = 48, .warpgroups = 2, .stages = 5, .split_k = 2, .ctas_per_sm = 2},
    {.tile_m = 48, .warpgroups = 2, .stages = 5, .multicast = 2, .ctas_per_sm = 2},
    {.tile_m = 48, .warpgroups = 2, .stages = 8, .stages_per_barrier = 2, .split_k = 3},
    {.tile_m = 48, .warpgroups = 2, .stages = 8, .stages_per_barrier = 2, .split_k = 4},
    {.tile_m = 48, .warpgroups = 2, .stages = 8, .stages_per_barrier = 2, .multicast = 2},
    {.tile_m = 48, .warpgroups = 4, .stages = 6, .stages_per_barrier = 2, .multicast = 2},
    {.tile_m = 64, .warpgroups = 1, .stages = 5, .split_k = 2, .ctas_per_sm = 2},
    {.tile_m = 64, .warpgroups = 1, .stages = 5, .split_k = 4, .ctas_per_sm = 2},
    {.tile_m = 64, .warpgroups = 2, .stages = 4, .split_k = 2, .ctas_per_sm = 2},
    {.tile_m = 64, .warpgroups = 2, .stages = 8, .stages_per_barrier = 2, .split_k = 2},
    {.tile_m = 64, .warpgroups = 2, .stages = 8, .stages_per_barrier = 2, .split_k = 4},
    {.tile_m = 64, .warpgroups = 2, .stages = 8, .stages_per_barrier = 2, .multicast = 2},
    {.tile_m = 64, .warpgroups = 3, .stages = 6, .stages_per_barrier = 2, .split_k = 2, .batch = 2},
    {.tile_m = 64, .warpgroups = 3, .stages = 6, .stages_per_barrier = 2, .multicast = 2, .batch = 2},
    {.tile_m = 64, .warpgroups = 4, .stages = 6, .stages_per_barrier = 2, .multicast = 2, .shared_block = true},
    {.tile_m = 80, .warpgroups = 2, .stages = 6, .stages_per_barrier = 2},
    {.tile_m = 80, .warpgroups = 2, .stages = 6, .stages_per_barrier = 2, .split_k = 2},
    {.tile_m = 80, .warpgroups = 2, .stages = 6, .stages_per_barrier = 2, .split_k = 3},
    {.tile_m = 80, .warpgroups = 2, .stages = 6, .stages_per_barrier = 2, .multicast = 2},
    {.tile_m = 80, .warpgroups = 3, .stages = 6, .stages_per_barrier = 2, .split_k = 2, .batch = 2},
    {.tile_m = 80, .warpgroups = 3, .stages = 6, .stages_per_barrier = 2, .multicast = 2, .batch = 2},
    {.tile_m = 96, .warpgroups = 2, .stages = 6, .stages_per_barrier = 2, .split_k = 2},
    {.tile_m = 96, .warpgroups = 2, .stages = 6, .stages_per_barrier = 2, .split_k = 3},
    {.tile_m = 96, .warpgroups = 2, .stages = 6, .stages_per_barrier = 2, .split_k = 4},
    {.tile_m = 96, .warpgroups = 2, .stages = 6, .stages_per_barrier = 2, .multicast = 2},
    {.tile_m = 96, .warpgroups = 3, .stages = 5, .batch = 2},
    {.tile_m = 96, .warpgroups = 3, .stages = 5, .split_k = 2, .batch = 2},
    {.tile_m = 112, .warpgroups = 2, .stages = 6, .split_k = 2},
    {.tile_m = 112, .warpgroups = 2, .stages = 6, .multicast = 2},
    {.tile_m = 112, .warpgroups = 3, .stages = 5, .multicast = 2, .batch = 2},
    {.tile_m = 112, .warpgroups = 3, .stages = 5, .split_k = 2, .batch = 2},
    {.tile_m = 128, .warpgroups = 2, .stages = 5, .split_k = 2},
    {.tile_m = 128, .warpgroups = 2, .stages = 5, .multicast = 2},
    {.tile_m = 128, .warpgroups = 3, .stages = 4, .batch = 2},
    {.tile_m = 144, .warpgroups = 2, .stages = 4, .multicast = 2},
    {.tile_m = 144, .warpgroups = 3, .stages = 4, .multicast = 2, .batch = 2},
    {.tile_m = 160, .warpgroups = 2, .stages = 4, .multicast = 2},
    {.tile_m = 160, .warpgroups = 3, .stages = 4, .multicast = 2, .batch = 2},
    {.tile_m = 176, .warpgroups = 2, .stages = 4, .multicast = 2},
    {.tile_m = 176, .warpgroups = 3, .stages = 3, .multicast = 2, .batch = 2},
    {.tile_m = 192, .warpgroups = 2, .stages = 3, .multicast = 2},
    {.tile_m = 208, .warpgroups = 2, .stages = 3, .multicast = 2},
    {.tile_m = 240, .warpgroups = 2, .stages = 3, .multicast = 2},
    {.tile_m = 256, .warpgroups = 2, .stages = 3, .multicast = 2},

    {.tile_m = 16,
     .warpgroups = 2,
     .stages = 8,
     .stages_per_barrier = 2,
     .split_k = 2,
     .ctas_per_sm = 2,
     .fp32_out = true},
    {.tile_m = 32, .warpgroups = 2, .stages = 6, .stages_per_barrier = 2, .ctas_per_sm = 2, .fp32_out = true},
    {.tile_m = 64, .warpgroups = 2, .stages = 8, .stages_per_barrier = 2, .multicast = 2, .fp32_out = true},
    {.tile_m = 128, .warpgroups = 2, .stages = 5, .multicast = 2, .fp32_out = true},
    {.tile_m = 256, .warpgroups = 2, .stages = 3, .multicast = 2, .fp32_out = true},
#endif
};

template <GemmConfig config> constexpr GemmInstance make_gemm_instance() {
  static_assert(why_invalid(config) == nullptr, "the tile makes no kernel; why_invalid() in gemm_config.h says why");
  static_assert(ptx::has_wgmma(config.tile.tile_m),
                "tile_m has no wgmma wrapper; add it to TOKENS in scripts/gen_wgmma.py");
  static_assert(sizeof(GemmStorage<config>) <= smem_limit(config.tile.ctas_per_sm),
                "the tile's stages do not fit shared memory");
  return {config, reinterpret_cast<const void*>(&gemm_sm90<config>), static_cast<int>(sizeof(GemmStorage<config>))};
}

// Adds a tile for one format. Blocks with many scales are larger, so a tile made for groups of 128 may not fit.
template <GemmConfig config> void add_gemm_instance(std::vector<GemmInstance>& instances) {
  constexpr GemmFormat format = config.format;
  if constexpr (sizeof(GemmStorage<config>) <= smem_limit(config.tile.ctas_per_sm) ||
                (format.groups <= 1 && !format.zero_point))
    instances.push_back(make_gemm_instance<config>());
}

// Every tile for one type, with or without zero points: groups of 128, of 64, of 32, per column.
template <DType act, bool zero_point> std::span<const GemmInstance> gemm_instances() {
  static const std::vector<GemmInstance> instances = []<size_t... i>(std::index_sequence<i...>) {
    std::vector<GemmInstance> list;
    (add_gemm_instance<GemmConfig{kGemmTiles[i], {act, 1, zero_point}}>(list), ...);
    (add_gemm_instance<GemmConfig{kGemmTiles[i], {act, 2, zero_point}}>(list), ...);
    (add_gemm_instance<GemmConfig{kGemmTiles[i], {act, 4, zero_point}}>(list), ...);
    (add_gemm_instance<GemmConfig{kGemmTiles[i], {act, 0, zero_point}}>(list), ...);
    return list;
  }
  (std::make_index_sequence<std::size(kGemmTiles)>{});
  return instances;
}

}  // namespace nybble::kernels
