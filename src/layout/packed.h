// The packed layout: the only home of where a code, a scale or a zero point lies. Host and device, constexpr; packers,
// kernels, CPU rows and tests all read it. docs/layouts.md draws it; docs/decisions/0001 says why it is so.
//
//   blob  = header (256 B) | blocks, n-major | column scales, column zeros (per column only) | k order
//   block = 64 output features x 128 input features, contiguous, four pieces
//   piece = 16 output features x 128 input features: 1024 B of codes, then its groups' scales, then their zeros
//
// Inside a piece the codes stand in the order of a matrix-multiply fragment (PTX ISA, wgmma.mma_async and
// mma.sync.m16n8k16, operand A): lane l of a warp reads 16 bytes at 16 l of each half (64 input features), word s of
// them is k16 step s, and nibble j of a word's low 16 bits (j + 4: high 16 bits) belongs to register j of the step.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define NYBBLE_HD __host__ __device__
#else
#define NYBBLE_HD
#endif

namespace nybble::layout {

inline constexpr int kLayoutVersion = 1;
inline constexpr int kHeaderBytes = 256;
inline constexpr int kBlockN = 64;
inline constexpr int kBlockK = 128;
inline constexpr int kPieceN = 16;
inline constexpr int kPiecesPerBlock = kBlockN / kPieceN;
inline constexpr int kPieceCodeBytes = kPieceN * kBlockK / 2;
inline constexpr int kHalfBytes = kPieceCodeBytes / 2;  // 64 input features of a piece
inline constexpr int kSectionAlign = 128;

// bf16 scales are stored times 2^(kBf16ScaleShift - e), e the header's scale_exponent: a code taken as the bits of a
// bf16 is the subnormal u * 2^-133, so one multiplication by the stored scale gives u * s * 2^-e.
inline constexpr int kBf16ScaleShift = 133;
inline constexpr int kMaxScaleExponent = 100;  // kernels undo e by one fp32 factor 2^e

// What a blob begins with. Little-endian, as all of it.
struct PackedHeader {
  char magic[8];            // kMagic
  uint32_t layout_version;  // kLayoutVersion
  uint32_t header_bytes;    // kHeaderBytes
  uint64_t total_bytes;     // header included
  uint64_t checksum;        // XXH3-64 of the whole blob with this field zero
  int64_t n;
  int64_t k;
  int32_t group_size;        // WeightFormat::group_size
  uint8_t scale_dtype;       // DType
  uint8_t zero_kind;         // ZeroKind
  uint8_t k_order;           // 0 or 1
  uint8_t scales_in_window;  // 0 or 1, WeightFormat::scales_in_window
  int32_t scale_exponent;    // e above; kernels multiply their sums by 2^e. 0 unless bf16 in groups and in the window
  uint8_t reserved[kHeaderBytes - 60];
};
static_assert(sizeof(PackedHeader) == kHeaderBytes);
inline constexpr char kMagic[8] = {'N', 'Y', 'B', 'B', 'L', 'E', 'W', '4'};

NYBBLE_HD constexpr int gcd(int a, int b) { return b == 0 ? a : gcd(b, a % b); }

// Scales per row of a block: 0 for per column. A group size that does not divide 128 is stored in groups of
// gcd(group_size, 128) with repeated scales; one whose gcd is below 16 is packed only where a single group covers all
// of k (packable_group_size), once per block.
NYBBLE_HD constexpr int groups_per_block(int group_size) {
  if (group_size == 0) return 0;
  const int stored = gcd(group_size, kBlockK);
  return stored < 16 ? 1 : kBlockK / stored;
}
NYBBLE_HD constexpr bool packable_group_size(int group_size, int64_t k) {
  return group_size >= 0 && (group_size % 16 == 0 || group_size >= k);
}

// The bytes of a block for one weight format.
struct BlockShape {
  int groups;       // groups_per_block(group_size)
  int scale_bytes;  // 2 or 4
  int zero_bytes;   // 0, 1 (integer) or scale_bytes (float)

  NYBBLE_HD constexpr int piece_bytes() const {
    return kPieceCodeBytes + groups * kPieceN * (scale_bytes + zero_bytes);
  }
  NYBBLE_HD constexpr int block_bytes() const { return kPiecesPerBlock * piece_bytes(); }

  // Offsets inside a block; n in [0, 64), group in [0, groups). Rows r and r + 8 of a piece are neighbours, because one
  // thread of a fragment holds both.
  NYBBLE_HD constexpr int scale_offset(int n, int group) const {
    return n / kPieceN * piece_bytes() + kPieceCodeBytes + (group * kPieceN + row_slot(n)) * scale_bytes;
  }
  NYBBLE_HD constexpr int zero_offset(int n, int group) const {
    return n / kPieceN * piece_bytes() + kPieceCodeBytes + groups * kPieceN * scale_bytes +
           (group * kPieceN + row_slot(n)) * zero_bytes;
  }
  // Byte of the 32-bit word that holds code (n, k) of a block; the code's bits in it are code_bit(n, k) .. + 3.
  NYBBLE_HD constexpr int word_offset(int n, int k) const {
    const int row = n % kPieceN, column = k % 16;
    const int lane = row % 8 * 4 + column % 8 / 2;
    return n / kPieceN * piece_bytes() + k / 64 * kHalfBytes + lane * 16 + k % 64 / 16 * 4;
  }
  NYBBLE_HD static constexpr int code_bit(int n, int k) {
    const int reg = n % kPieceN / 8 + k % 16 / 8 * 2;  // a0: rows 0-7, k 0-7; a1: rows 8-15; a2, a3: k 8-15
    return 4 * reg + 16 * (k % 2);
  }
  NYBBLE_HD static constexpr int row_slot(int n) { return n % 8 * 2 + n % kPieceN / 8; }
};

// The inverse of word_offset and code_bit: the row and input feature, within a piece, of the code at bits
// 4 * nibble .. + 3 of the piece's 32-bit word number `word` (its byte divided by 4).
struct CodePlace {
  int n, k;
};
NYBBLE_HD constexpr CodePlace code_place(int word, int nibble) {
  const int half = word / (kHalfBytes / 4), lane = word % (kHalfBytes / 4) / 4, step = word % 4, reg = nibble % 4;
  return {lane / 4 + reg % 2 * 8, half * 64 + step * 16 + reg / 2 * 8 + lane % 4 * 2 + nibble / 4};
}

// Where the parts of a blob lie; every offset counts from the blob's first byte.
struct BlobMap {
  BlockShape block;
  int64_t n_blocks, k_blocks;
  int64_t column_scales, column_zeros, k_order;  // -1: absent
  int64_t total_bytes;

  NYBBLE_HD constexpr int64_t block_offset(int64_t n_block, int64_t k_block) const {
    return kHeaderBytes + (n_block * k_blocks + k_block) * block.block_bytes();
  }
};

NYBBLE_HD constexpr int64_t align_section(int64_t x) { return (x + kSectionAlign - 1) / kSectionAlign * kSectionAlign; }

// zero_bytes: 0, 1 or scale_bytes, as in BlockShape; `per_column` and `k_order` as in WeightFormat.
NYBBLE_HD constexpr BlobMap blob_map(int64_t n, int64_t k, int group_size, int scale_bytes, int zero_bytes,
                                     bool k_order) {
  BlobMap map{};
  map.block = BlockShape{groups_per_block(group_size), scale_bytes, zero_bytes};
  map.n_blocks = (n + kBlockN - 1) / kBlockN;
  map.k_blocks = (k + kBlockK - 1) / kBlockK;
  map.column_scales = map.column_zeros = map.k_order = -1;
  int64_t end = align_section(map.block_offset(map.n_blocks, 0));
  if (group_size == 0) {
    map.column_scales = end;  // [n_blocks * 64], feature order
    end = align_section(end + map.n_blocks * kBlockN * scale_bytes);
    if (zero_bytes > 0) {
      map.column_zeros = end;
      end = align_section(end + map.n_blocks * kBlockN * zero_bytes);
    }
  }
  if (k_order) {
    map.k_order = end;  // int32 [k_blocks * 128]: the input feature at each sorted position; padding holds -1
    end = align_section(end + map.k_blocks * kBlockK * 4);
  }
  map.total_bytes = end;
  return map;
}

// Padding: output features past n and input features past k have scale 0 (in the blocks) and codes that stand for
// zero where one exists (8 for ZeroKind::kNone, the zero point up to 15 for kInt, else 0). Kernels feed zeros for
// activations past k and never store outputs past n.

}  // namespace nybble::layout
