#include "runtime/tensor_map.h"

#include <cuda_runtime_api.h>

#include "runtime/cuda_call.h"
#include "runtime/tensor_map_cache.h"

namespace nybble::runtime {
namespace {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

Result<EncodeTiled> encoder() {
  static const Result<EncodeTiled> found = []() -> Result<EncodeTiled> {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult status;
    NYBBLE_CUDA(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &status));
    if (status != cudaDriverEntryPointSuccess || function == nullptr)
      return unsupported("the CUDA driver has no cuTensorMapEncodeTiled; version 12.0 or newer is needed");
    return reinterpret_cast<EncodeTiled>(function);
  }();
  return found;
}

}  // namespace

Result<CUtensorMap> tensor_map(const MatrixView& matrix, const TensorBox& box) {
  static constinit thread_local TensorMapCache cache;
  return cache.get(matrix, box, encode_tensor_map);
}

Result<CUtensorMap> encode_tensor_map(const MatrixView& matrix, const TensorBox& box) {
  const Result<EncodeTiled> encode = encoder();
  if (!encode) return encode.error();
  CUtensorMap map;
  const bool chunked = box.chunks > 0;
  const cuuint64_t columns = static_cast<cuuint64_t>(matrix.columns),
                   row_bytes = static_cast<cuuint64_t>(matrix.ld) * 2;
  const cuuint64_t sizes[3] = {chunked ? 64 : columns, static_cast<cuuint64_t>(matrix.rows), columns / 64};
  const cuuint64_t strides[2] = {row_bytes, 128};
  const cuuint32_t extents[3] = {64, static_cast<cuuint32_t>(box.rows), static_cast<cuuint32_t>(box.chunks)};
  const cuuint32_t steps[3] = {1, 1, 1};
  const CUresult code =
      (*encode)(&map, matrix.bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, chunked ? 3 : 2,
                const_cast<void*>(matrix.data), sizes, strides, extents, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (code != CUDA_SUCCESS)
    return cuda_error("cuTensorMapEncodeTiled failed with {} for {} x {}, leading dimension {}, box of {} rows x {}",
                      static_cast<int>(code), matrix.rows, matrix.columns, matrix.ld, box.rows,
                      chunked ? 64 * box.chunks : 64);
  return map;
}

}  // namespace nybble::runtime
