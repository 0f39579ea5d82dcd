// The one way kernels are launched: shared-memory attributes set once per kernel and device, then cudaLaunchKernelExC
// with cluster and programmatic-dependent-launch attributes. Use:
//
//   static PreparedDevices prepared;  // one per kernel, beside the call
//   return launch_kernel(gemm<config>, prepared, {.grid = dim3(132), .threads = 384, .smem_bytes = bytes, .pdl = pdl,
//                                                 .stream = args.stream}, params);
//
// Every kernel asks for the whole shared-memory carve-out: two kernels whose carve-outs differ cannot share an SM, and
// dependent launches live from sharing it.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "nybble/result.h"

namespace nybble::kernels {

struct LaunchShape {
  dim3 grid;
  int threads = 0;
  int smem_bytes = 0;  // dynamic
  int cluster = 1;     // CTAs per cluster, along grid.x
  bool pdl = false;    // may start before its predecessor in the stream has ended
  cudaStream_t stream = nullptr;
};

// Devices (by CUDA ordinal, up to 64) on which a kernel's attributes are set. Setting them twice does no harm, so two
// threads that launch at once need no lock.
class PreparedDevices {
 public:
  bool contains(int ordinal) const { return (bits_.load(std::memory_order_acquire) >> (ordinal & 63) & 1) != 0; }
  void add(int ordinal) { bits_.fetch_or(uint64_t{1} << (ordinal & 63), std::memory_order_release); }

 private:
  std::atomic<uint64_t> bits_{0};
};

// args as cudaLaunchKernel takes them: one pointer per parameter.
Result<void> launch_function(const void* function, PreparedDevices& prepared, const LaunchShape& shape, void** args);

template <class... Params>
Result<void> launch_kernel(void (*function)(Params...), PreparedDevices& prepared, const LaunchShape& shape,
                           std::type_identity_t<Params>... params) {
  void* args[] = {static_cast<void*>(&params)...};
  return launch_function(reinterpret_cast<const void*>(function), prepared, shape, args);
}

}  // namespace nybble::kernels
