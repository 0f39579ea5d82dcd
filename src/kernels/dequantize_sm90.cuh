// Packed weight -> dense weight on the GPU, for every format the layout holds: each weight is computed exactly and
// rounded once to the activation's type (Numerics::kRoundedWeight).
//
// One CTA takes one block of 64 x 128; a thread takes eight neighbouring input features of one output feature, which
// stand in one nibble of four words. Where 16-bit scales meet integer zero points, (u - z) * s has at most 16
// significant bits and fp32 holds it; everything else is computed in double, as the reference does.
#pragma once

#include "kernels/dense_params.h"
#include "kernels/parts/epilogue.cuh"
#include "layout/blob.h"

namespace nybble::kernels {

template <class Act> __device__ __forceinline__ Act round_double(double value) {
  if constexpr (std::is_same_v<Act, __nv_bfloat16>)
    return __double2bfloat16(value);
  else
    return __double2half(value);
}

// A scale, float zero point or offset as stored.
__device__ __forceinline__ float load_number(const uint8_t* at, DType dtype) {
  if (dtype == DType::kFp32) return *reinterpret_cast<const float*>(at);
  return dtype == DType::kBf16 ? to_float(*reinterpret_cast<const __nv_bfloat16*>(at))
                               : to_float(*reinterpret_cast<const __half*>(at));
}

// How the codes of one group of one output feature become weights.
struct GroupValues {
  float scale;
  float zero;   // kFloat: z, kOffset: b
  int integer;  // kNone, kInt: z
};

__device__ __forceinline__ GroupValues load_group(const DequantizeParams& p, const uint8_t* block, int64_t n, int row,
                                                  int group, float unscale_low, float unscale_high) {
  const bool column = p.map.block.groups == 0;
  const int64_t scale_bytes = p.map.block.scale_bytes, zero_bytes = p.map.block.zero_bytes;
  const uint8_t* scale =
      column ? p.weight + p.map.column_scales + n * scale_bytes : block + p.map.block.scale_offset(row, group);
  const uint8_t* zero =
      column ? p.weight + p.map.column_zeros + n * zero_bytes : block + p.map.block.zero_offset(row, group);
  GroupValues values{load_number(scale, p.scale_dtype) * unscale_low * unscale_high, 0.0f, 8};
  if (p.zero_kind == ZeroKind::kInt)
    values.integer = *zero;
  else if (p.zero_kind != ZeroKind::kNone)
    values.zero = load_number(zero, p.scale_dtype);
  return values;
}

template <class Act>
__device__ __forceinline__ Act dequantize_code(const DequantizeParams& p, const GroupValues& values, int code) {
  if (p.zero_kind == ZeroKind::kNone || p.zero_kind == ZeroKind::kInt) {
    if (p.scale_dtype != DType::kFp32) return round_to<Act>(static_cast<float>(code - values.integer) * values.scale);
    return round_double<Act>((code - values.integer) * static_cast<double>(values.scale));
  }
  if (p.zero_kind == ZeroKind::kFloat)
    return round_double<Act>((code - static_cast<double>(values.zero)) * values.scale);
  return round_double<Act>(__dadd_rn(__dmul_rn(code, values.scale), values.zero));
}

template <class Act>
__global__ void __launch_bounds__(kDequantizeThreads) dequantize_sm90(const __grid_constant__ DequantizeParams p) {
  constexpr int kRun = 8;  // input features of a thread at a time
  const int64_t n_block = blockIdx.x / p.map.k_blocks, k_block = blockIdx.x % p.map.k_blocks;
  const uint8_t* block = p.weight + p.map.block_offset(n_block, k_block);
  // Stored scales are scale * 2^shift: undone exactly, in two steps because 2^-shift may lie below fp32's normal
  // numbers.
  const int shift = layout::stored_scale_shift(layout::header_of(p.weight));
  const float unscale_low = ldexpf(1.0f, -(shift / 2)), unscale_high = ldexpf(1.0f, -(shift - shift / 2));
  const int32_t* k_order = p.map.k_order < 0 ? nullptr : reinterpret_cast<const int32_t*>(p.weight + p.map.k_order);
  const int group_size = p.map.block.groups == 0 ? layout::kBlockK : layout::kBlockK / p.map.block.groups;

  for (int item = static_cast<int>(threadIdx.x); item < layout::kBlockN * layout::kBlockK / kRun;
       item += kDequantizeThreads) {
    const int row = item / (layout::kBlockK / kRun), column = item % (layout::kBlockK / kRun) * kRun;
    const int64_t n = n_block * layout::kBlockN + row, k = k_block * layout::kBlockK + column;
    if (n >= p.n || k >= p.ld) continue;
    const GroupValues values = load_group(p, block, n, row, column / group_size, unscale_low, unscale_high);
    alignas(16) Act weights[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const uint32_t word = *reinterpret_cast<const uint32_t*>(block + p.map.block.word_offset(row, column + i));
      const int code = word >> layout::BlockShape::code_bit(row, column + i) & 15;
      weights[i] = k + i < p.k ? dequantize_code<Act>(p, values, code) : Act(0.0f);
    }
    Act* dense = static_cast<Act*>(p.dense) + n * p.ld;
    if (k_order == nullptr) {
      *reinterpret_cast<uint4*>(dense + k) = *reinterpret_cast<const uint4*>(weights);
    } else {
      for (int i = 0; i < kRun && k + i < p.ld; ++i) dense[k + i < p.k ? k_order[k + i] : k + i] = weights[i];
    }
  }
}

}  // namespace nybble::kernels
