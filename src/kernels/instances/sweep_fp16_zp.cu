#include "kernels/instances/sweep_tiles.cuh"

namespace nybble::kernels {

std::span<const SweepInstance> sweep_instances_fp16_zp() { return sweep_instances<DType::kFp16, true>(); }

}  // namespace nybble::kernels
