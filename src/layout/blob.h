// The packed layout seen from a WeightFormat or a blob: what packers and backends ask before they touch bytes.
#pragma once

#include <cstddef>
#include <span>

#include "layout/packed.h"
#include "nybble/types.h"

namespace nybble::layout {

// What a row of the registry says to a weight with ZeroKind::kTable, which has no packed form.
inline constexpr char kWhyNoTable[] =
    "reads no weights with a table of values (NF4, MXFP4, NVFP4) yet; dequantize them, e.g. with nybble convert --to "
    "dense";

constexpr int zero_bytes(ZeroKind kind, DType scale_dtype) {
  return kind == ZeroKind::kNone ? 0 : kind == ZeroKind::kInt ? 1 : static_cast<int>(dtype_bytes(scale_dtype));
}

constexpr BlobMap blob_map(int64_t n, int64_t k, const WeightFormat& format) {
  return blob_map(n, k, format.group_size, static_cast<int>(dtype_bytes(format.scale_dtype)),
                  zero_bytes(format.zero_kind, format.scale_dtype), format.k_order);
}

NYBBLE_HD inline const PackedHeader& header_of(const void* blob) { return *static_cast<const PackedHeader*>(blob); }

inline WeightFormat format_of(const PackedHeader& header) {
  return {.scale_dtype = static_cast<DType>(header.scale_dtype),
          .zero_kind = static_cast<ZeroKind>(header.zero_kind),
          .group_size = header.group_size,
          .k_order = header.k_order != 0,
          .scales_in_window = header.scales_in_window != 0};
}

inline BlobMap blob_map(const PackedHeader& header) { return blob_map(header.n, header.k, format_of(header)); }

// stored scale = scale * 2^stored_scale_shift
NYBBLE_HD inline int stored_scale_shift(const PackedHeader& header) {
  const bool shifted = static_cast<DType>(header.scale_dtype) == DType::kBf16 && header.group_size != kPerColumn &&
                       header.scales_in_window != 0;
  return shifted ? kBf16ScaleShift - header.scale_exponent : 0;
}

}  // namespace nybble::layout
