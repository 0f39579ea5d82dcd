// The two dense operations that GPTQ and AWQ spend their time in, with sums in a fixed order: no result depends on the
// number of threads or on the instruction set.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace nybble::quantize {

// out[r, j] += sum over i of a[r, i] * b[i, j] for r < rows, i < inner, j < columns; row-major with leading dimensions.
void multiply_add(const double* a, int64_t ld_a, const double* b, int64_t ld_b, double* out, int64_t ld_out,
                  int64_t rows, int64_t inner, int64_t columns);
void multiply_add(const double* a, int64_t ld_a, const float* b, int64_t ld_b, double* out, int64_t ld_out,
                  int64_t rows, int64_t inner, int64_t columns);

// The lower Cholesky factor of a block[size, size] in place, zeros above its diagonal. Reads the lower triangle. False:
// not positive definite.
bool factor_block(double* block, int64_t ld, int64_t size);
inline constexpr int64_t kFactorBlock = 64;  // the size that factor_upper() takes; the last block may be smaller

// Factors a symmetric matrix[k, k] in place as R R^T with R upper triangular; what lies below R's diagonal is left
// undefined. Reads the lower triangle. False: not positive definite.
bool factor_upper(std::span<double> matrix, int64_t k, int num_threads);

}  // namespace nybble::quantize
