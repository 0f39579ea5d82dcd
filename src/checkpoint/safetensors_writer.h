// Writes one safetensors file, piece by piece and atomically.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "checkpoint/safetensors.h"

namespace nybble::checkpoint {

struct TensorEntry {
  std::string name;
  TensorType type = TensorType::kU8;
  std::vector<int64_t> shape;

  uint64_t size_bytes() const;
};

using Metadata = std::map<std::string, std::string>;

// The tensors' bytes go out in the order of their entries; the header, which may be known only at the end, goes into
// the room kept for it. Readers map files and want aligned numbers: the data begins at a multiple of 8, and entries
// belong in order of falling element size.
class SafetensorsWriter {
 public:
  // Entries whose header is at least as long as the one that finish() will get: the same names and shapes, types of no
  // shorter name, no less metadata, and together at most `max_data_bytes`.
  static Result<SafetensorsWriter> create(const std::string& path, std::span<const TensorEntry> longest,
                                          uint64_t max_data_bytes, const Metadata& metadata);
  Result<void> write(std::span<const std::byte> bytes) { return file_.write(bytes); }
  // Puts the header in place and the file under its name; the file's size.
  Result<uint64_t> finish(std::span<const TensorEntry> entries, const Metadata& metadata);

 private:
  SafetensorsWriter(base::AtomicFile file, uint64_t header_bytes)
      : file_(std::move(file)), header_bytes_(header_bytes) {}

  base::AtomicFile file_;
  uint64_t header_bytes_;
};

}  // namespace nybble::checkpoint
