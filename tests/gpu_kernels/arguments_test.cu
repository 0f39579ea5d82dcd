// Wrong requests to a CUDA plan: a typed error before anything runs, the output untouched, the context healthy after
// it.
#include <gtest/gtest.h>

#include <functional>

#include "gpu_kernels/case_lists.cuh"
#include "gpu_kernels/workbench.cuh"

namespace nybble::testing {
namespace {

class Arguments : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped()) bench_ = std::make_unique<Workbench>();
  }

  static void* shifted(const void* pointer, int bytes) {
    return const_cast<char*>(static_cast<const char*>(pointer)) + bytes;
  }

  // The bytes of out that are no longer poison, after everything enqueued has run.
  uint64_t written(const LaunchArgs& args) {
    auto* count = count_.reserve_as<unsigned long long>(1);
    CUDA_OK(cudaMemsetAsync(count, 0, 8, args.stream));
    const GuardedDeviceBuffer& out = bench_->out();
    device::count_other_bytes<<<16, 256, 0, args.stream>>>(static_cast<const unsigned char*>(out.data()),
                                                           static_cast<int64_t>(out.size_bytes()), kPoisonByte, count);
    uint64_t result = 0;
    CUDA_OK(cudaMemcpyAsync(&result, count, 8, cudaMemcpyDeviceToHost, args.stream));
    CUDA_OK(cudaStreamSynchronize(args.stream));
    return result;
  }

  std::unique_ptr<Workbench> bench_;
  DeviceScratch count_;
};

struct Fault {
  const char* name;
  ErrorCode code;
  const char* word;  // stands in the message
  std::function<void(LaunchArgs&)> spoil;
};

TEST_F(Arguments, BadOnesAreRefusedBeforeAnythingRuns) {
  std::map<std::string, bool> reached;
  int refused = 0;
  for (const FormatCase& format : format_cases()) {
    bench_->set_weight(136, 520, format.format, format.act, Data::kExact, uint64_t{60} << Arrangement::kBits, 33);
    for (const KernelEntry* row : gpu_rows()) {
      if (reached[row->name]) continue;
      for (int epilogue = 0; epilogue < 4; ++epilogue) {
        Problem problem = for_row(bench_->problem(7), *row);
        problem.epilogue = {.bias = (epilogue & 1) != 0, .residual = (epilogue & 2) != 0};
        if (!row->why_not(problem, gpu()).empty()) continue;
        reached[row->name] = true;
        const Result<Plan> plan = make_plan(problem, gpu(), {.kernel = row->name});
        ASSERT_TRUE(plan) << plan.error().message;
        const Case c = bench_->make_case(problem, *row, 0);
        const LaunchArgs good = bench_->prepare(c, plan->workspace_bytes());
        void* some = good.out;
        std::vector<Fault> faults = {
            {"act null", ErrorCode::kInvalidArgument, "act", [](LaunchArgs& a) { a.act = nullptr; }},
            {"out null", ErrorCode::kInvalidArgument, "out", [](LaunchArgs& a) { a.out = nullptr; }},
            {"weight null", ErrorCode::kInvalidArgument, "weight", [](LaunchArgs& a) { a.weight = nullptr; }},
            {"act off by an element", ErrorCode::kInvalidArgument, "act",
             [](LaunchArgs& a) { a.act = shifted(a.act, 2); }},
            {"act off by a byte", ErrorCode::kInvalidArgument, "act", [](LaunchArgs& a) { a.act = shifted(a.act, 1); }},
            {"out off by an element", ErrorCode::kInvalidArgument, "out",
             [](LaunchArgs& a) { a.out = shifted(a.out, 2); }},
            {"out off by a byte", ErrorCode::kInvalidArgument, "out", [](LaunchArgs& a) { a.out = shifted(a.out, 1); }},
            {"weight off by 64 bytes", ErrorCode::kInvalidArgument, "weight",
             [](LaunchArgs& a) { a.weight = shifted(a.weight, 64); }},
            {"ld_act below k", ErrorCode::kInvalidArgument, "ld_act", [](LaunchArgs& a) { a.ld_act = 512; }},
            {"ld_act negative", ErrorCode::kInvalidArgument, "ld_act", [](LaunchArgs& a) { a.ld_act = -520; }},
            {"ld_act not whole 16 bytes", ErrorCode::kInvalidArgument, "act", [](LaunchArgs& a) { a.ld_act = 525; }},
            {"ld_out below n", ErrorCode::kInvalidArgument, "ld_out", [](LaunchArgs& a) { a.ld_out = 128; }},
            {"ld_out negative", ErrorCode::kInvalidArgument, "ld_out", [](LaunchArgs& a) { a.ld_out = -136; }},
            {"ld_out not whole 16 bytes", ErrorCode::kInvalidArgument, "out", [](LaunchArgs& a) { a.ld_out = 139; }},
            {"alpha_device misaligned", ErrorCode::kInvalidArgument, "alpha_device",
             [some](LaunchArgs& a) { a.alpha_device = static_cast<const float*>(shifted(some, 2)); }},
        };
        if (problem.epilogue.bias) {
          faults.push_back({"bias null", ErrorCode::kInvalidArgument, "bias", [](LaunchArgs& a) { a.bias = nullptr; }});
          faults.push_back({"bias misaligned", ErrorCode::kInvalidArgument, "bias",
                            [](LaunchArgs& a) { a.bias = shifted(a.bias, 1); }});
        } else {
          faults.push_back(
              {"bias unasked", ErrorCode::kInvalidArgument, "bias", [some](LaunchArgs& a) { a.bias = some; }});
        }
        if (problem.epilogue.residual) {
          faults.push_back(
              {"residual null", ErrorCode::kInvalidArgument, "residual", [](LaunchArgs& a) { a.residual = nullptr; }});
          faults.push_back({"residual misaligned", ErrorCode::kInvalidArgument, "residual",
                            [](LaunchArgs& a) { a.residual = shifted(a.residual, 1); }});
        } else {
          faults.push_back({"residual unasked", ErrorCode::kInvalidArgument, "residual",
                            [some](LaunchArgs& a) { a.residual = some; }});
        }
        if (plan->workspace_bytes() > 0) {
          faults.push_back({"workspace null", ErrorCode::kWorkspaceTooSmall, "workspace",
                            [](LaunchArgs& a) { a.workspace = nullptr; }});
          faults.push_back({"workspace a byte short", ErrorCode::kWorkspaceTooSmall, "workspace",
                            [](LaunchArgs& a) { --a.workspace_bytes; }});
          faults.push_back({"workspace misaligned", ErrorCode::kInvalidArgument, "workspace",
                            [](LaunchArgs& a) { a.workspace = shifted(a.workspace, 128); }});
        }
        for (const Fault& fault : faults) {
          LaunchArgs bad = good;
          fault.spoil(bad);
          const Result<void> result = launch(*plan, bad);
          ASSERT_FALSE(result) << fault.name << " was taken by " << row->name << " for " << to_string(problem);
          EXPECT_EQ(result.error().code, fault.code) << fault.name << ": " << result.error().message;
          EXPECT_NE(result.error().message.find(fault.word), std::string::npos)
              << fault.name << ": " << result.error().message;
          ++refused;
        }
        EXPECT_EQ(written(good), 0u) << "a refused launch wrote to out, " << row->name;
        EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
        const Outcome outcome = bench_->run(c);
        EXPECT_TRUE(outcome.failure.empty()) << "after the refused launches: " << outcome.failure;
      }
    }
  }
  for (const KernelEntry* row : gpu_rows()) EXPECT_TRUE(reached[row->name]) << row->name << " was not reached";
  fmt::print("{} bad launches refused\n", refused);
}

TEST_F(Arguments, ImpossibleProblemsGetNoPlan) {
  const Problem good{.m = 7, .n = 136, .k = 300};
  struct Wrong {
    const char* name;
    ErrorCode code;
    std::function<void(Problem&, Device&, PlanOptions&)> spoil;
  };
  const std::vector<Wrong> list = {
      {"m negative", ErrorCode::kInvalidArgument, [](Problem& p, Device&, PlanOptions&) { p.m = -1; }},
      {"n negative", ErrorCode::kInvalidArgument, [](Problem& p, Device&, PlanOptions&) { p.n = -1; }},
      {"k negative", ErrorCode::kInvalidArgument, [](Problem& p, Device&, PlanOptions&) { p.k = -1; }},
      {"group size negative", ErrorCode::kInvalidArgument,
       [](Problem& p, Device&, PlanOptions&) { p.weight.group_size = -1; }},
      {"group size no multiple of 16", ErrorCode::kInvalidArgument,
       [](Problem& p, Device&, PlanOptions&) { p.weight.group_size = 20; }},
      {"another layout", ErrorCode::kUnsupported, [](Problem& p, Device&, PlanOptions&) { p.layout = 2; }},
      {"a kernel that is none", ErrorCode::kInvalidArgument,
       [](Problem&, Device&, PlanOptions& o) { o.kernel = "sm90_none"; }},
      {"an older GPU", ErrorCode::kUnsupported, [](Problem&, Device& d, PlanOptions&) { d.sm = 80; }},
      {"a newer GPU", ErrorCode::kUnsupported, [](Problem&, Device& d, PlanOptions&) { d.sm = 100; }},
      {"a CPU kernel", ErrorCode::kUnsupported,
       [](Problem&, Device&, PlanOptions& o) { o.kernel = registry().back().name; }},
  };
  for (const Wrong& wrong : list) {
    Problem problem = good;
    Device device = gpu();
    PlanOptions options;
    wrong.spoil(problem, device, options);
    const Result<Plan> plan = make_plan(problem, device, options);
    ASSERT_FALSE(plan) << wrong.name;
    EXPECT_EQ(plan.error().code, wrong.code) << wrong.name << ": " << plan.error().message;
  }
  // A GPU row on the CPU device.
  const Result<Plan> plan = make_plan(good, Device::cpu(), {.kernel = gpu_rows().front()->name});
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().code, ErrorCode::kUnsupported) << plan.error().message;
}

// No tokens or no output features: nothing to do, and no pointer is looked at. No input features: the epilogue of zero.
TEST_F(Arguments, EmptyProblems) {
  for (const auto& [m, n] : {std::pair<int64_t, int64_t>{0, 136}, {7, 0}, {0, 0}}) {
    const Result<Plan> plan = make_plan({.m = m, .n = n, .k = 300}, gpu());
    ASSERT_TRUE(plan) << plan.error().message;
    EXPECT_EQ(plan->workspace_bytes(), 0u);
    const Result<void> result = launch(*plan, {});
    EXPECT_TRUE(result) << result.error().message;
  }
  CUDA_OK(cudaDeviceSynchronize());
  int ran = 0;
  for (const FormatCase& format : format_cases()) {
    if (!format.served_fast) continue;
    bench_->set_weight(136, 0, format.format, format.act, Data::kExact, uint64_t{61} << Arrangement::kBits, 33);
    for (const KernelEntry* row : gpu_rows()) {
      Problem problem = for_row(bench_->problem(7), *row);
      problem.epilogue.bias = true;
      const Outcome outcome = bench_->run(bench_->make_case(problem, *row, 0));
      EXPECT_TRUE(outcome.failure.empty()) << outcome.failure;
      ran += outcome.refusal.empty();
    }
    EXPECT_TRUE(make_plan(bench_->problem(7), gpu())) << to_string(bench_->problem(7));
  }
  EXPECT_GT(ran, 0) << "no row takes k = 0";
}

}  // namespace
}  // namespace nybble::testing
