#include "kernels/instances/gemm_tiles.cuh"

namespace nybble::kernels {

std::span<const GemmInstance> gemm_instances_fp16_zp() { return gemm_instances<DType::kFp16, true>(); }

}  // namespace nybble::kernels
