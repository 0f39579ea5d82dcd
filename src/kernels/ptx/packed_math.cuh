// Arithmetic on pairs of 16-bit floats held in 32-bit registers, and the conversions around it. T is __nv_bfloat16 or
// __half.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace nybble::ptx {

template <class T> inline constexpr bool is_bf16 = std::is_same_v<T, __nv_bfloat16>;

template <class T> __device__ __forceinline__ uint32_t fma2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  if constexpr (is_bf16<T>)
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  else
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
template <class T> __device__ __forceinline__ uint32_t mul2(uint32_t a, uint32_t b) {
  uint32_t d;
  if constexpr (is_bf16<T>)
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  else
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
template <class T> __device__ __forceinline__ uint32_t sub2(uint32_t a, uint32_t b) {
  uint32_t d;
  if constexpr (is_bf16<T>)
    asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  else
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

// (low, high) rounded to nearest even.
template <class T> __device__ __forceinline__ uint32_t pack2(float low, float high) {
  uint32_t d;
  if constexpr (is_bf16<T>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}

template <class T> __device__ __forceinline__ float low_float(uint32_t pair) {
  if constexpr (is_bf16<T>) return __uint_as_float(pair << 16);
  return __half2float(__ushort_as_half(static_cast<unsigned short>(pair)));
}
template <class T> __device__ __forceinline__ float high_float(uint32_t pair) {
  if constexpr (is_bf16<T>) return __uint_as_float(pair & 0xFFFF0000u);
  return __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16)));
}

// Both halves of the result are the low (high) half of v. Written as halves, not as a permutation of bytes: arithmetic
// on pairs then reads the half of v itself, and the result needs neither an instruction nor a register.
__device__ __forceinline__ uint32_t repeat_low(uint32_t v) {
  uint32_t d;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\nmov.b32 %0, {low, low};\n}" : "=r"(d) : "r"(v));
  return d;
}
__device__ __forceinline__ uint32_t repeat_high(uint32_t v) {
  uint32_t d;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\nmov.b32 %0, {high, high};\n}" : "=r"(d) : "r"(v));
  return d;
}

// (v & mask) | bits in one instruction.
__device__ __forceinline__ uint32_t and_or(uint32_t v, uint32_t mask, uint32_t bits) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(v), "r"(mask), "r"(bits));
  return d;
}

}  // namespace nybble::ptx
