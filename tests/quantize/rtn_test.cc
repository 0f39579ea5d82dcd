// Round to nearest: a worked example, the rules against a second implementation, and the ends of the number range.
#include "nybble/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cfenv>
#include <cmath>
#include <functional>
#include <limits>

#include "support/dense.h"
#include "support/numbers.h"
#include "support/weights.h"

namespace nybble {
namespace {

using ::testing::HasSubstr;
using testing::narrow;
using testing::random_dense;
using testing::widen;

constexpr DType kDTypes[] = {DType::kBf16, DType::kFp16, DType::kFp32};

DenseWeight dense_of(int64_t n, std::vector<float> values, DType dtype = DType::kFp32) {
  DenseWeight dense;
  dense.name = "model.layers.3.up_proj";
  dense.n = n;
  dense.k = static_cast<int64_t>(values.size()) / n;
  dense.values = FloatArray::from_floats(dtype, values);
  return dense;
}

std::vector<float> floats(const FloatArray& array) {
  std::vector<float> values;
  for (size_t i = 0; i < array.size(); ++i) values.push_back(array.at(i));
  return values;
}

// One row of 20: a group of 16 and a partial one of 4.
const std::vector<float> kExample = {3.75f, -3.75f, 0.25f, -0.25f, 0.75f, -0.75f, 1.25f, 1.0f,  1.1f, 1.3f,
                                     3.4f,  3.6f,   -3.0f, -3.1f,  0,     0.3f,   3.0f,  -1.5f, 0.2f, 0};

TEST(Rtn, WorkedExampleSymmetric) {
  DenseWeight dense = dense_of(1, kExample);
  dense.bias = FloatArray::from_floats(DType::kFp16, std::vector<float>{2});
  const QuantizedWeight weight = *quantize_rtn(dense, {.group_size = 16, .scale_dtype = DType::kFp32});
  EXPECT_EQ(weight.name, "model.layers.3.up_proj");
  EXPECT_EQ(weight.zero_kind, ZeroKind::kNone);
  EXPECT_EQ(weight.bias, dense.bias);
  EXPECT_EQ(floats(weight.scales), (std::vector<float>{0.5f, 0.4f}));  // 3.75 / 7.5, 3 / 7.5
  // In steps of 0.5: 7.5 ties to 8, one too many, so 7; -7.5 ties to -8; 0.5 and -0.5 tie to 0, 1.5 and -1.5 to 2 and
  // -2, 2.5 to 2; the others are no ties. Plus 8.
  EXPECT_EQ(weight.codes, (std::vector<uint8_t>{15, 0, 8, 8, 10, 6, 10, 10, 10, 11, 15, 15, 2, 2, 8, 9,  //
                                                15, 4, 8, 8}));
}

TEST(Rtn, WorkedExampleAsymmetric) {
  const DenseWeight dense = dense_of(1, {-1,   0, 0.5f, 1, 2, 0.125f, 0.1f, -0.9f, 0, 0, 0, 0, 0, 0, 0, 0,  //
                                         0.5f, 1, 1.5f, 3});
  const QuantizedWeight weight =
      *quantize_rtn(dense, {.group_size = 16, .symmetric = false, .scale_dtype = DType::kFp32});
  EXPECT_EQ(weight.zero_kind, ZeroKind::kInt);
  EXPECT_EQ(floats(weight.scales), (std::vector<float>{0.2f, 0.2f}));  // (2 - -1) / 15; (3 - 0) / 15: min is at most 0
  EXPECT_EQ(weight.int_zeros, (std::vector<uint8_t>{5, 0}));
  // 0.5 / 0.2f = 2.5 ties to 2, plus 5; 0.125 / 0.2 = 0.625 to 1; -0.9 / 0.2f = -4.4999998 to -4.
  EXPECT_EQ(weight.codes, (std::vector<uint8_t>{0, 5, 7, 10, 15, 6, 5, 1, 5, 5, 5, 5, 5, 5, 5, 5, 2, 5, 8, 15}));
}

TEST(Rtn, ZeroGroups) {
  const DenseWeight dense = dense_of(2, {0, -0.0f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,  //
                                         0, 0,     0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1});
  const QuantizedWeight symmetric = *quantize_rtn(dense, {.group_size = 16});
  EXPECT_EQ(symmetric.scales.bits_at(0), 0u);
  EXPECT_EQ(std::vector<uint8_t>(symmetric.codes.begin(), symmetric.codes.begin() + 16), std::vector<uint8_t>(16, 8));
  const QuantizedWeight asymmetric = *quantize_rtn(dense, {.group_size = 16, .symmetric = false});
  EXPECT_EQ(asymmetric.scales.bits_at(0), 0u);
  EXPECT_EQ(asymmetric.int_zeros[0], 0);
  EXPECT_EQ(std::vector<uint8_t>(asymmetric.codes.begin(), asymmetric.codes.begin() + 16), std::vector<uint8_t>(16, 0));
}

// ---- the rules once more, written differently: doubles, std::nearbyint, tests' own roundings

struct Expected {
  float scale;
  int zero;
  std::vector<uint8_t> codes;
};
Expected expected_group(std::vector<float> weights, float shrink, bool symmetric, DType dtype) {
  double least = 0, most = 0;
  for (const float w : weights) least = std::min(least, double{w}), most = std::max(most, double{w});
  Expected group{0, symmetric ? 8 : 0, {}};
  if (least < 0 || most > 0) {
    const float low = static_cast<float>(least * shrink), high = static_cast<float>(most * shrink);
    const float wide = symmetric ? std::max(-low, high) / 7.5f : (high - low) / 15.0f;
    group.scale = static_cast<float>(widen(narrow(wide, dtype), dtype));
    if (!symmetric) group.zero = static_cast<int>(std::clamp(std::nearbyint(-low / group.scale), 0.0f, 15.0f));
  }
  for (const float w : weights) {
    const float level = group.scale == 0 ? 0 : std::nearbyint(w / group.scale);
    group.codes.push_back(static_cast<uint8_t>(std::clamp(level + static_cast<float>(group.zero), 0.0f, 15.0f)));
  }
  return group;
}

struct Case {
  int64_t n, k;
  int group_size;
};
constexpr Case kCases[] = {{3, 128, 128},        {5, 300, 128}, {4, 256, 16}, {2, 200, 48},
                           {7, 100, 32},         {3, 1000, 80}, {2, 65, 64},  {1, 16, 16},
                           {9, 512, kPerColumn}, {4, 33, 1024}, {3, 1, 16},   {2, 700, 192}};

template <class Check>
void for_each_group(const DenseWeight& dense, const QuantizedWeight& weight, const Check& check) {
  const int64_t size = weight.group_size == kPerColumn ? weight.k : weight.group_size;
  for (int64_t n = 0; n < weight.n; ++n) {
    for (int64_t group = 0; group < weight.groups(); ++group) {
      const int64_t begin = group * size, end = std::min(weight.k, begin + size);
      std::vector<float> weights;
      for (int64_t k = begin; k < end; ++k) weights.push_back(dense.values.at(n * weight.k + k));
      check(
          weights, n * weight.groups() + group,
          std::vector<uint8_t>(weight.codes.begin() + n * weight.k + begin, weight.codes.begin() + n * weight.k + end));
    }
  }
}

TEST(Rtn, EveryFormatFollowsTheRules) {
  int compared = 0;
  for (const DType dtype : kDTypes) {
    for (const DType scale_dtype : kDTypes) {
      for (const bool symmetric : {true, false}) {
        for (const Case& c : kCases) {
          const DenseWeight dense = random_dense(c.n, c.k, dtype, ++compared);
          const RtnOptions options{.group_size = c.group_size, .symmetric = symmetric, .scale_dtype = scale_dtype};
          const Result<QuantizedWeight> weight = quantize_rtn(dense, options);
          ASSERT_TRUE(weight) << weight.error().message;
          ASSERT_TRUE(validate(*weight)) << validate(*weight).error().message;
          for_each_group(dense, *weight, [&](const std::vector<float>& weights, int64_t index, const auto& codes) {
            const Expected expected = expected_group(weights, 1, symmetric, scale_dtype);
            ASSERT_EQ(weight->scales.at(index), expected.scale);
            ASSERT_EQ(symmetric ? 8 : weight->int_zeros[index], expected.zero);
            ASSERT_EQ(codes, expected.codes) << "k " << c.k << " group " << index;
          });
        }
      }
    }
  }
}

double squared_error(const std::vector<float>& weights, const Expected& group) {
  double sum = 0;
  for (size_t i = 0; i < weights.size(); ++i)
    sum += std::pow((group.codes[i] - group.zero) * double{group.scale} - weights[i], 2);
  return sum;
}

// The search's own sum is in units of the scale and its quotient is fp32, so two candidates that are equal within 2^-20
// may change places; nothing else may.
TEST(Rtn, RangeSearchTakesTheLeastSquaredErrorOfItsGrid) {
  int better = 0, groups = 0;
  for (const bool symmetric : {true, false}) {
    for (const Case& c : kCases) {
      const DenseWeight dense = random_dense(c.n, c.k, DType::kFp32, 100 + ++groups);
      const RtnOptions options{.group_size = c.group_size,
                               .symmetric = symmetric,
                               .range_search = RangeSearch::kSquaredError,
                               .scale_dtype = DType::kFp16};
      const Result<QuantizedWeight> weight = quantize_rtn(dense, options);
      ASSERT_TRUE(weight) << weight.error().message;
      for_each_group(dense, *weight, [&](const std::vector<float>& weights, int64_t index, const auto& codes) {
        const Expected found{weight->scales.at(index), symmetric ? 8 : weight->int_zeros[index], codes};
        double least = squared_error(weights, expected_group(weights, 1, symmetric, DType::kFp16));
        const double without = least;
        bool on_grid = false;
        for (int i = 0; i < 80; ++i) {
          const Expected candidate =
              expected_group(weights, static_cast<float>(100 - i) / 100.0f, symmetric, DType::kFp16);
          least = std::min(least, squared_error(weights, candidate));
          on_grid |= candidate.scale == found.scale && candidate.zero == found.zero && candidate.codes == found.codes;
        }
        ASSERT_TRUE(on_grid) << "group " << index;
        ASSERT_LE(squared_error(weights, found), least * (1 + 0x1p-20) + 1e-300) << "group " << index;
        ++groups;
        better += squared_error(weights, found) < without;
      });
    }
  }
  EXPECT_GT(better, groups / 4) << "of " << groups << " groups";
}

TEST(Rtn, TheNumberOfThreadsDoesNotShow) {
  const DenseWeight dense = random_dense(300, 700, DType::kBf16, 5);
  for (const RangeSearch search : {RangeSearch::kNone, RangeSearch::kSquaredError}) {
    const QuantizedWeight one = *quantize_rtn(dense, {.range_search = search, .num_threads = 1});
    EXPECT_EQ(one, *quantize_rtn(dense, {.range_search = search, .num_threads = 5}));
  }
}

// ---- the ends of the number range

TEST(Rtn, EveryFiniteNumberIsReadExactly) {
  for (const DType dtype : {DType::kBf16, DType::kFp16}) {
    DenseWeight dense;
    dense.n = 1;
    dense.k = 16;
    dense.values.dtype = dtype;
    dense.values.resize(16);
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      if (!testing::is_finite(bits, dtype)) continue;
      dense.values.set_bits(5, bits);
      const QuantizedWeight weight =
          *quantize_rtn(dense, {.group_size = 16, .scale_dtype = DType::kFp32, .num_threads = 1});
      const float w = static_cast<float>(widen(bits, dtype)), wide = std::abs(w) / 7.5f;
      ASSERT_EQ(weight.scales.at(0), w != 0 && wide == 0 ? 0x1p-149f : wide) << bits;
      float level = w == 0 ? 0 : std::nearbyint(w / weight.scales.at(0));
      if (w < 0 && !std::isfinite(level * weight.scales.at(0))) level += 1;  // -8 steps would be infinite
      ASSERT_EQ(weight.codes[5], 8 + std::min(7.0f, level)) << bits;
    }
  }
}

// Groups of every magnitude from the smallest subnormal to the largest number, with every type of scale: finite in
// gives finite out, even as fp32 weights, and the error is at most half a step where the step is a normal number.
TEST(Rtn, FiniteInFiniteOut) {
  for (const DType scale_dtype : kDTypes) {
    for (const bool symmetric : {true, false}) {
      for (const RangeSearch search : {RangeSearch::kNone, RangeSearch::kSquaredError}) {
        for (int exponent = -149; exponent <= 127; ++exponent) {
          for (const float lean : {1.0f, -1.0f}) {
            const float top = std::ldexp(exponent < -126 ? 1.0f : 0x1.fffffep0f, exponent);
            std::vector<float> values(16, 0);
            for (int i = 0; i < 16; ++i) values[i] = lean * top * (static_cast<float>(i) / 15 - (i == 3 ? 1 : 0));
            values[15] = lean * top;
            values[7] = -lean * top;
            const Result<QuantizedWeight> weight = quantize_rtn(dense_of(1, values), {.group_size = 16,
                                                                                      .symmetric = symmetric,
                                                                                      .range_search = search,
                                                                                      .scale_dtype = scale_dtype,
                                                                                      .num_threads = 1});
            // 65520 and above round to infinity in fp16.
            const bool too_wide = scale_dtype == DType::kFp16 && top / 7.5f >= 65520;
            ASSERT_EQ(weight.ok(), !too_wide) << top << " " << weight.error().message;
            if (!weight) continue;
            ASSERT_TRUE(validate(*weight)) << validate(*weight).error().message;
            ASSERT_GT(weight->scales.at(0), 0) << top;
            const std::vector<float> back = dequantize(*weight);
            for (int i = 0; i < 16; ++i) {
              ASSERT_TRUE(std::isfinite(back[i])) << values[i];
              // The range search clips; the largest numbers may lose one more step to stay finite; the 16th code of a
              // symmetric group is half a step beyond the positive end.
              if (search != RangeSearch::kNone) continue;
              ASSERT_LE(std::abs(double{back[i]} - values[i]), 1.6 * weight->scales.at(0))
                  << values[i] << " of " << top;
            }
          }
        }
      }
    }
  }
}

TEST(Rtn, AScaleThatUnderflowsIsTheSmallestNumber) {
  std::vector<float> values(16, 0);
  values[0] = 0x1p-24f;
  values[1] = -0x1p-22f;
  const QuantizedWeight fp16 = *quantize_rtn(dense_of(1, values), {.group_size = 16, .scale_dtype = DType::kFp16});
  EXPECT_EQ(fp16.scales.at(0), 0x1p-24f);  // 2^-22 / 7.5 is nearer to 2^-24 than to 0
  EXPECT_EQ(fp16.codes[0], 9);
  EXPECT_EQ(fp16.codes[1], 4);
  values[1] = -0x1p-23f;  // 2^-23 / 7.5 rounds to 0
  const QuantizedWeight small = *quantize_rtn(dense_of(1, values), {.group_size = 16, .scale_dtype = DType::kFp16});
  EXPECT_EQ(small.scales.at(0), 0x1p-24f);
  EXPECT_EQ(small.codes[0], 9);
  EXPECT_EQ(small.codes[1], 6);
}

// ---- refusals

TEST(Rtn, NamesTheFirstElementThatIsNotFinite) {
  for (const DType dtype : kDTypes) {
    for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN()}) {
      for (const bool symmetric : {true, false}) {
        DenseWeight dense = random_dense(100, 1000, dtype, 1);
        const auto put = [&](int64_t n, int64_t k) {
          const FloatArray one = FloatArray::from_floats(dtype, std::vector<float>{bad});
          dense.values.set_bits(n * dense.k + k, one.bits_at(0));
        };
        put(99, 2);
        put(41, 999);
        put(41, 998);
        const Result<QuantizedWeight> weight = quantize_rtn(dense, {.group_size = 64, .symmetric = symmetric});
        ASSERT_FALSE(weight);
        EXPECT_EQ(weight.error().code, ErrorCode::kInvalidData);
        EXPECT_THAT(weight.error().message, HasSubstr("weight 'random': values[41, 998] is "));
      }
    }
  }
}

TEST(Rtn, NamesTheFirstGroupWhoseScaleOverflows) {
  std::vector<float> values(4 * 40, 1.0f);
  values[2 * 40 + 35] = 500000.0f;
  values[3 * 40] = 1e30f;
  for (const RangeSearch search : {RangeSearch::kNone, RangeSearch::kSquaredError}) {
    const Result<QuantizedWeight> weight =
        quantize_rtn(dense_of(4, values), {.group_size = 16, .range_search = search, .scale_dtype = DType::kFp16});
    ASSERT_FALSE(weight);
    EXPECT_EQ(weight.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(weight.error().message,
                HasSubstr("'model.layers.3.up_proj': values[2, 32 .. 39] need a scale that fp16 cannot hold"));
  }
  EXPECT_TRUE(quantize_rtn(dense_of(4, values), {.group_size = 16}));
}

TEST(Rtn, RefusesBadOptionsAndShapes) {
  const DenseWeight good = random_dense(2, 32, DType::kBf16, 1);
  const auto refusal = [](const DenseWeight& dense, const RtnOptions& options) {
    const Result<QuantizedWeight> weight = quantize_rtn(dense, options);
    return weight ? std::string() : weight.error().message;
  };
  EXPECT_THAT(refusal(good, {.group_size = 8}), HasSubstr("group_size 8 was asked for; it must be a multiple of 16"));
  EXPECT_THAT(refusal(good, {.group_size = -16}), HasSubstr("group_size -16"));
  EXPECT_THAT(refusal(good, {.group_size = 100}), HasSubstr("group_size 100"));
  EXPECT_THAT(refusal(good, {.scale_dtype = DType{5}}), HasSubstr("scale_dtype has no meaning"));
  EXPECT_THAT(refusal(good, {.range_search = RangeSearch{5}}), HasSubstr("range_search has no meaning"));
  DenseWeight bad = good;
  bad.values.bytes.pop_back();
  EXPECT_THAT(refusal(bad, {}), HasSubstr("values must hold 2 x 32 numbers of bf16, but hold 127 bytes"));
  bad = good;
  bad.n = -2;
  EXPECT_THAT(refusal(bad, {}), HasSubstr("the shape is -2 x 32"));
}

TEST(Rtn, NothingGivesNothing) {
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{0, 128}, {4, 0}}) {
    for (const int group_size : {kPerColumn, 128}) {
      DenseWeight dense;
      dense.n = n;
      dense.k = k;
      const Result<QuantizedWeight> weight = quantize_rtn(dense, {.group_size = group_size});
      ASSERT_TRUE(weight);
      EXPECT_TRUE(validate(*weight)) << validate(*weight).error().message;
    }
  }
}

}  // namespace
}  // namespace nybble
