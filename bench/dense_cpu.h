// The dense product that the CPU rows are compared with: Eigen in fp32, on as many threads as nybble gets.
#pragma once

#include <cstdint>

namespace nybble::bench {

// False where the CPU lacks AVX2: Eigen compiled for less would be no fair opponent.
bool has_dense_gemm();

// out[m, n] = act[m, k] x weight[n, k]^T, all row-major.
void dense_gemm(int64_t m, int64_t n, int64_t k, const float* act, const float* weight, float* out, int num_threads);

}  // namespace nybble::bench
