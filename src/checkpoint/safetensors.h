// The safetensors container: a length, a JSON header, and the tensors' bytes without gaps.
#pragma once

#include <bit>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "nybble/result.h"
#include "nybble/types.h"

namespace nybble::checkpoint {

static_assert(std::endian::native == std::endian::little,
              "safetensors holds little-endian numbers, read here as they are");

// Every element type of the container. Only the float types that DType knows become weights; the others are copied.
enum class TensorType : uint8_t {
  kBool,
  kU8,
  kI8,
  kI16,
  kU16,
  kI32,
  kU32,
  kI64,
  kU64,
  kF16,
  kBf16,
  kF32,
  kF64,
  kC64,  // clang-format off
  kF8E4M3, kF8E5M2, kF8E8M0, kF8E4M3Fnuz, kF8E5M2Fnuz, kF6E2M3, kF6E3M2, kF4,
};  // clang-format on

const char* tensor_type_name(TensorType type);  // as in the header: "BF16", "F8_E4M3"
int tensor_type_bits(TensorType type);          // of one element; F6 and F4 are no whole bytes
// kInvalidArgument if the type is no DType.
Result<DType> float_type(TensorType type);
TensorType tensor_type(DType dtype);

struct TensorInfo {
  std::string name;
  TensorType type = TensorType::kU8;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // in the data, which follows the header
  uint32_t header_byte = 0;     // where in the file the header speaks of it, for errors

  uint64_t size_bytes() const { return end - begin; }
};

std::string shape_text(std::span<const int64_t> shape);  // "[4096, 512]"

inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's limit
inline constexpr size_t kMaxTensors = 1'000'000;
inline constexpr size_t kMaxRank = 8;

// A file whose header was checked against the format's rules and the file's real size: every tensor's bytes are there,
// the tensors fill the data exactly, and nothing else does.
class SafetensorsFile {
 public:
  static Result<SafetensorsFile> open(base::File file);

  const base::File& file() const { return file_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // sorted by name
  const TensorInfo* find(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // XXH3 of the header's text: names, types, shapes and offsets of all tensors.
  uint64_t header_hash() const { return header_hash_; }

  // Bytes [offset, offset + out.size()) of a tensor of this file.
  Result<void> read(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> out) const;

 private:
  Result<void> check_layout() const;

  base::File file_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
  uint64_t data_begin_ = 0;  // in the file
  uint64_t header_hash_ = 0;
};

}  // namespace nybble::checkpoint
