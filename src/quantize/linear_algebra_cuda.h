// The operations of quantize/linear_algebra.h over device memory, enqueued on the default stream. Every element's sum
// runs in the same order, every product and every sum rounded by itself: equal to the CPU's bit for bit.
#pragma once

#include <cstdint>

#include "nybble/result.h"

namespace nybble::quantize {

// out[r, j] += sum over i of a[r, i] * b[i, j] for r < rows, i < inner, j < columns; row-major with leading dimensions.
Result<void> multiply_add_cuda(const double* a, int64_t ld_a, const double* b, int64_t ld_b, double* out,
                               int64_t ld_out, int64_t rows, int64_t inner, int64_t columns);
Result<void> multiply_add_cuda(const double* a, int64_t ld_a, const float* b, int64_t ld_b, double* out, int64_t ld_out,
                               int64_t rows, int64_t inner, int64_t columns);

// The lower Cholesky factor of a symmetric matrix[k, k] in place; what lies above its diagonal is left undefined. Reads
// the lower triangle. Blocks on the diagonal are factored on the host, so that this waits for the GPU. False: not
// positive definite.
Result<bool> factor_lower_cuda(double* matrix, int64_t k);

}  // namespace nybble::quantize
