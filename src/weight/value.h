// What one code of a canonical weight stands for, and its rounding: the definition that dequantize() and the reference
// share, but for a rounding that dequantize() owes HQQ.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "base/float16.h"
#include "nybble/weight.h"

namespace nybble {

// The exact `value + error`, |error| below half a unit of value's last place, rounded to odd: an inexact result has its
// last bit set, so that rounding it again to 24 bits or fewer equals rounding the exact number once.
inline double round_to_odd(double value, double error) {
  uint64_t bits = std::bit_cast<uint64_t>(value);
  if (error != 0 && (bits & 1) == 0) bits += (error > 0) == (value > 0) ? 1 : -1;
  return std::bit_cast<double>(bits);
}

// Rounds once, to nearest even, to a float that `dtype` can hold; past its range to infinity.
inline float round_once(double value, DType dtype) {
  float rounded = static_cast<float>(value);
  if (dtype == DType::kFp32) return rounded;
  uint32_t bits = std::bit_cast<uint32_t>(rounded);  // to odd, for the second step's sake
  if (static_cast<double>(rounded) != value && (bits & 1) == 0)
    bits += (value > static_cast<double>(rounded)) == (value > 0) ? 1 : -1;
  rounded = std::bit_cast<float>(bits);
  return dtype == DType::kBf16 ? base::bf16_to_float(base::float_to_bf16(rounded))
                               : base::fp16_to_float(base::float_to_fp16(rounded));
}

// The group, within its row, of every input feature.
inline std::vector<int32_t> groups_of_features(const QuantizedWeight& weight) {
  std::vector<int32_t> groups(weight.k, 0);
  if (weight.group_size == kPerColumn) return groups;
  for (int64_t p = 0; p < weight.k; ++p)
    groups[weight.k_order.empty() ? p : weight.k_order[p]] = static_cast<int32_t>(p / weight.group_size);
  return groups;
}

// The value of a code in the group whose scale is scales[group] (group counts over all rows): exact, or rounded to odd.
inline double value_of_code(const QuantizedWeight& weight, uint8_t code, size_t group) {
  const double u = code, scale = weight.scales.at(group);
  switch (weight.zero_kind) {
    case ZeroKind::kNone:
      return (u - 8) * scale;
    case ZeroKind::kInt:
      return (u - weight.int_zeros[group]) * scale;
    case ZeroKind::kFloat: {
      const double zero = weight.float_zeros.at(group), difference = u - zero;
      const double lost = (u - (difference + zero)) + ((difference + zero) - zero - difference);
      const double product = difference * scale;
      return round_to_odd(product, std::fma(difference, scale, -product) + lost * scale);
    }
    case ZeroKind::kOffset: {
      const double product = u * scale, offset = weight.float_zeros.at(group), sum = product + offset;
      const double offset_part = sum - product;
      return round_to_odd(sum, (product - (sum - offset_part)) + (offset - offset_part));
    }
    case ZeroKind::kTable:
      return weight.table[code] * scale;  // 24 bits by 24 bits
  }
  return 0;
}

}  // namespace nybble
