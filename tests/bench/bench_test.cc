// The parts of the measuring code: shapes, statistics, the check that a wrong result cannot pass, result files.
#include <gmock/gmock.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <set>

#include "bench/bench.h"
#include "bench/dense_cpu.h"
#include "bench/duty.h"
#include "bench/random_data.h"
#include "bench/result_check.h"
#include "bench/results.h"
#include "bench/shapes.h"
#include "reference/envelope.h"
#include "reference/gemm.h"

namespace nybble::bench {
namespace {

using testing::HasSubstr;

TEST(BenchSet, Is24ShapesTimes36TokenCounts) {
  const Result<ShapeSet> set = read_shape_set(NYBBLE_SOURCE_DIR "/bench/shapes.txt");
  ASSERT_TRUE(set) << set.error().message;
  std::set<std::pair<int64_t, int64_t>> shapes;
  for (const Shape& shape : set->shapes) {
    shapes.insert({shape.n, shape.k});
    EXPECT_FALSE(shape.name.empty());
  }
  EXPECT_EQ(shapes.size(), 24u);
  EXPECT_EQ(set->shapes.size(), 24u);
  EXPECT_EQ(set->ms.size(), 36u);
  EXPECT_TRUE(std::is_sorted(set->ms.begin(), set->ms.end()));
  EXPECT_EQ(set->ms.front(), 1);
  EXPECT_EQ(set->ms.back(), 8192);
}

TEST(Shapes, AreReadAndRefusedInWords) {
  const Result<std::vector<Shape>> shapes = parse_shapes("28672x4096,8192x8192");
  ASSERT_TRUE(shapes);
  EXPECT_EQ(*shapes, (std::vector<Shape>{{28672, 4096, ""}, {8192, 8192, ""}}));
  EXPECT_EQ(*parse_ms("1,16,4096"), (std::vector<int64_t>{1, 16, 4096}));
  for (const char* text :
       {"", "4096", "4096x", "x4096", "4096x0", "-1x4", "4096x4096,", "4096x4096x2", "99999999999x1"})
    EXPECT_EQ(parse_shapes(text).error().code, ErrorCode::kInvalidArgument) << text;
  for (const std::string& model : model_names()) EXPECT_EQ(model_shapes(model)->size(), 4u) << model;
  EXPECT_THAT(model_shapes("gpt-17").error().message, HasSubstr("llama3-8b"));
}

TEST(Statistics, QuantilesAreLinearBetweenNeighbours) {
  EXPECT_EQ(quantile({3}, 0.9), 3);
  EXPECT_EQ(quantile({4, 1, 3, 2, 5}, 0.5), 3);
  EXPECT_DOUBLE_EQ(quantile({0, 10}, 0.9), 9);
  const Timing timing = timing_of({10, 11, 12, 13, 14}, {1500, 1600});
  EXPECT_EQ(timing.us, 12);
  EXPECT_DOUBLE_EQ(timing.spread, (13.6 - 10.4) / 12);
  EXPECT_EQ(timing.sm_mhz, 1550);
}

TEST(Floor, IsMemoryForFewTokensAndMultiplicationsForMany) {
  const Problem few = *parse_problem("m1 n8192 k8192 bf16 g128");
  // Half a byte a code and a scale of two bytes for 128 of them, plus the header and the two vectors.
  EXPECT_NEAR(*floor_us(few), (8192.0 * 8192 * (0.5 + 2.0 / 128) + 256 + 2 * 2 * 8192) / (kFloorTbS * 1e6), 1e-9);
  const Problem many = *parse_problem("m8192 n8192 k8192 bf16 g128");
  EXPECT_DOUBLE_EQ(*floor_us(many), 2 * std::pow(8192.0, 3) / (kFloorTflopS * 1e6));
}

TEST(RandomWeight, IsValidNeverZeroAndCentred) {
  for (const ZeroKind zero : {ZeroKind::kNone, ZeroKind::kInt, ZeroKind::kFloat, ZeroKind::kOffset}) {
    const QuantizedWeight weight = random_weight(64, 320, {.zero_kind = zero, .group_size = 128}, 7);
    EXPECT_TRUE(validate(weight)) << validate(weight).error().message;
    double sum = 0;
    for (uint8_t code : weight.codes) sum += code;
    // The mean of 20480 codes of deviation 2.7 errs by 0.02; four times that.
    EXPECT_NEAR(sum / static_cast<double>(weight.codes.size()), 8, 0.08);
    EXPECT_EQ(random_weight(64, 320, {.zero_kind = zero, .group_size = 128}, 7), weight);
  }
}

TEST(TakeRows, KeepsEveryPartOfTheRow) {
  const QuantizedWeight weight = random_weight(40, 96, {.zero_kind = ZeroKind::kInt, .group_size = 32}, 3);
  const QuantizedWeight taken = take_rows(weight, {39, 0, 7});
  ASSERT_TRUE(validate(taken));
  const std::vector<float> all = dequantize(weight), some = dequantize(taken);
  for (int64_t k = 0; k < 96; ++k) {
    EXPECT_EQ(some[k], all[39 * 96 + k]);
    EXPECT_EQ(some[96 + k], all[k]);
    EXPECT_EQ(some[2 * 96 + k], all[7 * 96 + k]);
  }
}

// What a correct kernel gives passes; each of these faults does not.
class Check : public testing::Test {
 protected:
  static constexpr int64_t kM = 9, kN = 130, kK = 512;

  Check()
      : weight_(random_weight(kN, kK, {.group_size = 128}, 1)),
        act_(random_numbers(kM * kK, DType::kBf16, 1.0, 2)),
        check_(weight_, act_, kM, Numerics::kExactWeight) {}

  // The sampled tokens' rows of what the reference gives for this weight.
  FloatArray sampled_out(const QuantizedWeight& weight) const {
    FloatArray out{.dtype = DType::kBf16}, rows{.dtype = DType::kBf16};
    out.resize(kM * kN);
    reference_gemm({.weight = &weight, .m = kM, .act = act_.bytes.data(), .out = out.bytes.data()});
    for (int64_t token : check_.tokens())
      rows.bytes.insert(rows.bytes.end(), &out.bytes[token * kN * 2], &out.bytes[token * kN * 2] + kN * 2);
    return rows;
  }

  QuantizedWeight weight_;
  FloatArray act_;
  ResultCheck check_;
};

TEST_F(Check, TheRightResultPasses) { EXPECT_EQ(check_.judge(sampled_out(weight_)), ""); }

TEST_F(Check, SamplesTheEdges) {
  EXPECT_THAT(check_.tokens(), testing::IsSupersetOf(std::vector<int64_t>{0, 1, kM - 1}));
  EXPECT_THAT(check_.features(), testing::IsSupersetOf(std::vector<int64_t>{0, 63, 64, 127, kN - 1}));
}

TEST_F(Check, AnUnwrittenOutputIsFound) {
  FloatArray out = sampled_out(weight_);
  out.set_bits(kN - 1, 0xFFFF);
  EXPECT_THAT(check_.judge(out), HasSubstr("out[0, 129]"));
}

TEST_F(Check, ADroppedGroupIsFound) {
  QuantizedWeight wrong = weight_;
  for (int64_t n = 0; n < kN; ++n) std::fill_n(&wrong.codes[n * kK + kK - 128], 128, 8);
  EXPECT_NE(check_.judge(sampled_out(wrong)), "");
}

TEST_F(Check, ANeighboursScaleIsFound) {
  QuantizedWeight wrong = weight_;
  for (size_t i = 0; i + 1 < wrong.scales.size(); ++i) wrong.scales.set_bits(i, weight_.scales.bits_at(i + 1));
  EXPECT_NE(check_.judge(sampled_out(wrong)), "");
}

TEST_F(Check, TheDenseProductIsJudgedToo) {
  FloatArray rows = random_numbers(static_cast<int64_t>(check_.features().size()) * kK, DType::kBf16, 0.02, 5);
  const ResultCheck dense(kN, kK, rows, act_, kM);
  FloatArray out{.dtype = DType::kBf16};
  out.resize(dense.tokens().size() * kN);
  for (size_t t = 0; t < dense.tokens().size(); ++t)
    for (size_t f = 0; f < dense.features().size(); ++f) {
      double sum = 0;
      for (int64_t k = 0; k < kK; ++k)
        sum += static_cast<double>(act_.at(dense.tokens()[t] * kK + k)) * rows.at(f * kK + k);
      const FloatArray rounded = FloatArray::from_floats(DType::kBf16, std::vector<float>{static_cast<float>(sum)});
      out.set_bits(t * kN + dense.features()[f], rounded.bits_at(0));
    }
  EXPECT_EQ(dense.judge(out), "");
  out.set_bits(0, out.bits_at(0) ^ 0x40);
  EXPECT_NE(dense.judge(out), "");
}

TEST(Envelope, AllowsOneRoundingAndRefusesTwoUlps) {
  // 1.0 in bf16 has neighbours 1 + 2^-7 and 1 - 2^-8.
  EXPECT_DOUBLE_EQ(half_ulp(1.0, DType::kBf16), 0x1p-8);
  EXPECT_DOUBLE_EQ(half_ulp(1.0, DType::kFp16), 0x1p-11);
  EXPECT_DOUBLE_EQ(half_ulp(0x1p-20, DType::kFp16), 0x1p-25);  // subnormal: half of 2^-24
  EXPECT_TRUE(within_envelope(1.0, 1.0 + 0x1p-8, 1.0, 4096, DType::kBf16));
  EXPECT_FALSE(within_envelope(1.0, 1.0 + 0x1p-7, 1.0, 4096, DType::kBf16));
  EXPECT_FALSE(within_envelope(std::nan(""), 1.0, 1.0, 4096, DType::kBf16));
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_TRUE(within_envelope(infinity, 65519.0, 65519.0, 4096, DType::kFp16));
  EXPECT_FALSE(within_envelope(infinity, 60000.0, 60000.0, 4096, DType::kFp16));
  EXPECT_FALSE(within_envelope(-infinity, 70000.0, 70000.0, 4096, DType::kFp16));
}

TEST(DenseGemm, EqualsPlainLoopsOnIntegers) {
  if (!has_dense_gemm()) GTEST_SKIP() << "the CPU lacks AVX2";
  for (const auto& [m, n, k] : {std::tuple<int64_t, int64_t, int64_t>{1, 37, 65}, {5, 16, 8}, {33, 50, 129}}) {
    std::vector<float> act(m * k), weight(n * k), out(m * n, -1);
    for (size_t i = 0; i < act.size(); ++i) act[i] = static_cast<float>(i * 7 % 5) - 2;
    for (size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<float>(i * 11 % 7) - 3;
    dense_gemm(m, n, k, act.data(), weight.data(), out.data(), 3);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) {
        float sum = 0;
        for (int64_t l = 0; l < k; ++l) sum += act[i * k + l] * weight[j * k + l];
        ASSERT_EQ(out[i * n + j], sum) << i << " " << j;
      }
  }
}

TEST(Results, SurviveTheFile) {
  ResultFile file{.run = {.machine = "gpu",
                          .name = "NVIDIA H200",
                          .driver = "580.159",
                          .cuda = "13.0",
                          .commit = "abc",
                          .date = "2026-11-25T00:00:00Z",
                          .command = "nybble bench"}};
  Measurement measurement{
      .problem = *parse_problem("m1 n4096 k4096 bf16 g128"), .kernel = "some_kernel", .pdl = true, .floor_us = 1.84};
  measurement.ours = {.us = 3.28, .spread = 0.01, .sm_mhz = 1980.0};
  measurement.dense = Timing{.us = 13.4, .spread = 0.02, .sm_mhz = 1975.0};
  file.rows = rows_of(measurement, Duty::kIdle10, "cublas");
  ASSERT_EQ(file.rows.size(), 2u);
  EXPECT_EQ(file.rows[0].dense_us, 13.4);
  EXPECT_EQ(file.rows[1].us, 13.4);
  EXPECT_EQ(file.rows[1].problem, file.rows[0].problem);
  EXPECT_NE(file.rows[1].key(), file.rows[0].key());

  const std::string path = testing::TempDir() + "/nybble-results-" + std::to_string(getpid()) + ".json";
  ASSERT_TRUE(write_results(file, path));
  const Result<ResultFile> read = read_results(path);
  std::filesystem::remove(path);
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(to_json(*read), to_json(file));
  EXPECT_EQ(to_json(file)["floor"], (Json{{"tb_s", 4.73}, {"tflop_s", 860.0}}));
}

}  // namespace
}  // namespace nybble::bench
