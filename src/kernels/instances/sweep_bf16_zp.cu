#include "kernels/instances/sweep_tiles.cuh"

namespace nybble::kernels {

std::span<const SweepInstance> sweep_instances_bf16_zp() { return sweep_instances<DType::kBf16, true>(); }

}  // namespace nybble::kernels
