// What the host knows of one compiled wgmma kernel; the instances' files fill it.
#pragma once

#include <span>
#include <vector>

#include "kernels/gemm_config.h"

namespace nybble::kernels {

struct GemmInstance {
  GemmConfig config;
  const void* function;  // gemm_sm90<config>
  int smem_bytes;        // sizeof(GemmStorage<config>)
};

// One function per file of instances/.
std::span<const GemmInstance> gemm_instances_bf16();
std::span<const GemmInstance> gemm_instances_bf16_zp();
std::span<const GemmInstance> gemm_instances_fp16();
std::span<const GemmInstance> gemm_instances_fp16_zp();

}  // namespace nybble::kernels
