// HQQ: the paper's iteration once more, its objective against round to nearest, and the ends of its options.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "nybble/quantize.h"
#include "support/dense.h"

namespace nybble {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using testing::random_dense;

DenseWeight dense_of(const std::vector<float>& values) {
  DenseWeight dense{.name = "layer", .n = 1, .k = static_cast<int64_t>(values.size())};
  dense.values = FloatArray::from_floats(DType::kFp32, values);
  return dense;
}

double objective(const DenseWeight& dense, const QuantizedWeight& weight, double p) {
  const std::vector<float> values = dequantize(weight);
  double sum = 0;
  for (size_t i = 0; i < values.size(); ++i) sum += std::pow(std::abs(double{values[i]} - dense.values.at(i)), p);
  return sum;
}

// 0 .. 15 and a half: a shift of the zero point by half a step makes it exact.
TEST(Hqq, FindsAHalfZeroPoint) {
  std::vector<float> values;
  for (int i = 0; i < 16; ++i) values.push_back(static_cast<float>(i) - 7.5f);
  const QuantizedWeight weight =
      *quantize_hqq(dense_of(values), {.group_size = 16, .symmetric = false, .scale_dtype = DType::kFp32}, {});
  EXPECT_EQ(weight.zero_kind, ZeroKind::kFloat);
  EXPECT_EQ(weight.scales.at(0), 1);
  EXPECT_EQ(weight.float_zeros.at(0), 7.5f);
  EXPECT_EQ(dequantize(weight), values);
}

TEST(Hqq, ZeroAndEqualGroups) {
  const GridOptions grid{.group_size = 16, .symmetric = false};
  for (const bool round : {false, true}) {
    const QuantizedWeight zero = *quantize_hqq(dense_of(std::vector<float>(32, 0)), grid, {.round_zeros = round});
    EXPECT_THAT(dequantize(zero), Each(0));
    for (const float value : {0.3f, -0.3f, 1e-40f, 3e38f}) {
      const Result<QuantizedWeight> equal =
          quantize_hqq(dense_of(std::vector<float>(32, value)), grid, {.round_zeros = round});
      ASSERT_TRUE(equal) << equal.error().message;
      if (std::abs(value) < 1e-30f) continue;
      for (const float got : dequantize(*equal)) EXPECT_NEAR(got / value, 1, 0.13);  // a bf16 scale, a code or two off
    }
  }
}

// A grid of steps of 1 around 0, and one weight outside: by giving it up, every other becomes exact.
TEST(Hqq, WholeZerosLetAnOutlierGo) {
  std::vector<float> values;
  for (int repeat = 0; repeat < 8; ++repeat)
    for (int level = -5; level <= 10; ++level) values.push_back(static_cast<float>(level));
  values.back() = 10.75f;
  const GridOptions grid{.group_size = 128, .symmetric = false, .scale_dtype = DType::kFp32};
  EXPECT_GT(quantize_rtn(dense_of(values), {.group_size = 128, .symmetric = false, .scale_dtype = DType::kFp32})
                ->scales.at(0),
            1.04f);
  const QuantizedWeight weight = *quantize_hqq(dense_of(values), grid, {.round_zeros = true});
  EXPECT_NEAR(weight.scales.at(0), 1, 2e-3);
  EXPECT_EQ(weight.int_zeros[0], 5);
  for (int i = 0; i < 127; ++i) EXPECT_EQ(weight.codes[i], static_cast<int>(values[i]) + 5);
}

// The iteration of the paper for one group, with errors in steps and the zero point left unrounded, from a scale in
// fp32.
double best_objective(const std::vector<float>& weights, double p, int iterations) {
  const auto [low, high] = std::minmax_element(weights.begin(), weights.end());
  const double scale = static_cast<float>((double{*high} - *low) / 15);
  double zero = -*low / scale, beta = 10, best = INFINITY;
  for (int i = 0; i <= iterations; ++i, beta *= 1.01) {
    double sum = 0, loss = 0;
    for (const float w : weights) {
      const double code = std::min(15.0, std::max(0.0, std::nearbyint(w / scale + zero)));
      const double error = w / scale - (code - zero), size = std::abs(error);
      loss += std::pow(size * scale, p);
      const double kept = size > 0 ? std::copysign(std::fmax(0, size - std::pow(size, p - 1) / beta), error) : 0;
      sum += code - (w / scale - kept);
    }
    if (loss >= best) break;
    best = loss;
    zero = sum / static_cast<double>(weights.size());
  }
  return best;
}

TEST(Hqq, IsNoWorseThanThePapersIterationAndRoundToNearest) {
  int better = 0, groups = 0;
  for (const int exponent : {-5, 0, 6}) {
    const DenseWeight dense = random_dense(30, 64, DType::kFp32, 50 + exponent, exponent);
    const GridOptions grid{.group_size = 64, .symmetric = false, .scale_dtype = DType::kFp32};
    const QuantizedWeight weight = *quantize_hqq(dense, grid, {});
    const QuantizedWeight rtn =
        *quantize_rtn(dense, {.group_size = 64, .symmetric = false, .scale_dtype = DType::kFp32});
    const std::vector<float> got = dequantize(weight), plain = dequantize(rtn);
    for (int64_t n = 0; n < dense.n; ++n) {
      std::vector<float> row;
      double loss = 0, plain_loss = 0;
      for (int64_t i = 0; i < 64; ++i) {
        row.push_back(dense.values.at(n * 64 + i));
        loss += std::pow(std::abs(double{got[n * 64 + i]} - row.back()), 0.7);
        plain_loss += std::pow(std::abs(double{plain[n * 64 + i]} - row.back()), 0.7);
      }
      ++groups;
      // The zero point rounded to fp32 and the product rounded to fp32 are all that differs.
      EXPECT_LE(loss, plain_loss * (1 + 1e-4));
      EXPECT_LE(loss, best_objective(row, 0.7, 20) * (1 + 1e-4));
      better += loss < 0.99 * plain_loss;
    }
  }
  EXPECT_GT(better, groups / 2);
}

TEST(Hqq, IntegerZerosAreNoWorseThanRoundToNearest) {
  for (const int group_size : {16, 48, kPerColumn}) {
    const DenseWeight dense = random_dense(40, 200, DType::kBf16, 7);
    const QuantizedWeight weight =
        *quantize_hqq(dense, {.group_size = group_size, .symmetric = false}, {.round_zeros = true});
    EXPECT_EQ(weight.zero_kind, ZeroKind::kInt);
    EXPECT_LE(*std::max_element(weight.int_zeros.begin(), weight.int_zeros.end()), 15);
    ASSERT_TRUE(validate(weight));
    const QuantizedWeight rtn = *quantize_rtn(dense, {.group_size = group_size, .symmetric = false});
    EXPECT_LT(objective(dense, weight, 0.7), 0.99 * objective(dense, rtn, 0.7));
    // By a norm below 1 a narrow range looks good however much it clips; the search must not fall for it.
    EXPECT_LT(objective(dense, weight, 2), 1.05 * objective(dense, rtn, 2));
    // Group by group; the search's powers are good to 6 digits.
    const std::vector<float> got = dequantize(weight), plain = dequantize(rtn);
    for (int64_t n = 0; n < dense.n; ++n)
      for (int64_t begin = 0; begin < dense.k;) {
        const int64_t end = group_size == kPerColumn ? dense.k : std::min(dense.k, begin + group_size);
        double loss = 0, plain_loss = 0;
        for (; begin < end; ++begin) {
          const int64_t i = n * dense.k + begin;
          loss += std::pow(std::abs(double{got[i]} - dense.values.at(i)), 0.7);
          plain_loss += std::pow(std::abs(double{plain[i]} - dense.values.at(i)), 0.7);
        }
        EXPECT_LE(loss, plain_loss * (1 + 1e-5)) << n << " " << begin;
      }
  }
}

TEST(Hqq, ThreadsDoNotShow) {
  const DenseWeight dense = random_dense(50, 208, DType::kFp16, 3);
  EXPECT_EQ(*quantize_hqq(dense, {.group_size = 64, .symmetric = false, .num_threads = 1}, {}),
            *quantize_hqq(dense, {.group_size = 64, .symmetric = false, .num_threads = 5}, {}));
}

TEST(Hqq, WrongRequests) {
  const DenseWeight dense = random_dense(4, 32, DType::kFp32, 5);
  const auto message = [&](bool symmetric, const HqqOptions& options) {
    const Result<QuantizedWeight> result = quantize_hqq(dense, {.symmetric = symmetric}, options);
    return result ? std::string("accepted") : result.error().message;
  };
  EXPECT_THAT(message(true, {}), HasSubstr("asymmetric"));
  EXPECT_THAT(message(false, {.lp_norm = 0}), HasSubstr("lp_norm"));
  EXPECT_THAT(message(false, {.beta = -1}), HasSubstr("beta"));
  EXPECT_THAT(message(false, {.iterations = -1}), HasSubstr("iterations"));
}

}  // namespace
}  // namespace nybble
