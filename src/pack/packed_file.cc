// Packed weights as files: the blob, byte for byte.
#include <cstring>

#include "base/error.h"
#include "base/file.h"
#include "nybble/pack.h"
#include "weight/packed_blob.h"

namespace nybble {

Result<void> save_packed(const PackedWeight& weight, const std::string& path) {
  if (weight.data() == nullptr) return invalid_argument("{}: the packed weight to save holds nothing", path);
  Result<base::AtomicFile> file = base::AtomicFile::create(path);
  if (!file) return file.error();
  if (Result<void> written = file->write(std::span(weight.data(), weight.size_bytes())); !written) return written;
  return file->commit();
}

Result<PackedWeight> load_packed(const std::string& path) {
  const Result<base::File> file = base::File::open(path);
  if (!file) return file.error();
  layout::PackedHeader header;
  if (file->size() < sizeof header)
    return invalid_data("{}: {} bytes are less than the header of a packed weight ({} bytes)", path, file->size(),
                        sizeof header);
  // The header first: a foreign file is refused before memory of its size is asked for.
  if (Result<void> read = file->read_at(0, std::as_writable_bytes(std::span(&header, 1))); !read) return read.error();
  if (Result<void> fine = check_packed_header(header, file->size(), path); !fine) return fine.error();
  PackedWeight weight(allocate_packed(file->size()), file->size());
  const std::span<std::byte> blob(weight.mutable_data(), weight.size_bytes());
  if (Result<void> read = file->read_at(0, blob); !read) return read.error();
  if (Result<void> valid = validate_packed(blob, path); !valid) return valid.error();
  return weight;
}

}  // namespace nybble
