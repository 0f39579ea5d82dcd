// Plain fp32 products: the reference that 4-bit layers are compared to, the LM head where it is dense, attention.
#pragma once

#include <cstdint>

#include "workers.h"

namespace llama {

// out[m, n] = act[m, k] x weight[n, k]^T, all row-major. Each element is 16
// fp32 sums over every 16th input feature, added up at the end: the same bits for a token whatever m is.
void dense_multiply(Workers& workers, const float* act, int64_t m, int64_t k, const float* weight, int64_t n,
                    float* out);

// The sum of a[i] * b[i].
float dot(const float* a, const float* b, int64_t count);

// out[i] += factor * in[i].
void add_scaled(float* out, float factor, const float* in, int64_t count);

}  // namespace llama
