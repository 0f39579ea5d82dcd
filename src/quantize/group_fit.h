// One group's range, scale and codes, as every quantizer but RTN's own loops takes them.
#pragma once

#include <span>
#include <vector>

#include "quantize/rows.h"
#include "quantize/rtn.h"

namespace nybble::quantize {

// Which grid a group gets; `range` is not looked at where a function has no search.
struct GroupGrid {
  bool symmetric = true;
  DType scale_dtype = DType::kBf16;
};

// min <= 0 <= max of finite weights.
rtn::Range range_of(std::span<const float> weights);

// The scale of a range: of one without width, a scale of zero (every code is the zero point).
NYBBLE_HD inline rtn::GroupScale scale_for(rtn::Range range, float shrink, GroupGrid grid) {
  rtn::GroupScale scale;
  scale.zero = grid.symmetric ? 8 : 0;
  if (range.min == 0 && range.max == 0) return scale;
  return rtn::scale_of(range, shrink, grid.symmetric, grid.scale_dtype);
}

// The scale in the range that loses least. `importance`: one number >= 0 per weight, or empty for all 1.
rtn::GroupScale fit_group(std::span<const float> weights, std::span<const float> importance, GroupGrid grid,
                          const RangeOptions& options);

// A weight's code less the zero point, and its code; the scale does not overflow.
NYBBLE_HD inline float level_for(float weight, const rtn::GroupScale& scale) {
  if (scale.scale == 0) return 0;
  const float level =
      rtn::level_of(weight, scale.scale, static_cast<float>(-scale.zero), static_cast<float>(15 - scale.zero));
  return rtn::may_overflow(scale.scale) ? rtn::finite_level(level, scale.scale) : level;
}
NYBBLE_HD inline uint8_t code_for(float weight, const rtn::GroupScale& scale) {
  return static_cast<uint8_t>(static_cast<int>(level_for(weight, scale)) + scale.zero);
}

// (code - zero) * scale: exact in double.
NYBBLE_HD inline double rounded(float weight, const rtn::GroupScale& scale) {
  return static_cast<double>(level_for(weight, scale)) * scale.scale;
}

// Puts codes, scale and zero point where they belong; false: the scale overflows, and nothing is stored.
bool store_group(QuantizedWeight& weight, const Group& group, const rtn::GroupScale& scale);

// |x|^exponent to about 6 digits, in plain arithmetic that gives the same bits on every machine; 0 for 0.
NYBBLE_HD inline float power(float x, float exponent) {
  constexpr uint32_t kMantissa = 0x7FFFFF, kOne = 0x3F800000, kRootHalf = 0x3F3504F3;
  const uint32_t bits = rtn::bits_of(x) & 0x7FFFFFFF;
  const int32_t shift = static_cast<int32_t>(bits - kRootHalf) >> 23;  // mantissa in sqrt(1/2) .. sqrt(2)
  const float mantissa = rtn::float_of(bits - (static_cast<uint32_t>(shift) << 23));
  const float t = (mantissa - 1) / (mantissa + 1), tt = t * t;
  const float log =
      static_cast<float>(shift) + t * (2.885390082f + tt * (0.961796694f + tt * (0.577078016f + tt * 0.412198583f)));
  const float y = rtn::clamp(log * exponent, -125.0f, 125.0f);
  const float whole = rtn::round_half_even(y), f = y - whole;
  const float part =
      1 +
      f * (0.693147181f + f * (0.240226507f + f * (0.0555041087f +
                                                   f * (0.00961812911f + f * (0.00133335581f + f * 0.000154035304f)))));
  const float result = part * rtn::float_of(kOne + (static_cast<uint32_t>(static_cast<int32_t>(whole)) << 23));
  return bits <= kMantissa ? 0.0f : result;  // subnormal numbers count as zero
}

// What a candidate's loss, summed in units of its own scale, counts in units of the widest candidate's: no power of a
// tiny or huge scale leaves the range of double.
NYBBLE_HD inline double loss_unit(float scale, float widest, double exponent) {
  const double ratio = static_cast<double>(scale) / widest;
  return exponent == 2 ? ratio * ratio : power(static_cast<float>(ratio), static_cast<float>(exponent));
}

}  // namespace nybble::quantize
