// What the host knows of one compiled streaming kernel; the instances' files fill it.
#pragma once

#include <span>

#include "kernels/stream_params.h"

namespace nybble::kernels {

struct StreamInstance {
  StreamConfig config;
  void (*function)(StreamParams);                     // stream_sm90<config>
  StreamSmem (*smem)(int m, int slice, int buffers);  // StreamShape<config>::smem
};

// One function per file of instances/.
std::span<const StreamInstance> stream_instances_bf16();
std::span<const StreamInstance> stream_instances_bf16_zp();
std::span<const StreamInstance> stream_instances_fp16();
std::span<const StreamInstance> stream_instances_fp16_zp();

}  // namespace nybble::kernels
