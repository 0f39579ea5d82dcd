// Device: what is there, or what to plan for.
#include <cuda_runtime_api.h>

#include "nybble/launch.h"
#include "runtime/cuda_call.h"

namespace nybble {

Device Device::cpu(int num_threads) {
  Device device;
  device.kind = DeviceKind::kCpu;
  device.name = "cpu";
  device.num_threads = num_threads;
  return device;
}

Device Device::h200() {
  Device device;
  device.kind = DeviceKind::kCuda;
  device.name = "NVIDIA H200";
  device.sm = 90;
  device.num_sms = 132;
  device.max_smem_bytes = 232448;
  return device;
}

Result<Device> Device::cuda(int ordinal) {
  int count = 0;
  if (const cudaError_t code = cudaGetDeviceCount(&count); code != cudaSuccess) {
    (void)cudaGetLastError();
    return unsupported("no CUDA device can be used: {} ({}); the CPU backend, Device::cpu(), needs none",
                       cudaGetErrorName(code), cudaGetErrorString(code));
  }
  if (ordinal < 0 || ordinal >= count)
    return invalid_argument("CUDA device {} was asked for, but there are {}", ordinal, count);
  cudaDeviceProp properties;
  NYBBLE_CUDA(cudaGetDeviceProperties(&properties, ordinal));
  Device device;
  device.kind = DeviceKind::kCuda;
  device.name = properties.name;
  device.ordinal = ordinal;
  device.sm = properties.major * 10 + properties.minor;
  device.num_sms = properties.multiProcessorCount;
  device.max_smem_bytes = static_cast<int>(properties.sharedMemPerBlockOptin);
  return device;
}

}  // namespace nybble
