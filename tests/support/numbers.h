// The 16- and 32-bit float types as exact doubles, on the host and the device: written apart from src/ and in another
// way, so that the tests do not judge a rounding by itself. tests/support/support_test.cc holds both against each
// other.
#pragma once

#include <cstdint>
#include <cstring>

#include "layout/packed.h"
#include "nybble/types.h"

namespace nybble::testing {

struct FloatShape {
  int exponent_bits, mantissa_bits;
  NYBBLE_HD constexpr int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  NYBBLE_HD constexpr uint32_t infinity() const { return ((1u << exponent_bits) - 1) << mantissa_bits; }
  NYBBLE_HD constexpr uint32_t sign() const { return 1u << (exponent_bits + mantissa_bits); }
};

NYBBLE_HD constexpr FloatShape float_shape(DType dtype) {
  return dtype == DType::kBf16 ? FloatShape{8, 7} : dtype == DType::kFp16 ? FloatShape{5, 10} : FloatShape{8, 23};
}

NYBBLE_HD inline double double_from_bits(uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
NYBBLE_HD inline uint64_t bits_of_double(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
NYBBLE_HD inline double power_of_two(int exponent) {  // normal doubles only
  return double_from_bits(static_cast<uint64_t>(exponent + 1023) << 52);
}
// floor(log2(|value|)) of a normal double; -1023 for zero and subnormal ones.
NYBBLE_HD inline int exponent_of(double value) { return static_cast<int>(bits_of_double(value) >> 52 & 0x7FF) - 1023; }

NYBBLE_HD inline double widen(uint32_t bits, DType dtype) {
  const FloatShape shape = float_shape(dtype);
  const uint32_t magnitude = bits & (shape.sign() - 1), mantissa = magnitude & ((1u << shape.mantissa_bits) - 1);
  const int exponent = static_cast<int>(magnitude >> shape.mantissa_bits);
  const uint64_t sign = static_cast<uint64_t>((bits & shape.sign()) != 0) << 63;
  if (magnitude >= shape.infinity())
    return double_from_bits(sign | 0x7FF0000000000000u | static_cast<uint64_t>(mantissa) << (52 - shape.mantissa_bits));
  const double value = exponent == 0 ? mantissa * power_of_two(1 - shape.bias() - shape.mantissa_bits)
                                     : (mantissa + (1u << shape.mantissa_bits)) *
                                           power_of_two(exponent - shape.bias() - shape.mantissa_bits);
  return double_from_bits(bits_of_double(value) | sign);
}

// Rounds once, to nearest, ties to even; past the range to infinity.
NYBBLE_HD inline uint32_t narrow(double value, DType dtype) {
  const FloatShape shape = float_shape(dtype);
  const uint64_t bits = bits_of_double(value), magnitude = bits & ~(1ull << 63),
                 mantissa = magnitude & ((1ull << 52) - 1);
  const uint32_t sign = (bits >> 63) != 0 ? shape.sign() : 0;
  if (magnitude > 0x7FF0000000000000u) return shape.infinity() | 1u << (shape.mantissa_bits - 1);
  const int exponent = static_cast<int>(magnitude >> 52) - 1023;
  if (exponent == -1023) return sign;  // a double's subnormals round to zero in every type here
  if (exponent > shape.bias()) return sign | shape.infinity();
  const int lowest = 1 - shape.bias();  // exponent of the smallest normal number
  const int drop = 52 - shape.mantissa_bits + (exponent < lowest ? lowest - exponent : 0);
  if (drop > 53) return sign;  // below half of the smallest number
  const uint64_t significand = mantissa | 1ull << 52, rest = significand & ((1ull << drop) - 1),
                 half = 1ull << (drop - 1);
  uint64_t kept = significand >> drop;
  if (rest > half || (rest == half && (kept & 1) != 0)) ++kept;
  if (exponent >= lowest) kept += static_cast<uint64_t>(exponent + shape.bias() - 1) << shape.mantissa_bits;
  return sign | static_cast<uint32_t>(kept < shape.infinity() ? kept : shape.infinity());
}

// Equal as numbers of the type: bit for bit, except that the two zeros are one number (no order of a sum is prescribed,
// so neither is the sign of its zero).
NYBBLE_HD inline bool same_number(uint32_t a, uint32_t b, DType dtype) {
  return a == b || ((a | b) & (float_shape(dtype).sign() - 1)) == 0;
}

NYBBLE_HD inline bool is_nan(uint32_t bits, DType dtype) {
  return (bits & (float_shape(dtype).sign() - 1)) > float_shape(dtype).infinity();
}
NYBBLE_HD inline bool is_finite(uint32_t bits, DType dtype) {
  return (bits & (float_shape(dtype).sign() - 1)) < float_shape(dtype).infinity();
}

NYBBLE_HD inline uint32_t load_bits(const void* values, DType dtype, int64_t i) {
  return dtype == DType::kFp32 ? static_cast<const uint32_t*>(values)[i] : static_cast<const uint16_t*>(values)[i];
}
NYBBLE_HD inline void store_bits(void* values, DType dtype, int64_t i, uint32_t bits) {
  if (dtype == DType::kFp32)
    static_cast<uint32_t*>(values)[i] = bits;
  else
    static_cast<uint16_t*>(values)[i] = static_cast<uint16_t>(bits);
}
NYBBLE_HD inline double load_value(const void* values, DType dtype, int64_t i) {
  return widen(load_bits(values, dtype, i), dtype);
}

// Half the distance between neighbours of `dtype` around a finite number.
NYBBLE_HD inline double half_step(double value, DType dtype) {
  const FloatShape shape = float_shape(dtype);
  const int lowest = 1 - shape.bias(), exponent = exponent_of(value);
  return power_of_two((exponent < lowest ? lowest : exponent) - shape.mantissa_bits - 1);
}

// The part of the pass rule of docs/testing.md that fp32 accumulation may use up: 2^-19 max(1, k / 16384) sum |act|
// |weight|.
NYBBLE_HD inline double accumulation_allowance(double magnitude, int64_t k) {
  return magnitude * 0x1p-19 * (k > 16384 ? static_cast<double>(k) / 16384 : 1.0);
}

}  // namespace nybble::testing
