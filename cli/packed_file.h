// Is a path a packed weight of nybble, or something for open_checkpoint?
#pragma once

#include <string>

#include "nybble/pack.h"

namespace nybble::cli {

// True for a regular file that begins with the magic of a packed weight. False, too, for what cannot be opened: the
// reader that is tried next says why.
bool is_packed_file(const std::string& path);

// The packed weight, all of it read and found sound: magic, version, sizes, checksum, codes, scales.
Result<PackedWeight> load_sound_packed(const std::string& path);

}  // namespace nybble::cli
