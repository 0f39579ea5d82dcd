// FloatArray: numbers kept as the bits they were read as.
#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/float16.h"
#include "nybble/weight.h"

namespace nybble {

uint32_t FloatArray::bits_at(size_t i) const {
  uint32_t bits = 0;  // little-endian: the low bytes come first
  std::memcpy(&bits, bytes.data() + i * dtype_bytes(dtype), dtype_bytes(dtype));
  return bits;
}

void FloatArray::set_bits(size_t i, uint32_t bits) {
  std::memcpy(bytes.data() + i * dtype_bytes(dtype), &bits, dtype_bytes(dtype));
}

float FloatArray::at(size_t i) const {
  const uint32_t bits = bits_at(i);
  switch (dtype) {
    case DType::kBf16:
      return base::bf16_to_float(static_cast<uint16_t>(bits));
    case DType::kFp16:
      return base::fp16_to_float(static_cast<uint16_t>(bits));
    case DType::kFp32:
      return std::bit_cast<float>(bits);
  }
  NYBBLE_CHECK(false, "a FloatArray holds an element type that does not exist");
  return 0;
}

FloatArray FloatArray::from_floats(DType dtype, std::span<const float> values) {
  FloatArray array;
  array.dtype = dtype;
  array.resize(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    switch (dtype) {
      case DType::kBf16:
        array.set_bits(i, base::float_to_bf16(values[i]));
        break;
      case DType::kFp16:
        array.set_bits(i, base::float_to_fp16(values[i]));
        break;
      case DType::kFp32:
        array.set_bits(i, std::bit_cast<uint32_t>(values[i]));
        break;
    }
  }
  return array;
}

}  // namespace nybble
