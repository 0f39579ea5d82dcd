// 16 floats at a time. Everything here is internal to the one file that is compiled with AVX-512.
#pragma once

#include <immintrin.h>

#include <cstddef>

namespace nybble::cpu {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16;
  static constexpr int kMaxTokens = 8;  // 16 sums, 2 tables, codes, weights and act fit the 32 registers
  static constexpr bool kIntegerZeroIsCheaper = false;
  using Floats = __m512;
  using Words = __m512i;

  static Floats load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Floats value) { _mm512_storeu_ps(to, value); }
  static Floats broadcast(float value) { return _mm512_set1_ps(value); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Words load_words(const std::byte* from) { return _mm512_loadu_si512(from); }

  // Keeps a loaded value in a register: without this the compiler loads it again for each use.
  template <class Register> static void hold(Register& value) { asm("" : "+v"(value)); }

  static Floats widen_bf16(const void* from) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(from))), 16));
  }
  static Floats widen_fp16(const void* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
  }
  static Floats widen_u8(const void* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from))));
  }
  static void narrow_fp16(void* to, Floats value) {
    _mm256_storeu_si256(static_cast<__m256i*>(to), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
  static void narrow_bf16(void* to, Floats value) {
    const __m512i bits = _mm512_castps_si512(value), top = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i result = _mm512_mask_or_epi32(rounded, nan, top, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256(static_cast<__m256i*>(to), _mm512_cvtepi32_epi16(result));
  }

  static Floats code_values() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

  // One scale and zero point for all 16 lanes: the 16 possible weights stand in a register, and a code looks its
  // weight up (vpermps reads the low four bits of each index).
  template <bool kIntegerZero> struct UniformDecoder {
    Floats table;
    UniformDecoder(const float* zero, const float* scale, const float* offset)
        : table(fma(_mm512_sub_ps(code_values(), broadcast(*zero)), broadcast(*scale), broadcast(*offset))) {}
    template <int kShift> Floats weight(Words codes) const {
      return _mm512_permutexvar_ps(_mm512_srli_epi32(codes, kShift), table);
    }
  };

  // Four scales and zero points, lane i taking number i % 4.
  template <bool kIntegerZero> struct MixedDecoder {
    Floats zero, scale, offset;
    MixedDecoder(const float* zeros, const float* scales, const float* offsets)
        : zero(_mm512_broadcast_f32x4(_mm_loadu_ps(zeros))),
          scale(_mm512_broadcast_f32x4(_mm_loadu_ps(scales))),
          offset(_mm512_broadcast_f32x4(_mm_loadu_ps(offsets))) {}
    template <int kShift> Floats weight(Words codes) const {
      const Floats code = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, kShift), code_values());
      return fma(_mm512_sub_ps(code, zero), scale, offset);
    }
  };
};

}  // namespace
}  // namespace nybble::cpu
