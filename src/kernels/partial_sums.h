// The workspace in which CTAs hand partial sums of a tile to the CTA that finishes it (parts/partial_sums.cuh).
// Host-only C++.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nybble::kernels {

// [flags: one per CTA and math warpgroup][partial sums: one tile per CTA], both at multiples of 256 bytes. It may
// arrive with any content: parts/partial_sums.cuh says why.
struct PartialSumsMap {
  size_t partials;  // offset
  size_t bytes;

  constexpr PartialSumsMap(int ctas, int warpgroups, int tile_m, int tile_n)
      : partials((sizeof(uint64_t) * ctas * warpgroups + 255) / 256 * 256),
        bytes(partials + sizeof(float) * ctas * tile_m * tile_n) {}
};

// Where sums need no flag because each two of them carry a tag.
inline constexpr int kTaggedSumsBytes = 16;

}  // namespace nybble::kernels
