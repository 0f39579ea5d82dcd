// cuBLAS, opened at run time: the library itself never needs it, and the bench works without.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

#include "nybble/types.h"

namespace nybble::bench {

class Cublas {
 public:
  // Tries the given name or path, or the names it is installed under.
  static Result<std::unique_ptr<Cublas>> open(const std::string& library);
  virtual ~Cublas() = default;

  virtual std::string version() const = 0;  // "cuBLAS 13.0.2"
  // out[m, n] = act[m, k] x weight[n, k]^T, all row-major, act and weight of `dtype` (bf16 or fp16), out of the same or
  // fp32, sums in fp32. Enqueues; may be captured into a graph.
  virtual Result<void> gemm(int64_t m, int64_t n, int64_t k, DType dtype, DType out_dtype, const void* act,
                            const void* weight, void* out, cudaStream_t stream) = 0;
};

}  // namespace nybble::bench
