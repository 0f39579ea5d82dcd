// layout/packed.h: every code, scale and zero of a block has its own place, and together they fill the block.
#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "layout/blob.h"

namespace nybble::layout {
namespace {

constexpr int kGroupSizes[] = {0, 16, 32, 48, 64, 80, 96, 128, 192, 256, 1000};
constexpr std::pair<int, int> kNumberBytes[] = {{2, 0}, {2, 1}, {2, 2}, {4, 0}, {4, 1}, {4, 4}};  // scale, zero

TEST(Layout, EveryBitOfABlockBelongsToOneNumber) {
  for (const int group_size : kGroupSizes) {
    for (const auto& [scale_bytes, zero_bytes] : kNumberBytes) {
      const BlockShape shape{groups_per_block(group_size), scale_bytes, zero_bytes};
      std::vector<int> owners(shape.block_bytes() * 8, 0);  // per bit
      const auto own = [&](int bit, int count) {
        for (int i = 0; i < count; ++i) ++owners.at(bit + i);
      };
      for (int n = 0; n < kBlockN; ++n) {
        for (int k = 0; k < kBlockK; ++k) {
          ASSERT_EQ(shape.word_offset(n, k) % 4, 0);
          own(8 * shape.word_offset(n, k) + BlockShape::code_bit(n, k), 4);
        }
        for (int group = 0; group < shape.groups; ++group) {
          ASSERT_EQ(shape.scale_offset(n, group) % scale_bytes, 0);
          own(8 * shape.scale_offset(n, group), 8 * scale_bytes);
          if (zero_bytes == 0) continue;
          ASSERT_EQ(shape.zero_offset(n, group) % zero_bytes, 0);
          own(8 * shape.zero_offset(n, group), 8 * zero_bytes);
        }
      }
      for (size_t bit = 0; bit < owners.size(); ++bit)
        ASSERT_EQ(owners[bit], 1) << "bit " << bit << " of a block, group size " << group_size << ", " << scale_bytes
                                  << " + " << zero_bytes << " bytes a group";
    }
  }
}

TEST(Layout, PiecesAndBlocksKeepSixteenByteAlignment) {
  for (const int group_size : kGroupSizes)
    for (const auto& [scale_bytes, zero_bytes] : kNumberBytes)
      EXPECT_EQ((BlockShape{groups_per_block(group_size), scale_bytes, zero_bytes}.piece_bytes() % 16), 0);
}

TEST(Layout, CodePlaceInvertsTheMap) {
  constexpr BlockShape kShape{1, 2, 0};
  std::set<std::pair<int, int>> seen;
  for (int word = 0; word < kPieceCodeBytes / 4; ++word) {
    for (int nibble = 0; nibble < 8; ++nibble) {
      const CodePlace place = code_place(word, nibble);
      ASSERT_EQ(kShape.word_offset(place.n, place.k), 4 * word);
      ASSERT_EQ(BlockShape::code_bit(place.n, place.k), 4 * nibble);
      seen.insert({place.n, place.k});
    }
  }
  EXPECT_EQ(seen.size(), size_t{kPieceN * kBlockK});
}

// The first k16 step of a piece as docs/layouts.md draws it: the byte within the piece and the bit within that byte's
// low or high nibble ("12h": bits 4..7 of byte 12) for k = 0..15, one line per row.
TEST(Layout, FirstStepIsThePictureInTheDocs) {
  const char* const kPicture[kPieceN] = {
      "0l 2l 16l 18l 32l 34l 48l 50l 1l 3l 17l 19l 33l 35l 49l 51l",
      "64l 66l 80l 82l 96l 98l 112l 114l 65l 67l 81l 83l 97l 99l 113l 115l",
      "128l 130l 144l 146l 160l 162l 176l 178l 129l 131l 145l 147l 161l 163l 177l 179l",
      "192l 194l 208l 210l 224l 226l 240l 242l 193l 195l 209l 211l 225l 227l 241l 243l",
      "256l 258l 272l 274l 288l 290l 304l 306l 257l 259l 273l 275l 289l 291l 305l 307l",
      "320l 322l 336l 338l 352l 354l 368l 370l 321l 323l 337l 339l 353l 355l 369l 371l",
      "384l 386l 400l 402l 416l 418l 432l 434l 385l 387l 401l 403l 417l 419l 433l 435l",
      "448l 450l 464l 466l 480l 482l 496l 498l 449l 451l 465l 467l 481l 483l 497l 499l",
      "0h 2h 16h 18h 32h 34h 48h 50h 1h 3h 17h 19h 33h 35h 49h 51h",
      "64h 66h 80h 82h 96h 98h 112h 114h 65h 67h 81h 83h 97h 99h 113h 115h",
      "128h 130h 144h 146h 160h 162h 176h 178h 129h 131h 145h 147h 161h 163h 177h 179h",
      "192h 194h 208h 210h 224h 226h 240h 242h 193h 195h 209h 211h 225h 227h 241h 243h",
      "256h 258h 272h 274h 288h 290h 304h 306h 257h 259h 273h 275h 289h 291h 305h 307h",
      "320h 322h 336h 338h 352h 354h 368h 370h 321h 323h 337h 339h 353h 355h 369h 371h",
      "384h 386h 400h 402h 416h 418h 432h 434h 385h 387h 401h 403h 417h 419h 433h 435h",
      "448h 450h 464h 466h 480h 482h 496h 498h 449h 451h 465h 467h 481h 483h 497h 499h",
  };
  constexpr BlockShape kShape{1, 2, 0};
  for (int n = 0; n < kPieceN; ++n) {
    std::string line;
    for (int k = 0; k < 16; ++k) {
      const int bit = 8 * kShape.word_offset(n, k) + BlockShape::code_bit(n, k);
      line += (k > 0 ? " " : "") + std::to_string(bit / 8) + (bit % 8 == 0 ? "l" : "h");
    }
    EXPECT_EQ(line, kPicture[n]) << "row " << n;
  }
  // Step s adds 4 s bytes, the half of input features 64..127 adds 512, each piece of 16 rows its piece_bytes().
  EXPECT_EQ(kShape.word_offset(0, 16), 4);
  EXPECT_EQ(kShape.word_offset(0, 64), 512);
  EXPECT_EQ(kShape.word_offset(16, 0), kShape.piece_bytes());
}

TEST(Layout, GroupsThatDoNotDivideABlockRepeatTheirScales) {
  EXPECT_EQ(groups_per_block(kPerColumn), 0);
  EXPECT_EQ(groups_per_block(128), 1);
  EXPECT_EQ(groups_per_block(256), 1);
  EXPECT_EQ(groups_per_block(64), 2);
  EXPECT_EQ(groups_per_block(192), 2);
  EXPECT_EQ(groups_per_block(96), 4);
  EXPECT_EQ(groups_per_block(48), 8);
  EXPECT_EQ(groups_per_block(16), 8);
  EXPECT_EQ(groups_per_block(100), 1);  // only where one group covers all of k
  EXPECT_TRUE(packable_group_size(48, 1000));
  EXPECT_FALSE(packable_group_size(40, 1000));
  EXPECT_FALSE(packable_group_size(999, 1000));
  EXPECT_TRUE(packable_group_size(1000, 1000));
  EXPECT_TRUE(packable_group_size(kPerColumn, 1000));
  EXPECT_FALSE(packable_group_size(-16, 1000));
}

TEST(Layout, SectionsFollowEachOtherAligned) {
  constexpr BlobMap kMap = blob_map(
      65, 129, {.scale_dtype = DType::kFp32, .zero_kind = ZeroKind::kInt, .group_size = kPerColumn, .k_order = true});
  EXPECT_EQ(kMap.n_blocks, 2);
  EXPECT_EQ(kMap.k_blocks, 2);
  EXPECT_EQ(kMap.column_scales, 256 + 4 * 4096);
  EXPECT_EQ(kMap.column_zeros, kMap.column_scales + 128 * 4);
  EXPECT_EQ(kMap.k_order, kMap.column_zeros + 128);
  EXPECT_EQ(kMap.total_bytes, kMap.k_order + 256 * 4);
}

}  // namespace
}  // namespace nybble::layout
