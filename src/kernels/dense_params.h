// What the two kernels of the dequantize-and-multiply rows are told, and where they are. Host-only C++.
#pragma once

#include "kernels/epilogue_params.h"
#include "layout/packed.h"
#include "nybble/types.h"

namespace nybble::kernels {

// Packed weight -> dense[n, ld], the activation's type, input features in their own order, zeros from k to ld.
struct DequantizeParams {
  const uint8_t* weight;
  layout::BlobMap map;
  DType scale_dtype;
  ZeroKind zero_kind;
  void* dense;
  int64_t ld;
  int64_t n, k;
};
using DequantizeKernel = void (*)(DequantizeParams);
DequantizeKernel dequantize_kernel(DType act);

// out[m, n] = epilogue(act[m, k] x dense[n, k]^T). dense rows begin at 16-byte boundaries and hold zeros up to a
// multiple of 8 input features.
struct DenseGemmParams {
  const void* act;
  int64_t ld_act;
  const void* dense;
  int64_t ld_dense;
  void* out;
  int64_t ld_out;
  int64_t m, n, k;
  EpilogueParams epilogue;
};
using DenseGemmKernel = void (*)(DenseGemmParams);
// aligned: rows of act begin at 16-byte boundaries.
DenseGemmKernel dense_gemm_kernel(DType act, DType out, bool aligned);

inline constexpr int kDequantizeThreads = 256;
inline constexpr int kDenseGemmThreads = 256;
inline constexpr int kDenseTile = 128;  // tokens and output features of a CTA
int dense_gemm_smem_bytes();

}  // namespace nybble::kernels
