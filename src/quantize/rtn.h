// Round to nearest: the arithmetic of one group, in fp32 with every operation rounded by itself, for the CPU and the
// GPU alike. Both backends run these functions, so their results are equal bit for bit.
//
//   symmetric:   scale = absmax / 7.5,                                    zero = 8
//   asymmetric:  scale = (max - min) / 15 with min <= 0 <= max,           zero = clamp(round(-min / scale), 0, 15)
//   both:        scale rounded to its type before it is used; code = clamp(round(w / scale) + zero, 0, 15)
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>

#include "layout/packed.h"
#include "nybble/quantize.h"

#if defined(__CUDA_ARCH__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include "base/float16.h"
#endif

namespace nybble::rtn {

// RangeSearch::kSquaredError tries the range times (100 - i) / 100 for i = 0 .. kShrinkSteps - 1; of equal errors the
// widest range wins.
inline constexpr int kShrinkSteps = 80;

NYBBLE_HD inline float multiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);  // never contracted into an FMA
#else
  return a * b;
#endif
}
NYBBLE_HD inline float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

NYBBLE_HD inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
NYBBLE_HD inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Integers in the order of the floats they stand for, so that a range is found by integer minima and maxima, in any
// order of the elements. +0 has key 0. The keys of NaN and infinity lie outside those of all finite numbers.
NYBBLE_HD inline int32_t key_of(float value) {
  const int32_t bits = static_cast<int32_t>(bits_of(value));
  return bits ^ (bits >> 31 & 0x7FFFFFFF);
}
NYBBLE_HD inline float value_of_key(int32_t key) {
  return float_of(static_cast<uint32_t>(key ^ (key >> 31 & 0x7FFFFFFF)));
}

// min <= 0 <= max of a group.
struct Range {
  float min = 0, max = 0;
};

struct GroupScale {
  uint32_t bits = 0;       // in the scale's type
  float scale = 0;         // the same number
  int zero = 0;            // 8 when symmetric
  bool overflows = false;  // the type cannot hold it; the rest is not to be used
};

NYBBLE_HD inline void round_scale(float scale, DType dtype, GroupScale& group) {
#if defined(__CUDA_ARCH__)
  const auto narrow_bf16 = [](float x) { return uint32_t{__bfloat16_as_ushort(__float2bfloat16_rn(x))}; };
  const auto narrow_fp16 = [](float x) { return uint32_t{__half_as_ushort(__float2half_rn(x))}; };
  const auto widen_fp16 = [](uint32_t bits) { return __half2float(__ushort_as_half(static_cast<uint16_t>(bits))); };
#else
  const auto narrow_bf16 = [](float x) { return uint32_t{base::float_to_bf16(x)}; };
  const auto narrow_fp16 = [](float x) { return uint32_t{base::float_to_fp16(x)}; };
  const auto widen_fp16 = [](uint32_t bits) { return base::fp16_to_float(static_cast<uint16_t>(bits)); };
#endif
  group.bits = dtype == DType::kBf16 ? narrow_bf16(scale) : dtype == DType::kFp16 ? narrow_fp16(scale) : bits_of(scale);
  if (group.bits == 0)
    group.bits = 1;  // the smallest positive number: the group is not zero, so its scale is not either
  group.scale = dtype == DType::kBf16   ? float_of(group.bits << 16)
                : dtype == DType::kFp16 ? widen_fp16(group.bits)
                                        : float_of(group.bits);
  group.overflows = group.scale > FLT_MAX;
}

// Round half to even for |x| < 2^22: beyond 2^23 floats are whole numbers.
inline constexpr float kRounder = 0x1.8p23f;
NYBBLE_HD inline float round_half_even(float x) { return (x + kRounder) - kRounder; }

NYBBLE_HD inline float clamp(float x, float low, float high) {
  x = x > low ? x : low;
  return x < high ? x : high;
}

// `range` is not 0 .. 0. `shrink` is 1, or a factor of the range search.
NYBBLE_HD inline GroupScale scale_of(Range range, float shrink, bool symmetric, DType dtype) {
  const float min = multiply(range.min, shrink), max = multiply(range.max, shrink);
  GroupScale group;
  if (symmetric) {
    round_scale(divide(-min > max ? -min : max, 7.5f), dtype, group);
    group.zero = 8;
    return group;
  }
  const float width = max - min;  // may overflow where its fifteenth part does not
  round_scale(width <= FLT_MAX ? divide(width, 15.0f) : divide(max / 2 - min / 2, 7.5f), dtype, group);
  group.zero = static_cast<int>(round_half_even(clamp(divide(-min, group.scale), 0, 15)));
  return group;
}

NYBBLE_HD inline float shrink_factor(int step) { return divide(static_cast<float>(100 - step), 100.0f); }

// The code's distance from the zero point.
NYBBLE_HD inline float level_of(float weight, float scale, float low, float high) {
  return round_half_even(clamp(divide(weight, scale), low, high));
}

// Near the end of the fp32 range a level may stand for infinity; the finite one next to it is taken instead. Groups
// where that can happen are known by their scale.
NYBBLE_HD inline bool may_overflow(float scale) { return scale > FLT_MAX / 16; }
NYBBLE_HD inline float finite_level(float level, float scale) {
  while (multiply(level < 0 ? -level : level, scale) > FLT_MAX) level += level < 0 ? 1.0f : -1.0f;
  return level;
}

// One element's part in the squared error of a group, in units of the scale. The product is exact in double, so the sum
// over the elements in their order has one rounding per element on every machine, with or without FMA.
NYBBLE_HD inline double squared_error(float weight, float scale, float low, float high) {
  const float x = divide(weight, scale);
  const double difference = round_half_even(clamp(x, low, high)) - x;
  return difference * difference;
}
NYBBLE_HD inline double in_weight_units(double error, float scale) {
  return error * (static_cast<double>(scale) * scale);
}

}  // namespace nybble::rtn
