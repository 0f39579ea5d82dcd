#include "checkpoint/target.h"

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/json_text.h"

namespace nybble::checkpoint {

int64_t groups_of(const LayerInfo& layer) {
  const int64_t size = layer.format.group_size;
  return size == kPerColumn ? 1 : (layer.k + size - 1) / size;
}

Result<void> check_integer_zeros(const LayerInfo& layer, const char* format) {
  if (layer.format.zero_kind == ZeroKind::kNone || layer.format.zero_kind == ZeroKind::kInt) return {};
  return unsupported(
      "layer {}: has zero points of kind '{}', but {} holds only integer ones; exclude the layer, which writes it "
      "dense, or convert the model to dense and quantize that",
      base::printable(layer.name), zero_kind_name(layer.format.zero_kind), format);
}

Result<void> check_whole_groups(const LayerInfo& layer, const char* format) {
  if (layer.format.group_size == kPerColumn || layer.k % layer.format.group_size == 0) return {};
  return unsupported(
      "layer {}: its k = {} is no multiple of its groups of {}, and {} has no partial groups; exclude the layer, which "
      "writes it dense",
      base::printable(layer.name), layer.k, layer.format.group_size, format);
}

Result<void> check_zeros_fit(const QuantizedWeight& weight, const LayerInfo& layer, const char* format) {
  for (size_t i = 0; i < weight.int_zeros.size(); ++i)
    if (weight.int_zeros[i] > 15)
      return unsupported(
          "layer {}: the zero point of row {}, group {} is {}; {} has room for 0 to 15. Exclude the layer, which "
          "writes it dense",
          base::printable(layer.name), static_cast<int64_t>(i) / weight.groups(),
          static_cast<int64_t>(i) % weight.groups(), weight.int_zeros[i], format);
  return {};
}

Result<FloatArray> scales_as(const FloatArray& scales, DType dtype, bool exact, const LayerInfo& layer) {
  if (scales.dtype == dtype) return scales;
  std::vector<float> values(scales.size());
  for (size_t i = 0; i < values.size(); ++i) values[i] = scales.at(i);
  FloatArray converted = FloatArray::from_floats(dtype, values);
  const auto groups = static_cast<size_t>(groups_of(layer));
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(converted.at(i)))
      return unsupported(
          "layer {}: the scale of row {}, group {} is {}, beyond the range of {}; exclude the layer, which writes it "
          "dense",
          base::printable(layer.name), i / groups, i % groups, values[i], dtype_name(dtype));
    if (exact && converted.at(i) != values[i])
      return unsupported(
          "layer {}: the scale of row {}, group {} is {} in {}, which {} does not hold exactly; ask for scales of type "
          "{} to have it rounded, or exclude the layer, which writes it dense",
          base::printable(layer.name), i / groups, i % groups, values[i], dtype_name(scales.dtype), dtype_name(dtype),
          dtype_name(dtype));
  }
  return converted;
}

std::vector<std::byte> transposed(const FloatArray& values, int64_t n, int64_t groups) {
  const size_t size = dtype_bytes(values.dtype);
  std::vector<std::byte> bytes(values.bytes.size());
  for (int64_t row = 0; row < n; ++row)
    for (int64_t group = 0; group < groups; ++group)
      std::memcpy(bytes.data() + static_cast<size_t>(group * n + row) * size,
                  values.bytes.data() + static_cast<size_t>(row * groups + group) * size, size);
  return bytes;
}

std::vector<int32_t> group_index(const QuantizedWeight& weight) {
  std::vector<int32_t> index(static_cast<size_t>(weight.k));
  const int64_t size = weight.group_size == kPerColumn ? weight.k : weight.group_size;
  for (int64_t p = 0; p < weight.k; ++p) {
    const int64_t feature = weight.k_order.empty() ? p : weight.k_order[static_cast<size_t>(p)];
    index[static_cast<size_t>(feature)] = static_cast<int32_t>(p / size);
  }
  return index;
}

}  // namespace nybble::checkpoint
