// The reference itself: cases small enough to follow with a pencil, and the order of its roundings.
#include "reference/gemm.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "support/numbers.h"
#include "support/weights.h"
#include "weight/value.h"

namespace nybble {
namespace {

using testing::narrow;
using testing::widen;

constexpr DType kDTypes[] = {DType::kBf16, DType::kFp16, DType::kFp32};

std::vector<float> floats(const FloatArray& array) {
  std::vector<float> values;
  for (size_t i = 0; i < array.size(); ++i) values.push_back(array.at(i));
  return values;
}

FloatArray filled(DType dtype, size_t count, float value) {
  return FloatArray::from_floats(dtype, std::vector<float>(count, value));
}

// 2 output features, 4 input features, groups of 2; weights {-4, 3.5, 0, 2} and {7, 6, 0, 0}.
QuantizedWeight small() {
  QuantizedWeight weight;
  weight.n = 2;
  weight.k = 4;
  weight.group_size = 2;
  weight.codes = {0, 15, 8, 9, 1, 2, 3, 4};
  weight.scales = FloatArray::from_floats(DType::kBf16, std::vector<float>{0.5f, 2.0f, -1.0f, 0.0f});
  return weight;
}

TEST(Reference, ByHandInEveryType) {
  const QuantizedWeight weight = small();
  for (const DType act_dtype : kDTypes) {
    for (const DType out_dtype : kDTypes) {
      const FloatArray act = FloatArray::from_floats(act_dtype, std::vector<float>{1, 2, 3, 4, -1, 0, 0.5f, 2});
      FloatArray out = filled(out_dtype, 4, 0);
      reference_gemm({.weight = &weight,
                      .m = 2,
                      .act_dtype = act_dtype,
                      .out_dtype = out_dtype,
                      .act = act.bytes.data(),
                      .out = out.bytes.data()});
      // 1 * -4 + 2 * 3.5 + 3 * 0 + 4 * 2 = 11;  1 * 7 + 2 * 6 = 19;  4 + 0.5 * 0 + 2 * 2 = 8;  -7
      EXPECT_EQ(floats(out), (std::vector<float>{11, 19, 8, -7}));
    }
  }
}

TEST(Reference, EpilogueLeadingDimensionsAndWhatLiesBetween) {
  const QuantizedWeight weight = small();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const FloatArray act =
      FloatArray::from_floats(DType::kFp16, std::vector<float>{1, 2, 3, 4, nan, -1, 0, 0.5f, 2, nan});
  const FloatArray bias = FloatArray::from_floats(DType::kFp16, std::vector<float>{100, 200});
  const FloatArray residual =
      FloatArray::from_floats(DType::kFp32, std::vector<float>{1000, 2000, nan, 3000, 4000, nan});
  FloatArray out = filled(DType::kFp32, 6, -5);
  const ReferenceArgs args{.weight = &weight,
                           .m = 2,
                           .act_dtype = DType::kFp16,
                           .out_dtype = DType::kFp32,
                           .act = act.bytes.data(),
                           .ld_act = 5,
                           .out = out.bytes.data(),
                           .ld_out = 3,
                           .bias = bias.bytes.data(),
                           .residual = residual.bytes.data(),
                           .alpha = -0.5f};
  reference_gemm(args);
  EXPECT_EQ(floats(out), (std::vector<float>{1094.5f, 2190.5f, -5, 3096, 4203.5f, -5}));
  // The residual may be the output itself.
  FloatArray in_place = FloatArray::from_floats(DType::kFp32, std::vector<float>{1000, 2000, -5, 3000, 4000, -5});
  ReferenceArgs inside = args;
  inside.out = in_place.bytes.data();
  inside.residual = in_place.bytes.data();
  reference_gemm(inside);
  EXPECT_EQ(in_place, out);
}

TEST(Reference, SumsAndMagnitudes) {
  const QuantizedWeight weight = small();
  const FloatArray act = FloatArray::from_floats(DType::kFp32, std::vector<float>{1, -2, 3, 4});
  const ReferenceSums sums =
      reference_sums({.weight = &weight, .m = 1, .act_dtype = DType::kFp32, .act = act.bytes.data()});
  EXPECT_EQ(sums.sum, (std::vector<double>{-4 - 7 + 8, 7 - 12}));
  EXPECT_EQ(sums.magnitude, (std::vector<double>{4 + 7 + 8, 7 + 12}));
}

TEST(Reference, EpilogueRoundsInItsOrder) {
  const float one = 1.0f, big = 0x1p24f, tiny = 0x1p-24f;
  EXPECT_EQ(reference_epilogue(1 + 0x1p-30, 1.0f, nullptr, nullptr, DType::kFp32), 1.0f);    // the sum to fp32 first
  EXPECT_EQ(reference_epilogue(3.0, 0x1.555556p-2f, nullptr, nullptr, DType::kFp32), 1.0f);  // alpha * sum rounded
  // (1 + 2^24) + -2^24 in fp32 loses the 1; bias before residual.
  const float minus_big = -big;
  EXPECT_EQ(reference_epilogue(1.0, 1.0f, &big, &minus_big, DType::kFp32), 0.0f);
  EXPECT_EQ(reference_epilogue(0x1p24, 1.0f, &minus_big, &one, DType::kFp32), 1.0f);
  // One rounding to the output type: 1 + 2^-8 + 2^-24 is above the tie of bf16, but not in fp32.
  EXPECT_EQ(reference_epilogue(1 + 0x1p-8 + 0x1p-24, 1.0f, nullptr, nullptr, DType::kBf16), 1.0f);
  EXPECT_EQ(reference_epilogue(1 + 0x1p-8 + 0x1p-23, 1.0f, nullptr, nullptr, DType::kBf16), 1 + 0x1p-7f);
  EXPECT_EQ(reference_epilogue(65520, 1.0f, nullptr, nullptr, DType::kFp16), std::numeric_limits<float>::infinity());
  EXPECT_EQ(reference_epilogue(-65519, 1.0f, &tiny, nullptr, DType::kFp16), -65504.0f);
}

TEST(Reference, RoundedWeightIsRoundedOnceToTheActivationsType) {
  QuantizedWeight weight;
  weight.n = 1;
  weight.k = 1;
  weight.group_size = 16;
  weight.codes = {15};
  weight.scales = FloatArray::from_floats(DType::kFp32, std::vector<float>{0x1.234568p0f});  // 7 s = 0x1.fddff7p2
  const auto sum = [&](DType act_dtype, Numerics numerics) {
    const FloatArray act = filled(act_dtype, 1, 1.0f);
    return reference_sums(
               {.weight = &weight, .m = 1, .act_dtype = act_dtype, .act = act.bytes.data(), .numerics = numerics})
        .sum[0];
  };
  const double exact = 7 * double{0x1.234568p0f};
  for (const DType dtype : kDTypes) {
    EXPECT_EQ(sum(dtype, Numerics::kExactWeight), exact);
    EXPECT_EQ(sum(dtype, Numerics::kRoundedWeight), widen(narrow(exact, dtype), dtype));
  }
  EXPECT_EQ(sum(DType::kBf16, Numerics::kRoundedWeight), 0x1.fep2);
}

// code * scale = 1 + 2^-8 is a tie of bf16; an offset far below the double's last bit still decides it, as one FMA
// would.
TEST(Reference, ATinyOffsetBreaksATie) {
  QuantizedWeight weight;
  weight.n = 1;
  weight.k = 1;
  weight.group_size = 16;
  weight.zero_kind = ZeroKind::kOffset;
  weight.codes = {1};
  weight.scales = FloatArray::from_floats(DType::kFp32, std::vector<float>{1 + 0x1p-8f});
  for (const float offset : {0x1p-100f, 0.0f, -0x1p-100f}) {
    weight.float_zeros = FloatArray::from_floats(DType::kFp32, std::vector<float>{offset});
    EXPECT_EQ(round_once(value_of_code(weight, 1, 0), DType::kBf16), offset > 0 ? 1 + 0x1p-7f : 1.0f) << offset;
  }
  weight.zero_kind = ZeroKind::kFloat;  // (2 - z) s with z a hair beside 1
  for (const float hair : {0x1p-20f, -0x1p-20f}) {
    weight.float_zeros = FloatArray::from_floats(DType::kFp32, std::vector<float>{1 + hair});
    EXPECT_EQ(round_once(value_of_code(weight, 2, 0), DType::kBf16), hair < 0 ? 1 + 0x1p-7f : 1.0f) << hair;
  }
}

// Against the plainest possible sum over dequantize(): every format, sizes that miss the reference's tiles.
TEST(Reference, AgreesWithThreeLoops) {
  for (const testing::WeightSpec& spec : testing::all_specs()) {
    if (spec.format.scale_dtype != DType::kFp16 || spec.n * spec.k > 20000) continue;
    const QuantizedWeight weight = testing::random_weight(spec);
    const std::vector<float> dense = dequantize(weight);
    constexpr int64_t kTokens = 11;
    std::vector<float> values(kTokens * spec.k);
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(static_cast<int>(i * 7919 % 513) - 256) / 64;
    const FloatArray act = FloatArray::from_floats(DType::kBf16, values);
    const ReferenceSums sums = reference_sums({.weight = &weight, .m = kTokens, .act = act.bytes.data()});
    for (int64_t m = 0; m < kTokens; ++m) {
      for (int64_t n = 0; n < spec.n; ++n) {
        double sum = 0, magnitude = 0;
        for (int64_t k = 0; k < spec.k; ++k) {
          sum += double{act.at(m * spec.k + k)} * dense[n * spec.k + k];
          magnitude += std::abs(double{act.at(m * spec.k + k)} * dense[n * spec.k + k]);
        }
        ASSERT_EQ(sums.sum[m * spec.n + n], sum) << to_string(spec) << " m " << m << " n " << n;
        ASSERT_EQ(sums.magnitude[m * spec.n + n], magnitude);
      }
    }
  }
}

TEST(Reference, NothingToDoAndEmptySums) {
  const QuantizedWeight weight = small();
  reference_gemm({.weight = &weight, .m = 0});
  QuantizedWeight empty = small();
  empty.k = 0;
  empty.codes.clear();
  empty.scales.bytes.clear();
  ASSERT_TRUE(validate(empty));
  const FloatArray bias = filled(DType::kBf16, 2, 3.0f);
  FloatArray out = filled(DType::kBf16, 6, -5);
  reference_gemm({.weight = &empty, .m = 3, .out = out.bytes.data(), .bias = bias.bytes.data()});
  EXPECT_EQ(floats(out), std::vector<float>(6, 3.0f));
}

TEST(Reference, InfinityAndNanStayInTheirRow) {
  const QuantizedWeight weight = small();
  const float inf = std::numeric_limits<float>::infinity();
  const FloatArray act =
      FloatArray::from_floats(DType::kBf16, std::vector<float>{1, 2, 3, 4, inf, 0, 0, 0, 0, 0, inf, 0});
  FloatArray out = filled(DType::kBf16, 6, 0);
  reference_gemm({.weight = &weight, .m = 3, .act = act.bytes.data(), .out = out.bytes.data()});
  EXPECT_EQ(out.at(0), 11);
  EXPECT_EQ(out.at(1), 19);
  EXPECT_EQ(out.at(2), -inf);
  EXPECT_EQ(out.at(3), inf);
  EXPECT_TRUE(std::isnan(out.at(4)));  // infinity times a weight of zero
  EXPECT_TRUE(std::isnan(out.at(5)));
}

TEST(Reference, TheNumberOfThreadsDoesNotShow) {
  const QuantizedWeight weight = testing::random_weight({.n = 100, .k = 300, .format = {.group_size = 64}});
  const FloatArray act = filled(DType::kBf16, 9 * 300, 0.3f);
  const ReferenceArgs args{.weight = &weight, .m = 9, .act = act.bytes.data(), .num_threads = 1};
  ReferenceArgs many = args;
  many.num_threads = 5;
  EXPECT_EQ(reference_sums(args).sum, reference_sums(many).sum);
}

}  // namespace
}  // namespace nybble
