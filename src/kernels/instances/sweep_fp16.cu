#include "kernels/instances/sweep_tiles.cuh"

namespace nybble::kernels {

std::span<const SweepInstance> sweep_instances_fp16() { return sweep_instances<DType::kFp16, false>(); }

}  // namespace nybble::kernels
