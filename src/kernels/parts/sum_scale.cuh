// From a sum over rounded (or, per column, exact) weights to the product: the factors that the weights in registers
// (parts/dequant.cuh) leave out.
#pragma once

#include "kernels/parts/dequant.cuh"
#include "kernels/parts/epilogue.cuh"
#include "layout/packed.h"

namespace nybble::kernels {

// `groups` as in GemmFormat: 0 is per column. The factor comes in two steps where one number could overflow.
template <class T, int groups, bool zero_point> struct SumScale {
  float first, second;

  // The part that all features share. To be read at the start: the header comes from memory.
  __device__ __forceinline__ static float read_unit(const uint8_t* blob) {
    if constexpr (groups == 0) return 1.0f / Dequant<T, zero_point, true>::kWeightUnit;
    const int exponent = reinterpret_cast<const layout::PackedHeader*>(blob)->scale_exponent;
    return __uint_as_float(static_cast<uint32_t>(127 + exponent) << 23);
  }

  // column_scales: offset in the blob. Features past n give zeros.
  __device__ __forceinline__ SumScale(float unit, const uint8_t* blob, int64_t column_scales, int feature, int n) {
    if constexpr (groups == 0) {
      if (feature >= n) {
        first = second = 0.f;
        return;
      }
      const float scale = to_float(reinterpret_cast<const T*>(blob + column_scales)[feature]);
      first = fabsf(scale) < 1.0f ? scale * unit : scale;
      second = fabsf(scale) < 1.0f ? 1.0f : unit;
    } else {
      first = unit, second = 1.0f;
    }
  }

  // A sum of zero stays +0 whatever the factor's sign: the scale belongs to the products.
  __device__ __forceinline__ float apply(float sum) const {
    const float scaled = __fmaf_rn(sum, first, 0.f);
    if constexpr (groups == 0 && ptx::is_bf16<T>) return __fmul_rn(scaled, second);
    return scaled;
  }
};

}  // namespace nybble::kernels
