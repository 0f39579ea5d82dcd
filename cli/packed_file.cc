// Looks at the first bytes.
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

}  // namespace nybble::cli
