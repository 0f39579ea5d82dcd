// T0: small integers and powers of two, for which every order of summation gives the same fp32 sums, so the one right
// answer is demanded bit for bit: every GPU row x format x shape x m, with arguments that lie in memory in many ways.
#include <gtest/gtest.h>

#include <chrono>

#include "gpu_kernels/case_lists.cuh"
#include "gpu_kernels/workbench.cuh"
#include "reference/envelope.h"
#include "reference/gemm.h"

namespace nybble::testing {
namespace {

constexpr uint64_t kSeed = uint64_t{20} << Arrangement::kBits;

// The arguments' arrangement and the epilogue of case number `i`, drawn so that every choice meets every row.
struct Draw {
  uint64_t arrangement;  // the lowest Arrangement::kBits count
  bool bias, residual, unaligned;
  DType out;
};
Draw draw_case(uint64_t i, DType act) {
  const uint64_t word = RandomStream(i, kChoice).bits(0), bits = word >> Arrangement::kBits;
  Draw draw{word, (bits & 3) == 0, (bits >> 2 & 3) == 0, (bits >> 4 & 7) == 0, act};
  if ((bits >> 8 & 7) == 0) draw.out = DType::kFp32;
  if ((bits >> 8 & 15) == 1) draw.out = act == DType::kBf16 ? DType::kFp16 : DType::kBf16;
  return draw;
}

class ExactRun {
 public:
  void edges(const FormatCase& format, const Shape& shape, Data data) {
    bench_.set_weight(shape.n, shape.k, format.format, format.act, data, kSeed, kMostEdgeTokens);
    for (const KernelEntry* row : gpu_rows())
      if (takes_weight(*row))
        for (int64_t m : edge_tokens(row_tile(*row).m)) run(*row, m, format.act);
  }

  // Few m for each of many small weights.
  void residues(const FormatCase& format, const Shape& shape) {
    bench_.set_weight(shape.n, shape.k, format.format, format.act, Data::kExact, kSeed, kMostEdgeTokens);
    for (const KernelEntry* row : gpu_rows()) {
      if (!takes_weight(*row)) continue;
      const RandomStream choice(count_, kPlace);
      for (uint64_t i = 0; i < 3; ++i)
        run(*row, 1 + choice.below(i, std::min(2 * row_tile(*row).m + 1, 512)), format.act);
    }
  }

  void large(const FormatCase& format, const LargeCase& list) {
    bench_.set_weight(list.shape.n, list.shape.k, format.format, format.act, Data::kExact, kSeed,
                      *std::max_element(list.m.begin(), list.m.end()));
    for (const KernelEntry* row : gpu_rows())
      if (takes_weight(*row))
        for (int64_t m : list.m) run(*row, m, format.act);
  }

  Tally& tally() { return tally_; }

 private:
  // Spares a row that takes this weight at no m from being asked for each.
  bool takes_weight(const KernelEntry& row) {
    Outcome outcome;
    for (int64_t m : {1, 8, 16, 128, 512}) {
      outcome.refusal = row.why_not(for_row(bench_.problem(m), row), gpu());
      if (outcome.refusal.empty()) return true;
    }
    tally_.add(row, outcome, DType::kBf16);
    return false;
  }

  // One case drawn for this row and m; where the row refuses the draw, the refusal is counted and the plain form runs.
  void run(const KernelEntry& row, int64_t m, DType act) {
    const Draw draw = draw_case(count_++, act);
    Problem problem = bench_.problem(m);
    problem.epilogue = {draw.bias, draw.residual};
    problem.out_dtype = draw.out;
    problem.aligned = !draw.unaligned;
    const Outcome outcome = bench_.run(bench_.make_case(problem, row, draw.arrangement));
    tally_.add(row, outcome, problem.out_dtype);
    const Problem plain = for_row(bench_.problem(m), row);
    if (outcome.refusal.empty() || problem == plain) return;
    tally_.add(row, bench_.run(bench_.make_case(plain, row, draw.arrangement)), plain.out_dtype);
  }

  Workbench bench_;
  Tally tally_;
  uint64_t count_ = 0;
};

class ExactGemm : public GpuTest {};

TEST_F(ExactGemm, EveryRowAtEveryEdge) {
  const auto start = std::chrono::steady_clock::now();
  const auto passed = [&](const char* what) {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("%s after %.1f s\n", what, seconds);
    std::fflush(stdout);
  };
  ExactRun run;
  for (const FormatCase& format : format_cases())
    for (const Shape& shape : edge_shapes()) run.edges(format, shape, Data::kExact);
  passed("edge shapes");
  for (const FormatCase& format : format_cases())
    for (const Shape& shape :
         reduced() ? std::vector<Shape>{{200, 320}} : std::vector<Shape>{{200, 320}, {65, 129}, {384, 1100}})
      run.edges(format, shape, Data::kExtreme);
  passed("extreme scales over zero weights");
  for (const FormatCase& format : format_cases())
    if (format.served_fast)
      for (const Shape& shape : residue_shapes()) run.residues(format, shape);
  passed("every residue of n mod 64 and k mod 128");
  for (const FormatCase& format : format_cases())
    if (format.served_fast && format.format.group_size != 64)
      for (const LargeCase& list : large_cases()) run.large(format, list);
  passed("more tiles than SMs");
  run.tally().finish("exact GEMM", false);
#ifndef NYBBLE_DEV_TILES
  if (!reduced()) {
    EXPECT_GE(run.tally().accepted(), 20000);
  }
#endif
}

// A forced row that cannot do a problem is refused with its own reason, and explain_kernels tells the same.
TEST_F(ExactGemm, RefusalsSpeakWithOneVoice) {
  int refusals = 0;
  for (const FormatCase& format : format_cases()) {
    for (int64_t m : {1, 17, 300}) {
      Problem problem{
          .m = m, .n = 65, .k = 129, .act_dtype = format.act, .out_dtype = format.act, .weight = format.format};
      const std::vector<KernelVerdict> verdicts = explain_kernels(problem, gpu());
      ASSERT_EQ(verdicts.size(), registry().size());
      for (size_t i = 0; i < verdicts.size(); ++i) {
        const KernelEntry& row = registry()[i];
        const std::string reason = row.why_not(problem, gpu());
        EXPECT_EQ(verdicts[i].kernel, row.name);
        EXPECT_EQ(verdicts[i].fits, reason.empty());
        EXPECT_EQ(verdicts[i].reason, reason);
        const Result<Plan> plan = make_plan(problem, gpu(), {.kernel = row.name});
        EXPECT_EQ(plan.ok(), reason.empty()) << row.name << " on " << to_string(problem);
        if (plan.ok()) continue;
        ++refusals;
        EXPECT_EQ(plan.error().code, ErrorCode::kUnsupported);
        EXPECT_NE(plan.error().message.find(reason), std::string::npos) << plan.error().message;
      }
      EXPECT_TRUE(make_plan(problem, gpu())) << "no row takes " << to_string(problem);
    }
  }
  fmt::print("{} refusals\n", refusals);
}

// The reference on the GPU that all tests here use, held against src/reference on small cases.
TEST_F(ExactGemm, ReferencesAgree) {
  constexpr int64_t kTokens = 5;
  int compared = 0;
  for (const FormatCase& format : format_cases()) {
    for (Data data : {Data::kExact, Data::kExtreme, Data::kRandom, Data::kSpread, Data::kHuge}) {
      for (Numerics numerics : {Numerics::kRoundedWeight, Numerics::kExactWeight}) {
        const int64_t n = 70, k = 203;
        TestWeight weight;
        weight.load(make_weight(n, k, format.format, data, 7));
        DeviceScratch act;
        act.reserve(kTokens * k * 2);
        device::fill_act<<<4, 256>>>(act.data(), format.act, kTokens, k, k, 7, data);
        ReferenceSumsOnDevice sums;
        sums.compute(weight.view(), numerics, act.data(), format.act, k, kTokens, true, nullptr);
        std::vector<double> sum(kTokens * n), magnitude(kTokens * n);
        std::vector<uint16_t> tokens(kTokens * k);
        CUDA_OK(cudaMemcpy(sum.data(), sums.sum(), sum.size() * 8, cudaMemcpyDeviceToHost));
        CUDA_OK(cudaMemcpy(magnitude.data(), sums.magnitude(), sum.size() * 8, cudaMemcpyDeviceToHost));
        CUDA_OK(cudaMemcpy(tokens.data(), act.data(), tokens.size() * 2, cudaMemcpyDeviceToHost));
        const RandomStream stream(7, kAct);
        for (int64_t row = 0; row < kTokens; ++row)
          for (int64_t column = 0; column < k; ++column)
            ASSERT_EQ(tokens[row * k + column], act_bits(stream, kTokens - 1 - row, column, k, format.act, data));
        const ReferenceSums host = reference_sums({.weight = &weight.canonical(),
                                                   .m = kTokens,
                                                   .act_dtype = format.act,
                                                   .act = tokens.data(),
                                                   .numerics = numerics});
        for (size_t i = 0; i < sum.size(); ++i) {
          // Doubles summed in two orders; exact data leaves nothing to round.
          const double allowed = is_exact(data) ? 0 : host.magnitude[i] * 1e-13;
          ASSERT_NEAR(sum[i], host.sum[i], allowed)
              << to_string(weight.format()) << " " << data_name(data) << " element " << i;
          ASSERT_NEAR(magnitude[i], host.magnitude[i], allowed);
        }
        ++compared;
      }
    }
  }
  fmt::print("{} weights compared\n", compared);
}

}  // namespace
}  // namespace nybble::testing
