// The tiles of the sliced-k family: one line each, built for every format; docs/architecture.md shows how to add one.
#pragma once

#include <utility>
#include <vector>

#include "kernels/slice_instance.h"
#include "kernels/slice_sm90.cuh"

namespace nybble::kernels {

inline constexpr SliceTile kSliceTiles[] = {
    {.tile_m = 16, .warps = 8, .stages = 2, .cluster = 2},
};

template <SliceConfig config> constexpr SliceInstance make_slice_instance() {
  static_assert(why_invalid(config) == nullptr, "the tile makes no kernel; why_invalid() in slice_config.h says why");
  static_assert(sizeof(SliceStorage<config>) <= smem_limit(1), "the tile's stages do not fit shared memory");
  return {config, reinterpret_cast<const void*>(&slice_sm90<config>), static_cast<int>(sizeof(SliceStorage<config>))};
}

// Adds a tile for one format. Blocks with many scales are larger, so a tile made for groups of 128 may not fit.
template <SliceConfig config> void add_slice_instance(std::vector<SliceInstance>& instances) {
  constexpr GemmFormat format = config.format;
  if constexpr (sizeof(SliceStorage<config>) <= smem_limit(1) || (format.groups <= 1 && !format.zero_point))
    instances.push_back(make_slice_instance<config>());
}

// Every tile for one type, with or without zero points: groups of 128, of 64, of 32, per column.
template <DType act, bool zero_point> std::span<const SliceInstance> slice_instances() {
  static const std::vector<SliceInstance> instances = []<size_t... i>(std::index_sequence<i...>) {
    std::vector<SliceInstance> list;
    (add_slice_instance<SliceConfig{kSliceTiles[i], {act, 1, zero_point}}>(list), ...);
    (add_slice_instance<SliceConfig{kSliceTiles[i], {act, 2, zero_point}}>(list), ...);
    (add_slice_instance<SliceConfig{kSliceTiles[i], {act, 4, zero_point}}>(list), ...);
    (add_slice_instance<SliceConfig{kSliceTiles[i], {act, 0, zero_point}}>(list), ...);
    return list;
  }
  (std::make_index_sequence<std::size(kSliceTiles)>{});
  return instances;
}

}  // namespace nybble::kernels
