// The smallest program that needs every part of a CUDA toolkit that nybble needs: sm_90a instructions (wgmma), the
// bf16 header, libcu++, the static runtime and a driver function found at run time. It exits 0 without a driver, too.
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <concepts>
#include <cstdio>
#include <cuda/std/cstdint>

__global__ void sample(float* out, cuda::std::uint32_t n) {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  if (threadIdx.x < n) out[threadIdx.x] = __expf(__bfloat162float(__float2bfloat16(out[threadIdx.x])));
}

static_assert(std::integral<int>, "C++20");

int main() {
  int devices = 0;
  const cudaError_t counted = cudaGetDeviceCount(&devices);
  void* encode = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  if (counted == cudaSuccess && devices > 0) {
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000, cudaEnableDefault, &found);
  }
  std::printf("runtime %d, devices %d (%s), tensor maps %s\n", CUDART_VERSION, devices, cudaGetErrorName(counted),
              encode != nullptr ? "yes" : "no");
  return 0;
}
