// Splits the output features over threads; the multiplication itself is the one that the CPU rows use for large m.
#include "bench/dense_cpu.h"

#include <algorithm>
#include <cstring>

#include "base/parallel.h"
#include "cpu/isa.h"

namespace nybble::bench {
bool has_dense_gemm() { return cpu::best_routines() != nullptr; }

void dense_gemm(int64_t m, int64_t n, int64_t k, const float* act, const float* weight, float* out, int num_threads) {
  const int64_t threads = num_threads > 0 ? num_threads : base::default_threads();
  const int64_t share =
      std::max<int64_t>((n + threads - 1) / threads, 16);  // one slice a thread: Eigen blocks inside it
  std::memset(out, 0, m * n * sizeof(float));
  base::parallel_for((n + share - 1) / share, num_threads, [&](int64_t i) {
    const int64_t begin = i * share, count = std::min(n - begin, share);
    cpu::best_routines()->multiply({.m = m,
                                    .n = count,
                                    .k = k,
                                    .act = act,
                                    .ld_act = k,
                                    .weight = weight + begin * k,
                                    .ld_weight = k,
                                    .sums = out + begin,
                                    .ld_sums = n});
  });
}

}  // namespace nybble::bench
