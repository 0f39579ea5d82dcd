// The last step of every GPU kernel: out = round(alpha * sum + bias[n] + residual[m, n]). Product and sums are each
// rounded to fp32 in this order, the result once to the output's type; all kernels agree bit for bit from the sum on.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/epilogue_params.h"

namespace nybble::kernels {

template <class T> __device__ __forceinline__ float to_float(T value) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __bfloat162float(value);
  else if constexpr (std::is_same_v<T, __half>)
    return __half2float(value);
  else
    return value;
}

template <class T> __device__ __forceinline__ T round_to(float value) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(value);
  else if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(value);
  else
    return value;
}

// A read past the L1 cache. Under programmatic dependent launch this kernel may have started, and its SM may have
// cached the line for another kernel, before the predecessor wrote the value.
template <class T> __device__ __forceinline__ T load_fresh(const T* pointer) { return __ldcg(pointer); }

// Constructed after wait_for_predecessor(): alpha, bias and residual may be what the kernel before wrote.
template <class Act, class Out> struct FusedEpilogue {
  float alpha;
  const Act* bias;
  const Out* residual;
  int64_t ld_residual;

  __device__ explicit FusedEpilogue(const EpilogueParams& params)
      : alpha(params.alpha_device != nullptr ? load_fresh(params.alpha_device) : params.alpha),
        bias(static_cast<const Act*>(params.bias)),
        residual(static_cast<const Out*>(params.residual)),
        ld_residual(params.ld_residual) {}

  // The value to round and store at (m, n), which must lie inside the output.
  __device__ float apply(float sum, int64_t m, int64_t n) const { return add_residual(scale(sum, bias_at(n)), m, n); }

  // apply() in three steps, for kernels that hold many tokens of one output feature.
  __device__ float bias_at(int64_t n) const { return bias != nullptr ? to_float(load_fresh(bias + n)) : 0.0f; }
  __device__ float scale(float sum, float bias_of_n) const {
    const float value = __fmul_rn(alpha, sum);
    return bias != nullptr ? __fadd_rn(value, bias_of_n) : value;  // not value + 0: that would turn -0 into 0
  }
  __device__ float add_residual(float value, int64_t m, int64_t n) const {
    return residual != nullptr ? __fadd_rn(value, to_float(load_fresh(residual + m * ld_residual + n))) : value;
  }
};

}  // namespace nybble::kernels
