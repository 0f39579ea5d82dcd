// Every quantizer over magnitudes from subnormal to overflow, dead inputs and Hessians that are singular, indefinite or
// zero: finite in gives finite out or an error that names the weight, never anything else.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "nybble/quantize.h"
#include "support/random.h"

namespace nybble {
namespace {

using testing::RandomStream;

constexpr int kCases = 100000;

struct Case {
  DenseWeight dense;
  LayerStatistics statistics;
  GridOptions grid;
  std::string text;
};

// Exponents of the numbers: now and then the ends of the types.
int exponent(const RandomStream& random, uint64_t at, DType dtype) {
  const int low = dtype == DType::kFp16 ? -24 : -149, high = dtype == DType::kFp16 ? 15 : 127;
  switch (random.below(at, 6)) {
    case 0:
      return low + static_cast<int>(random.below(at + 1, 8));
    case 1:
      return high - static_cast<int>(random.below(at + 1, 4));
    case 2:
      return low + static_cast<int>(random.below(at + 1, high - low + 1));
    default:
      return -8 + static_cast<int>(random.below(at + 1, 10));
  }
}

float number(const RandomStream& random, uint64_t at, int exponent) {
  return static_cast<float>(std::ldexp(2 * random.uniform(at) - 1, exponent));
}

DenseWeight weights(uint64_t seed) {
  const RandomStream random(seed, 1), shape(seed, 2);
  DenseWeight dense{.name = "robust"};
  dense.n = 1 + shape.below(0, 3);
  dense.k = 1 + shape.below(1, 40);
  const DType dtype = static_cast<DType>(shape.below(2, 3));
  const int first = exponent(shape, 3, dtype), second = exponent(shape, 5, dtype);
  const uint32_t pattern = shape.below(7, 6);
  std::vector<float> values(dense.n * dense.k);
  for (size_t i = 0; i < values.size(); ++i) {
    float x = number(random, i, first);
    if (pattern == 0) x = number(shape, 9, first);                                     // all equal
    if (pattern == 1 && i % 7 == 0) x = number(random, i, second);                     // two magnitudes
    if (pattern == 2) x = std::abs(x);                                                 // one sign
    if (pattern == 3 && i % 16 < 9) x = 0;                                             // zeros among them
    if (pattern == 4) x = i % 2 ? number(shape, 9, first) : -number(shape, 9, first);  // two numbers
    values[i] = x;
  }
  dense.values = FloatArray::from_floats(dtype, values);
  for (size_t i = 0; i < values.size(); ++i)  // rounding up to infinity is no finite input
    if (!std::isfinite(dense.values.at(i))) dense.values.set_bits(i, 0);
  return dense;
}

LayerStatistics statistics(uint64_t seed, int64_t k) {
  const RandomStream random(seed, 3), shape(seed, 4);
  LayerStatistics result{.layer = "robust", .k = k, .tokens = 1};
  const uint32_t pattern = shape.below(0, 8);
  const int size = std::min(60, std::max(-70, exponent(shape, 1, DType::kFp32) / 2));
  const int64_t tokens = pattern == 1 ? 1 + k / 4 : 2 * k + 1;  // too few: singular
  std::vector<double> hessian(k * k, 0);
  std::vector<double> x(k);
  for (int64_t t = 0; t < tokens && pattern != 2; ++t) {  // 2: zero
    for (int64_t i = 0; i < k; ++i) {
      x[i] = std::ldexp(2 * random.uniform(t * k + i) - 1, size);
      if (pattern == 3 && i % 3 == 0) x[i] = 0;                       // dead inputs
      if (pattern == 4 && i > 0) x[i] = x[i - 1] * (i % 2 ? 1 : -1);  // rank one
      if (pattern == 5 && i % 5 == 0) x[i] *= 0x1p20;                 // outliers
    }
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < k; ++j) hessian[i * k + j] += x[i] * x[j] / static_cast<double>(tokens);
  }
  if (pattern == 6)  // no Hessian: symmetric with a diagonal that is not negative
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < i; ++j)
        hessian[i * k + j] = hessian[j * k + i] = std::ldexp(2 * random.uniform(i * k + j) - 1, 2 * size + 2);
  constexpr double kMost = 3e38;
  for (const double h : hessian) result.hessian.push_back(static_cast<float>(std::clamp(h, -kMost, kMost)));
  if (pattern == 7)
    for (int64_t i = 0; i < k; ++i) result.hessian[i * k + i] *= 1 - 0x1p-20f;  // just below positive definite
  for (int64_t i = 0; i < k; ++i) result.mean_square.push_back(result.hessian[i * k + i]);
  if (shape.below(4, 4) == 0) result.hessian.clear();
  return result;
}

Case make(uint64_t seed) {
  const RandomStream shape(seed, 5);
  constexpr int kGroups[] = {16, 32, kPerColumn};
  Case c{.dense = weights(seed)};
  c.statistics = statistics(seed, c.dense.k);
  c.grid = {.group_size = kGroups[shape.below(0, 3)],
            .symmetric = shape.below(1, 2) == 0,
            .scale_dtype = static_cast<DType>(shape.below(2, 3)),
            .num_threads = 1};
  c.text = "seed " + std::to_string(seed) + " " + std::to_string(c.dense.n) + " x " + std::to_string(c.dense.k);
  return c;
}

// Either a weight whose every number is finite, or words.
class Judge {
 public:
  void look(const char* what, const Case& c, const Result<QuantizedWeight>& result) {
    if (!result) {
      ++errors_[what];
      EXPECT_NE(result.error().message.find("robust"), std::string::npos) << c.text << ": " << result.error().message;
      return;
    }
    ++weights_[what];
    const Result<void> valid = validate(*result);
    EXPECT_TRUE(valid) << what << " " << c.text << ": " << valid.error().message;
    for (const float value : dequantize(*result)) ASSERT_TRUE(std::isfinite(value)) << what << " " << c.text;
  }
  void expect_both() const {
    for (const auto& [what, count] : weights_) {
      EXPECT_GT(count, 1000) << what;
      ::testing::Test::RecordProperty(what, count);
    }
    EXPECT_EQ(weights_.size(), 6u);
    EXPECT_FALSE(errors_.empty());
  }

 private:
  std::map<std::string, int> weights_, errors_;
};

TEST(Robustness, FiniteInFiniteOutOrANamedError) {
  Judge judge;
  int fell_back = 0, retried = 0;
  for (uint64_t seed = 0; seed < kCases && !::testing::Test::HasFatalFailure(); ++seed) {
    Case c = make(seed);
    const RandomStream choice(seed, 6);
    ASSERT_TRUE(validate(c.statistics)) << c.text << validate(c.statistics).error().message;
    const RangeOptions range{.rule = static_cast<RangeRule>(choice.below(1, 3)),
                             .exponent = choice.below(2, 2) ? 2.4 : 2};
    switch (choice.below(0, 9)) {
      case 8:
        judge.look("rtn", c,
                   quantize_rtn(c.dense, {.group_size = c.grid.group_size,
                                          .symmetric = c.grid.symmetric,
                                          .range_search = static_cast<RangeSearch>(choice.below(3, 2)),
                                          .scale_dtype = c.grid.scale_dtype,
                                          .num_threads = 1}));
        break;
      case 0:
        judge.look("range", c, quantize_range(c.dense, c.grid, range, choice.below(3, 2) ? &c.statistics : nullptr));
        break;
      case 1:
        c.grid.symmetric = false;
        judge.look("hqq", c, quantize_hqq(c.dense, c.grid, {.round_zeros = choice.below(3, 2) == 0}));
        break;
      case 2: {
        const std::vector<const DenseWeight*> layers = {&c.dense};
        const Result<AwqScales> scales =
            search_awq_scales(layers, c.grid, {.steps = 4, .duo = choice.below(3, 2) == 0}, c.statistics);
        if (!scales) {
          judge.look("awq", c, scales.error());
          break;
        }
        for (const float s : scales->scales) ASSERT_TRUE(std::isfinite(s) && s > 0) << c.text;
        ASSERT_LE(scales->loss, scales->unscaled_loss) << c.text;
        const Result<DenseWeight> scaled = scale_columns(c.dense, scales->scales, 1);
        if (!scaled)
          judge.look("awq", c, scaled.error());
        else
          judge.look("awq", c, quantize_range(*scaled, c.grid, {.rule = RangeRule::kFull}));
        break;
      }
      case 3:
        judge.look("clip", c, quantize_clipped(c.dense, c.grid, 10, c.statistics));
        break;
      default: {
        const GptqOptions options{.act_order = static_cast<ActOrder>(choice.below(3, 3)),
                                  .static_groups = choice.below(4, 2) == 0,
                                  .range = range,
                                  .weighted_range = choice.below(5, 2) == 0,
                                  .damping = choice.below(6, 4) == 0 ? 0 : 0.01};
        Result<GptqResult> result = quantize_gptq(c.dense, c.grid, options, c.statistics);
        if (!result) {
          judge.look("gptq", c, result.error());
          break;
        }
        fell_back += result->fell_back;
        retried += result->damping_retries > 0;
        EXPECT_EQ(result->warnings.empty(),
                  !result->fell_back && result->damping_retries == 0 && result->dead_columns == 0);
        judge.look("gptq", c, std::move(result->weight));
      }
    }
  }
  judge.expect_both();
  EXPECT_GT(fell_back, 100);
  EXPECT_GT(retried, 100);
}

}  // namespace
}  // namespace nybble
