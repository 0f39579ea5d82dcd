// The tests' own tools, held against what they stand apart from, where no GPU is needed.
#include <gtest/gtest.h>

#include <cmath>

#include "base/float16.h"
#include "nybble/pack.h"
#include "reference/envelope.h"
#include "support/case_data.h"
#include "support/guarded_host.h"
#include "support/judge.h"
#include "support/numbers.h"
#include "weight/value.h"

namespace nybble::testing {
namespace {

constexpr DType kTypes[] = {DType::kBf16, DType::kFp16, DType::kFp32};

TEST(Numbers, WidenEveryPatternOf16Bits) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t b = static_cast<uint16_t>(bits);
    for (const auto& [ours, theirs] : {std::pair{widen(bits, DType::kBf16), base::bf16_to_float(b)},
                                       std::pair{widen(bits, DType::kFp16), base::fp16_to_float(b)}}) {
      if (std::isnan(theirs)) {
        EXPECT_TRUE(std::isnan(ours)) << bits;
      } else {
        EXPECT_EQ(bits_of_double(ours), bits_of_double(static_cast<double>(theirs))) << bits;
      }
    }
  }
}

TEST(Numbers, NarrowRoundsOnceAsTheLibraryDoes) {
  const RandomStream stream(1, 2);
  for (uint64_t i = 0; i < 300000; ++i) {
    // Every exponent that matters, and mantissas near ties of every type.
    double value = std::ldexp(1 + stream.uniform(2 * i), static_cast<int>(stream.below(2 * i + 1, 300)) - 160);
    const uint64_t keep = i % 3 == 0 ? 42 : i % 3 == 1 ? 45 : 29;
    if (i % 2 == 0) value = double_from_bits((bits_of_double(value) >> (keep - 1) << (keep - 1)) + (i % 5) - 2);
    if (i % 7 == 0) value = -value;
    for (DType dtype : kTypes) {
      const double got = widen(narrow(value, dtype), dtype);
      EXPECT_EQ(got, static_cast<double>(round_once(value, dtype))) << value << " as " << dtype_name(dtype);
      EXPECT_EQ(std::signbit(got), std::signbit(value));
    }
  }
  for (DType dtype : kTypes) {
    EXPECT_TRUE(is_nan(narrow(std::nan(""), dtype), dtype));
    EXPECT_EQ(narrow(INFINITY, dtype), float_shape(dtype).infinity());
    EXPECT_EQ(narrow(0.0, dtype), 0u);
    EXPECT_EQ(narrow(1e-320, dtype), 0u);
  }
  EXPECT_EQ(narrow(65520, DType::kFp16), 0x7C00u);
  EXPECT_EQ(narrow(65519.99, DType::kFp16), 0x7BFFu);
}

TEST(Numbers, PassRuleIsTheLibrarysEnvelope) {
  const RandomStream stream(3, 4);
  for (uint64_t i = 0; i < 20000; ++i) {
    const double sum = std::ldexp(stream.normal(2 * i), static_cast<int>(stream.below(2 * i + 1, 60)) - 40);
    const double magnitude = std::abs(sum) * (1 + 100 * stream.uniform(3 * i));
    for (int64_t k : {100, 4096, 40000})
      for (DType dtype : kTypes) {
        const double allowance = accumulation_allowance(magnitude, k);
        EXPECT_DOUBLE_EQ(allowance + half_step(std::abs(sum) + allowance, dtype),
                         allowed_error(sum, magnitude, k, dtype));
      }
  }
}

TEST(Numbers, ZerosAreOneNumberAndNothingElse) {
  EXPECT_TRUE(same_number(0, 0x8000, DType::kBf16));
  EXPECT_FALSE(same_number(1, 0x8001, DType::kBf16));
  EXPECT_TRUE(same_number(0, 0x80000000, DType::kFp32));
  EXPECT_FALSE(same_number(0, 0x8000, DType::kFp32));
}

TEST(Judge, ExactDataAllowsOneAnswer) {
  for (DType dtype : {DType::kBf16, DType::kFp16}) {
    const uint32_t right = narrow(-12.5, dtype);
    EXPECT_EQ(judge(right, -12.5, 0, true, 64, dtype).badness, 0);
    EXPECT_TRUE(judge(right, -12.5, 0, true, 64, dtype).rounded);
    for (uint32_t wrong :
         {right + 1, right - 1, right ^ float_shape(dtype).sign(), 0xFFFFu, float_shape(dtype).infinity()})
      EXPECT_GT(judge(wrong, -12.5, 0, true, 64, dtype).badness, 0) << wrong;
    EXPECT_EQ(judge(float_shape(dtype).sign(), 0, 0, true, 64, dtype).badness, 0) << "-0 is 0";
    EXPECT_EQ(judge(float_shape(dtype).infinity(), 1e39, 0, true, 64, dtype).badness, 0);
  }
}

TEST(Judge, RoundedDataAllowsTheEnvelopeAndNoMore) {
  const DType dtype = DType::kFp32;  // fine enough to step through the allowance
  const double exact = 3, magnitude = 100, allowance = 100 * 0x1p-19;
  const auto at = [&](double error) {
    return judge(narrow(exact + error, dtype), exact, magnitude, false, 4096, dtype);
  };
  for (double sign : {-1.0, 1.0}) {
    EXPECT_EQ(at(sign * 0.99 * allowance).badness, 0);
    EXPECT_NEAR(at(sign * 0.5 * allowance).used, 0.5, 0.01);
    EXPECT_GT(at(sign * 1.01 * allowance).badness, 1);
  }
  EXPECT_GT(judge(0xFFFFFFFF, exact, magnitude, false, 4096, dtype).badness, 1) << "not written";
  EXPECT_GT(judge(narrow(INFINITY, dtype), exact, magnitude, false, 4096, dtype).badness, 1);
  // bf16: half a step of the store comes on top.
  EXPECT_EQ(judge(narrow(1.0, DType::kBf16), 1 + 0x1p-8, 0.01, false, 64, DType::kBf16).badness, 0);
  EXPECT_GT(judge(narrow(1.0, DType::kBf16), 1 + 0x1.1p-8, 0.01, false, 64, DType::kBf16).badness, 0);
  // fp16 at its range's end: infinity where sums may reach 65520, on that side only.
  const uint32_t infinity = 0x7C00;
  EXPECT_EQ(judge(infinity, 65521, 1e5, false, 64, DType::kFp16).badness, 0);
  EXPECT_EQ(judge(infinity, 65519.95, 1e5, false, 64, DType::kFp16).badness, 0);
  EXPECT_GT(judge(infinity, 65000, 1e5, false, 64, DType::kFp16).badness, 0);
  EXPECT_GT(judge(infinity, -65600, 1e5, false, 64, DType::kFp16).badness, 0);
  EXPECT_GT(judge(0x7BFF, 70000, 1e5, false, 64, DType::kFp16).badness, 0);
}

// Weights of every kind are valid, pack, and come back; exact ones stay small enough for exact sums.
TEST(Weights, AreValidAndSurvivePacking) {
  for (Data data : {Data::kExact, Data::kExtreme, Data::kRandom, Data::kSpread, Data::kHuge})
    for (ZeroKind zero : {ZeroKind::kNone, ZeroKind::kInt, ZeroKind::kFloat, ZeroKind::kOffset})
      for (DType scale : kTypes)
        for (int group : {128, 48, 16, kPerColumn})
          for (bool order : {false, true}) {
            const WeightFormat format{.scale_dtype = scale, .zero_kind = zero, .group_size = group, .k_order = order};
            const QuantizedWeight weight = make_weight(67, 201, format, data, 9);
            const std::string name = to_string(format) + " " + data_name(data);
            ASSERT_TRUE(validate(weight)) << name << ": " << validate(weight).error().message;
            EXPECT_EQ(weight.format(), format) << name;
            EXPECT_EQ(weight, make_weight(67, 201, format, data, 9)) << name << ": the same seed makes the same weight";
            const Result<PackedWeight> packed = pack(weight);
            ASSERT_TRUE(packed) << name << ": " << packed.error().message;
            Result<QuantizedWeight> back = unpack(*packed);
            ASSERT_TRUE(back) << name << ": " << back.error().message;
            back->name = weight.name;
            EXPECT_EQ(*back, weight) << name;
            if (!is_exact(data)) continue;
            for (float value : dequantize(weight)) {
              ASSERT_EQ(value * 4, std::round(value * 4)) << name;
              ASSERT_LE(std::abs(value), 64) << name;
            }
          }
}

TEST(Weights, ExactActivationsAreSmallIntegers) {
  const RandomStream stream(5, kAct);
  int seen[5] = {};
  for (int64_t i = 0; i < 1000; ++i)
    for (DType dtype : {DType::kBf16, DType::kFp16})
      ++seen[static_cast<int>(widen(act_bits(stream, i, 3, 7, dtype, Data::kExact), dtype)) + 2];
  for (int count : seen) EXPECT_GT(count, 100);
}

TEST(GuardedHostBuffer, SeesWritesOutside) {
  for (size_t offset : {0, 2}) {
    GuardedHostBuffer buffer(100, offset);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, offset);
    std::memset(buffer.data(), 0, 100);
    EXPECT_EQ(buffer.damage(), "");
    buffer.as<unsigned char>()[100 + 7] = 0;
    EXPECT_EQ(buffer.damage(), "byte 7 past the end was written");
    buffer.as<unsigned char>()[100 + 7] = kRedZoneByte;
    *(buffer.as<unsigned char>() - 3) = 0;
    EXPECT_EQ(buffer.damage(), "byte 3 before the beginning was written");
  }
}

}  // namespace
}  // namespace nybble::testing
