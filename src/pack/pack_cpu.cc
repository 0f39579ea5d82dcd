// Canonical <-> packed on the CPU.
#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.h"
#include "base/parallel.h"
#include "nybble/pack.h"
#include "pack/block.h"
#include "pack/prepare.h"
#include "weight/packed_blob.h"

namespace nybble {
namespace {

using namespace pack_detail;
using layout::BlobMap;
using layout::kPieceCodeBytes;
using layout::kPiecesPerBlock;

constexpr int kWords = kPieceCodeBytes / 4;
constexpr int64_t kBlocksPerItem = 8;

// The codes of a piece, row by row: where the order of the layout and that of the canonical form meet.
using Tile = std::array<uint8_t, kPieceN * kBlockK>;

// The map as a table: the place in a Tile of each nibble of each word.
constexpr auto kTilePlaces = [] {
  std::array<std::array<uint16_t, 8>, kWords> places{};
  for (int word = 0; word < kWords; ++word) {
    for (int nibble = 0; nibble < 8; ++nibble) {
      const layout::CodePlace place = layout::code_place(word, nibble);
      places[word][nibble] = static_cast<uint16_t>(place.n * kBlockK + place.k);
    }
  }
  return places;
}();

void gather(const Source& source, int64_t n_begin, int64_t k_begin, Tile& tile) {
  const int64_t columns = std::clamp<int64_t>(source.k - k_begin, 0, kBlockK);
  for (int row = 0; row < kPieceN; ++row) {
    const int64_t n = n_begin + row;
    uint8_t* to = tile.data() + row * kBlockK;
    int64_t column = 0;
    if (n < source.n) {
      const uint8_t* from = source.codes + n * source.k;
      if (source.k_order == nullptr)
        std::memcpy(to, from + k_begin, columns);
      else
        for (int64_t c = 0; c < columns; ++c) to[c] = from[source.k_order[k_begin + c]];
      column = columns;
    }
    for (; column < kBlockK; ++column) to[column] = source.padding_code(n, k_begin + column);
  }
}

void scatter(const Target& target, int64_t n_begin, int64_t k_begin, const Tile& tile) {
  const int64_t columns = std::clamp<int64_t>(target.k - k_begin, 0, kBlockK);
  for (int64_t n = n_begin; n < std::min(target.n, n_begin + kPieceN); ++n) {
    const uint8_t* from = tile.data() + (n - n_begin) * kBlockK;
    if (target.k_order == nullptr)
      std::memcpy(target.codes + n * target.k + k_begin, from, columns);
    else
      for (int64_t c = 0; c < columns; ++c) target.codes[target.code_index(n, k_begin + c)] = from[c];
  }
}

void pack_block(const Source& source, const layout::BlockShape& shape, int64_t n_block, int64_t k_block,
                std::byte* block) {
  Tile tile;
  for (int piece = 0; piece < kPiecesPerBlock; ++piece) {
    gather(source, n_block * kBlockN + piece * kPieceN, k_block * kBlockK, tile);
    std::byte* words = block + piece * shape.piece_bytes();
    for (int word = 0; word < kWords; ++word) {
      uint32_t bits = 0;
      for (int nibble = 0; nibble < 8; ++nibble) bits |= uint32_t{tile[kTilePlaces[word][nibble]]} << (4 * nibble);
      std::memcpy(words + 4 * word, &bits, sizeof bits);
    }
  }
  for (int index = 0; index < kBlockN * shape.groups; ++index)
    write_group(source, shape, n_block, k_block, index, block);
}

void unpack_block(const Target& target, const layout::BlockShape& shape, int64_t n_block, int64_t k_block,
                  const std::byte* block) {
  Tile tile;
  for (int piece = 0; piece < kPiecesPerBlock; ++piece) {
    const std::byte* words = block + piece * shape.piece_bytes();
    for (int word = 0; word < kWords; ++word) {
      uint32_t bits;
      std::memcpy(&bits, words + 4 * word, sizeof bits);
      for (int nibble = 0; nibble < 8; ++nibble) tile[kTilePlaces[word][nibble]] = bits >> (4 * nibble) & 15;
    }
    scatter(target, n_block * kBlockN + piece * kPieceN, k_block * kBlockK, tile);
  }
  for (int index = 0; index < kBlockN * shape.groups; ++index)
    read_group(target, shape, n_block, k_block, index, block);
}

// Calls body(n_block, k_block, offset of the block) for every block.
template <class Body> void for_each_block(const BlobMap& map, int num_threads, const Body& body) {
  const int64_t blocks = map.n_blocks * map.k_blocks;
  base::parallel_for((blocks + kBlocksPerItem - 1) / kBlocksPerItem, num_threads, [&](int64_t item) {
    for (int64_t i = item * kBlocksPerItem; i < std::min(blocks, (item + 1) * kBlocksPerItem); ++i)
      body(i / map.k_blocks, i % map.k_blocks, map.block_offset(i / map.k_blocks, i % map.k_blocks));
  });
}

}  // namespace

Result<size_t> packed_bytes(int64_t n, int64_t k, const WeightFormat& format) {
  if (Result<void> packable = check_packable(n, k, format); !packable) return packable.error();
  return static_cast<size_t>(layout::blob_map(n, k, format).total_bytes);
}

Result<PackedWeight> pack(const QuantizedWeight& weight, const PackOptions& options) {
  const Result<PreparedWeight> result = prepare(weight, options);
  if (!result) return result.error();
  const PreparedWeight& prepared = *result;
  const size_t size = prepared.header.total_bytes;
  PackedWeight packed(allocate_packed(size), size);
  std::byte* blob = packed.mutable_data();

  Source source = view_of<Source>(prepared.header);
  source.codes = weight.codes.data();
  source.scales = prepared.scales.bytes.data();
  source.zeros = weight.zero_kind == ZeroKind::kInt ? reinterpret_cast<const std::byte*>(weight.int_zeros.data())
                                                    : prepared.float_zeros.bytes.data();
  source.k_order = weight.k_order.empty() ? nullptr : weight.k_order.data();
  for_each_block(prepared.map, options.num_threads, [&](int64_t n_block, int64_t k_block, int64_t offset) {
    pack_block(source, prepared.map.block, n_block, k_block, blob + offset);
  });
  write_sections(weight, prepared, blob + prepared.sections_begin());

  layout::PackedHeader header = prepared.header;
  std::memcpy(blob, &header, sizeof header);
  header.checksum = packed_checksum({blob, size});
  std::memcpy(blob, &header, sizeof header);
  return packed;
}

Result<QuantizedWeight> unpack(const PackedWeight& packed) {
  const std::byte* blob = packed.data();
  if (Result<void> valid = validate_packed({blob, packed.size_bytes()}, "packed weight"); !valid) return valid.error();
  const layout::PackedHeader& header = layout::header_of(blob);
  QuantizedWeight weight = read_sections(blob);
  Target target = view_of<Target>(header);
  target.codes = weight.codes.data();
  target.scales = weight.scales.bytes.data();
  target.zeros = weight.zero_kind == ZeroKind::kInt ? reinterpret_cast<std::byte*>(weight.int_zeros.data())
                                                    : weight.float_zeros.bytes.data();
  target.k_order = weight.k_order.empty() ? nullptr : weight.k_order.data();
  const BlobMap map = layout::blob_map(header);
  for_each_block(map, 0, [&](int64_t n_block, int64_t k_block, int64_t offset) {
    unpack_block(target, map.block, n_block, k_block, blob + offset);
  });
  restore_scales(header, weight);
  if (Result<void> valid = validate(weight); !valid) return valid.error();
  return weight;
}

}  // namespace nybble
