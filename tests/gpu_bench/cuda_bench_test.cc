// Figures of the GPU bench are possible ones: right results, no faster than the floor, a clock that a chip can have.
#include <gtest/gtest.h>

#include "bench/bench.h"
#include "bench/random_data.h"
#include "bench/tuning.h"

namespace nybble::bench {
namespace {

TEST(CudaBench, MeasuresWhatIsPossible) {
  const Result<Device> device = Device::cuda();
  if (!device) GTEST_SKIP() << device.error().message;
  if (device->sm != 90) GTEST_SKIP() << "needs compute capability 9.0, " << device->name << " has another";
  Result<std::unique_ptr<Bench>> bench = open_bench(*device, "");
  ASSERT_TRUE(bench) << bench.error().message;
  for (const ZeroKind zero : {ZeroKind::kNone, ZeroKind::kInt}) {
    const WeightFormat format{.zero_kind = zero, .group_size = 128};
    const Result<void> loaded = (*bench)->load(random_weight(1536, 4096, format, 1), DType::kBf16, 300);
    ASSERT_TRUE(loaded) << loaded.error().message;
    for (const int64_t m : {1, 16, 300}) {
      for (const Duty duty : {Duty::kIdle10, Duty::kBurst, Duty::kSustained}) {
        const Result<Measurement> measured = (*bench)->measure(m, {.duty = duty, .replays = 2});
        ASSERT_TRUE(measured) << measured.error().message;
        SCOPED_TRACE(to_string(measured->problem) + " " + duty_name(duty) + " " + measured->kernel);
        EXPECT_EQ(measured->wrong, "");
        EXPECT_GT(measured->ours.us, measured->floor_us);
        EXPECT_LT(measured->ours.us, 1000);
        ASSERT_TRUE(measured->ours.sm_mhz);
        EXPECT_GT(*measured->ours.sm_mhz, 300);
        EXPECT_LT(*measured->ours.sm_mhz, 2500);
        EXPECT_EQ(measured->dense.has_value(), !(*bench)->dense_impl().empty());
      }
    }
  }
}

TEST(CudaBench, LaunchesWithoutOverlapWhenAsked) {
  const Result<Device> device = Device::cuda();
  if (!device) GTEST_SKIP() << device.error().message;
  if (device->sm != 90) GTEST_SKIP() << "needs compute capability 9.0, " << device->name << " has another";
  Result<std::unique_ptr<Bench>> bench = open_bench(*device, "");
  ASSERT_TRUE(bench) << bench.error().message;
  ASSERT_TRUE((*bench)->load(random_weight(1536, 4096, {.group_size = 128}, 1), DType::kBf16, 1));
  const Result<Measurement> measured = (*bench)->measure(1, {.plan = {.pdl = false}, .dense = false, .replays = 2});
  ASSERT_TRUE(measured) << measured.error().message;
  EXPECT_FALSE(measured->pdl);
  EXPECT_EQ(measured->wrong, "");
  EXPECT_FALSE(measured->dense);
}

TEST(CudaBench, KernelsTakeTurns) {
  const Result<Device> device = Device::cuda();
  if (!device) GTEST_SKIP() << device.error().message;
  if (device->sm != 90) GTEST_SKIP() << "needs compute capability 9.0, " << device->name << " has another";
  Result<std::unique_ptr<Bench>> bench = open_bench(*device, "");
  ASSERT_TRUE(bench) << bench.error().message;
  ASSERT_TRUE((*bench)->load(random_weight(1536, 4096, {.group_size = 128}, 1), DType::kBf16, 16));
  for (const int64_t m : {1, 16}) {
    // All of them, also those that need a workspace.
    const Candidates tried =
        candidates(Work{.format = {.group_size = 128}}.problem({1536, 4096, ""}, m), *device, {.top = 0, .within = 0});
    ASSERT_GT(tried.kernels.size(), 1u);
    const Result<std::vector<Measurement>> measured =
        (*bench)->measure_each(m, tried.kernels, {.replays = 4, .keep_within = 1.1});
    ASSERT_TRUE(measured) << measured.error().message;
    ASSERT_EQ(measured->size(), tried.kernels.size());
    for (size_t i = 0; i < measured->size(); ++i) {
      const Measurement& one = (*measured)[i];
      EXPECT_EQ(one.kernel, tried.kernels[i]);
      EXPECT_EQ(one.wrong, "") << one.kernel;
      EXPECT_GT(one.ours.us, one.floor_us) << one.kernel;
      EXPECT_LT(one.ours.us, 1000) << one.kernel;
    }
  }
}

}  // namespace
}  // namespace nybble::bench
