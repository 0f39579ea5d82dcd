#include "cuda_kernels.h"

namespace llama::gpu {
namespace {

constexpr int kWarp = 32, kThreads = 128, kWarps = kThreads / kWarp;

__device__ float sum_of_warp(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, step);
  return value;
}

__global__ void embed_kernel(const float* table, const int32_t* tokens, int width, float* x) {
  const int64_t row = blockIdx.x;
  for (int i = threadIdx.x; i < width; i += blockDim.x) x[row * width + i] = table[tokens[row] * int64_t{width} + i];
}

__global__ void add_and_normalize_kernel(float* x, const float* delta, const float* weight, float epsilon, int width,
                                         __half* out, float* out_fp32) {
  const int64_t row = blockIdx.x;
  x += row * width;
  float squares = 0;
  for (int i = threadIdx.x; i < width; i += kThreads) {
    if (delta != nullptr) x[i] += delta[row * width + i];
    squares += x[i] * x[i];
  }
  __shared__ float parts[kWarps];
  squares = sum_of_warp(squares);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = squares;
  __syncthreads();
  squares = 0;
  for (int warp = 0; warp < kWarps; ++warp) squares += parts[warp];
  const float factor = 1 / sqrtf(squares / static_cast<float>(width) + epsilon);
  for (int i = threadIdx.x; i < width; i += kThreads) {
    const float value = x[i] * factor * weight[i];
    if (out != nullptr) out[row * width + i] = __float2half_rn(value);
    if (out_fp32 != nullptr) out_fp32[row * width + i] = value;
  }
}

// A block is a token; a thread takes pairs of all heads, the queries' first, then the keys'.
__global__ void rotate_and_store_kernel(float* query, const float* key, const float* value, const double* frequencies,
                                        const int32_t* length, Heads heads, float* keys, float* values) {
  const int64_t row = blockIdx.x, position = *length + row;
  const int64_t width = int64_t{heads.kv_heads} * heads.head_dim;
  const int pairs = heads.head_dim / 2, all = (heads.heads + heads.kv_heads) * pairs;
  const int step = heads.rotates_halves ? 1 : 2, apart = heads.rotates_halves ? pairs : 1;
  for (int item = threadIdx.x; item < all; item += blockDim.x) {
    const int head = item / pairs, pair = item % pairs;
    const bool is_query = head < heads.heads;
    const int64_t at = is_query ? (row * heads.heads + head) * heads.head_dim + step * pair
                                : row * width + (head - heads.heads) * heads.head_dim + step * pair;
    const float* from = is_query ? query + at : key + at;
    float* to = is_query ? query + at : keys + position * width + (head - heads.heads) * heads.head_dim + step * pair;
    const float a = from[0], b = from[apart];
    float c = 1, s = 0;
    if (2 * pair < heads.rope_dim) {
      const double angle = static_cast<double>(position) * frequencies[pair];
      c = static_cast<float>(cos(angle));
      s = static_cast<float>(sin(angle));
    }
    to[0] = a * c - b * s;
    to[apart] = a * s + b * c;
  }
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) values[position * width + i] = value[row * width + i];
}

// A block is a token and a query head. Each warp takes every kWarps-th position with a running maximum; a lane holds
// every 32nd number of the head.
__global__ void attend_kernel(const float* query, const float* keys, const float* values, const int32_t* length,
                              Heads heads, __half* out) {
  constexpr int kEach = kMostHeadDim / kWarp;
  const int64_t row = blockIdx.x;
  const int head = blockIdx.y, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, dim = heads.head_dim;
  const int64_t seen = *length + row + 1, width = int64_t{heads.kv_heads} * dim;
  const int64_t kv_offset = int64_t{head} / (heads.heads / heads.kv_heads) * dim;
  const float factor = 1 / sqrtf(static_cast<float>(dim));
  float q[kEach], mixed[kEach] = {};
  for (int i = 0; i < kEach; ++i) {
    const int at = i * kWarp + lane;
    q[i] = at < dim ? query[(row * heads.heads + head) * dim + at] : 0;
  }
  float most = -INFINITY, sum = 0;
  for (int64_t t = warp; t < seen; t += kWarps) {
    const float* k = keys + t * width + kv_offset;
    const float* v = values + t * width + kv_offset;
    float score = 0;
    for (int i = 0; i < kEach; ++i)
      if (i * kWarp + lane < dim) score += q[i] * k[i * kWarp + lane];
    score = factor * sum_of_warp(score);
    const float now = fmaxf(most, score), keep = expf(most - now), weight = expf(score - now);
    sum = sum * keep + weight;
    for (int i = 0; i < kEach; ++i)
      mixed[i] = mixed[i] * keep + (i * kWarp + lane < dim ? weight * v[i * kWarp + lane] : 0);
    most = now;
  }
  __shared__ float mosts[kWarps], sums[kWarps], parts[kWarps][kMostHeadDim];
  if (lane == 0) mosts[warp] = most, sums[warp] = sum;
  for (int i = 0; i < kEach; ++i) parts[warp][i * kWarp + lane] = mixed[i];
  __syncthreads();
  float top = -INFINITY, total = 0;
  for (int w = 0; w < kWarps; ++w) top = fmaxf(top, mosts[w]);
  for (int w = 0; w < kWarps; ++w) total += sums[w] * expf(mosts[w] - top);
  for (int at = threadIdx.x; at < dim; at += kThreads) {
    float value = 0;
    for (int w = 0; w < kWarps; ++w) value += parts[w][at] * expf(mosts[w] - top);
    out[(row * heads.heads + head) * dim + at] = __float2half_rn(value / total);
  }
}

__global__ void silu_and_multiply_kernel(const float* gate, const float* up, int64_t count, __half* out) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) out[i] = __float2half_rn(gate[i] / (1 + expf(-gate[i])) * up[i]);
}

__device__ float to_float(float value) { return value; }
__device__ float to_float(__half value) { return __half2float(value); }

// A warp is an output feature of a token.
template <class Act>
__global__ void dense_multiply_kernel(const Act* act, int64_t k, const float* weight, int64_t n, const float* bias,
                                      float* out) {
  const int64_t feature = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp, row = blockIdx.y;
  if (feature >= n) return;
  float sum = 0;
  for (int64_t i = threadIdx.x % kWarp; i < k; i += kWarp) sum += to_float(act[row * k + i]) * weight[feature * k + i];
  sum = sum_of_warp(sum);
  if (threadIdx.x % kWarp == 0) out[row * n + feature] = sum + (bias != nullptr ? bias[feature] : 0);
}

template <class Act>
void launch_dense(const Act* act, int m, int64_t k, const float* weight, int64_t n, const float* bias, float* out,
                  cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((n + kWarps - 1) / kWarps), static_cast<unsigned>(m));
  dense_multiply_kernel<<<grid, kThreads, 0, stream>>>(act, k, weight, n, bias, out);
}

}  // namespace

void embed(const float* table, const int32_t* tokens, int m, int width, float* x, cudaStream_t stream) {
  embed_kernel<<<m, kThreads, 0, stream>>>(table, tokens, width, x);
}

void add_and_normalize(float* x, const float* delta, const float* weight, float epsilon, int m, int width, __half* out,
                       float* out_fp32, cudaStream_t stream) {
  add_and_normalize_kernel<<<m, kThreads, 0, stream>>>(x, delta, weight, epsilon, width, out, out_fp32);
}

void rotate_and_store(float* query, const float* key, const float* value, const double* frequencies,
                      const int32_t* length, int m, Heads heads, float* keys, float* values, cudaStream_t stream) {
  rotate_and_store_kernel<<<m, kThreads, 0, stream>>>(query, key, value, frequencies, length, heads, keys, values);
}

void attend(const float* query, const float* keys, const float* values, const int32_t* length, int m, Heads heads,
            __half* out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(m), static_cast<unsigned>(heads.heads));
  attend_kernel<<<grid, kThreads, 0, stream>>>(query, keys, values, length, heads, out);
}

void silu_and_multiply(const float* gate, const float* up, int64_t count, __half* out, cudaStream_t stream) {
  silu_and_multiply_kernel<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      gate, up, count, out);
}

void dense_multiply(const __half* act, int m, int64_t k, const float* weight, int64_t n, const float* bias, float* out,
                    cudaStream_t stream) {
  launch_dense(act, m, k, weight, n, bias, out, stream);
}
void dense_multiply(const float* act, int m, int64_t k, const float* weight, int64_t n, const float* bias, float* out,
                    cudaStream_t stream) {
  launch_dense(act, m, k, weight, n, bias, out, stream);
}

}  // namespace llama::gpu
