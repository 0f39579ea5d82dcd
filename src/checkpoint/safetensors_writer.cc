#include "checkpoint/safetensors_writer.h"

#include <optional>

#include "base/check.h"
#include "base/error.h"
#include "base/json_text.h"

namespace nybble::checkpoint {
namespace {

// With `offset` given, every offset is printed as that number: no header of the same entries with smaller ones is
// longer.
std::string header_text(std::span<const TensorEntry> entries, const Metadata& metadata,
                        std::optional<uint64_t> offset) {
  std::string text = "{";
  if (!metadata.empty()) text += "\"__metadata__\":" + nlohmann::json(metadata).dump();
  uint64_t begin = 0;
  for (const TensorEntry& entry : entries) {
    const uint64_t end = begin + entry.size_bytes();
    text += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", text.size() > 1 ? "," : "",
                        nlohmann::json(entry.name).dump(), tensor_type_name(entry.type), fmt::join(entry.shape, ","),
                        offset.value_or(begin), offset.value_or(end));
    begin = end;
  }
  return text + "}";
}

}  // namespace

uint64_t TensorEntry::size_bytes() const {
  uint64_t bits = static_cast<uint64_t>(tensor_type_bits(type));
  for (const int64_t dim : shape) bits *= static_cast<uint64_t>(dim);
  return bits / 8;
}

Result<SafetensorsWriter> SafetensorsWriter::create(const std::string& path, std::span<const TensorEntry> longest,
                                                    uint64_t max_data_bytes, const Metadata& metadata) {
  const uint64_t header_bytes = (header_text(longest, metadata, max_data_bytes).size() + 7) / 8 * 8;
  if (header_bytes > kMaxHeaderBytes)
    return unsupported(
        "{}: the header of {} tensors would have {} bytes; at most {} are allowed. Split the model into more "
        "shards",
        path, longest.size(), header_bytes, kMaxHeaderBytes);
  Result<base::AtomicFile> file = base::AtomicFile::create(path);
  if (!file) return file.error();
  const std::vector<std::byte> room(sizeof header_bytes + header_bytes);
  if (Result<void> written = file->write(room); !written) return written.error();
  return SafetensorsWriter(std::move(*file), header_bytes);
}

Result<uint64_t> SafetensorsWriter::finish(std::span<const TensorEntry> entries, const Metadata& metadata) {
  uint64_t data_bytes = 0;
  for (const TensorEntry& entry : entries) data_bytes += entry.size_bytes();
  NYBBLE_CHECK(file_.size() == sizeof header_bytes_ + header_bytes_ + data_bytes, "every entry's bytes were written");
  std::string header = header_text(entries, metadata, std::nullopt);
  NYBBLE_CHECK(header.size() <= header_bytes_, "the header fits the room kept for it");
  header.resize(header_bytes_, ' ');
  if (Result<void> written = file_.rewrite(0, std::as_bytes(std::span(&header_bytes_, 1))); !written)
    return written.error();
  if (Result<void> written =
          file_.rewrite(sizeof header_bytes_, std::as_bytes(std::span(header.data(), header.size())));
      !written)
    return written.error();
  if (Result<void> committed = file_.commit(); !committed) return committed.error();
  return file_.size();
}

}  // namespace nybble::checkpoint
