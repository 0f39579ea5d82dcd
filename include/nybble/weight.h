// The two forms of a 4-bit weight: QuantizedWeight, where every checkpoint format and quantizer meets, and
// PackedWeight, the bytes that kernels read.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nybble/types.h"

#pragma GCC visibility push(default)
namespace nybble {

// Numbers of type bf16, fp16 or fp32, kept bit for bit as they were read.
struct FloatArray {
  DType dtype = DType::kFp32;
  std::vector<std::byte> bytes;

  size_t size() const { return bytes.size() / dtype_bytes(dtype); }
  bool empty() const { return bytes.empty(); }
  float at(size_t i) const;          // exact widening
  uint32_t bits_at(size_t i) const;  // raw bits, zero extended
  void resize(size_t count) { bytes.resize(count * dtype_bytes(dtype)); }
  void set_bits(size_t i, uint32_t bits);

  static FloatArray from_floats(DType dtype, std::span<const float> values);  // round to nearest even
  friend bool operator==(const FloatArray&, const FloatArray&) = default;
};

// A dense weight as it stands in a checkpoint: values[n, k], row-major.
struct DenseWeight {
  std::string name;
  int64_t n = 0;
  int64_t k = 0;
  FloatArray values;
  FloatArray bias;  // [n] or empty
};

// The canonical form. Row-major n x k codes, one per byte here (disk and packed forms hold two per byte).
struct QuantizedWeight {
  std::string name;
  int64_t n = 0;         // output features
  int64_t k = 0;         // input features
  int group_size = 128;  // or kPerColumn; groups run along k, the last may be partial
  ZeroKind zero_kind = ZeroKind::kNone;
  std::vector<uint8_t> codes;      // [n, k], 0..15, in the order of the checkpoint's input features
  FloatArray scales;               // [n, groups]
  std::vector<uint8_t> int_zeros;  // [n, groups], 0..16; only for ZeroKind::kInt
  FloatArray float_zeros;          // [n, groups], scales' dtype; only for kFloat (z) and kOffset (b)
  std::vector<float> table;        // [16], the value of each code before its scale; only for kTable
  // Act-order: k_order[p] is the input feature at sorted position p, and the group of position p is p / group_size.
  // Empty: the identity.
  std::vector<int32_t> k_order;
  FloatArray bias;  // [n] or empty

  int64_t groups() const;  // per row
  WeightFormat format() const;
  friend bool operator==(const QuantizedWeight&, const QuantizedWeight&) = default;
};

// Checks every invariant above; the error names the weight and the first element that breaks one. NaN and infinite
// scales, zeros, offsets and table entries are refused, negative and zero scales are not.
Result<void> validate(const QuantizedWeight& weight);

// w[n, k] as float, row-major: each element exact and rounded once to float, but that with float zero points (kFloat)
// code - zero is rounded to float before it is multiplied by the scale, as in HQQ.
std::vector<float> dequantize(const QuantizedWeight& weight);

// A packed weight: one contiguous blob, the same bytes in memory, on the GPU and in a file. Its first
// kPackedHeaderBytes describe it; docs/layouts.md draws the rest.
class PackedWeight {
 public:
  PackedWeight() = default;
  PackedWeight(std::shared_ptr<std::byte[]> data, size_t size);  // data is 128-byte aligned

  const std::byte* data() const { return data_.get(); }
  std::byte* mutable_data() { return data_.get(); }
  size_t size_bytes() const { return size_; }

  int64_t n() const;
  int64_t k() const;
  WeightFormat format() const;
  int layout_version() const;

 private:
  std::shared_ptr<std::byte[]> data_;
  size_t size_ = 0;
};

// size bytes at a 128-byte boundary, zeroed.
std::shared_ptr<std::byte[]> allocate_packed(size_t size);

// Checks magic, layout version, sizes and checksum of a packed blob, e.g. one read from a file. `what` names it in
// errors.
Result<void> validate_packed(std::span<const std::byte> blob, std::string_view what);

// The problem of multiplying m contiguous tokens by this weight, out of the same type as act. `aligned` is what
// contiguous rows give.
Problem problem_for(const PackedWeight& weight, int64_t m, DType act_dtype);

}  // namespace nybble
#pragma GCC visibility pop
