// The built instances of the sliced-k kernel, by format.
#pragma once

#include <span>

#include "kernels/slice_params.h"

namespace nybble::kernels {

struct SliceInstance {
  SliceConfig config;
  const void* function;  // slice_sm90<config>
  int smem_bytes;        // sizeof(SliceStorage<config>)
};

std::span<const SliceInstance> slice_instances_bf16();
std::span<const SliceInstance> slice_instances_bf16_zp();
std::span<const SliceInstance> slice_instances_fp16();
std::span<const SliceInstance> slice_instances_fp16_zp();

}  // namespace nybble::kernels
