// The tiles of the sweeping family: one line each, built for every format; docs/architecture.md shows how to add one.
#pragma once

#include <utility>
#include <vector>

#include "kernels/sweep_instance.h"
#include "kernels/sweep_sm90.cuh"

namespace nybble::kernels {

inline constexpr SweepTile kSweepTiles[] = {
#if defined(NYBBLE_DEV_TILES)
    {.blocks_per_stage = 4, .row_warps = 2, .stages = 4, .slots_per_sm = 2},
#else
    {.blocks_per_stage = 4, .row_warps = 2, .stages = 4, .slots_per_sm = 2},
    {.blocks_per_stage = 8, .row_warps = 1, .stages = 4, .slots_per_sm = 1},
#endif
};

template <SweepConfig config> constexpr SweepInstance make_sweep_instance() {
  static_assert(why_invalid(config) == nullptr, "the tile makes no kernel; why_invalid() in sweep_config.h says why");
  static_assert(sizeof(SweepStorage<config>) <= smem_limit(config.tile.slots_per_sm),
                "the tile's stages do not fit shared memory");
  return {config, reinterpret_cast<const void*>(&sweep_sm90<config>), static_cast<int>(sizeof(SweepStorage<config>))};
}

// Adds a tile for one format. Blocks with many scales are larger, so a tile made for groups of 128 may not fit.
template <SweepConfig config> void add_sweep_instance(std::vector<SweepInstance>& instances) {
  constexpr GemmFormat format = config.format;
  if constexpr (sizeof(SweepStorage<config>) <= smem_limit(config.tile.slots_per_sm) ||
                (format.groups <= 1 && !format.zero_point))
    instances.push_back(make_sweep_instance<config>());
}

// Every tile for one type, with or without zero points: groups of 128, of 64, of 32, per column.
template <DType act, bool zero_point> std::span<const SweepInstance> sweep_instances() {
  static const std::vector<SweepInstance> instances = []<size_t... i>(std::index_sequence<i...>) {
    std::vector<SweepInstance> list;
    (add_sweep_instance<SweepConfig{kSweepTiles[i], {act, 1, zero_point}}>(list), ...);
    (add_sweep_instance<SweepConfig{kSweepTiles[i], {act, 2, zero_point}}>(list), ...);
    (add_sweep_instance<SweepConfig{kSweepTiles[i], {act, 4, zero_point}}>(list), ...);
    (add_sweep_instance<SweepConfig{kSweepTiles[i], {act, 0, zero_point}}>(list), ...);
    return list;
  }
  (std::make_index_sequence<std::size(kSweepTiles)>{});
  return instances;
}

}  // namespace nybble::kernels
