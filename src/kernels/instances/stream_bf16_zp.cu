// The streaming kernels for bf16 activations with integer zero points.
#include "kernels/instances/stream_tiles.cuh"

namespace nybble::kernels {

std::span<const StreamInstance> stream_instances_bf16_zp() { return stream_instances<DType::kBf16, true>(); }

}  // namespace nybble::kernels
