// The meaning of the library: out = alpha * act x weight^T + bias + residual over the canonical weight, in plain loops
// with double sums. It knows nothing of packing, kernels or devices, so that it can judge them.
#pragma once

#include <vector>

#include "nybble/weight.h"

namespace nybble {

struct ReferenceArgs {
  const QuantizedWeight* weight = nullptr;  // valid, as validate() defines it
  int64_t m = 0;
  DType act_dtype = DType::kBf16;
  DType out_dtype = DType::kBf16;
  const void* act = nullptr;       // [m, k], act_dtype
  int64_t ld_act = 0;              // elements between rows; 0: k
  void* out = nullptr;             // [m, n], out_dtype
  int64_t ld_out = 0;              // elements between rows; 0: n
  const void* bias = nullptr;      // [n], act_dtype, or null
  const void* residual = nullptr;  // [m, n], out_dtype, leading dimension ld_out, or null; may be out itself
  float alpha = 1.0f;
  Numerics numerics = Numerics::kExactWeight;  // whether weights are rounded to act_dtype before they are multiplied
  int num_threads = 0;                         // 0: all cores
};

// v = float(sum); then v = alpha * v, v = v + bias, v = v + residual, each rounded to fp32; then rounded once to
// out_dtype.
void reference_gemm(const ReferenceArgs& args);

// What reference_gemm rounds: the double sums, and the sums of |act| * |weight| that an error envelope scales with.
// Both [m, n], without an epilogue; out, bias, residual and alpha of `args` are not looked at.
struct ReferenceSums {
  std::vector<double> sum;
  std::vector<double> magnitude;
};
ReferenceSums reference_sums(const ReferenceArgs& args);

// The epilogue of one output: `bias` and `residual` may be null. The result is a value of out_dtype, as float.
float reference_epilogue(double sum, float alpha, const float* bias, const float* residual, DType out_dtype);

}  // namespace nybble
