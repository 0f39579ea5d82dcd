// How far a correct kernel may be from the double sums of gemm.h: the pass rule for data that is not exact in fp32.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "nybble/types.h"

namespace nybble {

// Half the distance between neighbours of `dtype` around a number of this magnitude.
inline double half_ulp(double magnitude, DType dtype) {
  const int digits = dtype == DType::kBf16 ? 8 : dtype == DType::kFp16 ? 11 : 24;
  const int min_exponent = dtype == DType::kFp16 ? -14 : -126;
  const int exponent = magnitude > 0 ? std::max(std::ilogb(magnitude), min_exponent) : min_exponent;
  return std::ldexp(0.5, exponent - digits + 1);
}

// What fp32 accumulation in any order, by tensor cores that may truncate, may add to the error; `magnitude` is the sum
// of |act| * |weight|. A model of such tensor cores (adds of 16 aligned products, each cut below the largest one's last
// bit) errs by at most 2^-19.8 of the magnitude up to k = 14336 and 2^-19.2 at 32768 over 40,000 sums each. 2^-19,
// growing with k past 16384, is about twice that, and 256 times below the worst case k * 2^-23 at k = 4096.
inline double allowed_accumulation(double magnitude, int64_t k) {
  return std::ldexp(magnitude, -19) * std::max(1.0, static_cast<double>(k) / 16384);
}

// What a correct kernel's |out - sum| stays within: accumulation, and one rounding to out_dtype. `sum` is the
// reference's double sum (with the epilogue, if there is one) over the weights that the kernel multiplies (Numerics).
inline double allowed_error(double sum, double magnitude, int64_t k, DType out_dtype) {
  const double accumulation = allowed_accumulation(magnitude, k);
  return accumulation + half_ulp(std::abs(sum) + accumulation, out_dtype);  // the largest number the store may round
}

// True when `out`, a value of out_dtype, is what a correct kernel may give. Sums past the type's range may be infinite.
inline bool within_envelope(double out, double sum, double magnitude, int64_t k, DType out_dtype) {
  const double allowed = allowed_error(sum, magnitude, k, out_dtype);
  if (std::isinf(out)) {
    const double largest = out_dtype == DType::kFp16 ? 65504.0 : static_cast<double>(std::numeric_limits<float>::max());
    return std::signbit(out) == std::signbit(sum) && std::abs(sum) + allowed >= largest;
  }
  return std::abs(out - sum) <= allowed;  // false for NaN
}

}  // namespace nybble
