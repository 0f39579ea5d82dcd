// docs/layouts.md draws the packed layout; these tests hold the drawing against src/layout/packed.h.
#include <gtest/gtest.h>

#include <cstddef>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "layout/packed.h"

namespace nybble::layout {
namespace {

std::vector<std::string> cells_of(const std::string& line) {
  std::vector<std::string> cells;
  std::istringstream stream(line.substr(1));
  for (std::string cell; std::getline(stream, cell, '|');) {
    const size_t begin = cell.find_first_not_of(' '), end = cell.find_last_not_of(' ');
    cells.push_back(begin == std::string::npos ? "" : cell.substr(begin, end - begin + 1));
  }
  return cells;
}

std::vector<std::vector<std::string>> table_rows() {
  std::ifstream file(NYBBLE_SOURCE_DIR "/docs/layouts.md");
  EXPECT_TRUE(file.good());
  std::vector<std::vector<std::string>> rows;
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("|")) rows.push_back(cells_of(line));
  return rows;
}

TEST(LayoutsDoc, HeaderTableMatchesTheStruct) {
  const std::map<std::string, size_t> offsets = {{"magic", offsetof(PackedHeader, magic)},
                                                 {"layout_version", offsetof(PackedHeader, layout_version)},
                                                 {"header_bytes", offsetof(PackedHeader, header_bytes)},
                                                 {"total_bytes", offsetof(PackedHeader, total_bytes)},
                                                 {"checksum", offsetof(PackedHeader, checksum)},
                                                 {"n", offsetof(PackedHeader, n)},
                                                 {"k", offsetof(PackedHeader, k)},
                                                 {"group_size", offsetof(PackedHeader, group_size)},
                                                 {"scale_dtype", offsetof(PackedHeader, scale_dtype)},
                                                 {"zero_kind", offsetof(PackedHeader, zero_kind)},
                                                 {"k_order", offsetof(PackedHeader, k_order)},
                                                 {"scales_in_window", offsetof(PackedHeader, scales_in_window)},
                                                 {"scale_exponent", offsetof(PackedHeader, scale_exponent)},
                                                 {"reserved", offsetof(PackedHeader, reserved)}};
  size_t seen = 0;
  for (const auto& row : table_rows()) {
    if (row.size() != 4 || !offsets.contains(row[2])) continue;
    EXPECT_EQ(row[0], std::to_string(offsets.at(row[2]))) << row[2];
    ++seen;
  }
  EXPECT_EQ(seen, offsets.size());
}

TEST(LayoutsDoc, CodeTableMatchesTheMap) {
  const BlockShape block{1, 2, 0};
  int checked = 0;
  for (const auto& row : table_rows()) {
    if (row.size() != 17 || row[1].find(':') == std::string::npos) continue;
    const int n = std::stoi(row[0]);
    for (int k = 0; k < 16; ++k, ++checked)
      EXPECT_EQ(row[static_cast<size_t>(k) + 1],
                std::to_string(block.word_offset(n, k)) + ":" + std::to_string(block.code_bit(n, k)))
          << "n " << n << " k " << k;
  }
  EXPECT_EQ(checked, 3 * 16);
}

TEST(LayoutsDoc, FormulasMatchTheMap) {
  const BlockShape block{2, 2, 1};
  EXPECT_EQ((BlockShape{1, 2, 0}.piece_bytes()), 1056);
  EXPECT_EQ((BlockShape{1, 2, 0}.block_bytes()), 4224);
  for (int n = 0; n < kBlockN; ++n) {
    const int r = n % 16, piece = n / 16 * block.piece_bytes();
    for (int k = 0; k < kBlockK; ++k) {
      const int c = k % 16, s = k % 64 / 16, h = k / 64;
      EXPECT_EQ(block.word_offset(n, k), piece + 512 * h + 16 * (4 * (r % 8) + c % 8 / 2) + 4 * s);
      EXPECT_EQ(block.code_bit(n, k), 4 * (r / 8 + 2 * (c / 8)) + 16 * (c % 2));
    }
    for (int g = 0; g < 2; ++g) {
      const int slot = 2 * (r % 8) + r / 8;
      EXPECT_EQ(block.scale_offset(n, g), piece + 1024 + (16 * g + slot) * 2);
      EXPECT_EQ(block.zero_offset(n, g), piece + 1024 + 2 * 16 * 2 + 16 * g + slot);
    }
  }
}

}  // namespace
}  // namespace nybble::layout
