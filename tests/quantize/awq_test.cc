// AWQ: the loss and the chosen scales against plain loops, and clip search.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "nybble/launch.h"
#include "nybble/quantize.h"
#include "support/calibration.h"
#include "support/dense.h"

namespace nybble {
namespace {

using testing::correlated_statistics;
using ::testing::Each;
using ::testing::HasSubstr;
using testing::random_dense;
using testing::squares_only;
using testing::statistics_of;

DenseWeight scaled_by_hand(const DenseWeight& dense, const std::vector<float>& scales) {
  DenseWeight scaled = dense;
  std::vector<float> values;
  for (int64_t i = 0; i < dense.n * dense.k; ++i) values.push_back(dense.values.at(i) * scales[i % dense.k]);
  scaled.values = FloatArray::from_floats(DType::kFp32, values);
  return scaled;
}

// tr(dW H dW^T) in plain loops; dW is the error of round to nearest on scaled weights, divided by the scales again.
double loss_by_hand(const DenseWeight& dense, const GridOptions& grid, const LayerStatistics& statistics,
                    const std::vector<float>& scales) {
  const QuantizedWeight weight =
      *quantize_rtn(scaled_by_hand(dense, scales),
                    {.group_size = grid.group_size, .symmetric = grid.symmetric, .scale_dtype = grid.scale_dtype});
  const std::vector<float> values = dequantize(weight);
  double loss = 0;
  for (int64_t n = 0; n < dense.n; ++n) {
    std::vector<double> error;
    for (int64_t i = 0; i < dense.k; ++i)
      error.push_back(double{values[n * dense.k + i]} / scales[i] - dense.values.at(n * dense.k + i));
    for (int64_t i = 0; i < dense.k; ++i)
      for (int64_t j = 0; j < dense.k; ++j)
        loss += error[i] * error[j] *
                (statistics.hessian.empty() ? (i == j ? statistics.mean_square[i] : 0.0f)
                                            : statistics.hessian[i * dense.k + j]);
  }
  return loss;
}

TEST(Awq, TheLossIsThatOfTheOutput) {
  const DenseWeight a = random_dense(24, 96, DType::kBf16, 3), b = random_dense(9, 96, DType::kBf16, 4);
  const std::vector<const DenseWeight*> layers = {&a, &b};
  for (const bool hessian : {true, false}) {
    for (const bool symmetric : {true, false}) {
      LayerStatistics statistics = correlated_statistics(96, 5);
      if (!hessian) statistics = squares_only(statistics);
      const GridOptions grid{.group_size = 32, .symmetric = symmetric};
      const AwqScales found = *search_awq_scales(layers, grid, {}, statistics);
      const double loss =
          loss_by_hand(a, grid, statistics, found.scales) + loss_by_hand(b, grid, statistics, found.scales);
      const std::vector<float> ones(96, 1);
      const double unscaled = loss_by_hand(a, grid, statistics, ones) + loss_by_hand(b, grid, statistics, ones);
      EXPECT_NEAR(found.loss / loss, 1, 1e-4);
      EXPECT_NEAR(found.unscaled_loss / unscaled, 1, 1e-4);
      EXPECT_LT(found.loss, 0.9 * found.unscaled_loss);
      EXPECT_GE(found.ratio, 0);
    }
  }
}

// Two inputs, one 16 times as large: x^ratio with its largest and smallest reciprocal.
TEST(Awq, ScalesByHand) {
  LayerStatistics statistics{.layer = "two", .k = 2, .tokens = 1};
  statistics.mean_square = {256, 1};
  DenseWeight dense{.name = "layer", .n = 1, .k = 2};
  dense.values = FloatArray::from_floats(DType::kFp32, std::vector<float>{1.3f, 7.5f});
  const std::vector<const DenseWeight*> layers = {&dense};
  const GridOptions grid{.group_size = kPerColumn, .scale_dtype = DType::kFp32};
  const AwqScales found = *search_awq_scales(layers, grid, {.steps = 4, .duo = false}, statistics);
  // Ratio r: (16^(r/2), 16^(-r/2)); r = 0.5 is (2, 1/2), and the weights (2.6, 3.75): scale 1/2, codes 5 and 7, errors
  // -0.1 / 2 and -0.25 * 2.
  const std::vector<float> half = {2, 0.5f};
  ASSERT_GE(found.ratio, 0);
  const float root = std::pow(16.0f, static_cast<float>(found.ratio) / 2);
  EXPECT_NEAR(found.scales[0], root, 1e-5f * root);
  EXPECT_NEAR(found.scales[1], 1 / root, 1e-5f / root);
  for (int step = 0; step < 4; ++step) {
    const float other = std::pow(16.0f, static_cast<float>(step) / 8);
    EXPECT_LE(found.loss, loss_by_hand(dense, grid, statistics, {other, 1 / other}) * 1.0001);
  }
  EXPECT_NEAR(loss_by_hand(dense, grid, statistics, half), 256 * 0.05 * 0.05 + 0.5 * 0.5, 1e-4);
}

TEST(Awq, ScaledWeightsAndStatisticsKeepTheLoss) {
  const DenseWeight dense = random_dense(12, 64, DType::kFp32, 3);
  const LayerStatistics statistics = correlated_statistics(64, 5);
  const std::vector<const DenseWeight*> layers = {&dense};
  const AwqScales found = *search_awq_scales(layers, {.group_size = 32}, {}, statistics);
  const DenseWeight scaled = *scale_columns(dense, found.scales, 0);
  EXPECT_EQ(scaled.values, scaled_by_hand(dense, found.scales).values);
  const LayerStatistics input = *scale_input(statistics, found.scales);
  ASSERT_TRUE(validate(input));
  const double after = *relative_output_error(scaled, *quantize_rtn(scaled, {.group_size = 32}), input, 0);
  const double before = *relative_output_error(dense, *quantize_rtn(dense, {.group_size = 32}), statistics, 0);
  EXPECT_NEAR(after / before, found.loss / found.unscaled_loss, 1e-3);
}

TEST(Awq, DeadInputsKeepTheirScale) {
  LayerStatistics statistics = squares_only(correlated_statistics(64, 5));
  statistics.mean_square[9] = 0;
  const DenseWeight dense = random_dense(12, 64, DType::kFp32, 3);
  const std::vector<const DenseWeight*> layers = {&dense};
  const AwqScales found = *search_awq_scales(layers, {.group_size = 32}, {}, statistics);
  EXPECT_GE(found.ratio, 0);
  EXPECT_EQ(found.scales[9], 1);
  statistics.mean_square.assign(64, 0);
  const AwqScales none = *search_awq_scales(layers, {.group_size = 32}, {}, statistics);
  EXPECT_EQ(none.ratio, -1);
  EXPECT_THAT(none.scales, Each(1));
}

// 32 equal rows: any of them stands for all.
TEST(Awq, SomeRowsStandForAll) {
  DenseWeight dense = random_dense(1, 64, DType::kFp32, 3);
  const std::vector<std::byte> row = dense.values.bytes;
  for (int i = 1; i < 32; ++i) dense.values.bytes.insert(dense.values.bytes.end(), row.begin(), row.end());
  dense.n = 32;
  const std::vector<const DenseWeight*> layers = {&dense};
  const LayerStatistics statistics = correlated_statistics(64, 5);
  const AwqScales all = *search_awq_scales(layers, {.group_size = 32}, {}, statistics);
  for (const int64_t rows : {1, 3, 32, 100}) {
    const AwqScales some = *search_awq_scales(layers, {.group_size = 32}, {.rows = rows}, statistics);
    EXPECT_EQ(all.scales, some.scales);
    EXPECT_NEAR(some.loss / all.loss, 1, 1e-12);
  }
}

TEST(Awq, ThreadsDoNotShow) {
  const DenseWeight dense = random_dense(50, 96, DType::kBf16, 3);
  const std::vector<const DenseWeight*> layers = {&dense};
  const LayerStatistics statistics = correlated_statistics(96, 5);
  const AwqScales one = *search_awq_scales(layers, {.group_size = 32, .num_threads = 1}, {}, statistics);
  const AwqScales five = *search_awq_scales(layers, {.group_size = 32, .num_threads = 5}, {}, statistics);
  EXPECT_EQ(one.scales, five.scales);
  EXPECT_EQ(one.loss, five.loss);
  EXPECT_EQ(*quantize_clipped(dense, {.group_size = 32, .num_threads = 1}, 10, statistics),
            *quantize_clipped(dense, {.group_size = 32, .num_threads = 5}, 10, statistics));
}

TEST(Clip, EachGroupTakesItsBestRange) {
  const DenseWeight dense = random_dense(20, 96, DType::kBf16, 3);
  for (const bool hessian : {true, false}) {
    LayerStatistics statistics = correlated_statistics(96, 5);
    if (!hessian) statistics = squares_only(statistics);
    for (const bool symmetric : {true, false}) {
      const GridOptions grid{.group_size = 32, .symmetric = symmetric};
      const std::vector<float> got = dequantize(*quantize_clipped(dense, grid, 10, statistics));
      const auto loss = [&](const float* group, int64_t n, int64_t begin) {
        double sum = 0;
        for (int64_t i = begin; i < begin + 32; ++i)
          for (int64_t j = begin; j < begin + 32; ++j) {
            const double h = !hessian ? (i == j ? statistics.mean_square[i] : 0.0f) : statistics.hessian[i * 96 + j];
            sum += h * (double{group[i - begin]} - dense.values.at(n * 96 + i)) *
                   (double{group[j - begin]} - dense.values.at(n * 96 + j));
          }
        return sum;
      };
      for (int64_t n = 0; n < 20; ++n) {
        for (int64_t begin = 0; begin < 96; begin += 32) {
          double least = INFINITY;
          for (int step = 0; step < 10; ++step) {
            // The range of the group, shrunk: of the largest and smallest weight, clipped the same way.
            float min = 0, max = 0;
            for (int64_t i = begin; i < begin + 32; ++i) {
              min = std::min(min, dense.values.at(n * 96 + i));
              max = std::max(max, dense.values.at(n * 96 + i));
            }
            const float factor = static_cast<float>(20 - step) / 20.0f;
            std::vector<float> group;
            for (int64_t i = begin; i < begin + 32; ++i)
              group.push_back(std::clamp(dense.values.at(n * 96 + i),
                                         symmetric ? -std::max(-min, max) * factor : min * factor,
                                         symmetric ? std::max(-min, max) * factor : max * factor));
            DenseWeight clipped{.name = "group", .n = 1, .k = 32};
            clipped.values = FloatArray::from_floats(DType::kFp32, group);
            const QuantizedWeight q = *quantize_rtn(clipped, {.group_size = 32, .symmetric = symmetric});
            least = std::min(least, loss(dequantize(q).data(), n, begin));
          }
          const double mine = loss(got.data() + n * 96 + begin, n, begin);
          ASSERT_LE(mine, least * (1 + 1e-9) + 1e-30) << n << " " << begin;
        }
      }
    }
  }
}

TEST(Awq, WrongRequests) {
  const DenseWeight dense = random_dense(4, 32, DType::kFp32, 5);
  const std::vector<const DenseWeight*> layers = {&dense};
  EXPECT_THAT(search_awq_scales({}, {}, {}, correlated_statistics(32, 1)).error().message, HasSubstr("no layer"));
  EXPECT_THAT(search_awq_scales(layers, {}, {}, correlated_statistics(16, 1)).error().message, HasSubstr("k = 32"));
  EXPECT_THAT(search_awq_scales(layers, {}, {.steps = 0}, correlated_statistics(32, 1)).error().message,
              HasSubstr("steps"));
  EXPECT_THAT(quantize_clipped(dense, {}, 21, correlated_statistics(32, 1)).error().message, HasSubstr("1 to 20"));
  EXPECT_THAT(scale_columns(random_dense(4, 32, DType::kFp32, 5, 4), std::vector<float>(32, 3e38f), 0).error().message,
              HasSubstr("values["));
  EXPECT_THAT(scale_input(correlated_statistics(32, 1), std::vector<float>(32, 1e-30f)).error().message,
              HasSubstr("input 0"));
}

// Wrong requests are refused before the GPU is looked for, and what needs none of it is done.
TEST(Awq, WithoutAGpu) {
  if (Device::cuda()) GTEST_SKIP() << "this machine has a GPU; tests/gpu_quantize holds its results against the CPU's";
  const DenseWeight dense = random_dense(4, 32, DType::kFp32, 5);
  const std::vector<const DenseWeight*> layers = {&dense};
  const GridOptions grid{.group_size = 16};
  const LayerStatistics statistics = correlated_statistics(32, 5);
  const QuantizedWeight weight = *quantize_rtn(dense, {.group_size = 16});
  for (const Error& error : {search_awq_scales_cuda(layers, grid, {}, statistics).error(),
                             quantize_clipped_cuda(dense, grid, 10, statistics).error(),
                             relative_output_error_cuda(dense, weight, statistics).error()}) {
    EXPECT_EQ(error.code, ErrorCode::kUnsupported);
    EXPECT_THAT(error.message, HasSubstr("weight 'random' on the GPU"));
    EXPECT_THAT(error.message, HasSubstr("CPU"));
  }
  EXPECT_EQ(search_awq_scales_cuda(layers, grid, {.steps = 0}, statistics).error().message,
            search_awq_scales(layers, grid, {.steps = 0}, statistics).error().message);
  EXPECT_EQ(quantize_clipped_cuda(dense, grid, 0, statistics).error().message,
            quantize_clipped(dense, grid, 0, statistics).error().message);
  const LayerStatistics other = correlated_statistics(16, 5);
  EXPECT_EQ(relative_output_error_cuda(dense, weight, other).error().message,
            relative_output_error(dense, weight, other, 0).error().message);
  const Result<AwqScales> dead =
      search_awq_scales_cuda(layers, grid, {}, statistics_of(std::vector<float>(32 * 32, 0)));
  ASSERT_TRUE(dead) << dead.error().message;
  EXPECT_THAT(dead->scales, Each(1));
}

}  // namespace
}  // namespace nybble
