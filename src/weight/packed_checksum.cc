// The checksum of a packed blob: its bytes' hash with the header's own field taken as zero.
#include "weight/packed_blob.h"

#include <cstring>

#include "base/hash.h"

namespace nybble {

uint64_t packed_checksum(std::span<const std::byte> blob) {
  layout::PackedHeader header;
  std::memcpy(&header, blob.data(), sizeof header);
  header.checksum = 0;
  base::ContentHash hash;
  hash.update(std::as_bytes(std::span(&header, 1)));
  hash.update(blob.subspan(sizeof header));
  return hash.digest();
}

}  // namespace nybble
