#include "dense_multiply.h"

#include <algorithm>
#include <cstring>

// One body for every x86-64; the loader takes the widest clone that the CPU has. Features, not processors: those that
// the compiler does not know by name would get the default. (Under sanitizers the loader's choice would come too
// early.)
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define LLAMA_CLONES __attribute__((target_clones("avx512f", "fma", "default")))
#else
#define LLAMA_CLONES
#endif

namespace llama {
namespace {

constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float)), aligned(4)));

constexpr int kTileM = 4, kTileN = 4;

// A tile of kTileM (or 1) tokens by kTileN (or 1) output features.
template <int M, int N>
[[gnu::always_inline]] inline void multiply_tile(const float* act, const float* weight, int64_t k, float* out,
                                                 int64_t ld_out) {
  Lanes sums[M][N] = {};
  const int64_t whole = k / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    Lanes w[N];
    for (int n = 0; n < N; ++n) w[n] = *reinterpret_cast<const Lanes*>(weight + n * k + i);
    for (int m = 0; m < M; ++m) {
      const Lanes a = *reinterpret_cast<const Lanes*>(act + m * k + i);
      for (int n = 0; n < N; ++n) sums[m][n] += a * w[n];
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      float sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) sum += sums[m][n][lane];
      for (int64_t i = whole; i < k; ++i) sum += act[m * k + i] * weight[n * k + i];
      out[m * ld_out + n] = sum;
    }
  }
}

// All tokens by output features [begin, end).
LLAMA_CLONES
void multiply_features(const float* act, int64_t m, int64_t k, const float* weight, int64_t n, float* out,
                       int64_t begin, int64_t end) {
  int64_t token = 0;
  for (; token + kTileM <= m; token += kTileM) {
    int64_t feature = begin;
    for (; feature + kTileN <= end; feature += kTileN)
      multiply_tile<kTileM, kTileN>(act + token * k, weight + feature * k, k, out + token * n + feature, n);
    for (; feature < end; ++feature)
      multiply_tile<kTileM, 1>(act + token * k, weight + feature * k, k, out + token * n + feature, n);
  }
  for (; token < m; ++token) {
    int64_t feature = begin;
    for (; feature + kTileN <= end; feature += kTileN)
      multiply_tile<1, kTileN>(act + token * k, weight + feature * k, k, out + token * n + feature, n);
    for (; feature < end; ++feature)
      multiply_tile<1, 1>(act + token * k, weight + feature * k, k, out + token * n + feature, n);
  }
}

}  // namespace

void dense_multiply(Workers& workers, const float* act, int64_t m, int64_t k, const float* weight, int64_t n,
                    float* out) {
  // 64 features of a few thousand inputs stay in the second-level cache while all tokens pass by.
  constexpr int64_t kFeatures = 64;
  workers.run((n + kFeatures - 1) / kFeatures, [&](int64_t item) {
    const int64_t begin = item * kFeatures;
    multiply_features(act, m, k, weight, n, out, begin, std::min(begin + kFeatures, n));
  });
}

LLAMA_CLONES float dot(const float* a, const float* b, int64_t count) {
  float sum;
  multiply_tile<1, 1>(a, b, count, &sum, 1);
  return sum;
}

LLAMA_CLONES void add_scaled(float* out, float factor, const float* in, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] += factor * in[i];
}

}  // namespace llama
