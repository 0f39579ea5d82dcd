// What the quantizers on the GPU have in common: which GPU takes them, how much memory, what goes to and fro.
#pragma once

#include <cuda_fp16.h>

#include <algorithm>
#include <string>
#include <vector>

#include "nybble/launch.h"
#include "quantize/rtn.h"
#include "runtime/cuda_call.h"

namespace nybble::quantize {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kAllLanes = 0xFFFFFFFF;
inline constexpr int64_t kSlabBytes = int64_t{2} << 30;  // rows are taken in slabs of at most this size

// ---- In kernels.

// The values of a dense weight.
struct DeviceFloats {
  const void* values = nullptr;
  DType dtype = DType::kBf16;

  __device__ float operator[](int64_t i) const {
    switch (dtype) {
      case DType::kBf16:
        return rtn::float_of(uint32_t{static_cast<const uint16_t*>(values)[i]} << 16);
      case DType::kFp16:
        return __half2float(static_cast<const __half*>(values)[i]);
      default:
        return static_cast<const float*>(values)[i];
    }
  }
};

// Scales in their type, and the zero points beside them; null where the grid is symmetric and nobody asks for them.
struct DeviceScales {
  void* bits = nullptr;
  DType dtype = DType::kBf16;
  uint8_t* zeros = nullptr;

  __device__ void store(int64_t index, const rtn::GroupScale& scale) const {
    if (dtype == DType::kFp32)
      static_cast<uint32_t*>(bits)[index] = scale.bits;
    else
      static_cast<uint16_t*>(bits)[index] = static_cast<uint16_t>(scale.bits);
    if (zeros != nullptr) zeros[index] = static_cast<uint8_t>(scale.zero);
  }
};

// Keeps the least of what several threads report.
__device__ inline void lower(int64_t& minimum, int64_t value) {
  static_assert(sizeof(long long) == sizeof(int64_t));
  atomicMin(reinterpret_cast<long long*>(&minimum), static_cast<long long>(value));
}

// ---- On the host.

// Kernels are built for one architecture.
inline Result<void> check_gpu(const std::string& weight) {
  constexpr int kArchitecture = 90;
  int ordinal = 0;
  if (cudaGetDevice(&ordinal) != cudaSuccess) (void)cudaGetLastError();
  const Result<Device> device = Device::cuda(ordinal);
  if (!device) return unsupported("weight '{}' on the GPU: {}", weight, device.error().message);
  if (device->sm != kArchitecture)
    return unsupported(
        "weight '{}' on the GPU: {} is of architecture sm_{}, these kernels are built for sm_{} (Hopper); "
        "the CPU takes it, too",
        weight, device->name, device->sm, kArchitecture);
  return {};
}

template <class T> Result<void> copy_to(runtime::DeviceBuffer& buffer, const std::vector<T>& values) {
  const size_t bytes = values.size() * sizeof(T);
  if (Result<void> done = buffer.reserve(bytes); !done) return done;
  if (bytes > 0) NYBBLE_CUDA(cudaMemcpy(buffer.data(), values.data(), bytes, cudaMemcpyHostToDevice));
  return {};
}

// CTAs for a loop in which each warp takes an item.
inline unsigned ctas_for(int64_t items, int warps_per_cta) {
  constexpr int64_t kMaxCtas = 1 << 20;  // more than that go round the loop again
  return static_cast<unsigned>(std::min((items + warps_per_cta - 1) / warps_per_cta, kMaxCtas));
}

}  // namespace nybble::quantize
