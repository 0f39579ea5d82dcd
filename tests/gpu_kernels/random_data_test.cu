// T1: data that fp32 sums round. Every element of every case stays within the envelope of docs/testing.md around the
// double sum over the weights that the kernel says it multiplies (KernelEntry::numerics); how close the worst came and
// how many outputs are the correctly rounded result is printed.
#include <gtest/gtest.h>

#include "gpu_kernels/case_lists.cuh"
#include "gpu_kernels/workbench.cuh"

namespace nybble::testing {
namespace {

class RandomData : public GpuTest {
 protected:
  void run(const char* title, Data data, const std::vector<Shape>& shapes, Tally& tally) {
    Workbench bench;
    uint64_t count = 0;
    for (const FormatCase& format : format_cases()) {
      for (const Shape& shape : shapes) {
        const std::vector<int64_t> tokens =
            shape.k > 8192 ? std::vector<int64_t>{1, 8, 33} : std::vector<int64_t>{1, 5, 16, 33, 128, 300};
        bench.set_weight(shape.n, shape.k, format.format, format.act, data, uint64_t{30} << Arrangement::kBits,
                         tokens.back());
        for (const KernelEntry* row : gpu_rows())
          for (int64_t m : tokens) {
            Problem problem = for_row(bench.problem(m), *row);
            const Case c = bench.make_case(problem, *row, RandomStream(count++, kChoice).bits(0));
            tally.add(*row, bench.run(c), problem.out_dtype);
            problem.epilogue = {.bias = true, .residual = true};
            if (m == 33 && row->why_not(problem, gpu()).empty())
              tally.add(*row, bench.run(bench.make_case(problem, *row, c.seed)), problem.out_dtype);
          }
      }
    }
    tally.finish(title, true);
  }
};

TEST_F(RandomData, StaysWithinTheEnvelope) {
  Tally tally;
  run("random data", Data::kRandom,
      reduced() ? std::vector<Shape>{{200, 520}} : std::vector<Shape>{{512, 1024}, {264, 4096}, {130, 1000}}, tally);
  // An accuracy regression shows here first: a model of truncating tensor cores gives 99.9 % for bf16 and 99.4 % for
  // fp16.
  for (const KernelEntry* row : gpu_rows()) {
    const bool fp16 = row->name.find("fp16") != std::string::npos || row->name.find("bf16") == std::string::npos;
    EXPECT_GE(Tally::share_rounded(tally.row(*row)), fp16 ? 0.97 : 0.995) << row->name;
  }
}

TEST_F(RandomData, StaysWithinTheEnvelopeOfLongSums) {
  Tally tally;
  run("random data, long sums", Data::kRandom,
      reduced() ? std::vector<Shape>{{64, 2048}} : std::vector<Shape>{{128, 14336}, {72, 28672}}, tally);
}

// Scales of both signs over 20 binades, some of them zero or subnormal.
TEST_F(RandomData, ScalesOfManyMagnitudes) {
  Tally tally;
  run("spread scales", Data::kSpread, {{200, reduced() ? 520 : 1100}}, tally);
}

// Activations of 2^70 in bf16 and of 60000 in fp16, where sums past 65504 become infinite.
TEST_F(RandomData, HugeActivations) {
  Tally tally;
  run("huge activations", Data::kHuge, {{200, reduced() ? 520 : 1100}}, tally);
}

}  // namespace
}  // namespace nybble::testing
