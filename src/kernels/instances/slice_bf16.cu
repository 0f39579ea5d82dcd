#include "kernels/instances/slice_tiles.cuh"

namespace nybble::kernels {

std::span<const SliceInstance> slice_instances_bf16() { return slice_instances<DType::kBf16, false>(); }

}  // namespace nybble::kernels
