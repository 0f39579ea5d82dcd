// The one file that sees xxhash, header-only: nothing to link.
#include "weight/packed_blob.h"

#include <cstring>
#include <memory>

#include "base/check.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace nybble {

uint64_t packed_checksum(std::span<const std::byte> blob) {
  layout::PackedHeader header;
  std::memcpy(&header, blob.data(), sizeof header);
  header.checksum = 0;
  XXH3_state_t state;
  XXH3_INITSTATE(&state);
  XXH3_64bits_reset(&state);
  XXH3_64bits_update(&state, &header, sizeof header);
  XXH3_64bits_update(&state, blob.data() + sizeof header, blob.size() - sizeof header);
  return XXH3_64bits_digest(&state);
}

}  // namespace nybble
