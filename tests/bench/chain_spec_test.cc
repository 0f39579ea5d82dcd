// What of a chain needs no GPU: which layers can follow each other, weights that keep the size of what they multiply,
// and the rows it leaves in a result file.
#include <gmock/gmock.h>

#include <cmath>

#include "bench/chain.h"
#include "bench/random_data.h"
#include "bench/results.h"

namespace nybble::bench {
namespace {

using testing::HasSubstr;

TEST(Chain, EveryModelOfTheTableIsOne) {
  for (const std::string& model : model_names()) {
    const Result<void> fine = check_chain({.name = model, .layers = *model_shapes(model)});
    EXPECT_TRUE(fine) << model << ": " << fine.error().message;
  }
}

TEST(Chain, RefusesLayersThatCannotFollowEachOther) {
  const auto refusal = [](const ChainSpec& spec) {
    const Result<void> fine = check_chain(spec);
    return fine ? std::string("accepted") : fine.error().message;
  };
  EXPECT_THAT(refusal({.layers = {{64, 64, ""}}}), HasSubstr("two layers"));
  EXPECT_THAT(refusal({.layers = {{64, 64, ""}, {64, 128, ""}}}), HasSubstr("64x128 reads 128 features"));
  EXPECT_THAT(refusal({.layers = {{64, 128, ""}, {64, 64, ""}}}), HasSubstr("64x128 reads 128 features"));
  EXPECT_THAT(refusal({.layers = {{68, 64, ""}, {64, 64, ""}}}), HasSubstr("multiples of 8"));
  EXPECT_THAT(refusal({.layers = {{64, 64, ""}, {64, 64, ""}}, .blocks = 0}), HasSubstr("one block"));
  EXPECT_EQ(refusal({.layers = {{128, 64, ""}, {64, 64, ""}}}), "accepted");
}

TEST(Chain, IsRefusedOnTheCpuInWords) {
  const Result<std::unique_ptr<Chain>> chain = open_chain(Device::cpu());
  ASSERT_FALSE(chain);
  EXPECT_EQ(chain.error().code, ErrorCode::kUnsupported);
}

// Through many products of one token: the mean square of the outputs stays that of the inputs.
TEST(NeutralScale, KeepsActivationsOfOneSize) {
  constexpr int64_t kN = 512;
  constexpr int kProducts = 40;
  for (const ZeroKind zero : {ZeroKind::kNone, ZeroKind::kInt, ZeroKind::kFloat, ZeroKind::kOffset}) {
    const WeightFormat format{.zero_kind = zero, .group_size = 128};
    std::vector<double> act(kN);
    const FloatArray begin = random_numbers(kN, DType::kFp32, 1.0, 3);
    for (int64_t i = 0; i < kN; ++i) act[i] = begin.at(i);
    for (int product = 0; product < kProducts; ++product) {
      const std::vector<float> weight = dequantize(random_weight(kN, kN, format, product, neutral_scale(kN, format)));
      std::vector<double> out(kN);
      for (int64_t n = 0; n < kN; ++n)
        for (int64_t k = 0; k < kN; ++k) out[n] += weight[n * kN + k] * act[k];
      act = out;
    }
    double square = 0;
    for (const double value : act) square += value * value / kN;
    // Each product's mean square errs by sqrt(2 / n) of itself, independently: after 40 products the logarithm's
    // deviation is 0.40. Three and a half of it.
    EXPECT_NEAR(std::log(square), 0, 1.4) << zero_kind_name(zero);
  }
}

TEST(ChainRow, SurvivesTheFile) {
  ChainMeasurement measurement;
  measurement.spec = {.name = "llama3-8b", .layers = *model_shapes("llama3-8b"), .format = {.group_size = 128}};
  measurement.m = 5;
  measurement.kernels = {"a", "b"};
  measurement.floor_us = 761.5;
  measurement.overlapped = {.us = 950.25, .spread = 0.01, .sm_mhz = 1800};
  measurement.plain = {.us = 1200.5, .spread = 0.02, .sm_mhz = 1801};
  const ResultFile file{.run = {.machine = "gpu", .name = "NVIDIA H200"},
                        .rows = {row_of(measurement, true, Duty::kIdle10), row_of(measurement, false, Duty::kIdle10)}};
  const std::string path = testing::TempDir() + "/chain_row.json";
  ASSERT_TRUE(write_results(file, path));
  const Result<ResultFile> read = read_results(path);
  ASSERT_TRUE(read) << read.error().message;
  ASSERT_EQ(read->rows.size(), 2u);
  EXPECT_EQ(read->rows[0].problem, "chain llama3-8b x32 m5 bf16 g128");
  EXPECT_FALSE(read->rows[0].n || read->rows[0].k);
  EXPECT_EQ(read->rows[0].us, 950.25);
  EXPECT_EQ(read->rows[1].us, 1200.5);
  EXPECT_EQ(read->rows[0].kernel, "a, b");
  EXPECT_NE(read->rows[0].key(), read->rows[1].key());
  EXPECT_EQ(to_json(*read), to_json(file));
}

TEST(ResultLog, AddsToAFileOfTheSameRunOnly) {
  const std::string path = testing::TempDir() + "/result_log.json";
  std::remove(path.c_str());
  const RunInfo run{.machine = "gpu", .name = "NVIDIA H200", .driver = "1", .commit = "abc"};
  const Row row{.problem = "m1 n64 k64 bf16 g128", .impl = "nybble", .m = 1, .n = 64, .k = 64, .duty = "idle10"};
  {
    Result<ResultLog> log = ResultLog::open(run, "", path);
    ASSERT_TRUE(log) << log.error().message;
    EXPECT_FALSE(log->has(row));
    ASSERT_TRUE(log->add({row}));
    EXPECT_TRUE(log->has(row));
  }
  const Result<ResultLog> again = ResultLog::open(run, "", path);
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_TRUE(again->has(row));
  EXPECT_EQ(again->file().rows.size(), 1u);
  RunInfo other = run;
  other.commit = "def";
  const Result<ResultLog> refused = ResultLog::open(other, "", path);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, HasSubstr("commit 'abc', this is 'def'"));
  const Result<ResultLog> overwritten = ResultLog::open(other, path, "");
  ASSERT_TRUE(overwritten);
  EXPECT_FALSE(overwritten->has(row));
}

}  // namespace
}  // namespace nybble::bench
