// The GPU's AWQ against the CPU's, bit for bit: losses, ratios, scales, ranges, codes, output errors and refusals.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "calibration/llama_block.h"
#include "nybble/launch.h"
#include "nybble/quantize.h"
#include "nybble/scale_folds.h"
#include "support/calibration.h"
#include "support/dense.h"

namespace nybble {
namespace {

using testing::correlated_statistics;
using ::testing::HasSubstr;
using testing::make_dead;
using testing::random_dense;
using testing::squares_only;
using testing::with_dead_inputs;

constexpr DType kDTypes[] = {DType::kBf16, DType::kFp16, DType::kFp32};
using Layers = std::vector<const DenseWeight*>;

class AwqCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const Result<Device> device = Device::cuda(); !device) GTEST_SKIP() << device.error().message;
  }
};

std::string text_of(const GridOptions& grid, const LayerStatistics& statistics) {
  return "k " + std::to_string(statistics.k) + " group " + std::to_string(grid.group_size) + " symmetric " +
         std::to_string(grid.symmetric) + (statistics.hessian.empty() ? " mean squares" : " Hessian");
}

// True: both succeeded.
template <class T> bool both(const Result<T>& cpu, const Result<T>& gpu) {
  EXPECT_EQ(cpu.ok(), gpu.ok()) << (cpu ? gpu.error().message : cpu.error().message);
  if (cpu && gpu) return true;
  if (!cpu && !gpu) {
    EXPECT_EQ(cpu.error().message, gpu.error().message);
  }
  return false;
}

// Each compares both backends and returns the CPU's result.
Result<AwqScales> expect_same_scales(const Layers& layers, const GridOptions& grid, const AwqOptions& options,
                                     const LayerStatistics& statistics) {
  Result<AwqScales> cpu = search_awq_scales(layers, grid, options, statistics);
  const Result<AwqScales> gpu = search_awq_scales_cuda(layers, grid, options, statistics);
  if (!both(cpu, gpu)) return cpu;
  const auto bits = [](double x) { return std::bit_cast<uint64_t>(x); };
  EXPECT_EQ(bits(cpu->unscaled_loss), bits(gpu->unscaled_loss)) << text_of(grid, statistics);
  EXPECT_EQ(bits(cpu->loss), bits(gpu->loss)) << text_of(grid, statistics);
  EXPECT_EQ(cpu->ratio, gpu->ratio) << text_of(grid, statistics);
  EXPECT_EQ(cpu->scales, gpu->scales) << text_of(grid, statistics);
  return cpu;
}

Result<QuantizedWeight> expect_same_ranges(const DenseWeight& dense, const GridOptions& grid, int steps,
                                           const LayerStatistics& statistics) {
  Result<QuantizedWeight> cpu = quantize_clipped(dense, grid, steps, statistics);
  const Result<QuantizedWeight> gpu = quantize_clipped_cuda(dense, grid, steps, statistics);
  if (!both(cpu, gpu)) return cpu;
  int64_t codes = 0, scales = 0;
  for (size_t i = 0; i < cpu->codes.size(); ++i) codes += cpu->codes[i] != gpu->codes[i] ? 1 : 0;
  for (size_t i = 0; i < cpu->scales.size(); ++i) scales += cpu->scales.bits_at(i) != gpu->scales.bits_at(i) ? 1 : 0;
  EXPECT_TRUE(*cpu == *gpu) << codes << " codes and " << scales << " scales differ: n " << dense.n << " "
                            << text_of(grid, statistics);
  return cpu;
}

Result<double> expect_same_error(const DenseWeight& dense, const QuantizedWeight& weight,
                                 const LayerStatistics& statistics) {
  Result<double> cpu = relative_output_error(dense, weight, statistics, 0);
  const Result<double> gpu = relative_output_error_cuda(dense, weight, statistics);
  if (!both(cpu, gpu)) return cpu;
  EXPECT_EQ(std::bit_cast<uint64_t>(*cpu), std::bit_cast<uint64_t>(*gpu)) << "n " << dense.n << " k " << dense.k;
  return cpu;
}

struct Shape {
  int64_t n, k;
};

// With inputs that were always zero; where there are enough, a group of 16 of them: there every range costs nothing,
// and the widest is to win.
LayerStatistics with_a_dead_group(LayerStatistics statistics) {
  statistics = with_dead_inputs(std::move(statistics));
  for (int64_t input = 16; input < 32 && statistics.k > 100; ++input) make_dead(statistics, input);
  return statistics;
}

// Two layers of one input, all rows and some of them.
TEST_F(AwqCuda, EveryGridAndKindOfStatistics) {
  for (const auto& [n, k] : {Shape{3, 128}, {17, 300}, {2, 33}, {1, 1}, {37, 520}}) {
    const LayerStatistics hessian = with_a_dead_group(correlated_statistics(k, 3 * k));
    int scaled = 0;
    for (const LayerStatistics& statistics : {hessian, squares_only(hessian)})
      for (const int group : {kPerColumn, 16, 32, 48, 64, 128, 192})
        for (const bool symmetric : {true, false}) {
          const GridOptions grid{.group_size = group, .symmetric = symmetric};
          const DenseWeight a = random_dense(n, k, DType::kBf16, n + k + group);
          const DenseWeight b = random_dense(2 * n + 1, k, DType::kBf16, n + k + group + 1);
          for (const bool duo : {true, false})
            for (const int64_t rows : {0, 5}) {
              const auto found = expect_same_scales({&a, &b}, grid, {.duo = duo, .rows = rows}, statistics);
              ASSERT_TRUE(found);
              scaled += found->ratio >= 0 ? 1 : 0;
            }
          for (const int steps : {1, 10, 20}) {
            const Result<QuantizedWeight> weight = expect_same_ranges(b, grid, steps, statistics);
            ASSERT_TRUE(weight);
            ASSERT_TRUE(expect_same_error(b, *weight, statistics));
          }
          if (HasFailure()) return;
        }
    if (k > 100) {
      EXPECT_GT(scaled, 20) << "scales other than 1 are what this is about";
    }
  }
}

TEST_F(AwqCuda, EveryType) {
  const LayerStatistics hessian = with_a_dead_group(correlated_statistics(160, 4));
  for (const LayerStatistics& statistics : {hessian, squares_only(hessian)})
    for (const DType dtype : kDTypes)
      for (const DType scale_dtype : kDTypes)
        for (const bool symmetric : {true, false}) {
          const GridOptions grid{.group_size = 16, .symmetric = symmetric, .scale_dtype = scale_dtype};
          const DenseWeight dense = random_dense(20, 160, dtype, 70);
          ASSERT_TRUE(expect_same_scales({&dense}, grid, {}, statistics));
          const Result<QuantizedWeight> weight = expect_same_ranges(dense, grid, 10, statistics);
          ASSERT_TRUE(weight);
          ASSERT_TRUE(expect_same_error(dense, *weight, statistics));
          if (HasFailure()) return;
        }
}

// From weights that vanish in the scales' type to those that overflow it: losses that are infinite with and without
// scales, and refusals, included.
TEST_F(AwqCuda, EveryMagnitude) {
  const LayerStatistics hessian = correlated_statistics(64, 6);
  int unscaled_infinite = 0, rescued = 0, refused = 0;
  for (const LayerStatistics& statistics : {hessian, squares_only(hessian)})
    for (const DType dtype : kDTypes)
      for (const DType scale_dtype : kDTypes)
        for (const bool symmetric : {true, false})
          for (int exponent = -150; exponent <= 126; exponent += exponent >= 12 && exponent < 24 ? 1 : 6) {
            if (dtype == DType::kFp16 && (exponent < -26 || exponent > 11)) continue;
            const GridOptions grid{.group_size = 32, .symmetric = symmetric, .scale_dtype = scale_dtype};
            const DenseWeight dense = random_dense(40, 64, dtype, 200 + exponent, exponent);
            const Result<AwqScales> found = expect_same_scales({&dense}, grid, {.steps = 6}, statistics);
            if (!found) {  // infinite weights
              ++refused;
              continue;
            }
            unscaled_infinite += std::isinf(found->unscaled_loss) ? 1 : 0;
            rescued += std::isinf(found->unscaled_loss) && std::isfinite(found->loss) ? 1 : 0;
            const Result<QuantizedWeight> weight = expect_same_ranges(dense, grid, 10, statistics);
            if (weight) {
              ASSERT_TRUE(expect_same_error(dense, *weight, statistics));
            }
            refused += weight ? 0 : 1;
            if (HasFailure()) return;
          }
  EXPECT_GT(unscaled_infinite, 0);
  EXPECT_GT(refused, 0);
  RecordProperty("unscaled_infinite", unscaled_infinite);
  RecordProperty("rescued", rescued);
  RecordProperty("refused", refused);
}

// Every kind of weight that a quantizer makes: the error is that of what it stands for.
TEST_F(AwqCuda, OutputErrorsOfOtherQuantizers) {
  const LayerStatistics statistics = correlated_statistics(160, 9);
  const DenseWeight dense = random_dense(50, 160, DType::kBf16, 7);
  const Result<GptqResult> ordered =
      quantize_gptq(dense, {.group_size = 32}, {.act_order = ActOrder::kFull}, statistics);
  ASSERT_TRUE(ordered);
  ASSERT_FALSE(ordered->weight.k_order.empty());
  EXPECT_TRUE(expect_same_error(dense, ordered->weight, statistics));
  const Result<QuantizedWeight> hqq = quantize_hqq(dense, {.group_size = 32, .symmetric = false}, {});
  ASSERT_TRUE(hqq);
  EXPECT_TRUE(expect_same_error(dense, *hqq, statistics));
}

TEST_F(AwqCuda, LargeWeights) {
  const LayerStatistics statistics = correlated_statistics(1430, 21, 90);
  const DenseWeight a = random_dense(611, 1430, DType::kBf16, 3), b = random_dense(90, 1430, DType::kFp32, 4);
  for (const int group : {128, kPerColumn})
    for (const bool symmetric : {true, false}) {
      const GridOptions grid{.group_size = group, .symmetric = symmetric};
      ASSERT_TRUE(expect_same_scales({&a, &b}, grid, {}, statistics));
      const Result<QuantizedWeight> weight = expect_same_ranges(a, grid, 10, statistics);
      ASSERT_TRUE(weight);
      ASSERT_TRUE(expect_same_error(a, *weight, statistics));
      if (HasFailure()) return;
    }
}

// More rows than go into one slab, of each of the three.
TEST_F(AwqCuda, SeveralSlabs) {
  const LayerStatistics statistics = correlated_statistics(32, 5);
  const DenseWeight dense = random_dense(2'000'007, 32, DType::kBf16, 8);
  const GridOptions grid{.group_size = 16, .symmetric = false};
  ASSERT_TRUE(expect_same_scales({&dense}, grid, {.steps = 3}, statistics));
  const Result<QuantizedWeight> weight = expect_same_ranges(dense, grid, 10, statistics);
  ASSERT_TRUE(weight);
  ASSERT_TRUE(expect_same_error(dense, *weight, statistics));
}

// The first group of all whose scale overflows is named, though it lies in a later slab than the first, and others
// after it.
TEST_F(AwqCuda, OverflowInALaterSlab) {
  const LayerStatistics statistics = correlated_statistics(32, 5);
  DenseWeight dense = random_dense(600'007, 32, DType::kFp32, 8);
  const uint32_t large = FloatArray::from_floats(DType::kFp32, std::vector<float>{1e6f}).bits_at(0);
  for (const int64_t row : {600'006, 550'003, 500'001}) dense.values.set_bits(row * 32 + 17, large);
  const GridOptions grid{.group_size = 16, .scale_dtype = DType::kFp16};
  const Result<QuantizedWeight> refused = expect_same_ranges(dense, grid, 10, statistics);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, HasSubstr("values[500001, 16 .. 31]"));
}

// More candidates than fit beside one tile of rows.
TEST_F(AwqCuda, CandidatesInSeveralParts) {
  LayerStatistics statistics{.layer = "wide", .k = 20'000, .tokens = 1};
  for (int64_t i = 0; i < statistics.k; ++i) statistics.mean_square.push_back(i % 13 == 0 ? 64.0f : 1.0f + i % 7);
  const DenseWeight dense = random_dense(19, statistics.k, DType::kBf16, 8);
  ASSERT_TRUE(expect_same_scales({&dense}, {}, {.steps = 1000}, statistics));
}

// Places in a whole model, several layers at some of them.
TEST_F(AwqCuda, AWholeModel) {
  const testing::TempFolder folder;
  testing::LlamaModel::of_one_block().write(folder);
  const StatisticsFile statistics = testing::write_statistics(folder);
  const auto search = [&](DeviceKind device) {
    return ScaleFolds::search(folder / "model", {}, statistics, {.group_size = 16}, {}, {}, device);
  };
  const Result<ScaleFolds> cpu = search(DeviceKind::kCpu), gpu = search(DeviceKind::kCuda);
  ASSERT_TRUE(cpu) << cpu.error().message;
  ASSERT_TRUE(gpu) << gpu.error().message;
  ASSERT_EQ(cpu->folds().size(), 4u);
  ASSERT_EQ(gpu->folds().size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    const ScaleFold &a = cpu->folds()[i], &b = gpu->folds()[i];
    EXPECT_EQ(a.from, b.from);
    EXPECT_EQ(a.layers, b.layers);
    EXPECT_EQ(a.found.scales, b.found.scales) << a.from;
    EXPECT_EQ(a.found.loss, b.found.loss) << a.from;
  }
}

TEST_F(AwqCuda, RefusesInTheSameWords) {
  const LayerStatistics statistics = correlated_statistics(64, 5);
  DenseWeight dense = random_dense(4, 64, DType::kFp32, 5);
  const Result<QuantizedWeight> weight = quantize_rtn(dense, {.group_size = 16});
  ASSERT_TRUE(weight);
  EXPECT_FALSE(expect_same_scales({}, {}, {}, statistics));
  EXPECT_FALSE(expect_same_scales({&dense}, {.group_size = 24}, {}, statistics));
  EXPECT_FALSE(expect_same_scales({&dense}, {}, {.steps = 0}, statistics));
  EXPECT_FALSE(expect_same_scales({&dense}, {}, {}, correlated_statistics(32, 5)));
  EXPECT_FALSE(expect_same_ranges(dense, {}, 21, statistics));
  EXPECT_FALSE(expect_same_ranges(dense, {.group_size = 24}, 10, statistics));
  EXPECT_FALSE(expect_same_ranges(dense, {}, 10, correlated_statistics(32, 5)));
  EXPECT_FALSE(expect_same_error(dense, *weight, correlated_statistics(32, 5)));
  EXPECT_FALSE(expect_same_error(random_dense(5, 64, DType::kFp32, 5), *weight, statistics));
  dense.values.set_bits(100, FloatArray::from_floats(DType::kFp32, std::vector<float>{NAN}).bits_at(0));
  EXPECT_FALSE(expect_same_scales({&dense}, {}, {}, statistics));
  EXPECT_FALSE(expect_same_ranges(dense, {}, 10, statistics));
}

TEST_F(AwqCuda, NothingGivesNothing) {
  for (const auto& [n, k] : {Shape{0, 64}, {4, 0}}) {
    DenseWeight dense;
    dense.n = n;
    dense.k = k;
    const LayerStatistics statistics = k == 0 ? LayerStatistics{.layer = "none"} : correlated_statistics(k, 1);
    EXPECT_TRUE(expect_same_scales({&dense}, {}, {}, statistics));
    const Result<QuantizedWeight> weight = expect_same_ranges(dense, {}, 10, statistics);
    ASSERT_TRUE(weight);
    EXPECT_TRUE(expect_same_error(dense, *weight, statistics));
  }
}

}  // namespace
}  // namespace nybble
