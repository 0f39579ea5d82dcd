// The streaming kernels for fp16 activations with integer zero points.
#include "kernels/instances/stream_tiles.cuh"

namespace nybble::kernels {

std::span<const StreamInstance> stream_instances_fp16_zp() { return stream_instances<DType::kFp16, true>(); }

}  // namespace nybble::kernels
