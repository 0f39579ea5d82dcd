// The workspace in which CTAs hand partial sums of a tile to the CTA that finishes it (parts/partial_sums.cuh).
// Host-only C++.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nybble::kernels {

// [epoch][flags: one per CTA and math warpgroup][partial sums: one tile per CTA], all at multiples of 256 bytes. It may
// arrive with any content: parts/partial_sums.cuh says why.
struct PartialSumsMap {
  size_t partials;  // offset
  size_t bytes;

  static constexpr size_t align(size_t bytes) { return (bytes + 255) / 256 * 256; }
  static constexpr size_t flags = 256;  // offset

  constexpr PartialSumsMap(int ctas, int warpgroups, int tile_m, int tile_n)
      : partials(align(flags + sizeof(uint64_t) * ctas * warpgroups)),
        bytes(partials + sizeof(float) * ctas * tile_m * tile_n) {}
};

}  // namespace nybble::kernels
