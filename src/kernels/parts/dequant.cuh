// Codes in registers -> weights in registers, rounded once: (u - z) * s of the activation's type
// (Numerics::kRoundedWeight).
//
// A thread of a fragment holds, per k16 step, one word of eight codes: registers a0, a2 of row r and a1, a3 of row r +
// 8, two input features each. `word & 0x000F000F` and `(word >> 8) & 0x000F000F` are the codes of row r, the masks
// 0x00F000F0 those of row r + 8 times 16.
//
// bf16: masked bits are already numbers, the subnormals u * 2^-133 (row r) and u * 2^-129 (row r + 8), and the device
//   keeps subnormals at full rate. The blob's scales are stored times 2^133 (layout::kBf16ScaleShift), so one FMA gives
//   fma(u * 2^-133, s * 2^133, -8 s): the product and the addend are exact, the sum is rounded once. An integer zero
//   point is subtracted first, exactly, and one multiplication rounds; folding -z * s into an addend would round twice.
// fp16: its range leaves no room for that. 0x6400 | u is 1024 + u: subtracting 1024 + z is exact, one multiplication
// rounds.
// Per column there is no scale here: weights are (u - z) * kWeightUnit, exact, and the epilogue scales sums.
#pragma once

#include "kernels/ptx/packed_math.cuh"

namespace nybble::kernels {

template <class T, bool has_zero_point, bool per_column> struct Dequant;

template <bool has_zero_point, bool per_column> struct Dequant<__nv_bfloat16, has_zero_point, per_column> {
  using T = __nv_bfloat16;
  static constexpr float kWeightUnit = per_column ? 0x1p-6f : 1.0f;  // weights are multiples of it: 2^-133 times 2^127
  uint32_t scale_low, scale_high;                                    // row r: s * 2^133; row r + 8: s * 2^129
  uint32_t zero_low, zero_high;  // with a zero point: z * 2^-133 and z * 2^-129 to subtract; without: -8 s to add

  // scales: stored bf16 of rows r (low half) and r + 8; zeros: their zero points in the low two bytes.
  __device__ __forceinline__ void load(uint32_t scales, uint32_t zeros) {
    if constexpr (per_column) scales = 0x7F007F00u;           // 2^127
    const uint32_t both = ptx::mul2<T>(scales, 0x3D803F80u);  // times 1 and 2^-4
    scale_low = ptx::repeat_low(both);
    scale_high = ptx::repeat_high(both);
    if constexpr (has_zero_point) {
      zero_low = __byte_perm(zeros, 0, 0x4040);
      zero_high = __byte_perm(zeros, 0, 0x4141) << 4;
    } else {
      const uint32_t minus_eight = ptx::mul2<T>(scales, 0x80088008u);  // times -8 * 2^-133
      zero_low = ptx::repeat_low(minus_eight);
      zero_high = ptx::repeat_high(minus_eight);
    }
  }

  __device__ __forceinline__ void operator()(uint32_t* a, uint32_t word) const {
    const uint32_t upper = word >> 8;
    a[0] = low(word & 0x000F000Fu);
    a[1] = high(word & 0x00F000F0u);
    a[2] = low(upper & 0x000F000Fu);
    a[3] = high(upper & 0x00F000F0u);
  }

 private:
  __device__ __forceinline__ uint32_t low(uint32_t codes) const {
    if constexpr (has_zero_point) return ptx::mul2<T>(ptx::sub2<T>(codes, zero_low), scale_low);
    return ptx::fma2<T>(codes, scale_low, zero_low);
  }
  __device__ __forceinline__ uint32_t high(uint32_t codes) const {
    if constexpr (has_zero_point) return ptx::mul2<T>(ptx::sub2<T>(codes, zero_high), scale_high);
    return ptx::fma2<T>(codes, scale_high, zero_high);
  }
};

template <bool has_zero_point, bool per_column> struct Dequant<__half, has_zero_point, per_column> {
  using T = __half;
  static constexpr float kWeightUnit = 1.0f;
  uint32_t scale_low, scale_high;
  uint32_t zero_low, zero_high;  // 1024 + z; -(64 + z)

  __device__ __forceinline__ void load(uint32_t scales, uint32_t zeros) {
    if constexpr (!per_column) {
      scale_low = ptx::repeat_low(scales);
      scale_high = ptx::repeat_high(scales);
    }
    if constexpr (has_zero_point) {
      zero_low = __byte_perm(zeros, 0, 0x4040) | 0x64006400u;
      zero_high = ((__byte_perm(zeros, 0, 0x4141) << 4) + 0x54005400u) | 0x80008000u;
    } else {
      zero_low = 0x64086408u;
      zero_high = 0xD480D480u;
    }
  }

  __device__ __forceinline__ void operator()(uint32_t* a, uint32_t word) const {
    const uint32_t upper = word >> 8;
    a[0] = low(ptx::and_or(word, 0x000F000Fu, 0x64006400u));
    a[1] = high(ptx::and_or(word, 0x00F000F0u, 0x64006400u));
    a[2] = low(ptx::and_or(upper, 0x000F000Fu, 0x64006400u));
    a[3] = high(ptx::and_or(upper, 0x00F000F0u, 0x64006400u));
  }

 private:
  __device__ __forceinline__ uint32_t low(uint32_t biased) const {
    const uint32_t code = ptx::sub2<T>(biased, zero_low);
    if constexpr (per_column) return code;
    return ptx::mul2<T>(code, scale_low);
  }
  __device__ __forceinline__ uint32_t high(uint32_t biased) const {
    const uint32_t code = ptx::fma2<T>(biased, 0x2C002C00u, zero_high);  // (1024 + 16 u) / 16 - (64 + z)
    if constexpr (per_column) return code;
    return ptx::mul2<T>(code, scale_high);
  }
};

}  // namespace nybble::kernels
