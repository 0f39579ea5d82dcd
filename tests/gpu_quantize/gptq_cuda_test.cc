// The GPU's GPTQ against the CPU's, bit for bit: codes, scales, zeros, orders, dampings, warnings and refusals.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "nybble/launch.h"
#include "nybble/quantize.h"
#include "support/calibration.h"
#include "support/dense.h"

namespace nybble {
namespace {

using testing::correlated_statistics;
using testing::random_dense;
using testing::squares_only;
using testing::statistics_of;
using testing::with_dead_inputs;

constexpr DType kDTypes[] = {DType::kBf16, DType::kFp16, DType::kFp32};
constexpr ActOrder kOrders[] = {ActOrder::kNone, ActOrder::kFull, ActOrder::kGroupAware};

class GptqCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const Result<Device> device = Device::cuda(); !device) GTEST_SKIP() << device.error().message;
  }
};

// Both backends' result; the CPU's is returned.
Result<GptqResult> expect_same(const DenseWeight& dense, const GridOptions& grid, const GptqOptions& options,
                               const LayerStatistics& statistics) {
  Result<GptqResult> cpu = quantize_gptq(dense, grid, options, statistics);
  const Result<GptqResult> gpu = quantize_gptq_cuda(dense, grid, options, statistics);
  EXPECT_EQ(cpu.ok(), gpu.ok()) << (cpu ? gpu.error().message : cpu.error().message);
  if (!cpu || !gpu) {
    if (!cpu && !gpu) {
      EXPECT_EQ(cpu.error().message, gpu.error().message);
    }
    return cpu;
  }
  int64_t codes = 0, scales = 0;
  for (size_t i = 0; i < cpu->weight.codes.size(); ++i) codes += cpu->weight.codes[i] != gpu->weight.codes[i] ? 1 : 0;
  for (size_t i = 0; i < cpu->weight.scales.size(); ++i)
    scales += cpu->weight.scales.bits_at(i) != gpu->weight.scales.bits_at(i) ? 1 : 0;
  EXPECT_TRUE(cpu->weight == gpu->weight)
      << codes << " codes and " << scales << " scales differ: n " << dense.n << " k " << dense.k << " group "
      << grid.group_size << " symmetric " << grid.symmetric << " order " << static_cast<int>(options.act_order)
      << " static " << options.static_groups << " range " << static_cast<int>(options.range.rule) << " exponent "
      << options.range.exponent;
  EXPECT_EQ(cpu->damping, gpu->damping);
  EXPECT_EQ(cpu->damping_retries, gpu->damping_retries);
  EXPECT_EQ(cpu->dead_columns, gpu->dead_columns);
  EXPECT_EQ(cpu->fell_back, gpu->fell_back);
  EXPECT_EQ(cpu->warnings, gpu->warnings);
  return cpu;
}

TEST_F(GptqCuda, EveryOrderOnEveryGrid) {
  struct Shape {
    int64_t n, k;
  };
  for (const auto& [n, k] : {Shape{3, 128}, {17, 300}, {2, 33}, {1, 1}, {5, 520}}) {
    const LayerStatistics statistics = with_dead_inputs(correlated_statistics(k, 3 * k));
    for (const int group : {kPerColumn, 16, 32, 48, 64, 128, 192})
      for (const bool symmetric : {true, false})
        for (const ActOrder order : kOrders)
          for (const bool fixed : {true, false}) {
            const Result<GptqResult> result = expect_same(random_dense(n, k, DType::kBf16, n + k + group),
                                                          {.group_size = group, .symmetric = symmetric},
                                                          {.act_order = order, .static_groups = fixed}, statistics);
            ASSERT_TRUE(result);
            ASSERT_FALSE(result->fell_back);
            if (HasFailure()) return;
          }
  }
}

TEST_F(GptqCuda, EveryRange) {
  const LayerStatistics statistics = with_dead_inputs(correlated_statistics(272, 8));
  for (const RangeRule rule : {RangeRule::kFull, RangeRule::kShrink, RangeRule::kPercentile})
    for (const double exponent : {1.0, 2.0, 2.4, 8.0})
      for (const bool weighted : {true, false})
        for (const int group : {kPerColumn, 16, 128, 144})
          for (const bool symmetric : {true, false})
            for (const bool fixed : {true, false}) {
              const GptqOptions options{.act_order = ActOrder::kFull,
                                        .static_groups = fixed,
                                        .range = {.rule = rule, .exponent = exponent},
                                        .weighted_range = weighted};
              ASSERT_TRUE(expect_same(random_dense(4, 272, DType::kFp32, group + 9),
                                      {.group_size = group, .symmetric = symmetric}, options, statistics));
              if (HasFailure()) return;
            }
}

TEST_F(GptqCuda, EveryType) {
  const LayerStatistics statistics = correlated_statistics(160, 4);
  for (const DType dtype : kDTypes)
    for (const DType scale_dtype : kDTypes)
      for (const bool symmetric : {true, false})
        ASSERT_TRUE(expect_same(random_dense(20, 160, dtype, 70),
                                {.group_size = 32, .symmetric = symmetric, .scale_dtype = scale_dtype}, {},
                                statistics));
}

// From weights that vanish in the scales' type to those that overflow it, refusals and falling back included.
TEST_F(GptqCuda, EveryMagnitude) {
  const LayerStatistics statistics = correlated_statistics(64, 6);
  int fell_back = 0, refused = 0;
  for (const DType dtype : kDTypes)
    for (const DType scale_dtype : kDTypes)
      for (const bool symmetric : {true, false})
        for (int exponent = -150; exponent <= 126; exponent += 6) {
          if (dtype == DType::kFp16 && (exponent < -26 || exponent > 11)) continue;
          const Result<GptqResult> result =
              expect_same(random_dense(4, 64, dtype, 200 + exponent, exponent),
                          {.group_size = 32, .symmetric = symmetric, .scale_dtype = scale_dtype},
                          {.range = {.rule = exponent % 4 == 0 ? RangeRule::kShrink : RangeRule::kFull}}, statistics);
          if (HasFailure()) return;
          refused += result ? 0 : 1;
          fell_back += result && result->fell_back ? 1 : 0;
        }
  EXPECT_GT(refused, 0);
  RecordProperty("refused", refused);
  RecordProperty("fell_back", fell_back);
}

TEST_F(GptqCuda, HessiansThatAreNone) {
  const DenseWeight dense = random_dense(6, 200, DType::kFp32, 5);
  const GridOptions grid{.group_size = 64};
  // Of fewer tokens than inputs, with and without damping.
  const LayerStatistics singular = correlated_statistics(200, 12, 20);
  for (const double damping : {0.0, 1e-12, 0.01}) {
    ASSERT_TRUE(expect_same(dense, grid, {.damping = damping}, singular));
    ASSERT_TRUE(expect_same(dense, grid, {.act_order = ActOrder::kFull, .damping = damping}, singular));
  }
  // Indefinite ones: damping grows, and falls back where that is not enough.
  const auto constant = [](float off_diagonal) {
    std::vector<float> hessian(200 * 200, off_diagonal);
    for (int i = 0; i < 200; ++i) hessian[i * 200 + i] = 1;
    return statistics_of(hessian);
  };
  const Result<GptqResult> damped = expect_same(dense, grid, {}, constant(-0.006f));
  ASSERT_TRUE(damped);
  EXPECT_GT(damped->damping_retries, 0);
  EXPECT_FALSE(damped->fell_back);
  const Result<GptqResult> hopeless = expect_same(dense, grid, {}, constant(-0.9f));
  ASSERT_TRUE(hopeless);
  EXPECT_TRUE(hopeless->fell_back);
  const Result<GptqResult> dead = expect_same(dense, grid, {}, statistics_of(std::vector<float>(200 * 200, 0)));
  ASSERT_TRUE(dead);
  EXPECT_TRUE(dead->fell_back);
  // Not quite symmetric, as sums in another order make it: the same one of the two is taken whatever the order.
  LayerStatistics uneven = correlated_statistics(200, 13);
  for (int64_t i = 0; i < 200; ++i)
    for (int64_t j = 0; j < i; ++j) uneven.hessian[i * 200 + j] *= 1 + 0x1p-12f;
  for (const ActOrder order : kOrders) ASSERT_TRUE(expect_same(dense, grid, {.act_order = order}, uneven));
}

TEST_F(GptqCuda, LargeWeights) {
  const LayerStatistics statistics = correlated_statistics(1430, 21, 90);
  for (const int group : {128, kPerColumn})
    for (const bool symmetric : {true, false}) {
      ASSERT_TRUE(expect_same(random_dense(611, 1430, DType::kBf16, 3), {.group_size = group, .symmetric = symmetric},
                              {.act_order = ActOrder::kGroupAware}, statistics));
      if (HasFailure()) return;
    }
}

// More rows than go into one slab.
TEST_F(GptqCuda, SeveralSlabs) {
  const LayerStatistics statistics = correlated_statistics(32, 5);
  ASSERT_TRUE(expect_same(random_dense(1'500'007, 32, DType::kBf16, 8), {.group_size = 16, .symmetric = false}, {},
                          statistics));
}

TEST_F(GptqCuda, RefusesInTheSameWords) {
  const LayerStatistics statistics = correlated_statistics(64, 5);
  DenseWeight dense = random_dense(4, 64, DType::kFp32, 5);
  EXPECT_FALSE(expect_same(dense, {}, {}, squares_only(statistics)));
  EXPECT_FALSE(expect_same(dense, {.group_size = 24}, {}, statistics));
  EXPECT_FALSE(expect_same(dense, {}, {.damping = -1}, statistics));
  EXPECT_FALSE(expect_same(dense, {}, {}, correlated_statistics(32, 5)));
  dense.values.set_bits(100, FloatArray::from_floats(DType::kFp32, std::vector<float>{NAN}).bits_at(0));
  EXPECT_FALSE(expect_same(dense, {}, {}, statistics));
}

TEST_F(GptqCuda, NothingGivesNothing) {
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{0, 64}, {4, 0}}) {
    DenseWeight dense;
    dense.n = n;
    dense.k = k;
    EXPECT_TRUE(expect_same(dense, {}, {}, k == 0 ? LayerStatistics{.layer = "none"} : correlated_statistics(k, 1)));
  }
}

}  // namespace
}  // namespace nybble
