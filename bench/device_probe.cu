// The kernels of device_probe.h.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "bench/device_probe.h"

namespace nybble::bench {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 1024;

__global__ void stamp_clocks_kernel(ClockStamp* stamps, unsigned num_sms) {
  unsigned sm;
  unsigned long long nanoseconds;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
  // One 16-byte store, so that two blocks on one SM cannot mix their stamps.
  if (sm < num_sms)
    *reinterpret_cast<ulonglong2*>(stamps + sm) =
        make_ulonglong2(static_cast<unsigned long long>(clock64()), nanoseconds);
}

template <class Bits>  // of a number: its sign first
__global__ void count_nans_kernel(const Bits* values, int64_t size, Bits infinity, unsigned long long* count) {
  unsigned long long found = 0;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < size; i += int64_t{kThreads} * gridDim.x)
    found += static_cast<Bits>(values[i] << 1) > static_cast<Bits>(infinity << 1) ? 1 : 0;
  if (found > 0) atomicAdd(count, found);
}

__device__ uint32_t hash(uint64_t x) {  // splitmix64's output function
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return static_cast<uint32_t>(x >> 32);
}

__global__ void fill_dense_kernel(uint16_t* values, bool bf16, int64_t size, uint64_t seed) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < size; i += int64_t{kThreads} * gridDim.x) {
    // Box and Muller's transform of two uniform numbers.
    const float u = (static_cast<float>(hash(seed + 2 * i)) + 1.0f) * 0x1p-32f;
    const float v = static_cast<float>(hash(seed + 2 * i + 1)) * 0x1p-32f;
    const float gauss = 0.02f * sqrtf(-2.0f * logf(u)) * cospif(2.0f * v);
    values[i] = bf16 ? __bfloat16_as_ushort(__float2bfloat16_rn(gauss)) : __half_as_ushort(__float2half_rn(gauss));
  }
}

}  // namespace

cudaError_t stamp_clocks(ClockStamp* stamps, int num_sms, cudaStream_t stream) {
  stamp_clocks_kernel<<<2 * num_sms, 1, 0, stream>>>(stamps, static_cast<unsigned>(num_sms));
  return cudaGetLastError();
}

cudaError_t count_nans(const void* values, DType dtype, int64_t size, unsigned long long* count, cudaStream_t stream) {
  if (dtype == DType::kFp32) {
    count_nans_kernel<<<kBlocks, kThreads, 0, stream>>>(static_cast<const uint32_t*>(values), size, 0x7F800000u, count);
  } else {
    const uint16_t infinity = dtype == DType::kBf16 ? 0x7F80 : 0x7C00;
    count_nans_kernel<<<kBlocks, kThreads, 0, stream>>>(static_cast<const uint16_t*>(values), size, infinity, count);
  }
  return cudaGetLastError();
}

cudaError_t fill_dense(void* values, DType dtype, int64_t size, uint64_t seed, cudaStream_t stream) {
  fill_dense_kernel<<<kBlocks, kThreads, 0, stream>>>(static_cast<uint16_t*>(values), dtype == DType::kBf16, size,
                                                      seed);
  return cudaGetLastError();
}

}  // namespace nybble::bench
