#include "kernels/instances/slice_tiles.cuh"

namespace nybble::kernels {

std::span<const SliceInstance> slice_instances_bf16_zp() { return slice_instances<DType::kBf16, true>(); }

}  // namespace nybble::kernels
