// The built instances of the sweeping kernel, by format.
#pragma once

#include <span>

#include "kernels/sweep_params.h"

namespace nybble::kernels {

struct SweepInstance {
  SweepConfig config;
  const void* function;  // sweep_sm90<config>
  SweepSmem (*smem)(int m);
};

std::span<const SweepInstance> sweep_instances_bf16();
std::span<const SweepInstance> sweep_instances_bf16_zp();
std::span<const SweepInstance> sweep_instances_fp16();
std::span<const SweepInstance> sweep_instances_fp16_zp();

}  // namespace nybble::kernels
