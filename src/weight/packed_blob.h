// What makes bytes a packed weight: its header's rules and its checksum.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "layout/packed.h"
#include "nybble/result.h"

namespace nybble {

// Whether every field of the header has a meaning and describes a blob of `size` bytes; all but the checksum. `what`
// names the blob in errors.
Result<void> check_packed_header(const layout::PackedHeader& header, uint64_t size, std::string_view what);

// XXH3-64 of the whole blob with PackedHeader::checksum taken as zero. The blob holds at least a header.
uint64_t packed_checksum(std::span<const std::byte> blob);

}  // namespace nybble
