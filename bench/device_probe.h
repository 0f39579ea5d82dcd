// Small kernels around a measurement: clocks, poisoned outputs, dense weights.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "nybble/types.h"

namespace nybble::bench {

// One SM's counters at one moment. Zero where no block of the kernel ran on that SM.
struct alignas(16) ClockStamp {
  unsigned long long cycles;
  unsigned long long nanoseconds;
};

// Enqueues a kernel that stamps the SMs it runs on: stamps[SM number], num_sms entries of device memory.
cudaError_t stamp_clocks(ClockStamp* stamps, int num_sms, cudaStream_t stream);

// Adds to *count (device memory) how many of the numbers are NaN.
cudaError_t count_nans(const void* values, DType dtype, int64_t size, unsigned long long* count, cudaStream_t stream);

// Fills with Gaussian numbers of standard deviation 0.02, as trained weights have.
cudaError_t fill_dense(void* values, DType dtype, int64_t size, uint64_t seed, cudaStream_t stream);

}  // namespace nybble::bench
