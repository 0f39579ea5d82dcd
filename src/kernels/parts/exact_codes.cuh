// Codes in registers -> (u - z) * kUnit in the activation's type, exact: what kernels multiply that apply scales to
// fp32 sums (Numerics::kExactWeight). One LOP3 and one FMA per register of a fragment.
//
// A word of a fragment (layout/packed.h) holds eight codes. Masked by 0x000F000F its bits are already numbers: bf16
// subnormals u * 2^-133, fp16 subnormals u * 2^-24, which the device keeps at full rate; masked by 0x00F000F0 they are
// 16 times as large. One FMA multiplies by the largest power of two and subtracts z: product, addend and sum are exact,
// the result is a normal number, and a code equal to its zero point gives a true zero. Rows r and r + 8 end in the same
// unit.
#pragma once

#include "kernels/ptx/packed_math.cuh"

namespace nybble::kernels {

template <class T> struct ExactCodes {
  static constexpr bool bf16 = ptx::is_bf16<T>;
  static constexpr int kUnitExponent = bf16 ? -6 : -9;                        // kUnit = 2^kUnitExponent
  static constexpr uint32_t kToUnit = bf16 ? 0x7F007F00u : 0x78007800u;       // 2^127; 2^15
  static constexpr uint32_t kToUnitUpper = bf16 ? 0x7D007D00u : 0x68006800u;  // 2^123; 2^11
  static constexpr uint32_t kMinusEight = bf16 ? 0xBE00BE00u : 0xA400A400u;   // -8 * kUnit
  static constexpr uint32_t kMinusToUnit = kToUnit | 0x80008000u;

  uint32_t minus_zero_low, minus_zero_high;  // -z * kUnit twice: of row r, of row r + 8

  __device__ __forceinline__ void set_symmetric() { minus_zero_low = minus_zero_high = kMinusEight; }

  // zeros: the zero point of row r in byte 0, of row r + 8 in byte 1.
  __device__ __forceinline__ void set_zeros(uint32_t zeros) {
    minus_zero_low = ptx::mul2<T>(__byte_perm(zeros, 0, 0x4040), kMinusToUnit);
    minus_zero_high = ptx::mul2<T>(__byte_perm(zeros, 0, 0x4141), kMinusToUnit);
  }

  // One k16 step: the four registers of operand A.
  __device__ __forceinline__ void operator()(uint32_t* a, uint32_t word) const {
    const uint32_t upper = word >> 8;
    a[0] = ptx::fma2<T>(word & 0x000F000Fu, kToUnit, minus_zero_low);
    a[1] = ptx::fma2<T>(word & 0x00F000F0u, kToUnitUpper, minus_zero_high);
    a[2] = ptx::fma2<T>(upper & 0x000F000Fu, kToUnit, minus_zero_low);
    a[3] = ptx::fma2<T>(upper & 0x00F000F0u, kToUnitUpper, minus_zero_high);
  }
};

}  // namespace nybble::kernels
