// From the caller's element types to prepared act, and from sums to the caller's out. Included by the instruction-set
// files only; everything has internal linkage.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "cpu/isa.h"
#include "layout/packed.h"

namespace nybble::cpu {
namespace {

inline constexpr int kSpan = 64;  // input features that one 64-byte run of codes covers

template <class V> void widen(DType dtype, const void* from, float* to, int count) {
  const char* bytes = static_cast<const char*>(from);
  if (dtype == DType::kBf16) {
    for (int i = 0; i < count; i += V::kLanes) V::store(to + i, V::widen_bf16(bytes + 2 * i));
  } else if (dtype == DType::kFp16) {
    for (int i = 0; i < count; i += V::kLanes) V::store(to + i, V::widen_fp16(bytes + 2 * i));
  } else {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
  }
}

// 64 floats in the order of k to the four vectors that meet the codes: out[16 (2 b + h) + 4 l + s] =
// in[16 s + 8 b + 2 l + h]. SSE shuffles, which every instruction set here has.
inline void permute_span(const float* in, float* out) {
  __m128 steps[4][4];  // [2 b + h][s], lane l
  for (int s = 0; s < 4; ++s)
    for (int b = 0; b < 2; ++b) {
      const __m128 low = _mm_loadu_ps(in + 16 * s + 8 * b), high = _mm_loadu_ps(in + 16 * s + 8 * b + 4);
      steps[2 * b][s] = _mm_shuffle_ps(low, high, _MM_SHUFFLE(2, 0, 2, 0));
      steps[2 * b + 1][s] = _mm_shuffle_ps(low, high, _MM_SHUFFLE(3, 1, 3, 1));
    }
  for (int v = 0; v < 4; ++v) {
    _MM_TRANSPOSE4_PS(steps[v][0], steps[v][1], steps[v][2], steps[v][3]);
    for (int l = 0; l < 4; ++l) _mm_storeu_ps(out + 16 * v + 4 * l, steps[v][l]);
  }
}

template <class Element> const void* gather_span(const ActTask& task, int64_t begin, Element* buffer) {
  const Element* row = static_cast<const Element*>(task.row);
  if (task.k_order != nullptr) {
    for (int i = 0; i < kSpan; ++i) {
      const int64_t feature = task.k_order[begin + i];
      buffer[i] = feature >= 0 && feature < task.k ? row[feature] : Element{0};
    }
    return buffer;
  }
  if (begin + kSpan <= task.k) return row + begin;
  for (int i = 0; i < kSpan; ++i) buffer[i] = begin + i < task.k ? row[begin + i] : Element{0};
  return buffer;
}

template <class V> void prepare_act(const ActTask& task) {
  alignas(64) uint16_t halves[kSpan];
  alignas(64) uint32_t words[kSpan];
  alignas(64) float wide[kSpan];
  for (int64_t begin = task.begin; begin < task.end; begin += kSpan) {
    const void* span = task.dtype == DType::kFp32 ? gather_span(task, begin, words) : gather_span(task, begin, halves);
    widen<V>(task.dtype, span, wide, kSpan);
    permute_span(wide, task.out + (begin - task.begin));
  }
}

template <class V> typename V::Floats load_as(DType dtype, const void* from) {
  switch (dtype) {
    case DType::kBf16:
      return V::widen_bf16(from);
    case DType::kFp16:
      return V::widen_fp16(from);
    case DType::kFp32:
      break;
  }
  return V::load(static_cast<const float*>(from));
}

template <class V>
void finish_lanes(const FinishTask& task, const float* sums, const void* bias, const void* residual, void* out) {
  typename V::Floats value = V::mul(V::load(sums), V::broadcast(task.alpha));
  if (bias != nullptr) value = V::add(value, load_as<V>(task.bias_dtype, bias));
  if (residual != nullptr) value = V::add(value, load_as<V>(task.out_dtype, residual));
  switch (task.out_dtype) {
    case DType::kBf16:
      V::narrow_bf16(out, value);
      break;
    case DType::kFp16:
      V::narrow_fp16(out, value);
      break;
    case DType::kFp32:
      V::store(static_cast<float*>(out), value);
      break;
  }
}

template <class V> void finish(const FinishTask& task) {
  constexpr int64_t kLanes = V::kLanes;
  const int64_t bias_bytes = task.bias_dtype == DType::kFp32 ? 4 : 2,
                out_bytes = task.out_dtype == DType::kFp32 ? 4 : 2;
  const char* bias = static_cast<const char*>(task.bias);
  const char* residual = static_cast<const char*>(task.residual);
  char* out = static_cast<char*>(task.out);
  int64_t i = 0;
  for (; i + kLanes <= task.count; i += kLanes) {
    finish_lanes<V>(task, task.sums + i, bias ? bias + i * bias_bytes : nullptr,
                    residual ? residual + i * out_bytes : nullptr, out + i * out_bytes);
  }
  if (const int64_t rest = task.count - i; rest > 0) {
    float sums[kLanes] = {}, bias_lanes[kLanes] = {}, residual_lanes[kLanes] = {}, out_lanes[kLanes];
    std::memcpy(sums, task.sums + i, static_cast<size_t>(rest) * sizeof(float));
    if (bias) std::memcpy(bias_lanes, bias + i * bias_bytes, static_cast<size_t>(rest * bias_bytes));
    if (residual) std::memcpy(residual_lanes, residual + i * out_bytes, static_cast<size_t>(rest * out_bytes));
    finish_lanes<V>(task, sums, bias ? bias_lanes : nullptr, residual ? residual_lanes : nullptr, out_lanes);
    std::memcpy(out + i * out_bytes, out_lanes, static_cast<size_t>(rest * out_bytes));
  }
}

}  // namespace
}  // namespace nybble::cpu
