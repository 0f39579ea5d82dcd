// What stands where in a packed block, for both sides: the CPU's and the GPU's packer and unpacker run these functions
// over layout/packed.h, so that they cannot differ.
#pragma once

#include <cstring>

#include "layout/blob.h"

namespace nybble::pack_detail {

using layout::kBlockK;
using layout::kBlockN;
using layout::kPieceN;

// A canonical weight as pointers, on the host or the device. Codes stand in the order of the checkpoint; `scales` and
// `zeros` hold the bits to be stored.
template <class Byte, class Code> struct WeightView {
  int64_t n = 0, k = 0;
  int64_t groups = 1;               // per row
  uint32_t group_size = 0;          // 0: per column
  uint32_t stored_group = kBlockK;  // input features per stored scale
  ZeroKind zero_kind = ZeroKind::kNone;
  Code* codes = nullptr;             // [n, k]
  Byte* scales = nullptr;            // [n, groups]
  Byte* zeros = nullptr;             // [n, groups], integers or floats
  const int32_t* k_order = nullptr;  // [k] or null

  // Where the scale of row `row` at sorted position `position` stands; -1 in the padding.
  NYBBLE_HD int64_t group_index(int64_t row, int64_t position) const {
    if (row >= n || position >= k) return -1;
    return group_size == 0 ? row : row * groups + static_cast<uint32_t>(position) / group_size;
  }
  NYBBLE_HD int64_t code_index(int64_t row, int64_t position) const {
    return row * k + (k_order != nullptr ? k_order[position] : position);
  }
  // The code of every position of the padding that shares a stored scale with `position`: zero where one exists.
  NYBBLE_HD uint8_t padding_code(int64_t row, int64_t position) const {
    if (zero_kind == ZeroKind::kNone) return 8;
    if (zero_kind != ZeroKind::kInt) return 0;
    const int64_t group =
        group_index(row, group_size == 0 ? 0 : position - static_cast<uint32_t>(position) % stored_group);
    const uint8_t zero = group < 0 ? 0 : static_cast<uint8_t>(zeros[group]);
    return zero < 15 ? zero : 15;
  }
};
using Source = WeightView<const std::byte, const uint8_t>;
using Target = WeightView<std::byte, uint8_t>;

// One number of 1, 2 or 4 bytes; both addresses are aligned to its size.
NYBBLE_HD inline void copy_number(std::byte* to, const std::byte* from, int bytes) {
  if (bytes == 4)
    *reinterpret_cast<uint32_t*>(to) = *reinterpret_cast<const uint32_t*>(from);
  else if (bytes == 2)
    *reinterpret_cast<uint16_t*>(to) = *reinterpret_cast<const uint16_t*>(from);
  else if (bytes == 1)
    *to = *from;
}
NYBBLE_HD inline void clear_number(std::byte* to, int bytes) {
  for (int i = 0; i < bytes; ++i) to[i] = std::byte{0};
}

// Scale and zero number `index` of a block, index in [0, 64 * groups), written to the block.
NYBBLE_HD inline void write_group(const Source& source, const layout::BlockShape& shape, int64_t n_block,
                                  int64_t k_block, int index, std::byte* block) {
  const int n = index % kBlockN, group = index / kBlockN;
  const int64_t from = source.group_index(n_block * kBlockN + n, k_block * kBlockK + group * source.stored_group);
  std::byte* scale = block + shape.scale_offset(n, group);
  std::byte* zero = block + shape.zero_offset(n, group);
  if (from < 0) {
    clear_number(scale, shape.scale_bytes);
    clear_number(zero, shape.zero_bytes);
  } else {
    copy_number(scale, source.scales + from * shape.scale_bytes, shape.scale_bytes);
    copy_number(zero, source.zeros + from * shape.zero_bytes, shape.zero_bytes);
  }
}

// The inverse; a group that spans several stored ones is read where it begins.
NYBBLE_HD inline void read_group(const Target& target, const layout::BlockShape& shape, int64_t n_block,
                                 int64_t k_block, int index, const std::byte* block) {
  const int n = index % kBlockN, group = index / kBlockN;
  const int64_t position = k_block * kBlockK + group * target.stored_group;
  const int64_t to = target.group_index(n_block * kBlockN + n, position);
  if (to < 0 || static_cast<uint32_t>(position) % target.group_size != 0) return;
  copy_number(target.scales + to * shape.scale_bytes, block + shape.scale_offset(n, group), shape.scale_bytes);
  copy_number(target.zeros + to * shape.zero_bytes, block + shape.zero_offset(n, group), shape.zero_bytes);
}

}  // namespace nybble::pack_detail
