// The GGUF container, versions 2 and 3, little-endian: key-value metadata, a table of tensors, their bytes (ggml's
// docs/gguf.md).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "nybble/result.h"

namespace nybble::checkpoint {

// The value types of the metadata, by their numbers in the file.
enum class GgufValueType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

// A value of the metadata, or an array of them. Strings lie one after the other, so that an array of a hundred thousand
// takes little more memory than in the file.
struct GgufValue {
  GgufValueType type = GgufValueType::kU8;  // of the elements; never kArray
  bool is_array = false;
  uint64_t count = 1;
  std::vector<std::byte> bytes;  // numbers as in the file; the texts of strings
  std::vector<uint64_t> ends;    // of each string in `bytes`

  std::string describe() const;  // "an array of 3 strings", "a u32"
  bool is_integer() const;       // kBool is none
  bool is_float() const;
  Result<int64_t> integer_at(uint64_t i) const;  // only if is_integer(); kInvalidData past int64_t
  double number_at(uint64_t i) const;            // only if is_integer() or is_float()
  bool boolean_at(uint64_t i) const { return bytes[i] != std::byte{0}; }
  std::string_view text_at(uint64_t i) const;  // only of strings
};

// A tensor type of ggml: its rows are blocks of `block` elements in `bytes` bytes each.
struct GgmlType {
  uint32_t id;
  const char* name;
  int block;
  int bytes;
};

// The ids of those that are read.
namespace ggml {
inline constexpr uint32_t kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 8, kBf16 = 30;
}

struct GgufTensor {
  std::string name;
  const GgmlType* type = nullptr;
  std::vector<int64_t> shape;  // row-major, outermost first: the file's dimensions reversed
  uint64_t begin = 0;          // in the data
  uint64_t size_bytes = 0;
  uint64_t header_byte = 0;  // where in the file the table speaks of it, for errors
};

// A file whose header was checked against its real size: known value and tensor types, no key or tensor twice, every
// tensor aligned, all there, none overlapping another and nothing between or behind them but padding.
class GgufFile {
 public:
  static Result<std::shared_ptr<const GgufFile>> open(base::File file);
  // `path` is a .gguf file, or a folder with exactly one.
  static Result<std::shared_ptr<const GgufFile>> open(const std::string& path);

  const base::File& file() const { return file_; }
  std::string base_name() const;
  uint32_t version() const { return version_; }
  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  const GgufValue* find_value(std::string_view key) const;
  const std::vector<GgufTensor>& tensors() const { return tensors_; }  // sorted by name
  const GgufTensor* find(std::string_view name) const;
  std::string where(const GgufTensor& tensor) const;  // "m.gguf: tensor 'a.weight'", to begin an error with

  // Bytes [offset, offset + out.size()) of a tensor of this file.
  Result<void> read(const GgufTensor& tensor, uint64_t offset, std::span<std::byte> out) const;
  Result<std::vector<std::byte>> read_all(const GgufTensor& tensor) const;
  uint64_t file_offset(const GgufTensor& tensor) const { return data_begin_ + tensor.begin; }

  static constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // tokenizers of 256,000 tokens need a sixth of it
  static constexpr uint64_t kMaxKeys = 65'536;
  static constexpr uint64_t kMaxTensors = 262'144;

 private:
  class HeaderReader;
  Result<void> read_header();
  Result<void> check_layout(uint64_t alignment) const;

  base::File file_;
  uint32_t version_ = 0;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<GgufTensor> tensors_;
  uint64_t data_begin_ = 0;  // in the file
};

// Whether open_checkpoint() reads `path` as GGUF: a file named *.gguf, or a folder with such files and without any
// .safetensors file.
bool is_gguf_path(const std::string& path);

}  // namespace nybble::checkpoint
