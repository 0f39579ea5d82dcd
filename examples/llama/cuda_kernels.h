// What a decoder needs on the GPU beside nybble's layers. Plain kernels: they are small beside the weights. Every call
// only enqueues; positions are read from device memory when the kernel runs, so that a graph of a step can be replayed.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace llama::gpu {

// The shape of attention.
struct Heads {
  int heads, kv_heads, head_dim, rope_dim;
  bool rotates_halves;  // i and i + head_dim / 2 together, not neighbours; then rope_dim is head_dim
};

inline constexpr int kMostHeadDim = 256;

// x[m, width] = table[tokens[m], width]
void embed(const float* table, const int32_t* tokens, int m, int width, float* x, cudaStream_t stream);
// x += delta where delta is given, then out = weight * x / sqrt(mean(x^2) + epsilon), row by row, into those of the two
// outputs that are given.
void add_and_normalize(float* x, const float* delta, const float* weight, float epsilon, int m, int width, __half* out,
                       float* out_fp32, cudaStream_t stream);
// Rotates pairs of numbers in query[m, heads * head_dim] (in place) and key[m, kv_heads * head_dim] and puts key and
// value into row *length + i of their caches. `frequencies`: [rope_dim / 2], radians a position.
void rotate_and_store(float* query, const float* key, const float* value, const double* frequencies,
                      const int32_t* length, int m, Heads heads, float* keys, float* values, cudaStream_t stream);
// out[m, heads * head_dim] = softmax(query x keys / sqrt(head_dim)) x values over the rows up to *length + i.
void attend(const float* query, const float* keys, const float* values, const int32_t* length, int m, Heads heads,
            __half* out, cudaStream_t stream);
// out = silu(gate) * up
void silu_and_multiply(const float* gate, const float* up, int64_t count, __half* out, cudaStream_t stream);
// out[m, n] = act[m, k] x weight[n, k]^T + bias (or null), sums in fp32.
void dense_multiply(const __half* act, int m, int64_t k, const float* weight, int64_t n, const float* bias, float* out,
                    cudaStream_t stream);
void dense_multiply(const float* act, int m, int64_t k, const float* weight, int64_t n, const float* bias, float* out,
                    cudaStream_t stream);

}  // namespace llama::gpu
