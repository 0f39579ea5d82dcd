// The tiles of the sweeping family: one line each, built for every format; docs/architecture.md shows how to add one.
#pragma once

#include <array>
#include <utility>

#include "kernels/sweep_instance.h"
#include "kernels/sweep_sm90.cuh"

namespace nybble::kernels {

inline constexpr SweepTile kSweepTiles[] = {
#if defined(NYBBLE_DEV_TILES)
    {.blocks_per_stage = 4, .row_warps = 2, .slots_per_sm = 2},
#else
    {.blocks_per_stage = 4, .row_warps = 2, .slots_per_sm = 2},
    {.blocks_per_stage = 8, .row_warps = 1, .slots_per_sm = 1},
#endif
};

template <SweepConfig config> constexpr SweepInstance make_sweep_instance() {
  static_assert(why_invalid(config) == nullptr, "the tile makes no kernel; why_invalid() in sweep_config.h says why");
  static_assert(SweepShape<config>::smem(config.tile.tile_m).stages >= 2, "two stages do not fit shared memory");
  return {config, reinterpret_cast<const void*>(&sweep_sm90<config>), &SweepShape<config>::smem};
}

// Every tile for one type, with or without zero points: groups of 128, of 64, of 32, per column.
template <DType act, bool zero_point> std::span<const SweepInstance> sweep_instances() {
  constexpr size_t tiles = std::size(kSweepTiles);
  static const auto instances = []<size_t... i>(std::index_sequence<i...>) {
    return std::array<SweepInstance, 4 * tiles>{
        make_sweep_instance<SweepConfig{kSweepTiles[i], {act, 1, zero_point}}>()...,
        make_sweep_instance<SweepConfig{kSweepTiles[i], {act, 2, zero_point}}>()...,
        make_sweep_instance<SweepConfig{kSweepTiles[i], {act, 4, zero_point}}>()...,
        make_sweep_instance<SweepConfig{kSweepTiles[i], {act, 0, zero_point}}>()...};
  }
  (std::make_index_sequence<tiles>{});
  return instances;
}

}  // namespace nybble::kernels
