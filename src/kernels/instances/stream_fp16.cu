// The streaming kernels for fp16 activations without zero points.
#include "kernels/instances/stream_tiles.cuh"

namespace nybble::kernels {

std::span<const StreamInstance> stream_instances_fp16() { return stream_instances<DType::kFp16, false>(); }

}  // namespace nybble::kernels
