// Range search: against a plain search over the same ranges, and what importance and exponent change.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "nybble/quantize.h"
#include "quantize/group_fit.h"
#include "support/calibration.h"
#include "support/dense.h"

namespace nybble {
namespace {

using testing::correlated_statistics;
using ::testing::HasSubstr;
using testing::random_dense;
using testing::squares_only;

TEST(Power, IsThePower) {
  for (const float exponent : {1.0f, 1.5f, 2.4f, 3.0f, 8.0f, -0.3f}) {
    for (float x = 1e-4f; x < 30; x *= 1.0173f) {
      const double want = std::pow(double{x}, double{exponent});
      if (want < 1e-30) continue;
      ASSERT_NEAR(quantize::power(x, exponent) / want, 1, 1e-5) << x << "^" << exponent;
      ASSERT_EQ(quantize::power(-x, exponent), quantize::power(x, exponent));
    }
    EXPECT_EQ(quantize::power(0, exponent), 0);
  }
}

// The ranges that a rule tries, as RTN of clipped weights: the values whose range is the candidate.
std::vector<std::pair<float, float>> candidates(std::vector<float> weights, RangeRule rule, bool symmetric) {
  std::vector<std::pair<float, float>> ranges;
  std::sort(weights.begin(), weights.end());
  const float min = std::min(0.0f, weights.front()), max = std::max(0.0f, weights.back());
  if (rule == RangeRule::kFull) ranges = {{min, max}};
  if (rule == RangeRule::kShrink)
    for (int i = 0; i < 80; ++i) {
      const float factor = static_cast<float>(100 - i) / 100.0f;
      ranges.push_back({min * factor, max * factor});
    }
  if (rule == RangeRule::kPercentile) {
    std::vector<float> sizes = weights;
    for (float& w : sizes) w = std::abs(w);
    std::sort(sizes.begin(), sizes.end());
    for (size_t cut = 0; cut <= std::min<size_t>(79, weights.size() / 10); ++cut) {
      const float size = sizes[sizes.size() - 1 - cut];
      ranges.push_back(
          symmetric ? std::pair{-size, size}
                    : std::pair{std::min(0.0f, weights[cut]), std::max(0.0f, weights[weights.size() - 1 - cut])});
    }
  }
  return ranges;
}

double loss_of(const std::vector<float>& weights, const std::vector<float>& importance, std::pair<float, float> range,
               bool symmetric, double exponent) {
  const auto bf16 = [](float x) { return FloatArray::from_floats(DType::kBf16, std::vector<float>{x}).at(0); };
  const float scale =
      bf16(symmetric ? std::max(-range.first, range.second) / 7.5f : (range.second - range.first) / 15.0f);
  const double zero = symmetric ? 8 : std::clamp(std::nearbyint(-range.first / scale), 0.0f, 15.0f);
  double loss = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const double level = std::clamp<double>(std::nearbyint(weights[i] / scale), -zero, 15 - zero);
    loss += importance[i] * std::pow(std::abs(level * scale - weights[i]), exponent);
  }
  return loss;
}

TEST(Range, TakesTheRangeThatLosesLeast) {
  const LayerStatistics statistics = squares_only(correlated_statistics(200, 3));
  for (const RangeRule rule : {RangeRule::kFull, RangeRule::kShrink, RangeRule::kPercentile}) {
    for (const bool symmetric : {true, false}) {
      for (const double exponent : {1.0, 2.0, 2.4, 3.0}) {
        for (const bool weighted : {false, true}) {
          const DenseWeight dense = random_dense(6, 200, DType::kBf16, 11);
          const GridOptions grid{.group_size = 96, .symmetric = symmetric};
          const RangeOptions options{.rule = rule, .exponent = exponent};
          const Result<QuantizedWeight> weight = quantize_range(dense, grid, options, weighted ? &statistics : nullptr);
          ASSERT_TRUE(weight) << weight.error().message;
          ASSERT_TRUE(validate(*weight));
          const std::vector<float> values = dequantize(*weight);
          for (int64_t n = 0; n < 6; ++n) {
            for (int64_t begin = 0; begin < 200; begin += 96) {
              std::vector<float> group, importance;
              double got = 0;
              for (int64_t i = begin; i < std::min<int64_t>(200, begin + 96); ++i) {
                group.push_back(dense.values.at(n * 200 + i));
                importance.push_back(weighted ? statistics.mean_square[i] : 1);
                got += importance.back() * std::pow(std::abs(double{values[n * 200 + i]} - group.back()), exponent);
              }
              if (*std::max_element(group.begin(), group.end()) == 0 &&
                  *std::min_element(group.begin(), group.end()) == 0) {
                EXPECT_EQ(got, 0);
                continue;
              }
              double least = INFINITY;
              for (const auto& range : candidates(group, rule, symmetric))
                if (range.first < 0 || range.second > 0)
                  least = std::min(least, loss_of(group, importance, range, symmetric, exponent));
              ASSERT_NEAR(got / least, 1, 2e-5) << "rule " << int(rule) << " symmetric " << symmetric << " exponent "
                                                << exponent << " weighted " << weighted << " row " << n;
            }
          }
        }
      }
    }
  }
}

TEST(Range, SquaredErrorIsTheOneOfRtn) {
  for (const bool symmetric : {true, false}) {
    const DenseWeight dense = random_dense(20, 300, DType::kFp16, 4);
    EXPECT_EQ(*quantize_range(dense, {.symmetric = symmetric}, {.exponent = 2}),
              *quantize_rtn(dense, {.symmetric = symmetric, .range_search = RangeSearch::kSquaredError}));
    EXPECT_EQ(*quantize_range(dense, {.symmetric = symmetric}, {.rule = RangeRule::kFull}),
              *quantize_rtn(dense, {.symmetric = symmetric}));
  }
}

TEST(Range, ImportanceLessensTheOutputsError) {
  const DenseWeight dense = random_dense(64, 256, DType::kFp32, 8);
  const LayerStatistics statistics = squares_only(correlated_statistics(256, 8));
  for (const RangeRule rule : {RangeRule::kShrink, RangeRule::kPercentile}) {
    const RangeOptions options{.rule = rule, .exponent = 2};
    const double weighted =
        *relative_output_error(dense, *quantize_range(dense, {}, options, &statistics), statistics, 0);
    EXPECT_LT(weighted, *relative_output_error(dense, *quantize_range(dense, {}, options), statistics, 0));
    EXPECT_LT(weighted, *relative_output_error(dense, *quantize_rtn(dense, {}), statistics, 0));
  }
}

TEST(Range, WrongRequests) {
  const DenseWeight dense = random_dense(4, 32, DType::kFp32, 5);
  const auto message = [&](const GridOptions& grid, const RangeOptions& options) {
    const Result<QuantizedWeight> result = quantize_range(dense, grid, options);
    return result ? std::string("accepted") : result.error().message;
  };
  EXPECT_THAT(message({.group_size = -16}, {}), HasSubstr("group_size"));
  EXPECT_THAT(message({}, {.exponent = 9}), HasSubstr("exponent"));
  EXPECT_THAT(message({}, {.exponent = NAN}), HasSubstr("exponent"));
  EXPECT_THAT(message({}, {.rule = static_cast<RangeRule>(9)}), HasSubstr("rule"));
  DenseWeight broken = dense;
  broken.values.set_bits(70, 0x7FC00000);
  EXPECT_THAT(quantize_range(broken, {}, {}).error().message, HasSubstr("values[2, 6]"));
  const DenseWeight huge = [] {
    DenseWeight weight = random_dense(4, 32, DType::kFp32, 5);
    weight.values.set_bits(40, 0x7F000000);
    return weight;
  }();
  EXPECT_THAT(quantize_range(huge, {.group_size = 16, .scale_dtype = DType::kFp16}, {}).error().message,
              HasSubstr("values[1, 0 .. 15]"));
}

}  // namespace
}  // namespace nybble
