// The kernels of the dequantize-and-multiply rows.
#include "base/check.h"
#include "kernels/dense_gemm_sm90.cuh"
#include "kernels/dequantize_sm90.cuh"

namespace nybble::kernels {
namespace {

template <class Act, bool aligned> DenseGemmKernel gemm_for(DType out) {
  switch (out) {
    case DType::kBf16:
      return dense_gemm_sm90<Act, __nv_bfloat16, aligned>;
    case DType::kFp16:
      return dense_gemm_sm90<Act, __half, aligned>;
    case DType::kFp32:
      return dense_gemm_sm90<Act, float, aligned>;
  }
  return nullptr;
}

}  // namespace

DequantizeKernel dequantize_kernel(DType act) {
  NYBBLE_CHECK(act != DType::kFp32, "the dequantize rows refuse fp32 activations");
  return act == DType::kBf16 ? dequantize_sm90<__nv_bfloat16> : dequantize_sm90<__half>;
}

DenseGemmKernel dense_gemm_kernel(DType act, DType out, bool aligned) {
  NYBBLE_CHECK(act != DType::kFp32, "the dequantize rows refuse fp32 activations");
  if (act == DType::kBf16) return aligned ? gemm_for<__nv_bfloat16, true>(out) : gemm_for<__nv_bfloat16, false>(out);
  return aligned ? gemm_for<__half, true>(out) : gemm_for<__half, false>(out);
}

int dense_gemm_smem_bytes() { return DenseTile::smem_bytes; }

}  // namespace nybble::kernels
