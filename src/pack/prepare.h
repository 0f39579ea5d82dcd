// What pack() and pack_cuda() have in common around the blocks: checks, the header, the scales as they will be stored
// and the sections behind the blocks; and the inverse for the unpackers.
#pragma once

#include "layout/blob.h"
#include "nybble/pack.h"

namespace nybble::pack_detail {

struct PreparedWeight {
  layout::PackedHeader header{};  // complete except for the checksum
  layout::BlobMap map{};
  FloatArray scales;  // the bits to be stored
  FloatArray float_zeros;

  // Where the sections behind the blocks begin; they end with the blob.
  int64_t sections_begin() const { return layout::align_section(map.block_offset(map.n_blocks, 0)); }
};

// Refuses what is not valid, has no packed form, or does not survive options.scale_dtype.
Result<PreparedWeight> prepare(const QuantizedWeight& weight, const PackOptions& options);

// Whether shape and format have a packed form; the error says which do.
Result<void> check_packable(int64_t n, int64_t k, const WeightFormat& format);

// Column scales, column zeros and the k order: `sections` points to the blob's byte sections_begin(), zeroed before.
void write_sections(const QuantizedWeight& weight, const PreparedWeight& prepared, std::byte* sections);

// A weight of the header's shape with room for all numbers, and what the sections of the whole `blob` hold in it.
QuantizedWeight read_sections(const std::byte* blob);

// Turns stored scales back to scales as they were read.
void restore_scales(const layout::PackedHeader& header, QuantizedWeight& weight);

// `weight` or `prepared` as pointers, with the fields of shape and format filled; codes, scales, zeros and k_order are
// the caller's.
template <class View> View view_of(const layout::PackedHeader& header) {
  View view;
  view.n = header.n;
  view.k = header.k;
  view.group_size = static_cast<uint32_t>(header.group_size);
  view.groups = header.group_size == kPerColumn ? 1 : (header.k + header.group_size - 1) / header.group_size;
  view.stored_group = layout::kBlockK / std::max(1, layout::groups_per_block(header.group_size));
  view.zero_kind = static_cast<ZeroKind>(header.zero_kind);
  return view;
}

}  // namespace nybble::pack_detail
