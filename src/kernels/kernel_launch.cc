// Launching kernels: see kernel_launch.h.
#include "kernels/kernel_launch.h"

#include "runtime/cuda_call.h"

namespace nybble::kernels {
namespace {

Result<void> prepare(const void* function, int ordinal) {
  int smem_per_block = 0;
  NYBBLE_CUDA(cudaDeviceGetAttribute(&smem_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal));
  cudaFuncAttributes attributes;
  NYBBLE_CUDA(cudaFuncGetAttributes(&attributes, function));
  const int dynamic = smem_per_block - static_cast<int>(attributes.sharedSizeBytes);
  NYBBLE_CUDA(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic));
  NYBBLE_CUDA(
      cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
  return {};
}

}  // namespace

Result<void> launch_function(const void* function, PreparedDevices& prepared, const LaunchShape& shape, void** args) {
  int ordinal = 0;
  NYBBLE_CUDA(cudaGetDevice(&ordinal));
  if (!prepared.contains(ordinal)) {
    if (Result<void> done = prepare(function, ordinal); !done) return done.error();
    prepared.add(ordinal);
  }

  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.smem_bytes);
  config.stream = shape.stream;
  config.attrs = attributes;
  if (shape.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
  }
  if (shape.pdl) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  NYBBLE_CUDA(cudaLaunchKernelExC(&config, function, args));
  return {};
}

}  // namespace nybble::kernels
