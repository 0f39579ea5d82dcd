// What kernels multiply by that apply a group's scale to fp32 sums over exact codes (parts/exact_codes.cuh).
#pragma once

#include "kernels/ptx/packed_math.cuh"
#include "layout/blob.h"

namespace nybble::kernels {

// Powers of two that bring (stored scale) x (sum of code * unit * act) back to numbers: the first multiplies scales,
// the second the finished sums. Stored scales may be near the largest bf16, so the first must shrink them; what it
// cannot hold (below 2^-149) is left to the second, which then is at most 1: neither overflows where the result does
// not.
struct ScaleFactors {
  float of_scale, of_sum;

  __device__ static float power_of_two(int exponent) {
    return __int_as_float(exponent >= -126 ? (exponent + 127) << 23 : 1 << (exponent + 149));
  }

  __device__ ScaleFactors(const uint8_t* blob, int unit_exponent) {
    const int shift = layout::stored_scale_shift(layout::header_of(blob));
    const int whole = -unit_exponent - shift, first = max(min(whole, 0), -149);
    of_scale = power_of_two(first), of_sum = power_of_two(whole - first);
  }
};

// What multiplies a group's sums of rows r and r + 8. scales: both as they are stored; fp16 ones are stored as they
// are.
template <class T> __device__ __forceinline__ float2 group_scales(uint32_t scales, float of_scale) {
  float2 both = make_float2(ptx::low_float<T>(scales), ptx::high_float<T>(scales));
  if constexpr (ptx::is_bf16<T>) both.x *= of_scale, both.y *= of_scale;
  return both;
}

}  // namespace nybble::kernels
