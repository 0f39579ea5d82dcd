#include "kernels/instances/gemm_tiles.cuh"

namespace nybble::kernels {

std::span<const GemmInstance> gemm_instances_fp16() { return gemm_instances<DType::kFp16, false>(); }

}  // namespace nybble::kernels
