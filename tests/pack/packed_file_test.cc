// Packed weights on disk: written whole, read back the same, and refused with words when anything is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>

#include "layout/blob.h"
#include "nybble/pack.h"
#include "support/weights.h"
#include "weight/packed_blob.h"

namespace nybble {
namespace {

using layout::PackedHeader;
using ::testing::HasSubstr;
using testing::random_weight;

class PackedFile : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string test = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    folder_ = std::filesystem::temp_directory_path() / ("nybble_packed_" + test + "_" + std::to_string(getpid()));
    std::filesystem::create_directories(folder_);
    path_ = folder_ / "weight.nybble";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void write(std::span<const std::byte> bytes) {
    std::ofstream(path_, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  std::string refusal() {
    const Result<PackedWeight> loaded = load_packed(path_);
    if (loaded) return "";
    EXPECT_EQ(loaded.error().code, ErrorCode::kInvalidData);
    EXPECT_THAT(loaded.error().message, HasSubstr(path_));
    return loaded.error().message;
  }

  std::filesystem::path folder_;
  std::string path_;
};

std::vector<std::byte> bytes_of(const PackedWeight& packed) {
  return {packed.data(), packed.data() + packed.size_bytes()};
}

// Gives damaged bytes the checksum that belongs to them, so that the other rules have to notice.
void reseal(std::vector<std::byte>& bytes) {
  const uint64_t checksum = packed_checksum(bytes);
  std::memcpy(bytes.data() + offsetof(PackedHeader, checksum), &checksum, sizeof checksum);
}

QuantizedWeight sample() {
  return random_weight({.n = 70, .k = 200, .format = {.zero_kind = ZeroKind::kInt, .group_size = 64, .k_order = true}});
}

TEST_F(PackedFile, ComesBackByteForByte) {
  const PackedWeight packed = *pack(sample());
  const Result<void> saved = save_packed(packed, path_);
  ASSERT_TRUE(saved) << saved.error().message;
  EXPECT_EQ(std::filesystem::file_size(path_), packed.size_bytes());
  const Result<PackedWeight> loaded = load_packed(path_);
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(bytes_of(*loaded), bytes_of(packed));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 1) << "a temporary file was left";
}

TEST_F(PackedFile, EveryHeaderFieldIsChecked) {
  struct Damage {
    std::function<void(PackedHeader&)> apply;
    const char* words;
  };
  const Damage kDamages[] = {
      {[](auto& h) { h.magic[7] = '5'; }, "byte 0: no packed weight of nybble"},
      {[](auto& h) { h.layout_version = 2; }, "byte 8: layout version 2, but this library reads version 1"},
      {[](auto& h) { h.header_bytes = 128; }, "byte 12: header_bytes in the header is 128"},
      {[](auto& h) { h.total_bytes += 128; }, "byte 16: total_bytes in the header is"},
      {[](auto& h) { h.n = -1; }, "byte 32: n in the header is -1"},
      {[](auto& h) { h.n = int64_t{1} << 40; }, "byte 32: n in the header is 1099511627776"},
      {[](auto& h) { h.n = 129; }, "total_bytes in the header is"},  // one block of rows more
      {[](auto& h) { h.k = INT64_MAX; }, "byte 40: k in the header is"},
      {[](auto& h) { h.k = 100; }, "total_bytes in the header is"},
      {[](auto& h) { h.group_size = -64; }, "byte 48: group_size in the header is -64"},
      {[](auto& h) { h.group_size = 40; }, "byte 48: group_size in the header is 40"},
      {[](auto& h) { h.group_size = 128; }, "total_bytes in the header is"},
      {[](auto& h) { h.scale_dtype = 3; }, "byte 52: scale_dtype in the header is 3"},
      {[](auto& h) { h.scale_dtype = 2; }, "total_bytes in the header is"},
      {[](auto& h) { h.zero_kind = 4; }, "byte 53: zero_kind in the header is 4"},
      {[](auto& h) { h.zero_kind = 0; }, "total_bytes in the header is"},
      {[](auto& h) { h.k_order = 2; }, "byte 54: k_order in the header is 2"},
      {[](auto& h) { h.k_order = 0; }, "total_bytes in the header is"},
      {[](auto& h) { h.scales_in_window = 2; }, "byte 55: scales_in_window in the header is 2"},
      {[](auto& h) { h.scale_exponent = 101; }, "byte 56: scale_exponent in the header is 101"},
      {[](auto& h) { h.scale_exponent = -1; }, "byte 56: scale_exponent in the header is -1"},
      {[](auto& h) { h.scales_in_window = 0, h.scale_exponent = 3; }, "byte 56: scale_exponent in the header is 3"},
  };
  const std::vector<std::byte> good = bytes_of(*pack(sample()));
  for (const Damage& damage : kDamages) {
    std::vector<std::byte> bytes = good;
    PackedHeader header;
    std::memcpy(&header, bytes.data(), sizeof header);
    damage.apply(header);
    std::memcpy(bytes.data(), &header, sizeof header);
    reseal(bytes);
    write(bytes);
    EXPECT_THAT(refusal(), HasSubstr(damage.words));
  }
}

TEST_F(PackedFile, EveryFlippedBitIsNoticed) {
  const std::vector<std::byte> good = bytes_of(*pack(sample()));
  ASSERT_TRUE(validate_packed(good, "good"));
  for (size_t i = 0; i < good.size(); i += i < 256 ? 1 : 37) {  // reserved bytes and padding included
    std::vector<std::byte> bytes = good;
    bytes[i] ^= std::byte{1} << i % 8;
    EXPECT_FALSE(validate_packed(bytes, "flipped")) << "byte " << i;
  }
  std::vector<std::byte> payload = good;
  payload[300] ^= std::byte{0x10};
  write(payload);
  EXPECT_THAT(refusal(), HasSubstr("damaged: the checksum is"));
}

TEST_F(PackedFile, TruncatedAndOverlongFiles) {
  const std::vector<std::byte> good = bytes_of(*pack(sample()));
  for (const size_t size : {size_t{0}, size_t{1}, size_t{255}}) {
    write(std::span(good).first(size));
    EXPECT_THAT(refusal(), HasSubstr(fmt::format("{} bytes are less than the header", size)));
  }
  for (const size_t size : {size_t{256}, good.size() / 2, good.size() - 1}) {
    write(std::span(good).first(size));
    EXPECT_THAT(refusal(),
                HasSubstr(fmt::format("holds {} bytes, but its header claims {}; it is truncated", size, good.size())));
  }
  std::vector<std::byte> longer = good;
  longer.push_back(std::byte{0});
  write(longer);
  EXPECT_THAT(refusal(), HasSubstr("it is longer than it should be"));
}

TEST_F(PackedFile, ACutAtEveryByteOfTheHeaderAndAThousandBehindItIsSeen) {
  const std::vector<std::byte> good = bytes_of(*pack(sample()));
  write(good);
  ASSERT_TRUE(load_packed(path_));
  const size_t step = std::max<size_t>(1, (good.size() - layout::kHeaderBytes) / 1000);
  int cuts = 0;
  for (size_t size = good.size() - 1;; size -= size > layout::kHeaderBytes + step ? step : 1, ++cuts) {
    std::filesystem::resize_file(path_, size);
    ASSERT_THAT(refusal(), HasSubstr(size < layout::kHeaderBytes ? "are less than the header" : "it is truncated"));
    if (size == 0) break;
  }
  EXPECT_GE(cuts, 1000 + layout::kHeaderBytes);
}

TEST_F(PackedFile, WhatIsNoFileIsRefused) {
  const auto refuses = [&](const std::string& path, const char* words) {
    const Result<PackedWeight> loaded = load_packed(path);
    ASSERT_FALSE(loaded) << path;
    EXPECT_EQ(loaded.error().code, ErrorCode::kInvalidArgument) << path;
    EXPECT_THAT(loaded.error().message, HasSubstr(path + ": is " + words));
  };
  refuses("/dev/zero", "a device");
  refuses(folder_, "a directory");
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  refuses(path_, "a named pipe");
}

TEST_F(PackedFile, AKOrderThatSteersOutsideIsRefusedDespiteItsChecksum) {
  const std::vector<std::byte> good = bytes_of(*pack(sample()));
  const layout::BlobMap map = layout::blob_map(layout::header_of(good.data()));
  struct Lie {
    int64_t position;
    int32_t feature;
    const char* words;
  };
  int32_t first;
  std::memcpy(&first, good.data() + map.k_order, 4);
  for (const Lie& lie :
       {Lie{5, 200, "k_order[5] is 200, which is no input feature"},
        Lie{6, -1, "k_order[6] is -1, which is no input feature"}, Lie{7, first, "which stands there twice"},
        Lie{200, 0, "k_order[200] is 0, but padding holds -1"}}) {
    std::vector<std::byte> bytes = good;
    std::memcpy(bytes.data() + map.k_order + 4 * lie.position, &lie.feature, 4);
    reseal(bytes);
    write(bytes);
    EXPECT_THAT(refusal(), HasSubstr(fmt::format("byte {}: ", map.k_order + 4 * lie.position)));
    EXPECT_THAT(refusal(), HasSubstr(lie.words));
  }
}

TEST_F(PackedFile, UnpackRefusesNumbersWithoutAMeaning) {
  const std::vector<std::byte> good = bytes_of(*pack(sample()));
  const layout::BlobMap map = layout::blob_map(layout::header_of(good.data()));
  const auto unpacked = [&](int64_t offset, std::vector<uint8_t> damage) {
    const std::shared_ptr<std::byte[]> memory = allocate_packed(good.size());
    std::vector<std::byte> bytes = good;
    std::memcpy(bytes.data() + offset, damage.data(), damage.size());
    reseal(bytes);
    std::memcpy(memory.get(), bytes.data(), bytes.size());
    return unpack(PackedWeight(memory, bytes.size()));
  };
  const int64_t block = map.block_offset(0, 0);
  const Result<QuantizedWeight> zero = unpacked(block + map.block.zero_offset(3, 1), {17});
  ASSERT_FALSE(zero);
  EXPECT_THAT(zero.error().message, HasSubstr("int_zeros[3, 1] is 17"));
  const Result<QuantizedWeight> scale = unpacked(block + map.block.scale_offset(3, 1), {0x80, 0x7F});
  ASSERT_FALSE(scale);
  EXPECT_THAT(scale.error().message, HasSubstr("scales[3, 1] is inf"));
}

TEST_F(PackedFile, WorldsFaultsAreNamed) {
  const Result<PackedWeight> missing = load_packed(path_);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kIo);
  EXPECT_THAT(missing.error().message, HasSubstr(path_));
  const Result<void> nowhere = save_packed(*pack(sample()), (folder_ / "no" / "such" / "folder").string());
  ASSERT_FALSE(nowhere);
  EXPECT_EQ(nowhere.error().code, ErrorCode::kIo);
  const Result<void> nothing = save_packed(PackedWeight(), path_);
  ASSERT_FALSE(nothing);
  EXPECT_EQ(nothing.error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace nybble
