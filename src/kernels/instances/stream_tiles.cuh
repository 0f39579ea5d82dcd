// The tiles of the streaming family: one line each, built for every format; docs/architecture.md shows how to add one.
#pragma once

#include <array>
#include <utility>

#include "kernels/stream_instance.h"
#include "kernels/stream_sm90.cuh"

namespace nybble::kernels {

// How evenly a tile's output features divide the layer among the SMs decides, and whether two CTAs fit an SM beside the
// tokens (docs/decisions/0014). Of twenty-two measured on an H200 (2026-11-30, 16 shapes x m = 1, 2, 4, 6, 8) these and
// the kernels of the other families hold every problem's best time but for less than 3 % (0020). Two CTAs of one launch
// on an SM are not among them: 28672 x 4096 at m = 1 took 15.2 instead of 16.8 us after its like, and a chain of
// different layers 39.6 instead of 35.5 us a block, because its CTAs end two by two and the next kernel's gather on the
// SMs that end first.
inline constexpr StreamTile kStreamTiles[] = {
#if defined(NYBBLE_DEV_TILES)
    {.tile_m = 8, .row_tiles = 2, .row_warps = 1, .k_warps = 8, .stages = 4},
#else
    {.tile_m = 8, .row_tiles = 1, .row_warps = 1, .k_warps = 16, .stages = 4},
    {.tile_m = 8, .row_tiles = 2, .row_warps = 1, .k_warps = 16, .stages = 2},
    {.tile_m = 8, .row_tiles = 2, .row_warps = 1, .k_warps = 8, .stages = 2, .cluster = 2},
    {.tile_m = 8, .row_tiles = 3, .row_warps = 1, .k_warps = 8, .stages = 3},
    {.tile_m = 8, .row_tiles = 3, .row_warps = 1, .k_warps = 8, .stages = 4},
    {.tile_m = 8, .row_tiles = 4, .row_warps = 1, .k_warps = 8, .stages = 3},
    {.tile_m = 8, .row_tiles = 4, .row_warps = 1, .k_warps = 8, .stages = 2, .cluster = 2},
    {.tile_m = 8, .row_tiles = 2, .row_warps = 2, .k_warps = 4, .stages = 4},
    {.tile_m = 8, .row_tiles = 2, .row_warps = 2, .k_warps = 8, .stages = 2},
    {.tile_m = 8, .row_tiles = 3, .row_warps = 2, .k_warps = 4, .stages = 2, .cluster = 2},
    {.tile_m = 8, .row_tiles = 2, .row_warps = 4, .k_warps = 4, .stages = 2, .cluster = 2},
#endif
};

template <StreamConfig config> constexpr StreamInstance make_stream_instance() {
  return {config, &stream_sm90<config>, &StreamShape<config>::smem};
}

// Every tile for one type, with or without zero points: groups of 128, of 64, of 32, per column.
template <DType act, bool zero_point> std::span<const StreamInstance> stream_instances() {
  constexpr size_t tiles = std::size(kStreamTiles);
  static const auto instances = []<size_t... i>(std::index_sequence<i...>) {
    return std::array<StreamInstance, 4 * tiles>{
        make_stream_instance<StreamConfig{kStreamTiles[i], {act, 1, zero_point}}>()...,
        make_stream_instance<StreamConfig{kStreamTiles[i], {act, 2, zero_point}}>()...,
        make_stream_instance<StreamConfig{kStreamTiles[i], {act, 4, zero_point}}>()...,
        make_stream_instance<StreamConfig{kStreamTiles[i], {act, 0, zero_point}}>()...};
  }
  (std::make_index_sequence<tiles>{});
  return instances;
}

}  // namespace nybble::kernels
