#include "checkpoint/fp4.h"

#include "base/error.h"

namespace nybble::checkpoint {

Result<FloatArray> read_e8m0_scales(const TensorSlice& tensor) {
  const Result<std::vector<std::byte>> bytes = tensor.read_all();
  if (!bytes) return bytes.error();
  FloatArray scales;
  scales.dtype = DType::kBf16;
  scales.resize(bytes->size());
  for (size_t i = 0; i < bytes->size(); ++i) {
    const auto byte = static_cast<uint8_t>((*bytes)[i]);
    if (byte == kE8m0Nan)
      return invalid_data("{}: element {} of shape {} is 255, which is NaN in E8M0", tensor.where(), i,
                          shape_text(tensor.shape()));
    scales.set_bits(i, e8m0_to_bf16(byte));
  }
  return scales;
}

Result<FloatArray> read_e4m3_scales(const TensorSlice& tensor, const std::function<float(float)>& finish) {
  const Result<std::vector<std::byte>> bytes = tensor.read_all();
  if (!bytes) return bytes.error();
  std::vector<float> scales(bytes->size());
  for (size_t i = 0; i < bytes->size(); ++i) {
    scales[i] = e4m3_to_float(static_cast<uint8_t>((*bytes)[i]));
    if (std::isnan(scales[i]))
      return invalid_data("{}: element {} of shape {} is nan", tensor.where(), i, shape_text(tensor.shape()));
    scales[i] = finish(scales[i]);
    if (!std::isfinite(scales[i]))
      return invalid_data("{}: element {} of shape {} is {} when the tensor's own scale is applied", tensor.where(), i,
                          shape_text(tensor.shape()), scales[i]);
  }
  return FloatArray::from_floats(DType::kFp32, scales);
}

}  // namespace nybble::checkpoint
