// The small floats of the OCP Microscaling Formats specification (v1.0, sections 5.3 and 5.4): E2M1 codes, E8M0 scales,
// and the E4M3 scales of NVFP4; and nibbles that are stored two a byte.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <vector>

#include "checkpoint/layer_tensors.h"
#include "nybble/weight.h"

namespace nybble::checkpoint {

// The value of each E2M1 code, bit 3 being the sign.
inline std::vector<float> e2m1_table() {
  return {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
}

// bf16 bits of 2^(byte - 127), which bf16 holds exactly for all of 0 to 254; 255 is NaN.
inline constexpr uint8_t kE8m0Nan = 255;
constexpr uint16_t e8m0_to_bf16(uint8_t byte) {
  constexpr uint16_t kSmallest = 0x0040;  // 2^-127, below bf16's normal numbers
  return byte == kE8m0Nan ? 0x7FC0 : byte == 0 ? kSmallest : static_cast<uint16_t>(byte << 7);
}

// E4M3 without infinities ("fn"): sign, 4 bits of exponent with bias 7, 3 of mantissa; 0x7F and 0xFF are NaN.
inline float e4m3_to_float(uint8_t byte) {
  const int exponent = byte >> 3 & 15, mantissa = byte & 7;
  if ((byte & 0x7F) == 0x7F) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (byte & 0x80) != 0 ? -magnitude : magnitude;
}

// E8M0 scales as bf16 and E4M3 scales as fp32 after `finish`, which applies what else scales the tensor. NaN is refused
// with its element.
Result<FloatArray> read_e8m0_scales(const TensorSlice& tensor);
Result<FloatArray> read_e4m3_scales(const TensorSlice& tensor, const std::function<float(float)>& finish);

// Two codes of each byte, those of the low four bits first.
inline std::vector<uint8_t> unpack_low_first(std::span<const std::byte> bytes) {
  std::vector<uint8_t> codes(2 * bytes.size());
  for (size_t i = 0; i < bytes.size(); ++i) {
    codes[2 * i] = static_cast<uint8_t>(bytes[i] & std::byte{15});
    codes[2 * i + 1] = static_cast<uint8_t>(bytes[i] >> 4);
  }
  return codes;
}

}  // namespace nybble::checkpoint
