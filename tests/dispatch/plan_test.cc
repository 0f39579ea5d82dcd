// make_plan, explain_kernels and launch's checks, without a GPU: plans can be made for an H200 that is not there.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <set>
#include <vector>

#include "nybble/gemm.h"
#include "nybble/pack.h"
#include "registry/registry.h"

namespace nybble {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

Problem problem_of(const char* text) {
  const Result<Problem> problem = parse_problem(text);
  EXPECT_TRUE(problem) << problem.error().message;
  return *problem;
}

// 2 x 32 codes of 8 + (n + k) % 3 with scales of one, packed.
PackedWeight small_weight(int64_t n = 2, int64_t k = 32) {
  QuantizedWeight weight{.name = "small", .n = n, .k = k, .group_size = 32};
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < k; ++j) weight.codes.push_back(static_cast<uint8_t>(8 + (i + j) % 3));
  weight.scales =
      FloatArray::from_floats(DType::kBf16, std::vector<float>(static_cast<size_t>(n * ((k + 31) / 32)), 1.0f));
  const Result<PackedWeight> packed = pack(weight);
  EXPECT_TRUE(packed) << packed.error().message;
  return *packed;
}

TEST(Registry, NamesAreUniqueAndTheReferenceIsLast) {
  std::set<std::string> names;
  for (const KernelEntry& entry : registry()) EXPECT_TRUE(names.insert(entry.name).second) << entry.name;
  EXPECT_EQ(registry().back().name, "cpu_reference");
}

TEST(Registry, EveryRowSaysWhyNotWithoutAGpu) {
  for (const KernelVerdict& verdict : explain_kernels(problem_of("m16 n4096 k4096 bf16 g128"), Device::cpu()))
    EXPECT_EQ(verdict.fits, verdict.reason.empty()) << verdict.kernel;
}

TEST(MakePlan, TablesAreRefusedWithTheWayOut) {
  const Problem problem = problem_of("m16 n4096 k4096 bf16 g16 sfp32 table");
  for (const Device& device : {Device::cpu(), Device::h200()}) {
    const Result<Plan> plan = make_plan(problem, device);
    ASSERT_FALSE(plan);
    EXPECT_EQ(plan.error().code, ErrorCode::kUnsupported);
    EXPECT_THAT(plan.error().message, HasSubstr("dequantize them"));
  }
}

TEST(MakePlan, EveryShapeAndFormatHasAGpuKernel) {
  for (const char* act : {"bf16", "fp16"})
    for (const char* format :
         {"g128", "g64", "col", "g32", "g48", "g128 zp", "g64 zp", "col zp", "g128 offset", "g128 fzp", "g128 order"})
      for (int m : {1, 8, 17, 100, 4096})
        for (const char* shape : {"n4096 k4096", "n130 k72", "n1 k8"}) {
          const Problem problem =
              problem_of(("m" + std::to_string(m) + " " + shape + " " + act + " " + format).c_str());
          const Result<Plan> plan = make_plan(problem, Device::h200());
          ASSERT_TRUE(plan) << plan.error().message;
        }
}

TEST(MakePlan, PicksTheFamilyForTheBatch) {
  const Device h200 = Device::h200();
  const std::string few = make_plan(problem_of("m1 n28672 k4096 bf16 g128"), h200)->kernel();
#if defined(NYBBLE_DEV_TILES)  // one tile of each family: the sweeping one may be the better of the two
  EXPECT_THAT(few, ::testing::AnyOf(StartsWith("sm90_stream_bf16_g128"), StartsWith("sm90_sweep_bf16_g128")));
#else
  EXPECT_THAT(few, StartsWith("sm90_stream_bf16_g128"));
#endif
  EXPECT_THAT(make_plan(problem_of("m4096 n28672 k4096 bf16 g128"), h200)->kernel(),
              StartsWith("sm90_gemm_bf16_g128_t"));
  EXPECT_THAT(make_plan(problem_of("m4096 n28672 k4096 fp16 col zp"), h200)->kernel(),
              StartsWith("sm90_gemm_fp16_col_zp_t"));
  EXPECT_THAT(make_plan(problem_of("m64 n4096 k4096 bf16 g128 order"), h200)->kernel(), HasSubstr("dequant"));
}

TEST(MakePlan, MoreTokensNeverLookCheaperByMuch) {
  const Device h200 = Device::h200();
  double slowest = 0;
  for (int m : {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192}) {
    double best = std::numeric_limits<double>::infinity();
    for (const KernelVerdict& verdict :
         explain_kernels(problem_of(("m" + std::to_string(m) + " n28672 k4096 bf16 g128").c_str()), h200))
      if (verdict.fits) best = std::min(best, verdict.estimated_us);
    EXPECT_GT(best, slowest * 0.95) << "m " << m;
    slowest = std::max(slowest, best);
  }
}

TEST(MakePlan, RefusalsCarryTheReasonAndTheRemedy) {
  const Result<Plan> forced = make_plan(problem_of("m4 n64 k128 bf16 g128 sfp16"), Device::h200(),
                                        {.kernel = "sm90_gemm_bf16_g128_t128x128x128_s5_c2k1_o1"});
  ASSERT_FALSE(forced);
  EXPECT_EQ(forced.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(forced.error().message, HasSubstr("PackOptions::scale_dtype = bf16"));

  const Result<Plan> unknown = make_plan(problem_of("m4 n64 k128 bf16 g128"), Device::h200(), {.kernel = "bananas"});
  ASSERT_FALSE(unknown);
  EXPECT_THAT(unknown.error().message, HasSubstr("bananas"));

  Device ampere = Device::h200();
  ampere.sm = 80;
  ampere.name = "NVIDIA A100";
  const Result<Plan> old = make_plan(problem_of("m4 n64 k128 bf16 g128"), ampere);
  ASSERT_FALSE(old);
  EXPECT_EQ(old.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(old.error().message, HasSubstr("NVIDIA A100 is 8.0"));

  const Result<Plan> group = make_plan(problem_of("m4 n64 k128 bf16 g24"), Device::cpu());
  ASSERT_FALSE(group);
  EXPECT_EQ(group.error().code, ErrorCode::kInvalidArgument);

  const Result<Plan> layout = make_plan(problem_of("m4 n64 k128 bf16 g128 layout=2"), Device::cpu());
  ASSERT_FALSE(layout);
  EXPECT_THAT(layout.error().message, HasSubstr("pack it again"));
}

TEST(MakePlan, NothingToComputeIsAPlan) {
  for (const char* text : {"m0 n64 k128 bf16 g128", "m4 n0 k128 bf16 g128"}) {
    const Result<Plan> plan = make_plan(problem_of(text), Device::cpu());
    ASSERT_TRUE(plan) << text;
    EXPECT_TRUE(launch(*plan, {})) << text;
  }
}

TEST(Launch, ComputesOnTheCpu) {
  const PackedWeight weight = small_weight();
  const Problem problem = problem_for(weight, 1, DType::kFp32);
  const std::vector<float> act(32, 1.0f);
  alignas(16) float out[2];
  for (const KernelVerdict& verdict : explain_kernels(problem, Device::cpu())) {
    if (!verdict.fits) continue;
    const Result<Plan> plan = make_plan(problem, Device::cpu(), {.kernel = verdict.kernel});
    ASSERT_TRUE(plan) << plan.error().message;
    out[0] = out[1] = std::numeric_limits<float>::quiet_NaN();
    std::vector<std::byte> workspace(plan->workspace_bytes());
    const Result<void> done = launch(*plan, {.act = act.data(),
                                             .weight = weight.data(),
                                             .out = out,
                                             .alpha = 2.0f,
                                             .workspace = workspace.data(),
                                             .workspace_bytes = workspace.size()});
    ASSERT_TRUE(done) << done.error().message;
    EXPECT_EQ(out[0], 2 * 31) << verdict.kernel;  // codes minus 8: 0 1 2 0 1 2 ... over 32
    EXPECT_EQ(out[1], 2 * 33) << verdict.kernel;
  }
}

TEST(Launch, ChecksItsArgumentsBeforeAnythingRuns) {
  const PackedWeight weight = small_weight(), other = small_weight(3, 32);
  Problem problem = problem_for(weight, 4, DType::kBf16);
  problem.aligned = true;
  problem.epilogue.bias = true;
  alignas(16) uint16_t act[4 * 40] = {}, out[4 * 8] = {}, bias[2] = {};
  const Result<Plan> plan = make_plan(problem, Device::cpu());
  ASSERT_TRUE(plan) << plan.error().message;
  std::vector<std::byte> workspace(plan->workspace_bytes() + 256);
  const auto aligned = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(workspace.data()) + 255) / 256 * 256);
  const LaunchArgs good{.act = act,
                        .ld_act = 40,
                        .weight = weight.data(),
                        .out = out,
                        .ld_out = 8,
                        .bias = bias,
                        .workspace = aligned,
                        .workspace_bytes = plan->workspace_bytes()};
  ASSERT_TRUE(launch(*plan, good));

  const auto refused = [&](auto change, const char* word) {
    LaunchArgs args = good;
    change(args);
    const Result<void> done = launch(*plan, args);
    ASSERT_FALSE(done) << word;
    EXPECT_EQ(done.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(done.error().message, HasSubstr(word));
  };
  refused([](LaunchArgs& a) { a.act = nullptr; }, "act is null");
  refused([](LaunchArgs& a) { a.out = nullptr; }, "out is null");
  refused([](LaunchArgs& a) { a.weight = nullptr; }, "weight is null");
  refused([](LaunchArgs& a) { a.bias = nullptr; }, "bias is null");
  refused([&](LaunchArgs& a) { a.residual = out; }, "residual is given");
  refused([&](LaunchArgs& a) { a.act = act + 1; }, "16-byte");
  refused([](LaunchArgs& a) { a.ld_act = 31; }, "ld_act is 31");
  refused([](LaunchArgs& a) { a.ld_act = 33; }, "16-byte");
  refused([](LaunchArgs& a) { a.ld_out = 1; }, "ld_out is 1");
  refused([&](LaunchArgs& a) { a.weight = other.data(); }, "3 x 32");
  refused([&](LaunchArgs& a) { a.weight = aligned; }, "no packed weight");
  refused([&](LaunchArgs& a) { a.weight = weight.data() + 8; }, "128 bytes");
}

TEST(PlanText, NamesProblemKernelAndReason) {
  const Result<Plan> plan =
      make_plan(problem_of("m16 n4096 k4096 bf16 g128"), Device::h200(), {.table = TuningTable()});
  ASSERT_TRUE(plan);
  EXPECT_THAT(to_string(*plan), HasSubstr("m16 n4096 k4096 bf16 g128 -> sm90_"));
  EXPECT_THAT(plan->why(), HasSubstr("lowest estimate"));
}

}  // namespace
}  // namespace nybble
