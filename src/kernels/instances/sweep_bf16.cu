#include "kernels/instances/sweep_tiles.cuh"

namespace nybble::kernels {

std::span<const SweepInstance> sweep_instances_bf16() { return sweep_instances<DType::kBf16, false>(); }

}  // namespace nybble::kernels
