// The streaming kernels for bf16 activations without zero points.
#include "kernels/instances/stream_tiles.cuh"

namespace nybble::kernels {

std::span<const StreamInstance> stream_instances_bf16() { return stream_instances<DType::kBf16, false>(); }

}  // namespace nybble::kernels
