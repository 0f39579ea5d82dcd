// Looks at the first bytes, or at all of them.
#include "cli/packed_file.h"

#include <cstring>

#include "base/file.h"
#include "layout/packed.h"

namespace nybble::cli {

bool is_packed_file(const std::string& path) {
  const Result<base::File> file = base::File::open(path);
  std::byte magic[sizeof layout::kMagic];
  return file && file->size() >= sizeof magic && file->read_at(0, magic) &&
         std::memcmp(magic, layout::kMagic, sizeof magic) == 0;
}

Result<PackedWeight> load_sound_packed(const std::string& path) {
  Result<PackedWeight> packed = load_packed(path);
  if (!packed) return packed.error();
  const Result<QuantizedWeight> weight = unpack(*packed);
  if (!weight) return weight.error();
  if (Result<void> valid = validate(*weight); !valid) return valid.error();
  return packed;
}

}  // namespace nybble::cli
