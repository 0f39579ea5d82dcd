#include "kernels/instances/gemm_tiles.cuh"

namespace nybble::kernels {

std::span<const GemmInstance> gemm_instances_bf16_zp() { return gemm_instances<DType::kBf16, true>(); }

}  // namespace nybble::kernels
