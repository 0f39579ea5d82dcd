// GPTQ: cases by hand, a second implementation (optimal brain surgeon with an explicit inverse), an upstream one, and
// what happens with Hessians that are none.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "nybble/launch.h"
#include "nybble/quantize.h"
#include "support/calibration.h"
#include "support/dense.h"

namespace nybble {
namespace {

using testing::correlated_statistics;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::random_dense;
using testing::squares_only;
using testing::statistics_of;

DenseWeight dense_of(int64_t n, const std::vector<float>& values) {
  DenseWeight dense{.name = "layer", .n = n, .k = static_cast<int64_t>(values.size()) / n};
  dense.values = FloatArray::from_floats(DType::kFp32, values);
  return dense;
}

// Two inputs that are nearly one. The scale is 7.5 / 7.5 = 1.
TEST(Gptq, WorkedExample) {
  const DenseWeight dense = dense_of(1, {2.4f, -7.5f});
  const LayerStatistics together = statistics_of({1, 0.5f, 0.5f, 1});
  const GridOptions grid{.group_size = kPerColumn, .scale_dtype = DType::kFp32};
  const GptqResult result = *quantize_gptq(dense, grid, {.damping = 0}, together);
  // 2.4 becomes 2, an error of 0.4; the second column makes up for half of it: -7.5 + 0.2 = -7.3, -7.
  EXPECT_THAT(result.weight.codes, ElementsAre(8 + 2, 8 - 7));
  EXPECT_EQ(result.weight.scales.at(0), 1);
  EXPECT_EQ(result.damping_retries, 0);
  EXPECT_THAT(result.warnings, IsEmpty());
  // Inputs that have nothing to do with each other are rounded to nearest: -7.5 ties to -8.
  const GptqResult apart = *quantize_gptq(dense, grid, {.damping = 0}, statistics_of({1, 0, 0, 1}));
  EXPECT_THAT(apart.weight.codes, ElementsAre(8 + 2, 8 - 8));
  // The second column first: its tie becomes -8, an error of 0.5, and 2.4 + 0.25 * ... becomes 3.
  const GptqResult reversed =
      *quantize_gptq(dense, grid, {.act_order = ActOrder::kFull, .damping = 0}, statistics_of({1, 0.75f, 0.75f, 2}));
  EXPECT_THAT(reversed.weight.k_order, ElementsAre(1, 0));
  EXPECT_THAT(reversed.weight.codes, ElementsAre(8 + 3, 8 - 8));  // 2.4 + 0.5 * 0.75 / 1 = 2.775
}

// ---- optimal brain surgeon, as in the paper's equations 2 and 3: an explicit inverse from which columns are taken out

using Matrix = std::vector<std::vector<double>>;

Matrix inverse(Matrix a) {
  const size_t k = a.size();
  Matrix result(k, std::vector<double>(k, 0));
  for (size_t i = 0; i < k; ++i) result[i][i] = 1;
  for (size_t i = 0; i < k; ++i) {
    const double pivot = a[i][i];
    for (size_t j = 0; j < k; ++j) a[i][j] /= pivot, result[i][j] /= pivot;
    for (size_t r = 0; r < k; ++r) {
      if (r == i) continue;
      const double factor = a[r][i];
      for (size_t j = 0; j < k; ++j) a[r][j] -= factor * a[i][j], result[r][j] -= factor * result[i][j];
    }
  }
  return result;
}

struct Surgeon {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  std::vector<uint8_t> zeros;
};

// The scale of one group and the codes of a row by quantize_rtn().
QuantizedWeight rounded_group(const std::vector<double>& weights, const GridOptions& grid) {
  std::vector<float> values(weights.begin(), weights.end());
  return *quantize_rtn(dense_of(1, values),
                       {.group_size = kPerColumn, .symmetric = grid.symmetric, .scale_dtype = grid.scale_dtype});
}

// `position_group[p]`: the group of the p-th column that is done; `order[p]`: which one that is. With `fixed` the
// groups' scales come from the weights as they are.
Surgeon operate(const DenseWeight& dense, const LayerStatistics& statistics, const GridOptions& grid, double damping,
                const std::vector<int>& order, const std::vector<int>& position_group, bool fixed) {
  const int k = static_cast<int>(dense.k);
  const int groups = 1 + *std::max_element(position_group.begin(), position_group.end());
  Surgeon result{std::vector<uint8_t>(dense.n * k), std::vector<float>(dense.n * groups),
                 std::vector<uint8_t>(dense.n * groups, 8)};
  Matrix h(k, std::vector<double>(k));
  double mean = 0;
  for (int i = 0; i < k; ++i) mean += statistics.hessian[i * k + i] == 0 ? 1.0 : statistics.hessian[i * k + i];
  for (int i = 0; i < k; ++i)
    for (int j = 0; j < k; ++j) h[i][j] = statistics.hessian[order[i] * k + order[j]];
  for (int i = 0; i < k; ++i) h[i][i] = (h[i][i] == 0 ? 1 : h[i][i]) + damping * mean / k;
  const Matrix whole = inverse(h);
  for (int64_t n = 0; n < dense.n; ++n) {
    Matrix left = whole;
    std::vector<double> w(k);
    for (int p = 0; p < k; ++p)
      w[p] = statistics.hessian[order[p] * k + order[p]] == 0 ? 0 : double{dense.values.at(n * k + order[p])};
    const std::vector<double> original = w;
    std::vector<bool> found(groups, false);
    for (int p = 0; p < k; ++p) {
      const int group = position_group[p];
      if (!found[group]) {
        std::vector<double> members;
        for (int q = 0; q < k; ++q)
          if (position_group[q] == group) members.push_back(fixed ? original[q] : w[q]);
        const QuantizedWeight fit = rounded_group(members, grid);
        result.scales[n * groups + group] = fit.scales.at(0);
        if (!grid.symmetric) result.zeros[n * groups + group] = fit.int_zeros[0];
        found[group] = true;
      }
      const double scale = result.scales[n * groups + group];
      const int zero = result.zeros[n * groups + group];
      const double level = scale == 0 ? 0 : std::clamp(std::nearbyint(w[p] / scale), -double(zero), 15.0 - zero);
      result.codes[n * k + order[p]] = static_cast<uint8_t>(level + zero);
      const double push = (w[p] - level * scale) / left[p][p];
      for (int q = p + 1; q < k; ++q) w[q] -= push * left[p][q];
      const std::vector<double> taken = left[p];
      for (int a = p + 1; a < k; ++a)
        for (int b = p + 1; b < k; ++b) left[a][b] -= taken[a] * taken[b] / taken[p];
    }
  }
  return result;
}

struct Shape {
  int64_t n, k;
  int group_size;
};
constexpr Shape kShapes[] = {{5, 64, 16},   {3, 200, 48},          {4, 300, 128},
                             {3, 288, 192}, {18, 144, kPerColumn}, {2, 33, 32}};

int groups_of(const Shape& shape) {
  return shape.group_size == kPerColumn ? 1 : static_cast<int>((shape.k + shape.group_size - 1) / shape.group_size);
}

void expect_equal(const GptqResult& result, const Surgeon& expected, const Shape& shape) {
  EXPECT_EQ(result.weight.codes, expected.codes) << "k " << shape.k << " group " << shape.group_size;
  for (size_t i = 0; i < expected.scales.size(); ++i) ASSERT_EQ(result.weight.scales.at(i), expected.scales[i]);
  if (!result.weight.int_zeros.empty()) {
    EXPECT_EQ(result.weight.int_zeros, expected.zeros);
  }
  EXPECT_TRUE(validate(result.weight));
  EXPECT_FALSE(result.fell_back);
}

TEST(Gptq, IsOptimalBrainSurgery) {
  for (const Shape& shape : kShapes) {
    for (const bool symmetric : {true, false}) {
      const DenseWeight dense = random_dense(shape.n, shape.k, DType::kFp32, 100 + shape.k);
      LayerStatistics statistics = correlated_statistics(shape.k, shape.k);
      for (int64_t i = 0; i < shape.k; ++i)  // one dead input
        statistics.hessian[i * shape.k + 5] = statistics.hessian[5 * shape.k + i] = 0;
      statistics.mean_square[5] = 0;
      const GridOptions grid{.group_size = shape.group_size, .symmetric = symmetric};
      std::vector<int> order(shape.k), group(shape.k);
      std::iota(order.begin(), order.end(), 0);
      const int size = shape.group_size == kPerColumn ? static_cast<int>(shape.k) : shape.group_size;
      for (int p = 0; p < shape.k; ++p) group[p] = p / size;
      const auto run = [&](const GptqOptions& options) { return *quantize_gptq(dense, grid, options, statistics); };
      const auto larger = [&](int a, int b) { return statistics.mean_square[a] > statistics.mean_square[b]; };

      expect_equal(run({}), operate(dense, statistics, grid, 0.01, order, group, false), shape);
      EXPECT_EQ(run({}).dead_columns, 1);
      expect_equal(run({.static_groups = true}), operate(dense, statistics, grid, 0.01, order, group, true), shape);

      std::vector<int> sorted = order;
      std::stable_sort(sorted.begin(), sorted.end(), larger);
      const GptqResult full = run({.act_order = ActOrder::kFull});
      expect_equal(full, operate(dense, statistics, grid, 0.01, sorted, group, false), shape);
      EXPECT_TRUE(std::equal(sorted.begin(), sorted.end(), full.weight.k_order.begin(), full.weight.k_order.end()));

      std::vector<int> own(shape.k);
      for (int p = 0; p < shape.k; ++p) own[p] = sorted[p] / size;
      const GptqResult fixed = run({.act_order = ActOrder::kFull, .static_groups = true});
      expect_equal(fixed, operate(dense, statistics, grid, 0.01, sorted, own, true), shape);
      EXPECT_THAT(fixed.weight.k_order, IsEmpty());

      // Groups by their largest member; within a group the members by size.
      std::vector<int> ranked(groups_of(shape));
      std::iota(ranked.begin(), ranked.end(), 0);
      const auto top = [&](int g) {
        float most = 0;
        for (int i = g * size; i < std::min<int>(shape.k, (g + 1) * size); ++i)
          most = std::max(most, statistics.mean_square[i]);
        return most;
      };
      std::stable_sort(ranked.begin(), ranked.end(), [&](int a, int b) { return top(a) > top(b); });
      std::vector<int> aware, aware_group;
      for (const int g : ranked)
        for (const int i : sorted)
          if (i / size == g) aware.push_back(i), aware_group.push_back(g);
      const GptqResult grouped = run({.act_order = ActOrder::kGroupAware});
      expect_equal(grouped, operate(dense, statistics, grid, 0.01, aware, aware_group, false), shape);
      EXPECT_THAT(grouped.weight.k_order, IsEmpty());
    }
  }
}

// ---- against an upstream implementation: tests/data/make_gptq_reference.py says which

TEST(Gptq, AgreesWithUpstream) {
  std::ifstream file(NYBBLE_SOURCE_DIR "/tests/data/gptq_reference.json");
  ASSERT_TRUE(file) << "tests/data/gptq_reference.json is missing";
  const nlohmann::json reference = nlohmann::json::parse(file);
  const DenseWeight dense = dense_of(reference.at("n"), reference.at("weight").get<std::vector<float>>());
  const LayerStatistics statistics = statistics_of(reference.at("hessian").get<std::vector<float>>());
  ASSERT_EQ(dense.k, reference.at("k").get<int64_t>());
  ASSERT_EQ(reference.at("cases").size(), 6u);
  for (const nlohmann::json& c : reference.at("cases")) {
    const GridOptions grid{
        .group_size = c.at("group_size"), .symmetric = c.at("symmetric"), .scale_dtype = DType::kFp32};
    const GptqOptions options{.act_order = c.at("act_order") ? ActOrder::kFull : ActOrder::kNone,
                              .static_groups = true};
    const Result<GptqResult> result = quantize_gptq(dense, grid, options, statistics);
    ASSERT_TRUE(result) << result.error().message;
    const std::vector<float> scales = c.at("scales");
    ASSERT_EQ(result->weight.scales.size(), scales.size());
    for (size_t i = 0; i < scales.size(); ++i) EXPECT_NEAR(result->weight.scales.at(i) / scales[i], 1, 1e-6);
    const std::vector<uint8_t> codes = c.at("codes");
    EXPECT_EQ(result->weight.codes, codes) << "group " << grid.group_size << " order " << int(options.act_order);
    EXPECT_EQ(result->dead_columns, 1);
  }
}

TEST(Gptq, BeatsRoundToNearest) {
  for (const int group_size : {32, 64, 128, kPerColumn}) {
    for (const bool symmetric : {true, false}) {
      const DenseWeight dense = random_dense(40, 256, DType::kBf16, group_size + 7);
      const LayerStatistics statistics = correlated_statistics(256, group_size + 1);
      const GridOptions grid{.group_size = group_size, .symmetric = symmetric};
      const QuantizedWeight rtn = *quantize_rtn(dense, {.group_size = group_size, .symmetric = symmetric});
      const double plain = *relative_output_error(dense, rtn, statistics, 0);
      for (const ActOrder order : {ActOrder::kNone, ActOrder::kFull, ActOrder::kGroupAware}) {
        for (const bool fixed : {false, true}) {
          GptqOptions options{.act_order = order, .static_groups = fixed};
          const GptqResult result = *quantize_gptq(dense, grid, options, statistics);
          EXPECT_LT(*relative_output_error(dense, result.weight, statistics, 0), 0.8 * plain)
              << "group " << group_size << " order " << int(order) << " static " << fixed;
        }
      }
    }
  }
}

TEST(Gptq, ThreadsDoNotShow) {
  const DenseWeight dense = random_dense(50, 208, DType::kFp16, 3);
  const LayerStatistics statistics = correlated_statistics(208, 9);
  GridOptions grid{.group_size = 64, .symmetric = false, .scale_dtype = DType::kFp16, .num_threads = 1};
  const GptqOptions options{.act_order = ActOrder::kFull, .range = {}, .weighted_range = true};
  const GptqResult one = *quantize_gptq(dense, grid, options, statistics);
  grid.num_threads = 5;
  EXPECT_EQ(one.weight, quantize_gptq(dense, grid, options, statistics)->weight);
}

TEST(Gptq, DampingGrowsUntilTheHessianIsPositiveDefinite) {
  const DenseWeight dense = random_dense(4, 32, DType::kFp32, 5);
  // Eigenvalues 1 - c and 1 + 31 c with c = -0.05: the latter is -0.55.
  std::vector<float> hessian(32 * 32, -0.05f);
  for (int i = 0; i < 32; ++i) hessian[i * 32 + i] = 1;
  const GptqResult result = *quantize_gptq(dense, {.group_size = 16}, {}, statistics_of(hessian));
  EXPECT_EQ(result.damping_retries, 6);  // 0.02, 0.04, 0.08, 0.16, 0.32, 0.64
  EXPECT_DOUBLE_EQ(result.damping, 0.64);
  EXPECT_FALSE(result.fell_back);
  ASSERT_EQ(result.warnings.size(), 1u);
  EXPECT_THAT(result.warnings[0], HasSubstr("0.64"));
}

TEST(Gptq, FallsBackToWeightedRounding) {
  const DenseWeight dense = random_dense(4, 32, DType::kFp32, 5);
  std::vector<float> hessian(32 * 32, -0.9f);
  for (int i = 0; i < 32; ++i) hessian[i * 32 + i] = 1 + 0.1f * static_cast<float>(i);
  const LayerStatistics statistics = statistics_of(hessian);
  const GptqResult result = *quantize_gptq(dense, {.group_size = 16}, {}, statistics);
  EXPECT_TRUE(result.fell_back);
  EXPECT_EQ(result.weight, *quantize_range(dense, {.group_size = 16}, {}, &statistics));
  ASSERT_EQ(result.warnings.size(), 1u);
  EXPECT_THAT(result.warnings[0], HasSubstr("positive definite"));
  const GptqResult nothing =
      *quantize_gptq(dense, {.group_size = 16}, {}, statistics_of(std::vector<float>(32 * 32, 0)));
  EXPECT_TRUE(nothing.fell_back);
  EXPECT_THAT(nothing.warnings[0], HasSubstr("zero"));
}

TEST(Gptq, WrongRequests) {
  const DenseWeight dense = random_dense(4, 32, DType::kFp32, 5);
  const LayerStatistics statistics = correlated_statistics(32, 5);
  const auto message = [&](const GridOptions& grid, const GptqOptions& options, const LayerStatistics& s) {
    const Result<GptqResult> result = quantize_gptq(dense, grid, options, s);
    return result ? std::string("accepted") : result.error().message;
  };
  EXPECT_THAT(message({}, {}, squares_only(statistics)), HasSubstr("needs the Hessian"));
  EXPECT_THAT(message({}, {}, correlated_statistics(16, 5)), HasSubstr("k = 32"));
  EXPECT_THAT(message({.group_size = 24}, {}, statistics), HasSubstr("multiple of 16"));
  EXPECT_THAT(message({}, {.damping = -1}, statistics), HasSubstr("damping"));
  EXPECT_THAT(message({}, {.range = {.exponent = 0}}, statistics), HasSubstr("exponent"));
  LayerStatistics broken = statistics;
  broken.hessian[7] = NAN;
  EXPECT_THAT(message({}, {}, broken), HasSubstr("[0, 7]"));
  broken = statistics;
  broken.hessian[7] = 10 * broken.mean_square[0];
  EXPECT_THAT(message({}, {}, broken), HasSubstr("not symmetric"));
  broken = statistics;
  broken.mean_square[3] = -1;
  EXPECT_THAT(message({}, {}, broken), HasSubstr("input 3"));
}

// Wrong requests are refused before the GPU is looked for, and what needs none of it is done.
TEST(Gptq, WithoutAGpu) {
  if (Device::cuda()) GTEST_SKIP() << "this machine has a GPU; tests/gpu_quantize holds its results against the CPU's";
  const DenseWeight dense = random_dense(4, 32, DType::kFp32, 5);
  const LayerStatistics statistics = correlated_statistics(32, 5);
  const Result<GptqResult> result = quantize_gptq_cuda(dense, {}, {}, statistics);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(result.error().message, HasSubstr("weight 'random' on the GPU"));
  EXPECT_THAT(result.error().message, HasSubstr("CPU"));
  const Result<GptqResult> wrong = quantize_gptq_cuda(dense, {.group_size = 24}, {}, statistics);
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().message, quantize_gptq(dense, {.group_size = 24}, {}, statistics).error().message);
  const LayerStatistics dead = statistics_of(std::vector<float>(32 * 32, 0));
  const Result<GptqResult> rounded = quantize_gptq_cuda(dense, {.group_size = 16}, {}, dead);
  ASSERT_TRUE(rounded) << rounded.error().message;
  EXPECT_TRUE(rounded->fell_back);
}

}  // namespace
}  // namespace nybble
