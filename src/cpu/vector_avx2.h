// 8 floats at a time. Everything here is internal to the one file that is compiled with AVX2.
#pragma once

#include <immintrin.h>

#include <cstddef>

namespace nybble::cpu {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  static constexpr int kMaxTokens = 4;  // 8 sums, codes, weights, act and constants fit the 16 registers
  static constexpr bool kIntegerZeroIsCheaper = true;
  using Floats = __m256;
  using Words = __m256i;

  static Floats load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Floats value) { _mm256_storeu_ps(to, value); }
  static Floats broadcast(float value) { return _mm256_set1_ps(value); }
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Words load_words(const std::byte* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

  // Keeps a loaded value in a register: without this the compiler loads it again for each use.
  template <class Register> static void hold(Register& value) { asm("" : "+x"(value)); }

  static Floats widen_bf16(const void* from) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from))), 16));
  }
  static Floats widen_fp16(const void* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(from)));
  }
  static Floats widen_u8(const void* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from))));
  }
  static void narrow_fp16(void* to, Floats value) {
    _mm_storeu_si128(static_cast<__m128i*>(to), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
  static void narrow_bf16(void* to, Floats value) {
    const __m256i bits = _mm256_castps_si256(value), top = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd), 16);
    const __m256i quieted = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i result = _mm256_blendv_epi8(rounded, quieted, nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(result, result), 0x08);
    _mm_storeu_si128(static_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
  }

  // 2^23 + code as a float: the code is OR-ed into the mantissa of 2^23, so that one subtraction of 2^23 + zero gives
  // the exact code - zero of an integer zero point.
  static constexpr float kRaise = 0x1p23f;

  template <bool kIntegerZero> struct Decoder {
    Floats zero, scale, offset;
    Decoder(Floats zeros, Floats scales, Floats offsets)
        : zero(kIntegerZero ? add(zeros, broadcast(kRaise)) : zeros), scale(scales), offset(offsets) {}
    template <int kShift> Floats weight(Words codes) const {
      const __m256i code = _mm256_and_si256(_mm256_srli_epi32(codes, kShift), _mm256_set1_epi32(15));
      const Floats raised = _mm256_or_ps(_mm256_castsi256_ps(code), broadcast(kRaise));
      if constexpr (kIntegerZero) {
        return mul(_mm256_sub_ps(raised, zero), scale);
      } else {
        return fma(_mm256_sub_ps(_mm256_sub_ps(raised, broadcast(kRaise)), zero), scale, offset);
      }
    }
  };

  // One scale and zero point for all lanes.
  template <bool kIntegerZero> struct UniformDecoder : Decoder<kIntegerZero> {
    UniformDecoder(const float* zero, const float* scale, const float* offset)
        : Decoder<kIntegerZero>(_mm256_broadcast_ss(zero), _mm256_broadcast_ss(scale), _mm256_broadcast_ss(offset)) {}
  };

  // Four scales and zero points, lane i taking number i % 4.
  template <bool kIntegerZero> struct MixedDecoder : Decoder<kIntegerZero> {
    MixedDecoder(const float* zeros, const float* scales, const float* offsets)
        : Decoder<kIntegerZero>(broadcast4(zeros), broadcast4(scales), broadcast4(offsets)) {}
  };

  static Floats broadcast4(const float* from) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(from)); }
};

}  // namespace
}  // namespace nybble::cpu
