// Measured tables: how they are read and refused, what they make of an estimate, what make_plan makes of them. Kernels
// of the CPU stand for all: they are in every build.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <memory>

#include "base/error.h"
#include "dispatch/shipped_tables.h"
#include "dispatch/tuning_data.h"
#include "nybble/gemm.h"
#include "registry/registry.h"
#include "support/temp_folder.h"

namespace nybble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kThreads = 3;
const Device kCpu = Device::cpu(kThreads);

Problem problem_of(int64_t m, int64_t n = 256, int64_t k = 512, const char* format = "bf16 g128") {
  const Result<Problem> problem =
      parse_problem("m" + std::to_string(m) + " n" + std::to_string(n) + " k" + std::to_string(k) + " " + format);
  EXPECT_TRUE(problem) << problem.error().message;
  return *problem;
}

double estimate_of(const std::string& kernel, const Problem& problem) {
  for (const KernelEntry& entry : registry())
    if (entry.name == kernel) return entry.estimate_us(problem, kCpu);
  ADD_FAILURE() << "no kernel " << kernel;
  return 0;
}

// A table of this CPU in which the reference took `ratio` times its estimate on each of these problems.
TuningTable table_of(const std::vector<std::pair<Problem, double>>& ratios) {
  auto data = std::make_shared<TuningData>();
  data->device = tuned_device_name(kCpu);
  data->num_threads = kThreads;
  for (const auto& [problem, ratio] : ratios)
    EXPECT_TRUE(data->add(problem, "cpu_reference", ratio * estimate_of("cpu_reference", problem)));
  return TuningTable(std::move(data));
}

double correction(const TuningTable& table, const Problem& problem, LeaveOut leave_out = LeaveOut::kNothing,
                  const std::string& kernel = "cpu_reference") {
  return Expectations(table, problem, kCpu, leave_out).expect(kernel, 100).correction;
}

std::string table_text(const std::string& rows, const std::string& head = R"("gpu": "NVIDIA H200")") {
  return R"({"schema": 1, "kind": "tuning table", )" + head + ",\n\"rows\": [" + rows + "]}";
}

constexpr char kRow[] =
    R"({"problem": "m16 n256 k512 bf16 g128", "kernels": [{"kernel": "cpu_reference", "us": 7.5, "estimate_us": 5}]})";

TEST(Expectations, AnExactHitIsTheMeasuredTime) {
  const TuningTable table = table_of({{problem_of(8), 1.5}, {problem_of(16), 2}});
  const double us = 2 * estimate_of("cpu_reference", problem_of(16));
  const auto expected = Expectations(table, problem_of(16), kCpu).expect("cpu_reference", 77);
  EXPECT_TRUE(expected.measured);
  EXPECT_DOUBLE_EQ(expected.us, us);
}

TEST(Expectations, ATableWithoutMeasurementsChangesNothing) {
  const auto expected = Expectations({}, problem_of(16), kCpu).expect("cpu_reference", 77);
  EXPECT_FALSE(expected.measured);
  EXPECT_EQ(expected.us, 77);
  EXPECT_EQ(correction({}, problem_of(16)), 1);
}

TEST(Expectations, BetweenMeasuredTokensRatiosAreInterpolated) {
  // Both neighbours took twice their estimates; so does what lies between, but for the trust that distance costs.
  const TuningTable same = table_of({{problem_of(8), 2}, {problem_of(32), 2}});
  EXPECT_GT(correction(same, problem_of(16)), 1.6);
  EXPECT_LE(correction(same, problem_of(16)), 2);
  EXPECT_GT(correction(same, problem_of(9)), correction(same, problem_of(16)));
  // Straight over ln m: at the geometric mean of the neighbours, the geometric mean of their ratios (1/2 and 2 give 1).
  const TuningTable apart = table_of({{problem_of(8), 0.5}, {problem_of(32), 2}});
  EXPECT_NEAR(correction(apart, problem_of(16)), 1, 1e-9);
  EXPECT_LT(correction(apart, problem_of(10)), 0.8);
  EXPECT_GT(correction(apart, problem_of(26)), 1.25);
  // Beyond the last it stays level and fades.
  EXPECT_GT(correction(apart, problem_of(40)), correction(apart, problem_of(4000)));
  EXPECT_GT(correction(apart, problem_of(4000)), 1);
}

TEST(Expectations, OtherShapesCorrectLessTheFartherTheyAre) {
  const TuningTable table = table_of({{problem_of(16, 256, 512), 2}});
  double before = 2;
  for (const int64_t n : {320, 512, 2048, 65536}) {
    const double here = correction(table, problem_of(16, n, 512));
    EXPECT_LT(here, before) << n;
    EXPECT_GT(here, 1) << n;
    before = here;
  }
  EXPECT_GT(correction(table, problem_of(16, 320, 512)), 1.2);
  EXPECT_LT(correction(table, problem_of(16, 65536, 512)), 1.05);
}

TEST(Expectations, AKernelNeverMeasuredSharesTheBiasOfTheOthers) {
  const TuningTable table = table_of({{problem_of(16), 2}, {problem_of(16, 320), 2}});
  const double known = correction(table, problem_of(16, 288)),
               unknown = correction(table, problem_of(16, 288), LeaveOut::kNothing, "cpu_avx2_gemm");
  EXPECT_GT(unknown, 1.3);
  EXPECT_LT(unknown, known);
}

TEST(Expectations, FormatsDoNotMix) {
  const TuningTable table = table_of({{problem_of(16), 2}});
  for (const char* format : {"fp16 g128", "bf16 g64", "bf16 g128 zp", "bf16 col"})
    EXPECT_EQ(correction(table, problem_of(16, 256, 512, format)), 1) << format;
  // What costs every kernel alike is no other format.
  for (const char* format : {"bf16 g128 bias", "bf16 g128 residual", "bf16 out=fp32 g128"})
    EXPECT_EQ(correction(table, problem_of(16, 256, 512, format)),
              2 * estimate_of("cpu_reference", problem_of(16)) / 100)
        << format;
}

TEST(Expectations, WhatIsLeftOutDoesNotCount) {
  const TuningTable table = table_of({{problem_of(16), 2}, {problem_of(64), 3}, {problem_of(16, 320), 1}});
  EXPECT_FALSE(Expectations(table, problem_of(16), kCpu, LeaveOut::kProblem).expect("cpu_reference", 1).measured);
  EXPECT_EQ(correction(table, problem_of(16), LeaveOut::kProblem),
            correction(table_of({{problem_of(64), 3}, {problem_of(16, 320), 1}}), problem_of(16)));
  EXPECT_EQ(correction(table, problem_of(16), LeaveOut::kShape),
            correction(table_of({{problem_of(16, 320), 1}}), problem_of(16)));
}

TEST(MakePlanByTable, TakesTheMeasuredBest) {
  const Problem problem = problem_of(4);
  auto data = std::make_shared<TuningData>();
  data->device = tuned_device_name(kCpu);
  data->num_threads = kThreads;
  // Slower than any estimate, and still the choice: it is the best that was measured.
  ASSERT_TRUE(data->add(problem, "cpu_reference", 1e6));
  ASSERT_TRUE(data->add(problem, "a_kernel_of_tomorrow", 1));
  const TuningTable table(data);
  const Result<Plan> plan = make_plan(problem, kCpu, {.table = table});
  ASSERT_TRUE(plan) << plan.error().message;
  EXPECT_EQ(plan->kernel(), "cpu_reference");
  EXPECT_THAT(plan->why(), HasSubstr("measured 1000000.0 us"));
  for (const KernelVerdict& verdict : explain_kernels(problem, kCpu, {.table = table})) {
    EXPECT_EQ(verdict.measured_us.has_value(), verdict.kernel == "cpu_reference");
    EXPECT_EQ(verdict.expected_us > 0, verdict.fits);
  }
  const Result<Plan> alone = make_plan(problem, kCpu, {.table = TuningTable()});
  ASSERT_TRUE(alone);
  EXPECT_THAT(alone->why(), HasSubstr("lowest estimate"));
}

TEST(MakePlanByTable, ChoosesByCorrectedEstimatesAndSaysSo) {
  // At 8 tokens the reference was as quick as its estimate, which is far too slow to be chosen, and the quick kernels
  // took as much longer than theirs as it takes to lose.
  const Problem measured = problem_of(8), asked = problem_of(12);
  auto data = std::make_shared<TuningData>();
  data->device = tuned_device_name(kCpu);
  data->num_threads = kThreads;
  for (const KernelVerdict& verdict : explain_kernels(measured, kCpu)) {
    if (!verdict.fits) continue;
    ASSERT_TRUE(data->add(measured, verdict.kernel,
                          verdict.kernel == "cpu_reference" ? verdict.estimated_us : 1e9 * verdict.estimated_us));
  }
  const PlanOptions options{.table = TuningTable(data)};
  const Result<Plan> plan = make_plan(asked, kCpu, options);
  ASSERT_TRUE(plan) << plan.error().message;
  EXPECT_EQ(plan->kernel(), "cpu_reference");
  EXPECT_THAT(plan->why(), HasSubstr("lowest estimate, "));
  EXPECT_THAT(plan->why(), HasSubstr("before correction by measurements nearby"));
}

TEST(MakePlanByTable, RefusesTheTableOfAnotherDevice) {
  const Result<TuningTable> h200 = parse_tuning_table(table_text(kRow), "t.json");
  ASSERT_TRUE(h200) << h200.error().message;
  EXPECT_TRUE(h200->made_for(Device::h200()));
  EXPECT_TRUE(make_plan(problem_of(16), Device::h200(), {.table = *h200}));
  Device second = Device::h200();
  second.ordinal = 1;
  EXPECT_TRUE(h200->made_for(second));
  Device h100 = Device::h200();
  // Names as the CUDA runtime gives them: other chips, and slices of this one, that are as like as can be otherwise.
  for (const char* name :
       {"NVIDIA H200 NVL", "NVIDIA H200 MIG 1g.18gb", "NVIDIA GH200 480GB", "NVIDIA H100 80GB HBM3"}) {
    h100.name = name;
    EXPECT_FALSE(h200->made_for(h100)) << name;
  }
  for (const Device& device : {h100, kCpu}) {
    const Result<Plan> plan = make_plan(problem_of(16), device, {.table = *h200});
    ASSERT_FALSE(plan) << device.name;
    EXPECT_EQ(plan.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(plan.error().message, HasSubstr("NVIDIA H200"));
    // explain_kernels leaves it aside.
    for (const KernelVerdict& verdict : explain_kernels(problem_of(16), device, {.table = *h200}))
      EXPECT_EQ(verdict.expected_us, verdict.estimated_us);
  }
  EXPECT_FALSE(table_of({{problem_of(4), 1}}).made_for(Device::cpu(kThreads + 1)));
  EXPECT_TRUE(shipped_tuning_table(h100).empty());
}

// Whatever table says so: below eight tokens a kernel that starts its successor late must win by more than it costs
// that.
TEST(TuningTable, AKernelThatStartsItsSuccessorLateMustWinByMoreAtFewTokens) {
  constexpr char kLate[] = "sm90_sweep_bf16_g128_t8x64_w4x2_o2",
                 kOther[] = "sm90_stream_bf16_g128_t8x32_w1x16_s2_c1_o1of2";
  const auto chosen = [&](int64_t m, double late_us) {
    const Result<TuningTable> table = parse_tuning_table(
        table_text(fmt::format(
            R"({{"problem": "m{} n256 k512 bf16 g128", "kernels": [{{"kernel": "{}", "us": {}}}, {{"kernel": "{}", "us": 10}}]}})",
            m, kLate, late_us, kOther)),
        "t.json");
    EXPECT_TRUE(table) << table.error().message;
    const Result<Plan> plan = make_plan(problem_of(m), Device::h200(), {.table = *table});
    EXPECT_TRUE(plan) << plan.error().message;
    return *plan;
  };
  EXPECT_EQ(chosen(1, 9.7).kernel(), kOther);
  EXPECT_THAT(chosen(1, 9.7).why(), HasSubstr("measured 9.7 us counted as 10.2 for what it costs a chain"));
  EXPECT_EQ(chosen(7, 9.7).kernel(), kOther);
  EXPECT_EQ(chosen(7, 9.4).kernel(), kLate);
  EXPECT_EQ(chosen(8, 9.9).kernel(), kLate);
  for (const KernelVerdict& verdict : explain_kernels(problem_of(1), Device::h200()))
    if (verdict.fits)
      EXPECT_DOUBLE_EQ(verdict.counted_us, verdict.expected_us * (verdict.kernel == kLate ? 1.05 : 1))
          << verdict.kernel;
}

TEST(TuningTable, CountsWhatItHoldsAndWhatItCannotUse) {
  const Result<TuningTable> table = parse_tuning_table(
      table_text(
          R"({"problem": "m1 n8 k16 bf16 g16", "kernels": [{"kernel": "cpu_reference", "us": 1}, {"kernel": "b", "us": 2}]},
             {"problem": "m2 n8 k16 bf16 g16", "kernels": [{"kernel": "a", "us": 1}, {"kernel": "b", "us": 2}]})"),
      "t.json");
  ASSERT_TRUE(table) << table.error().message;
  EXPECT_EQ(table->device(), "NVIDIA H200");
  EXPECT_EQ(table->num_problems(), 2u);
  EXPECT_THAT(table->unknown_kernels(), ElementsAre("b", "a"));
  EXPECT_EQ(TuningTable().num_problems(), 0u);
}

TEST(TuningTable, RefusesWhatIsNone) {
  const std::string time = R"({"kernel": "x", "us": 1})";
  const auto row = [](const std::string& problem, const std::string& kernels) {
    return R"({"problem": ")" + problem + R"(", "kernels": [)" + kernels + "]}";
  };
  const std::pair<std::string, const char*> cases[] = {
      {"{\n\n\"schema\": }", "t.json: is not valid JSON at line 3"},
      {"[]", "no tuning table"},
      {R"({"schema": 1, "gpu": null, "rows": []})", "no tuning table"},
      {R"({"schema": 2, "kind": "tuning table"})", "schema '2'"},
      {R"({"kind": "tuning table"})", "schema none"},
      {table_text(kRow, R"("gpu": null)"), "neither a gpu nor a cpu"},
      {table_text(kRow, R"("cpu": "x", "threads": -1)"), "threads"},
      {R"({"schema": 1, "kind": "tuning table", "gpu": "x", "rows": {}})", "no list of rows"},
      {table_text(std::string(kRow) + ", 3"), "row 2: has no problem"},
      {table_text(row("m16 bananas", time)), "row 1: 'bananas'"},
      {table_text(row("m0 n8 k16 bf16 g16", time)), "nothing is to be computed"},
      {table_text(R"({"problem": "m1 n8 k16 bf16 g16"})"), "row 1: 'm1 n8 k16 bf16 g16': has no list of kernels"},
      {table_text(row("m1 n8 k16 bf16 g16", "7")), "names no kernel"},
      {table_text(row("m1 n8 k16 bf16 g16", R"({"kernel": "x"})")), "'x': has no us"},
      {table_text(row("m1 n8 k16 bf16 g16", R"({"kernel": "x", "us": 0})")), "its us is '0'"},
      {table_text(row("m1 n8 k16 bf16 g16", R"({"kernel": "x", "us": "1"})")), "its us is"},
      {table_text(row("m1 n8 k16 bf16 g16", R"({"kernel": "x", "us": 1e300})")), "its us is"},
      {table_text(row("m1 n8 k16 bf16 g16", R"({"kernel": "x", "us": 1, "estimate_us": -1})")), "its estimate_us is"},
      {table_text(row("m1 n8 k16 bf16 g16", time + "," + time)), "'x' has a time for this problem already"},
      {table_text(std::string(kRow) + "," + kRow), "row 2: 'm16 n256 k512 bf16 g128': 'cpu_reference' has a time"},
  };
  for (const auto& [text, words] : cases) {
    const Result<TuningTable> table = parse_tuning_table(text, "t.json");
    ASSERT_FALSE(table) << text;
    EXPECT_EQ(table.error().code, ErrorCode::kInvalidData) << text;
    EXPECT_THAT(table.error().message, HasSubstr(words));
    EXPECT_THAT(table.error().message, HasSubstr("t.json"));
  }
}

TEST(TuningTable, IsLoadedFromAFile) {
  const testing::TempFolder folder;
  const std::string path = folder / "table.json";
  ASSERT_EQ(load_tuning_table(path).error().code, ErrorCode::kIo);
  testing::write_text(path, table_text(kRow));
  const Result<TuningTable> table = load_tuning_table(path);
  ASSERT_TRUE(table) << table.error().message;
  EXPECT_EQ(table->num_problems(), 1u);
}

// scripts/ship_tables.py takes tunings of the GPU of this name only.
TEST(ShippedTable, IsThatOfTheGpuThatTheScriptNames) {
  std::ifstream script(std::string(NYBBLE_SOURCE_DIR) + "/scripts/ship_tables.py");
  const std::string text{std::istreambuf_iterator<char>(script), {}};
  EXPECT_THAT(text, HasSubstr("\"h200\": \"" + Device::h200().name + "\""));
  for (const TuningTable& table : read_shipped_tables())
    EXPECT_TRUE(table.empty() || table.device() == Device::h200().name) << table.device();
}

TEST(ShippedTable, NamesOnlyKernelsOfThisLibrary) {
#if defined(NYBBLE_DEV_TILES)
  GTEST_SKIP() << "a build of few tiles lacks the kernels that tables name";
#endif
  EXPECT_THAT(shipped_tuning_table(Device::h200()).unknown_kernels(), ::testing::IsEmpty());
}

}  // namespace
}  // namespace nybble
