// FloatArray, the canonical weight's rules and meaning, problem_for.
#include "nybble/weight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "nybble/pack.h"
#include "support/numbers.h"
#include "support/weights.h"
#include "weight/value.h"

namespace nybble {
namespace {

using ::testing::HasSubstr;
using testing::random_weight;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(FloatArray, KeepsBitsAndWidensExactly) {
  for (const DType dtype : {DType::kBf16, DType::kFp16}) {
    FloatArray array;
    array.dtype = dtype;
    array.resize(0x10000);
    for (uint32_t bits = 0; bits < 0x10000; ++bits) array.set_bits(bits, bits);
    ASSERT_EQ(array.size(), 0x10000u);
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      ASSERT_EQ(array.bits_at(bits), bits);
      const double expected = testing::widen(bits, dtype);
      if (std::isnan(expected))
        ASSERT_TRUE(std::isnan(array.at(bits))) << bits;
      else
        ASSERT_EQ(std::bit_cast<uint64_t>(double{array.at(bits)}), std::bit_cast<uint64_t>(expected)) << bits;
    }
  }
}

TEST(FloatArray, FromFloatsRoundsToNearestEven) {
  const std::vector<float> values{1.00390625f, 1.01171875f, 65519.0f, 65520.0f, 0x1p-25f, 0x1.8p-25f, -0.0f, 3.4e38f};
  const FloatArray bf16 = FloatArray::from_floats(DType::kBf16, values),
                   fp16 = FloatArray::from_floats(DType::kFp16, values);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(bf16.bits_at(i), testing::narrow(values[i], DType::kBf16)) << values[i];
    EXPECT_EQ(fp16.bits_at(i), testing::narrow(values[i], DType::kFp16)) << values[i];
  }
  EXPECT_EQ(FloatArray::from_floats(DType::kFp32, values).at(7), 3.4e38f);
}

TEST(Value, RoundsOnceAsIfTheNumberWereExact) {
  // Just above, at and just below a tie of the 16-bit type: a first rounding to fp32 would make a tie of all three.
  for (const double nudge : {0x1p-40, 0.0, -0x1p-40}) {
    const double bf16_tie = 1 + 0x1p-8 + nudge, fp16_tie = 1 + 0x1p-11 + nudge;
    EXPECT_EQ(round_once(bf16_tie, DType::kBf16), nudge > 0 ? 1 + 0x1p-7f : 1.0f);
    EXPECT_EQ(round_once(fp16_tie, DType::kFp16), nudge > 0 ? 1 + 0x1p-10f : 1.0f);
    EXPECT_EQ(round_once(-bf16_tie, DType::kBf16), nudge > 0 ? -1 - 0x1p-7f : -1.0f);
  }
  EXPECT_EQ(round_once(1e300, DType::kBf16), kInfinity);
  EXPECT_EQ(round_once(0x1.fffffep127, DType::kBf16), kInfinity);
  EXPECT_EQ(round_once(65519.999, DType::kFp16), 65504.0f);
  EXPECT_EQ(round_once(65520.0, DType::kFp16), kInfinity);
  EXPECT_EQ(round_once(1e-300, DType::kFp16), 0.0f);
  EXPECT_TRUE(std::isnan(round_once(kNan, DType::kBf16)));
}

TEST(Value, RoundingAgreesWithAnotherImplementation) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 1'000'000; ++i) {
    const double value =
        std::ldexp(1.0 + static_cast<double>(random() >> 12) * 0x1p-52, static_cast<int>(random() % 320) - 160);
    // Mostly near ties: all but the top bits of the mantissa cleared, then nudged.
    const double near =
        std::bit_cast<double>((std::bit_cast<uint64_t>(value) & ~((1ull << 41) - 1)) + random() % 3 - 1);
    for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32})
      for (const double x : {value, -value, near})
        ASSERT_EQ(double{round_once(x, dtype)}, testing::widen(testing::narrow(x, dtype), dtype)) << x;
  }
}

// Two output features, four input features in groups of two, by hand.
QuantizedWeight small(ZeroKind kind) {
  QuantizedWeight weight;
  weight.name = "model.layers.0.q_proj";
  weight.n = 2;
  weight.k = 4;
  weight.group_size = 2;
  weight.zero_kind = kind;
  weight.codes = {0, 15, 8, 9, 1, 2, 3, 4};
  weight.scales = FloatArray::from_floats(DType::kFp16, std::vector<float>{0.5f, 2.0f, -1.0f, 0.0f});
  if (kind == ZeroKind::kInt) weight.int_zeros = {0, 16, 3, 7};
  if (kind == ZeroKind::kFloat || kind == ZeroKind::kOffset)
    weight.float_zeros = FloatArray::from_floats(DType::kFp16, std::vector<float>{0.5f, 8.0f, -1.0f, 2.5f});
  if (kind == ZeroKind::kTable) weight.table = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
  return weight;
}

TEST(Dequantize, ByHand) {
  EXPECT_EQ(dequantize(small(ZeroKind::kNone)), (std::vector<float>{-4, 3.5, 0, 2, 7, 6, -0.0f, -0.0f}));
  EXPECT_EQ(dequantize(small(ZeroKind::kInt)), (std::vector<float>{0, 7.5, -16, -14, 2, 1, -0.0f, -0.0f}));
  EXPECT_EQ(dequantize(small(ZeroKind::kFloat)), (std::vector<float>{-0.25, 7.25, 0, 2, -2, -3, 0, 0}));
  EXPECT_EQ(dequantize(small(ZeroKind::kOffset)), (std::vector<float>{0.5, 8, 24, 26, -2, -3, 2.5, 2.5}));
  EXPECT_EQ(dequantize(small(ZeroKind::kTable)), (std::vector<float>{0, -3, -0.0f, -1, -0.5f, -1, 0, 0}));
}

TEST(Dequantize, TableTimesScaleIsRoundedOnce) {
  QuantizedWeight weight = small(ZeroKind::kTable);
  weight.group_size = kPerColumn;
  weight.table[0] = 0x1.000002p0f;
  weight.scales = FloatArray::from_floats(DType::kFp32, std::vector<float>{0x1.000002p0f, 1});
  EXPECT_EQ(dequantize(weight)[0], 0x1.000004p0f);  // of 1 + 2^-22 + 2^-46
}

// (code - zero) * scale in fp32, as HQQ computes it; rounded once, the last place would be another.
TEST(Dequantize, FloatZerosAreSubtractedInFp32) {
  QuantizedWeight weight = small(ZeroKind::kFloat);
  weight.group_size = kPerColumn;
  weight.codes = {0, 2, 3, 8, 10, 0, 0, 0};
  weight.scales = FloatArray::from_floats(DType::kFp32, std::vector<float>{0.3f, 0.1f});
  weight.float_zeros = FloatArray::from_floats(DType::kFp32, std::vector<float>{0.3f, 0.3f});
  const std::vector<float> values = dequantize(weight);
  EXPECT_EQ(values[1], 0x1.051ebap-1f);  // not 0x1.051eb8p-1f
  EXPECT_EQ(values[2], 0x1.9eb854p-1f);
  EXPECT_EQ(values[3], 0x1.27ae14p+1f);
  EXPECT_EQ(values[4], 0x1.f0a3d6p-1f);
}

TEST(Dequantize, WeightsWithAnotherTableDiffer) {
  QuantizedWeight weight = small(ZeroKind::kTable), other = weight;
  EXPECT_EQ(weight, other);
  other.table[15] = -8;
  EXPECT_FALSE(weight == other);
}

TEST(Dequantize, KOrderSaysWhichGroupAFeatureHas) {
  QuantizedWeight weight = small(ZeroKind::kNone);
  weight.k_order = {3, 0, 2, 1};  // features 3 and 0 share the first group, 2 and 1 the second
  EXPECT_EQ(dequantize(weight), (std::vector<float>{-4, 14, 0, 0.5, 7, -0.0f, -0.0f, 4}));
}

TEST(Dequantize, PerColumnAndPartialGroups) {
  QuantizedWeight weight = small(ZeroKind::kNone);
  weight.group_size = kPerColumn;
  weight.scales = FloatArray::from_floats(DType::kFp32, std::vector<float>{1, 10});
  EXPECT_EQ(dequantize(weight), (std::vector<float>{-8, 7, 0, 1, -70, -60, -50, -40}));
  weight.group_size = 3;  // groups of 3 and 1
  weight.scales = FloatArray::from_floats(DType::kFp32, std::vector<float>{1, 2, 10, 20});
  EXPECT_EQ(weight.groups(), 2);
  EXPECT_EQ(dequantize(weight), (std::vector<float>{-8, 7, 0, 2, -70, -60, -50, -80}));
}

// ---- validate

TEST(Validate, AcceptsEveryFormat) {
  for (const testing::WeightSpec& spec : testing::all_specs()) {
    const Result<void> valid = validate(random_weight(spec));
    EXPECT_TRUE(valid) << to_string(spec) << ": " << valid.error().message;
  }
  EXPECT_TRUE(validate(QuantizedWeight{}));
}

struct BrokenWeight {
  ZeroKind kind;
  std::function<void(QuantizedWeight&)> damage;
  const char* words;
};

TEST(Validate, NamesTheWeightAndTheFirstBrokenElement) {
  const auto floats = [](std::vector<float> values) { return FloatArray::from_floats(DType::kFp16, values); };
  const BrokenWeight kCases[] = {
      {ZeroKind::kNone, [](auto& w) { w.n = -1; }, "the shape is -1 x 4"},
      {ZeroKind::kNone, [](auto& w) { w.k = int64_t{1} << 31; }, "the shape is 2 x 2147483648"},
      {ZeroKind::kNone, [](auto& w) { w.group_size = -128; }, "group_size is -128"},
      {ZeroKind::kNone, [](auto& w) { w.zero_kind = ZeroKind{7}; }, "zero_kind has no meaning (enum value 7)"},
      {ZeroKind::kNone, [](auto& w) { w.codes.pop_back(); }, "codes must hold 2 x 4 numbers, but holds 7"},
      {ZeroKind::kNone,
       [](auto& w) {
         w.codes[5] = 16;
         w.codes[6] = 255;
       },
       "codes[1, 1] is 16"},
      {ZeroKind::kNone, [](auto& w) { w.scales.resize(3); }, "scales must hold 2 x 2 numbers, but holds 3"},
      {ZeroKind::kNone, [](auto& w) { w.scales.bytes.pop_back(); }, "scales end inside a number"},
      {ZeroKind::kNone, [](auto& w) { w.scales.dtype = DType{9}; }, "scales have no element type"},
      {ZeroKind::kNone,
       [&](auto& w) {
         w.scales = floats({1, 1, kNan, 1});
       },
       "scales[1, 0] is nan"},
      {ZeroKind::kNone,
       [&](auto& w) {
         w.scales = floats({1, -kInfinity, 1, 1});
       },
       "scales[0, 1] is -inf"},
      {ZeroKind::kNone,
       [](auto& w) {
         w.int_zeros = {8, 8, 8, 8};
       },
       "int_zeros holds 4 numbers, but the kind of zero point is none"},
      {ZeroKind::kNone,
       [&](auto& w) {
         w.float_zeros = floats({1, 1, 1, 1});
       },
       "float_zeros holds 4 numbers, but the kind of zero point is none"},
      {ZeroKind::kInt, [](auto& w) { w.int_zeros.clear(); }, "int_zeros must hold 2 x 2 numbers, but holds 0"},
      {ZeroKind::kInt, [](auto& w) { w.int_zeros[3] = 17; }, "int_zeros[1, 1] is 17"},
      {ZeroKind::kInt, [&](auto& w) { w.float_zeros = floats({1}); }, "float_zeros holds 1 numbers"},
      {ZeroKind::kFloat, [](auto& w) { w.float_zeros.resize(5); }, "float_zeros must hold 2 x 2 numbers, but holds 5"},
      {ZeroKind::kFloat,
       [&](auto& w) {
         w.float_zeros = floats({1, 1, 1, kInfinity});
       },
       "float_zeros[1, 1] is inf"},
      {ZeroKind::kOffset,
       [&](auto& w) {
         w.float_zeros = floats({1, kNan, 1, 1});
       },
       "float_zeros[0, 1] is nan"},
      {ZeroKind::kOffset, [](auto& w) { w.float_zeros.dtype = DType::kBf16; },
       "float_zeros are bf16, but scales are fp16"},
      {ZeroKind::kTable, [](auto& w) { w.table.pop_back(); }, "table must hold 16 numbers, but holds 15"},
      {ZeroKind::kTable, [](auto& w) { w.table.clear(); }, "table must hold 16 numbers, but holds 0"},
      {ZeroKind::kTable, [](auto& w) { w.table[9] = INFINITY; }, "table[9] is inf"},
      {ZeroKind::kNone, [](auto& w) { w.table.resize(16); },
       "table holds 16 numbers, but the kind of zero point is none"},
      {ZeroKind::kTable, [](auto& w) { w.int_zeros = {1}; }, "int_zeros holds 1 numbers"},
      {ZeroKind::kNone,
       [](auto& w) {
         w.k_order = {0, 1, 2};
       },
       "k_order must hold 4 numbers or none, but holds 3"},
      {ZeroKind::kNone,
       [](auto& w) {
         w.k_order = {0, 1, 4, 2};
       },
       "k_order[2] is 4; input features are 0 to 3"},
      {ZeroKind::kNone,
       [](auto& w) {
         w.k_order = {0, -1, 2, 1};
       },
       "k_order[1] is -1"},
      {ZeroKind::kNone,
       [](auto& w) {
         w.k_order = {0, 1, 2, 1};
       },
       "k_order[3] is 1, which k_order[1] holds already"},
      {ZeroKind::kNone,
       [&](auto& w) {
         w.bias = floats({1, 2, 3});
       },
       "bias must hold 2 numbers or none"},
  };
  for (const BrokenWeight& broken : kCases) {
    QuantizedWeight weight = small(broken.kind);
    ASSERT_TRUE(validate(weight)) << validate(weight).error().message;
    broken.damage(weight);
    const Result<void> valid = validate(weight);
    ASSERT_FALSE(valid) << broken.words;
    EXPECT_EQ(valid.error().code, ErrorCode::kInvalidData);
    EXPECT_THAT(valid.error().message, HasSubstr("weight 'model.layers.0.q_proj': "));
    EXPECT_THAT(valid.error().message, HasSubstr(broken.words));
  }
}

TEST(Validate, AcceptsNegativeAndZeroScalesAndZeroPointSixteen) { EXPECT_TRUE(validate(small(ZeroKind::kInt))); }

TEST(Validate, FindsABadCodeInALargeWeight) {
  QuantizedWeight weight = random_weight({.n = 1100, .k = 2048, .format = {}});
  weight.codes[1099 * 2048 + 5] = 77;
  EXPECT_THAT(validate(weight).error().message, HasSubstr("codes[1099, 5] is 77"));
}

// ---- PackedWeight

TEST(PackedWeight, EmptyOneHasNoShape) {
  const PackedWeight packed;
  EXPECT_EQ(packed.n(), 0);
  EXPECT_EQ(packed.k(), 0);
  EXPECT_EQ(packed.size_bytes(), 0u);
}

TEST(PackedWeight, MemoryIsAlignedAndZeroed) {
  for (const size_t size : {0, 1, 256, 4352, 100001}) {
    const std::shared_ptr<std::byte[]> memory = allocate_packed(size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.get()) % 128, 0u);
    EXPECT_TRUE(std::all_of(memory.get(), memory.get() + size, [](std::byte b) { return b == std::byte{0}; }));
  }
}

TEST(PackedWeight, ProblemForSaysWhatContiguousRowsGive) {
  const PackedWeight packed = *pack(random_weight({.n = 24, .k = 260, .format = {.group_size = 64}}));
  const Problem problem = problem_for(packed, 5, DType::kFp16);
  EXPECT_EQ(problem.m, 5);
  EXPECT_EQ(problem.n, 24);
  EXPECT_EQ(problem.k, 260);
  EXPECT_EQ(problem.act_dtype, DType::kFp16);
  EXPECT_EQ(problem.out_dtype, DType::kFp16);
  EXPECT_EQ(problem.weight, packed.format());
  EXPECT_EQ(problem.layout, 1);
  EXPECT_FALSE(problem.aligned);                              // 520-byte rows
  EXPECT_TRUE(problem_for(packed, 5, DType::kFp32).aligned);  // 1040-byte rows
}

}  // namespace
}  // namespace nybble
