// pack() and unpack(): what was packed comes back bit for bit, and every byte of a blob is what the map says.
#include "nybble/pack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstring>

#include "base/float16.h"
#include "layout/blob.h"
#include "support/weights.h"

namespace nybble {
namespace {

using layout::BlobMap;
using layout::PackedHeader;
using testing::all_specs;
using ::testing::HasSubstr;
using testing::random_weight;
using testing::WeightSpec;

QuantizedWeight without_name_and_bias(QuantizedWeight weight) {
  weight.name.clear();
  weight.bias = {};
  return weight;
}

TEST(Pack, UnpackGivesBackEveryFormatAndShape) {
  for (const WeightSpec& spec : all_specs()) {
    if (!layout::packable_group_size(spec.format.group_size, spec.k)) continue;
    const QuantizedWeight weight = random_weight(spec);
    const Result<PackedWeight> packed = pack(weight);
    ASSERT_TRUE(packed) << to_string(spec) << ": " << packed.error().message;
    EXPECT_EQ(packed->size_bytes(), *packed_bytes(spec.n, spec.k, weight.format()));
    EXPECT_EQ(packed->n(), spec.n);
    EXPECT_EQ(packed->k(), spec.k);
    EXPECT_EQ(packed->format(), weight.format());
    const Result<QuantizedWeight> back = unpack(*packed);
    ASSERT_TRUE(back) << to_string(spec) << ": " << back.error().message;
    ASSERT_EQ(*back, without_name_and_bias(weight)) << to_string(spec);
  }
}

TEST(Pack, TheNumberOfThreadsDoesNotShow) {
  const QuantizedWeight weight = random_weight({.n = 300, .k = 1000, .format = {.group_size = 64}});
  const PackedWeight one = *pack(weight, {.num_threads = 1}), many = *pack(weight, {.num_threads = 7});
  EXPECT_EQ(std::memcmp(one.data(), many.data(), one.size_bytes()), 0);
}

TEST(Pack, NothingAtAllIsAHeader) {
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{0, 128}, {64, 0}, {0, 0}}) {
    const QuantizedWeight weight = random_weight({.n = n, .k = k});
    const Result<PackedWeight> packed = pack(weight);
    ASSERT_TRUE(packed) << packed.error().message;
    EXPECT_EQ(*unpack(*packed), without_name_and_bias(weight));
  }
}

// Element by element through the map alone, padding included: the packer's own order of work must not matter.
TEST(Pack, EveryByteIsWhatTheMapSays) {
  for (const ZeroKind zero : {ZeroKind::kNone, ZeroKind::kInt, ZeroKind::kFloat}) {
    for (const int group : {48, 128, kPerColumn}) {
      const WeightSpec spec{
          .n = 70,
          .k = 200,
          .format = {.scale_dtype = DType::kFp16, .zero_kind = zero, .group_size = group, .k_order = true}};
      const QuantizedWeight weight = random_weight(spec);
      const PackedWeight packed = *pack(weight);
      const BlobMap map = layout::blob_map(spec.n, spec.k, weight.format());
      const int64_t groups = weight.groups();
      const auto byte = [&](int64_t offset) { return std::to_integer<uint32_t>(packed.data()[offset]); };
      const auto number = [&](int64_t offset, int bytes) {
        return byte(offset) | (bytes > 1 ? byte(offset + 1) << 8 : 0);
      };
      const auto group_at = [&](int64_t n, int64_t k) -> int64_t {  // of the canonical form; -1 in the padding
        if (n >= spec.n || k >= spec.k) return -1;
        return group == kPerColumn ? n : n * groups + k / group;
      };
      const auto zero_at = [&](int64_t index) -> uint32_t {
        if (index < 0 || zero == ZeroKind::kNone) return 0;
        return zero == ZeroKind::kInt ? weight.int_zeros[index] : weight.float_zeros.bits_at(index);
      };
      const int stored = group == kPerColumn ? 128 : 128 / map.block.groups;
      for (int64_t n = 0; n < map.n_blocks * 64; ++n) {
        for (int64_t k = 0; k < map.k_blocks * 128; ++k) {
          const int64_t block = map.block_offset(n / 64, k / 128);
          const int in_n = static_cast<int>(n % 64), in_k = static_cast<int>(k % 128);
          uint32_t word;
          std::memcpy(&word, packed.data() + block + map.block.word_offset(in_n, in_k), 4);
          const uint32_t code = word >> layout::BlockShape::code_bit(in_n, in_k) & 15;
          const int64_t stored_group = group_at(n, group == kPerColumn ? 0 : k / stored * stored);
          if (n < spec.n && k < spec.k)
            ASSERT_EQ(code, weight.codes[n * spec.k + weight.k_order[k]]) << n << ", " << k;
          else if (zero == ZeroKind::kNone)
            ASSERT_EQ(code, 8u) << n << ", " << k;
          else if (zero == ZeroKind::kInt)
            ASSERT_EQ(code, std::min(15u, zero_at(stored_group))) << n << ", " << k;
          else
            ASSERT_EQ(code, 0u) << n << ", " << k;
          if (group == kPerColumn || in_k % stored != 0) continue;
          ASSERT_EQ(number(block + map.block.scale_offset(in_n, in_k / stored), 2),
                    stored_group < 0 ? 0 : weight.scales.bits_at(stored_group));
          if (map.block.zero_bytes == 0) continue;
          ASSERT_EQ(number(block + map.block.zero_offset(in_n, in_k / stored), map.block.zero_bytes),
                    zero_at(stored_group));
        }
        if (group != kPerColumn) continue;
        ASSERT_EQ(number(map.column_scales + 2 * n, 2), n < spec.n ? weight.scales.bits_at(n) : 0);
        if (map.column_zeros < 0) continue;
        ASSERT_EQ(number(map.column_zeros + map.block.zero_bytes * n, map.block.zero_bytes), zero_at(group_at(n, 0)));
      }
      for (int64_t p = 0; p < map.k_blocks * 128; ++p) {
        int32_t feature;
        std::memcpy(&feature, packed.data() + map.k_order + 4 * p, 4);
        ASSERT_EQ(feature, p < spec.k ? weight.k_order[p] : -1);
      }
    }
  }
}

// One block by hand: 2 x 32, group 16, integer zeros. Byte 0 of the codes holds (row 0, k 0) and, in its high nibble,
// (row 8, k 0), which is padding.
TEST(Pack, GoldenBytesOfATinyBlock) {
  QuantizedWeight weight;
  weight.n = 2;
  weight.k = 32;
  weight.group_size = 16;
  weight.zero_kind = ZeroKind::kInt;
  for (int n = 0; n < 2; ++n)
    for (int k = 0; k < 32; ++k) weight.codes.push_back(static_cast<uint8_t>(n == 0 ? k % 16 : 15 - k % 16));
  weight.scales = FloatArray::from_floats(DType::kBf16, std::vector<float>{0x1p-6f, 0x1.8p-6f, -0x1p-7f, 0});
  weight.int_zeros = {3, 4, 5, 6};
  const PackedWeight packed = *pack(weight);
  const std::byte* block = packed.data() + 256;
  const auto bytes = [&](int offset, int count) {
    std::string text;
    for (int i = 0; i < count; ++i) text += fmt::format("{:02x}", std::to_integer<int>(block[offset + i]));
    return text;
  };
  // Lane 0: word 0 is step 0, k {0, 8, 1, 9} of rows 0 (low) and 8 (high, padding: zero point 0); word 1 is step 1;
  // words 2 and 3 are steps past k = 32 in groups of zero scale.
  EXPECT_EQ(bytes(0, 16),
            "00080109"
            "00080109"
            "00000000"
            "00000000");
  EXPECT_EQ(bytes(16, 16),
            "020a030b"
            "020a030b"
            "00000000"
            "00000000");
  EXPECT_EQ(bytes(64, 16),
            "0f070e06"
            "0f070e06"
            "00000000"
            "00000000");  // lane 4: row 1
  // Scales: group 0 of rows 0, 8, 1, 9, times 2^133: 2^127 is 7f00, -2^126 is fe80.
  EXPECT_EQ(bytes(1024, 8),
            "007f"
            "0000"
            "80fe"
            "0000");
  EXPECT_EQ(bytes(1024 + 32, 8),
            "407f"
            "0000"
            "0000"
            "0000");
  // Zeros follow the 8 groups' scales.
  EXPECT_EQ(bytes(1024 + 256, 4), "03000500");
  EXPECT_EQ(bytes(1024 + 256 + 16, 4), "04000600");
  const PackedHeader& header = layout::header_of(packed.data());
  EXPECT_EQ(header.scales_in_window, 1);
  EXPECT_EQ(header.scale_exponent, 0);
  EXPECT_EQ(header.total_bytes, 256u + 4 * (1024 + 8 * 16 * 3));
}

// ---- the window of bf16 scales

QuantizedWeight with_scales(std::vector<float> scales, DType dtype = DType::kBf16, int group_size = 16) {
  QuantizedWeight weight;
  weight.n = static_cast<int64_t>(scales.size());
  weight.k = 16;
  weight.group_size = group_size;
  weight.codes.assign(weight.n * weight.k, 3);
  weight.scales = FloatArray::from_floats(dtype, scales);
  return weight;
}

struct WindowCase {
  std::vector<float> scales;
  bool inside;
  int exponent;
};

TEST(Pack, WindowOfBf16Scales) {
  const WindowCase kCases[] = {
      {{0}, true, 0},
      {{0x1.fep-6f}, true, 0},  // just below 2^-5
      {{0x1p-5f}, true, 1},     // 2^-5 is outside at e = 0
      {{-0x1p-5f}, true, 1},
      {{1.0f}, true, 6},
      {{1.0f, 0x1p-120f}, true, 6},   // 2^-126 after the shift: the last normal number
      {{1.0f, 0x1p-121f}, false, 0},  // subnormal after the shift
      {{1.0f, -0x1p-121f}, false, 0},
      {{1.0f, 0.0f, -0.0f}, true, 6},   // zeros do not count
      {{0x1p-6f, 0x1p-133f}, true, 0},  // e = 0: subnormal scales are exact
      {{0x1p-5f, 0x1p-133f}, false, 0},
      {{0x1.fep94f}, true, 100},
      {{0x1p95f}, false, 0},  // would need e = 101
      {{0x1.fep127f}, false, 0},
  };
  for (const WindowCase& window : kCases) {
    const QuantizedWeight weight = with_scales(window.scales);
    const PackedWeight packed = *pack(weight);
    const PackedHeader& header = layout::header_of(packed.data());
    EXPECT_EQ(header.scales_in_window != 0, window.inside) << window.scales[0];
    EXPECT_EQ(packed.format().scales_in_window, window.inside);
    EXPECT_EQ(header.scale_exponent, window.exponent) << window.scales[0];
    EXPECT_EQ(unpack(*pack(weight))->scales, weight.scales);
    const layout::BlockShape shape = layout::blob_map(header).block;
    for (size_t i = 0; i < window.scales.size(); ++i) {
      uint16_t bits;
      std::memcpy(&bits, packed.data() + 256 + shape.scale_offset(static_cast<int>(i), 0), 2);
      const double expected = std::ldexp(double{window.scales[i]}, window.inside ? 133 - window.exponent : 0);
      EXPECT_EQ(base::bf16_to_float(bits), expected) << window.scales[i];
      EXPECT_EQ(std::signbit(base::bf16_to_float(bits)), std::signbit(window.scales[i]));
    }
  }
}

// Every finite bf16 number as a scale beside a partner that decides the exponent: those that the window holds are
// stored finite and come back; one that it does not hold sends the whole weight out of the window, raw.
TEST(Pack, EveryBf16ScaleSurvives) {
  for (const float partner : {0.0f, 0x1p-6f, 1.0f, 0x1p60f}) {
    for (uint32_t exponent = 0; exponent < 0xFF; ++exponent) {  // one weight per exponent, all its mantissas and signs
      std::vector<float> scales{partner};
      for (uint32_t mantissa = 0; mantissa < 0x80; ++mantissa)
        for (const uint32_t sign : {0u, 0x8000u})
          scales.push_back(base::bf16_to_float(static_cast<uint16_t>(sign | exponent << 7 | mantissa)));
      const QuantizedWeight weight = with_scales(scales);
      const Result<PackedWeight> packed = pack(weight, {.num_threads = 1});
      ASSERT_TRUE(packed);
      const BlobMap map = layout::blob_map(layout::header_of(packed->data()));
      for (int64_t n = 0; n < weight.n; ++n) {
        uint16_t stored;
        std::memcpy(&stored, packed->data() + map.block_offset(n / 64, 0) + map.block.scale_offset(n % 64, 0), 2);
        ASSERT_NE(stored & 0x7F80, 0x7F80) << scales[n] << " beside " << partner;
      }
      ASSERT_EQ(unpack(*packed)->scales, weight.scales) << "exponent " << exponent << " beside " << partner;
    }
  }
}

TEST(Pack, OtherScalesAreStoredRawAndInsideTheWindow) {
  for (const auto& [dtype, group] : {std::pair{DType::kFp16, 16}, {DType::kFp32, 16}, {DType::kBf16, kPerColumn}}) {
    const QuantizedWeight weight = with_scales({64.0f, 0x1p-14f}, dtype, group);
    const PackedWeight packed = *pack(weight);
    const PackedHeader& header = layout::header_of(packed.data());
    EXPECT_EQ(header.scales_in_window, 1);
    EXPECT_EQ(header.scale_exponent, 0);
    const BlobMap map = layout::blob_map(header);
    const int64_t at = group == kPerColumn ? map.column_scales : 256 + map.block.scale_offset(0, 0);
    EXPECT_EQ(std::memcmp(packed.data() + at, weight.scales.bytes.data(), dtype_bytes(dtype)), 0);
  }
}

// ---- conversion of scales, refusals

TEST(Pack, ConvertsScalesToNearest) {
  const QuantizedWeight weight = with_scales({1.00390625f, 0.1f, -0.0f}, DType::kFp32);  // 1 + 2^-8: a tie, to even
  const QuantizedWeight back = *unpack(*pack(weight, {.scale_dtype = DType::kBf16}));
  EXPECT_EQ(back.scales, FloatArray::from_floats(DType::kBf16, std::vector<float>{1.0f, 0.1f, -0.0f}));
  EXPECT_EQ(back.codes, weight.codes);
}

TEST(Pack, RefusesScalesThatDoNotSurviveConversion) {
  const Result<PackedWeight> overflow = pack(with_scales({1, 2, 65520}, DType::kFp32), {.scale_dtype = DType::kFp16});
  ASSERT_FALSE(overflow);
  EXPECT_EQ(overflow.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(overflow.error().message, HasSubstr("scales[2, 0] is 65520, which overflows in fp16"));
  const Result<PackedWeight> underflow = pack(with_scales({1, 0x1p-30f}, DType::kBf16), {.scale_dtype = DType::kFp16});
  ASSERT_FALSE(underflow);
  EXPECT_THAT(underflow.error().message, HasSubstr("scales[1, 0]"));
  EXPECT_THAT(underflow.error().message, HasSubstr("rounds to zero in fp16"));
  QuantizedWeight offsets = with_scales({1, 1}, DType::kFp32);
  offsets.zero_kind = ZeroKind::kOffset;
  offsets.float_zeros = FloatArray::from_floats(DType::kFp32, std::vector<float>{1e-30f, 1.0f});
  EXPECT_TRUE(pack(offsets, {.scale_dtype = DType::kFp16})) << "a zero point may round to zero";
  offsets.float_zeros = FloatArray::from_floats(DType::kFp32, std::vector<float>{0, 1e6f});
  const Result<PackedWeight> zero = pack(offsets, {.scale_dtype = DType::kFp16});
  ASSERT_FALSE(zero);
  EXPECT_THAT(zero.error().message, HasSubstr("float_zeros[1, 0]"));
}

TEST(Pack, RefusesGroupSizesWithoutAPackedForm) {
  for (const int group : {1, 8, 40, 100}) {
    const Result<PackedWeight> packed = pack(random_weight({.n = 3, .k = 101, .format = {.group_size = group}}));
    ASSERT_FALSE(packed) << group;
    EXPECT_EQ(packed.error().code, ErrorCode::kUnsupported);
    EXPECT_THAT(packed.error().message, HasSubstr(fmt::format("group_size {} at k = 101", group)));
    EXPECT_FALSE(packed_bytes(3, 101, {.group_size = group}));
  }
  EXPECT_FALSE(packed_bytes(-1, 128, {}));
  EXPECT_FALSE(packed_bytes(64, int64_t{1} << 40, {}));
  EXPECT_FALSE(packed_bytes(64, 128, {.group_size = -1}));
}

TEST(Pack, RefusesTablesWithTheWayOut) {
  QuantizedWeight weight = random_weight({.n = 3, .k = 32, .format = {.group_size = 32}});
  weight.zero_kind = ZeroKind::kTable;
  weight.table.assign(16, 1.0f);
  const Result<PackedWeight> packed = pack(weight);
  ASSERT_FALSE(packed);
  EXPECT_EQ(packed.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(packed.error().message, HasSubstr("has no packed form yet; dequantize it"));
  EXPECT_EQ(packed_bytes(3, 32, weight.format()).error().code, ErrorCode::kUnsupported);
}

TEST(Pack, RefusesAWeightThatIsNotValid) {
  QuantizedWeight weight = random_weight({.n = 4, .k = 32, .format = {.group_size = 16}});
  weight.codes[70] = 16;
  const Result<PackedWeight> packed = pack(weight);
  ASSERT_FALSE(packed);
  EXPECT_THAT(packed.error().message, HasSubstr("codes[2, 6] is 16"));
}

}  // namespace
}  // namespace nybble
