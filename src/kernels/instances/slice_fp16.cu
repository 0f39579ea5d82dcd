#include "kernels/instances/slice_tiles.cuh"

namespace nybble::kernels {

std::span<const SliceInstance> slice_instances_fp16() { return slice_instances<DType::kFp16, false>(); }

}  // namespace nybble::kernels
