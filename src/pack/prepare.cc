// Checks, header, stored scales and sections.
#include "pack/prepare.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/float16.h"
#include "pack/block.h"

namespace nybble::pack_detail {
namespace {

// `values` rounded to nearest in `dtype`. A zero point may round to zero, a scale may not: its group would vanish.
Result<FloatArray> convert(const QuantizedWeight& weight, const char* what, const FloatArray& values, DType dtype,
                           bool may_vanish) {
  if (values.dtype == dtype || values.empty()) {
    FloatArray same = values;
    same.dtype = dtype;
    return same;
  }
  std::vector<float> floats(values.size());
  for (size_t i = 0; i < floats.size(); ++i) floats[i] = values.at(i);
  FloatArray converted = FloatArray::from_floats(dtype, floats);
  const int64_t groups = weight.groups();
  for (size_t i = 0; i < floats.size(); ++i) {
    const float value = converted.at(i);
    const bool vanished = !may_vanish && value == 0 && floats[i] != 0;
    if (std::isfinite(value) && !vanished) continue;
    return invalid_argument("weight '{}': {}[{}, {}] is {}, which {} in {}; pack with another scale_dtype, e.g. {}",
                            weight.name, what, static_cast<int64_t>(i) / groups, static_cast<int64_t>(i) % groups,
                            floats[i], vanished ? "rounds to zero" : "overflows", dtype_name(dtype),
                            dtype_name(values.dtype));
  }
  return converted;
}

// The exponent e that brings bf16 scales into the window, if one does: max|s| * 2^-e < 2^-5, and with e > 0 no nonzero
// scale below the normal numbers, e <= kMaxScaleExponent. Then s * 2^(kBf16ScaleShift - e) is exact: it is below 2^128,
// and a subnormal s, possible with e = 0 only, becomes a normal number of as many bits.
struct ScaleWindow {
  bool inside = true;
  int exponent = 0;
};
ScaleWindow bf16_window(const FloatArray& scales) {
  uint32_t largest = 0, smallest = 0x7F80;  // magnitudes of bf16 are ordered as their bits
  for (size_t i = 0; i < scales.size(); ++i) {
    const uint32_t magnitude = scales.bits_at(i) & 0x7FFF;
    largest = std::max(largest, magnitude);
    if (magnitude != 0) smallest = std::min(smallest, magnitude);
  }
  const int largest_exponent = static_cast<int>(largest >> 7) - 127;  // 2^largest_exponent <= max|s|, if normal
  const int exponent = std::max(0, largest_exponent + 6);
  if (exponent == 0) return {};
  const int smallest_exponent = static_cast<int>(smallest >> 7) - 127;
  if (exponent > layout::kMaxScaleExponent || (smallest >> 7) == 0 || smallest_exponent - exponent < -126)
    return {.inside = false, .exponent = 0};
  return {.inside = true, .exponent = exponent};
}

void multiply_bf16(FloatArray& values, double factor) {
  for (size_t i = 0; i < values.size(); ++i)
    values.set_bits(i, base::float_to_bf16(static_cast<float>(values.at(i) * factor)));
}

}  // namespace

Result<void> check_packable(int64_t n, int64_t k, const WeightFormat& format) {
  if (n < 0 || k < 0 || n > INT32_MAX || k > INT32_MAX)
    return invalid_argument("a weight of shape {} x {} was asked for; both may be 0 to {}", n, k, INT32_MAX);
  if (format.scale_dtype > DType::kFp32 || format.zero_kind > ZeroKind::kTable)
    return invalid_argument("the weight format has an enum value without meaning (scale_dtype {}, zero_kind {})",
                            int(format.scale_dtype), int(format.zero_kind));
  if (format.zero_kind == ZeroKind::kTable)
    return unsupported(
        "a weight with a table of values (NF4, MXFP4, NVFP4) has no packed form yet; dequantize it, e.g. with nybble "
        "convert --to dense");
  if (format.group_size < 0)
    return invalid_argument("group_size is {}; it must be positive, or kPerColumn (0)", format.group_size);
  if (!layout::packable_group_size(format.group_size, k))
    return unsupported(
        "group_size {} at k = {} has no packed form: it must be a multiple of 16, cover all of k, or be per column; "
        "quantize again with such a group size",
        format.group_size, k);
  return {};
}

Result<PreparedWeight> prepare(const QuantizedWeight& weight, const PackOptions& options) {
  if (Result<void> valid = validate(weight); !valid) return valid.error();
  WeightFormat format = weight.format();
  if (options.scale_dtype) {
    if (*options.scale_dtype > DType::kFp32)
      return invalid_argument("PackOptions::scale_dtype has no meaning (enum value {})", int(*options.scale_dtype));
    format.scale_dtype = *options.scale_dtype;
  }
  if (Result<void> packable = check_packable(weight.n, weight.k, format); !packable) {
    Error error = packable.error();
    error.message = fmt::format("weight '{}': {}", weight.name, error.message);
    return error;
  }

  PreparedWeight prepared;
  Result<FloatArray> scales = convert(weight, "scales", weight.scales, format.scale_dtype, false);
  if (!scales) return scales.error();
  Result<FloatArray> zeros = convert(weight, "float_zeros", weight.float_zeros, format.scale_dtype, true);
  if (!zeros) return zeros.error();
  prepared.scales = std::move(scales).value();
  prepared.float_zeros = std::move(zeros).value();

  ScaleWindow window;
  if (format.scale_dtype == DType::kBf16 && format.group_size != kPerColumn) window = bf16_window(prepared.scales);
  format.scales_in_window = window.inside;
  prepared.map = layout::blob_map(weight.n, weight.k, format);

  layout::PackedHeader& header = prepared.header;
  std::memcpy(header.magic, layout::kMagic, sizeof header.magic);
  header.layout_version = layout::kLayoutVersion;
  header.header_bytes = layout::kHeaderBytes;
  header.total_bytes = prepared.map.total_bytes;
  header.n = weight.n;
  header.k = weight.k;
  header.group_size = format.group_size;
  header.scale_dtype = static_cast<uint8_t>(format.scale_dtype);
  header.zero_kind = static_cast<uint8_t>(format.zero_kind);
  header.k_order = format.k_order;
  header.scales_in_window = format.scales_in_window;
  header.scale_exponent = window.exponent;
  if (const int shift = layout::stored_scale_shift(header); shift != 0)
    multiply_bf16(prepared.scales, std::ldexp(1.0, shift));
  return prepared;
}

void write_sections(const QuantizedWeight& weight, const PreparedWeight& prepared, std::byte* sections) {
  const layout::BlobMap& map = prepared.map;
  const int64_t begin = prepared.sections_begin();
  const auto copy = [&](int64_t offset, const void* from, size_t bytes) {
    if (bytes > 0) std::memcpy(sections + offset - begin, from, bytes);
  };
  if (map.column_scales >= 0) copy(map.column_scales, prepared.scales.bytes.data(), prepared.scales.bytes.size());
  if (map.column_zeros >= 0) {
    copy(map.column_zeros, weight.int_zeros.data(), weight.int_zeros.size());
    copy(map.column_zeros, prepared.float_zeros.bytes.data(), prepared.float_zeros.bytes.size());
  }
  if (map.k_order >= 0) {
    std::vector<int32_t> order(map.k_blocks * kBlockK, -1);
    std::copy(weight.k_order.begin(), weight.k_order.end(), order.begin());
    copy(map.k_order, order.data(), order.size() * sizeof order[0]);
  }
}

QuantizedWeight read_sections(const std::byte* blob) {
  const layout::PackedHeader& header = layout::header_of(blob);
  const layout::BlobMap map = layout::blob_map(header);
  QuantizedWeight weight;
  weight.n = header.n;
  weight.k = header.k;
  weight.group_size = header.group_size;
  weight.zero_kind = static_cast<ZeroKind>(header.zero_kind);
  weight.codes.resize(weight.n * weight.k);
  const int64_t numbers = weight.n * weight.groups();
  weight.scales.dtype = static_cast<DType>(header.scale_dtype);
  weight.scales.resize(numbers);
  if (weight.zero_kind == ZeroKind::kInt) weight.int_zeros.resize(numbers);
  if (weight.zero_kind == ZeroKind::kFloat || weight.zero_kind == ZeroKind::kOffset) {
    weight.float_zeros.dtype = weight.scales.dtype;
    weight.float_zeros.resize(numbers);
  }
  const auto copy = [&](int64_t offset, void* to, size_t bytes) {
    if (bytes > 0) std::memcpy(to, blob + offset, bytes);
  };
  if (map.column_scales >= 0) copy(map.column_scales, weight.scales.bytes.data(), weight.scales.bytes.size());
  if (map.column_zeros >= 0) {
    copy(map.column_zeros, weight.int_zeros.data(), weight.int_zeros.size());
    copy(map.column_zeros, weight.float_zeros.bytes.data(), weight.float_zeros.bytes.size());
  }
  if (map.k_order >= 0) {
    weight.k_order.resize(weight.k);
    copy(map.k_order, weight.k_order.data(), weight.k_order.size() * sizeof weight.k_order[0]);
  }
  return weight;
}

void restore_scales(const layout::PackedHeader& header, QuantizedWeight& weight) {
  if (const int shift = layout::stored_scale_shift(header); shift != 0)
    multiply_bf16(weight.scales, std::ldexp(1.0, -shift));
}

}  // namespace nybble::pack_detail
