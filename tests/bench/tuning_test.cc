// Tuning without a GPU: a bench that makes its timings up, the kernels that are tried, the file that comes out, and the
// quality of choices computed from it.
#include "bench/tuning.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "bench/choice_quality.h"
#include "bench/duty.h"
#include "dispatch/tuning_data.h"

namespace nybble::bench {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

// Each kernel takes ten times its place among those asked for, from the last; nothing is packed or run.
class FakeBench : public Bench {
 public:
  explicit FakeBench(Device device) : device_(std::move(device)) {}

  const Device& device() const override { return device_; }
  std::string dense_impl() const override { return ""; }
  std::string dense_note() const override { return ""; }

  Result<void> load(QuantizedWeight weight, DType act_dtype, int64_t max_m) override {
    loads.push_back({weight.n, weight.k});
    max_m_ = max_m;
    weight_ = std::move(weight);
    act_ = act_dtype;
    return {};
  }

  Result<Measurement> measure(int64_t, const MeasureOptions&) override {
    return Error{ErrorCode::kUnsupported, "tuning measures many at once"};
  }

  Result<std::vector<Measurement>> measure_each(int64_t m, const std::vector<std::string>& kernels,
                                                const MeasureOptions& options) override {
    EXPECT_LE(m, max_m_);
    duties.push_back(options.duty);
    if (m == broken_m) return Error{ErrorCode::kCuda, "the GPU is gone"};
    std::vector<Measurement> measured(kernels.size());
    for (size_t i = 0; i < kernels.size(); ++i) {
      measured[i].kernel = kernels[i];
      measured[i].ours = {.us = 10.0 * static_cast<double>(kernels.size() - i), .spread = 0.01};
      if (kernels[i] == wrong_kernel) measured[i].wrong = "out[0, 0] is 1; 2 is right";
    }
    return measured;
  }

  std::vector<Shape> loads;
  std::vector<Duty> duties;
  std::string wrong_kernel;
  int64_t broken_m = 0;

 private:
  Device device_;
  QuantizedWeight weight_;
  DType act_ = DType::kBf16;
  int64_t max_m_ = 0;
};

const RunInfo kRun{.machine = "gpu",
                   .name = "NVIDIA H200",
                   .driver = "580.159",
                   .cuda = "13.0",
                   .commit = "abc",
                   .date = "2026-11-25T00:00:00Z",
                   .command = "nybble tune"};
const Work kWork{.shapes = {{256, 512, ""}, {320, 512, ""}}, .ms = {4, 300}, .format = {.group_size = 128}};

const KernelChoice kAll{.top = 0, .within = 0};

TuneOptions with(const KernelChoice& choice) {
  TuneOptions options;
  options.choice = choice;
  return options;
}

Result<void> ignore(int64_t) { return {}; }

class Tuning : public testing::Test {
 protected:
  Tuning()
      : path_(testing::TempDir() + "/nybble-tuning-" + std::to_string(getpid()) + ".json"), bench_(Device::h200()) {}
  ~Tuning() override { std::filesystem::remove(path_); }

  std::string path_;
  FakeBench bench_;
};

TEST_F(Tuning, TriesTheKernelsOfTheLowestEstimates) {
  const Problem problem = *parse_problem("m4 n4096 k4096 bf16 g128");
  const Candidates all = candidates(problem, Device::h200(), kAll);
  ASSERT_GE(all.kernels.size(), 3u);
  EXPECT_TRUE(std::is_sorted(all.estimates_us.begin(), all.estimates_us.end()));
  const Candidates two = candidates(problem, Device::h200(), {.top = 2, .within = 0});
  ASSERT_EQ(two.kernels.size(), 2u);
  for (size_t i = 0; i < two.kernels.size(); ++i) EXPECT_EQ(two.kernels[i], all.kernels[i]);
  EXPECT_TRUE(candidates(*parse_problem("m4 n64 k64 fp32 g16"), Device::h200(), {}).kernels.empty());
}

TEST_F(Tuning, LeavesOutKernelsWhoseEstimatesAreFarOff) {
  const Problem problem = *parse_problem("m4 n4096 k4096 bf16 g128");
  const Candidates all = candidates(problem, Device::h200(), kAll);
  ASSERT_GE(all.kernels.size(), 3u);
  const double lowest = all.estimates_us[0];
  const auto up_to = [&](double us) {
    const auto end = std::find_if(all.estimates_us.begin(), all.estimates_us.end(), [&](double e) { return e > us; });
    return std::vector(all.kernels.begin(), all.kernels.begin() + (end - all.estimates_us.begin()));
  };
  const std::vector<std::string> nearest = up_to(lowest);  // estimates may be equal
  ASSERT_LT(nearest.size() + 1, all.kernels.size());
  // Just as far as the next one, and not quite so far.
  const double next = all.estimates_us[nearest.size()];
  for (const double share : {1 + 1e-12, 1 - 1e-12}) {
    const double within = share * next / lowest;
    const std::vector<std::string> expected = up_to(within * lowest);
    EXPECT_EQ(expected.size() > nearest.size(), share > 1);
    EXPECT_LT(expected.size(), all.kernels.size());
    EXPECT_EQ(candidates(problem, Device::h200(), {.top = 0, .within = within}).kernels, expected);
  }
  EXPECT_EQ(candidates(problem, Device::h200(), {.within = 1}).kernels, nearest);
}

TEST_F(Tuning, TriesKernelsOfSuchNamesOnly) {
  const Problem problem = *parse_problem("m4 n4096 k4096 bf16 g128");
  KernelChoice choice = kAll;
  base::MatchBudget budget;
  choice.names = *base::NamePattern::compile("gemm_.*t128x|dequantize", budget);
  const Candidates named = candidates(problem, Device::h200(), choice);
  ASSERT_GE(named.kernels.size(), 2u);
  EXPECT_LT(named.kernels.size(), candidates(problem, Device::h200(), kAll).kernels.size());
  for (const std::string& kernel : named.kernels)
    EXPECT_TRUE(kernel.starts_with("sm90_gemm_") || kernel.starts_with("sm90_dequantize_")) << kernel;
  // The lowest estimate is that among them, so that something is always tried.
  choice.within = 1;
  EXPECT_THAT(candidates(problem, Device::h200(), choice).kernels, ElementsAre(named.kernels[0]));

  choice.names = *base::NamePattern::compile("cpu_reference", budget);
  TuningFile file(kRun, bench_.device());
  const Result<TuneReport> report =
      tune(bench_, {{{256, 512, ""}}, {4}, kWork.format, kWork.act}, with(choice), file, ignore);
  ASSERT_TRUE(report) << report.error().message;
  ASSERT_THAT(report->refused, SizeIs(1));
  EXPECT_THAT(report->refused[0], HasSubstr("'m4 n256 k512 bf16 g128'"));
  EXPECT_THAT(report->refused[0], HasSubstr("'cpu_reference'"));
  EXPECT_EQ(file.size(), 0u);
}

TEST_F(Tuning, ATimeLimitLeavesTheRest) {
  TuningFile file(kRun, bench_.device());
  TuneOptions out_of_time;
  out_of_time.limit = TimeLimit(1e-9);
  const Result<TuneReport> report = tune(bench_, kWork, out_of_time, file, ignore);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->left, 4);
  EXPECT_EQ(report->measured, 0);
  EXPECT_THAT(bench_.loads, SizeIs(0));
  const Result<TuneReport> rest = tune(bench_, kWork, {}, file, ignore);
  ASSERT_TRUE(rest) << rest.error().message;
  EXPECT_EQ(rest->left, 0);
  EXPECT_EQ(rest->measured, 4);
}

TEST_F(Tuning, MeasuresEveryProblemOnceAndLoadsEveryShapeOnce) {
  TuningFile file(kRun, bench_.device());
  std::vector<int64_t> counts;
  const Result<TuneReport> report = tune(bench_, kWork, with(kAll), file, [&](int64_t done) -> Result<void> {
    counts.push_back(done);
    return {};
  });
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->measured, 4);
  EXPECT_THAT(counts, ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(bench_.loads, ElementsAre(Shape{256, 512, ""}, Shape{320, 512, ""}));
  EXPECT_THAT(bench_.duties, ElementsAre(Duty::kIdle10, Duty::kBurst, Duty::kIdle10, Duty::kBurst));
  ASSERT_EQ(file.size(), 4u);
  const Json& row = file.rows()[0];
  EXPECT_EQ(row["problem"], "m4 n256 k512 bf16 g128");
  EXPECT_EQ(row["duty"], "idle10");
  // The last one asked for was the quickest.
  const Candidates asked = candidates(*parse_problem("m4 n256 k512 bf16 g128"), Device::h200(), kAll);
  ASSERT_THAT(row["kernels"], SizeIs(asked.kernels.size()));
  EXPECT_EQ(row["kernels"][0]["kernel"], asked.kernels.back());
  EXPECT_EQ(row["kernels"][0]["us"], 10.0);
  EXPECT_EQ(row["kernels"][0]["estimate_us"], rounded(asked.estimates_us.back()));
}

TEST_F(Tuning, ResumesWithWhatIsMissing) {
  TuningFile file(kRun, bench_.device());
  ASSERT_TRUE(tune(bench_, {kWork.shapes, {4}, kWork.format, kWork.act}, {}, file, ignore));
  ASSERT_TRUE(file.write(path_));
  Result<TuningFile> more = TuningFile::extend(path_, kRun, bench_.device());
  ASSERT_TRUE(more) << more.error().message;
  EXPECT_EQ(more->rows(), file.rows());
  const Result<TuneReport> report = tune(bench_, kWork, {}, *more, ignore);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->kept, 2);
  EXPECT_EQ(report->measured, 2);
  EXPECT_EQ(more->size(), 4u);
  ASSERT_TRUE(more->write(path_));
  const Result<TuningTable> table = load_tuning_table(path_);
  ASSERT_TRUE(table) << table.error().message;
  EXPECT_EQ(table->num_problems(), 4u);
  EXPECT_TRUE(table->made_for(bench_.device()));
}

TEST_F(Tuning, RefusesToMixRuns) {
  ASSERT_TRUE(TuningFile(kRun, bench_.device()).write(path_));
  RunInfo other = kRun;
  other.commit = "def";
  const Result<TuningFile> commit = TuningFile::extend(path_, other, bench_.device());
  ASSERT_FALSE(commit);
  EXPECT_EQ(commit.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(commit.error().message, HasSubstr("commit 'abc'"));
  EXPECT_TRUE(TuningFile::extend(path_, kRun, bench_.device()));
  const Result<TuningFile> kernels = TuningFile::extend(path_, kRun, bench_.device(), "stream");
  ASSERT_FALSE(kernels);
  EXPECT_EQ(kernels.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(kernels.error().message, HasSubstr("of all names, this run is to try \"stream\""));
  ASSERT_TRUE(TuningFile(kRun, bench_.device(), "stream").write(path_));
  EXPECT_TRUE(TuningFile::extend(path_, kRun, bench_.device(), "stream"));
  EXPECT_FALSE(TuningFile::extend(path_, kRun, bench_.device()));
  Device h100 = Device::h200();
  h100.name = "NVIDIA H100";
  EXPECT_THAT(TuningFile::extend(path_, kRun, h100).error().message, HasSubstr("NVIDIA H200"));
  std::ofstream(path_) << "{\n\"schema\": 1}";
  EXPECT_EQ(TuningFile::extend(path_, kRun, bench_.device()).error().code, ErrorCode::kInvalidData);
}

TEST_F(Tuning, WrongResultsAreReportedAndLeftOut) {
  const Problem problem = *parse_problem("m4 n256 k512 bf16 g128");
  bench_.wrong_kernel = candidates(problem, Device::h200(), kAll).kernels.back();
  TuningFile file(kRun, bench_.device());
  const Result<TuneReport> report =
      tune(bench_, {{{256, 512, ""}}, {4}, kWork.format, kWork.act}, with(kAll), file, ignore);
  ASSERT_TRUE(report);
  ASSERT_THAT(report->wrong, SizeIs(1));
  EXPECT_THAT(report->wrong[0], HasSubstr(bench_.wrong_kernel));
  EXPECT_THAT(report->wrong[0], HasSubstr("2 is right"));
  for (const Json& kernel : file.rows()[0]["kernels"]) EXPECT_NE(kernel["kernel"], bench_.wrong_kernel);
}

TEST_F(Tuning, AnErrorLeavesWhatWasMeasured) {
  bench_.broken_m = 300;
  TuningFile file(kRun, bench_.device());
  const Result<TuneReport> report = tune(bench_, kWork, {}, file, ignore);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().message, "the GPU is gone");
  EXPECT_EQ(file.size(), 1u);
}

// Times things whose every replay takes what the table says, and counts how often each is asked for.
struct Script {
  std::vector<double> us;
  std::vector<int> asked = std::vector<int>(us.size());

  Result<std::vector<Timing>> time(Duty duty, int replays, double keep_within) {
    return time_in_turn(us.size(), duty, replays, keep_within, [this](size_t i) -> Result<Sample> {
      ++asked[i];
      return Sample{.us = us[i]};
    });
  }
};

TEST(TimeInTurn, SlowOnesGetTwoReplays) {
  Script script{.us = {20, 10, 11.5, 10.9}};
  const Result<std::vector<Timing>> timings = script.time(Duty::kIdle10, 5, 1.1);
  ASSERT_TRUE(timings);
  EXPECT_THAT(script.asked, ElementsAre(2, 5, 2, 5));
  for (size_t i = 0; i < script.us.size(); ++i) EXPECT_EQ((*timings)[i].us, script.us[i]);
  EXPECT_FALSE((*timings)[0].sm_mhz);
}

TEST(TimeInTurn, AllGetAllWhereNothingElseIsAsked) {
  Script script{.us = {20, 10}};
  ASSERT_TRUE(script.time(Duty::kBurst, 0, 0));
  EXPECT_THAT(script.asked, testing::Each(duty_cycle(Duty::kBurst).replays));
}

TEST(TimeInTurn, WithoutPausesTheFirstReplayDoesNotCount) {
  int asked = 0;
  const Result<std::vector<Timing>> timings = time_in_turn(1, Duty::kSustained, 3, 1.1, [&](size_t) -> Result<Sample> {
    return Sample{.us = asked++ == 0 ? 100.0 : 5.0, .sm_mhz = 1500};
  });
  ASSERT_TRUE(timings);
  EXPECT_EQ(asked, 4);
  EXPECT_EQ(timings->front().us, 5);
  EXPECT_EQ(timings->front().spread, 0);
  EXPECT_EQ(timings->front().sm_mhz, 1500);
}

TEST(ChoiceQuality, CountsWhatEachWayLoses) {
  // Two kernels that this build lacks, so that the estimates are those given. The model prefers `a`, which takes 1.5
  // times as long as `b` wherever n is 1024, and is right elsewhere.
  auto data = std::make_shared<TuningData>();
  data->device = "NVIDIA H200";
  for (const int64_t n : {1024, 65536})
    for (const int64_t m : {16, 20}) {
      const TunedFormat format{DType::kBf16, DType::kBf16, ZeroKind::kNone, 128};
      ASSERT_TRUE(data->add(format.problem(m, n, 4096), "a", n == 1024 ? 15 : 10, 10));
      ASSERT_TRUE(data->add(format.problem(m, n, 4096), "b", n == 1024 ? 10 : 15, 11));
    }
  const std::vector<FormatQuality> qualities = judge_choices(TuningTable(data));
  ASSERT_THAT(qualities, SizeIs(1));
  EXPECT_EQ(qualities[0].format, "bf16 g128");
  EXPECT_EQ(qualities[0].problems, 4);
  EXPECT_EQ(qualities[0].foreign, 2u);
  const auto way = [&](const std::string& name) {
    for (const ChoiceQuality& one : qualities[0].ways)
      if (one.choice == name) return one;
    ADD_FAILURE() << name;
    return ChoiceQuality{};
  };
  const ChoiceQuality model = way("the cost model alone");
  EXPECT_NEAR(model.geomean, std::sqrt(1.5), 1e-12);
  EXPECT_DOUBLE_EQ(model.worst, 1.5);
  EXPECT_EQ(model.over_3, 2);
  EXPECT_EQ(model.over_10, 2);
  EXPECT_EQ(model.chosen, "a");
  EXPECT_EQ(model.best, "b");
  EXPECT_EQ(way("with this table").worst, 1);
  EXPECT_EQ(way("with this table, but for the problem").worst, 1);  // the neighbouring m tells
  EXPECT_DOUBLE_EQ(way("with this table, but for the shape").worst, 1.5);
}

}  // namespace
}  // namespace nybble::bench
