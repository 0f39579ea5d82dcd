#include "kernels/instances/slice_tiles.cuh"

namespace nybble::kernels {

std::span<const SliceInstance> slice_instances_fp16_zp() { return slice_instances<DType::kFp16, true>(); }

}  // namespace nybble::kernels
