// The program's main, and the test behind its --case: repeats one case that another test reported.
//   test_gpu_kernels --case "<problem>" --kernel NAME --data exact --seed N
#include <gtest/gtest.h>

#include <charconv>
#include <cstring>

#include "gpu_kernels/workbench.cuh"

namespace nybble::testing {
namespace {

struct Request {
  std::string problem, kernel;
  Data data = Data::kExact;
  uint64_t seed = 0;
};
Request request;

class RepeatCase : public GpuTest {};

TEST_F(RepeatCase, Asked) {
  if (request.problem.empty()) GTEST_SKIP() << "runs only with --case";
  const Result<Problem> problem = parse_problem(request.problem);
  ASSERT_TRUE(problem) << problem.error().message;
  const KernelEntry* row = nullptr;
  for (const KernelEntry* entry : gpu_rows())
    if (entry->name == request.kernel) row = entry;
  ASSERT_NE(row, nullptr) << "no GPU row is called '" << request.kernel << "'; nybble kernels lists them";
  Workbench bench;
  bench.set_weight(problem->n, problem->k, problem->weight, problem->act_dtype, request.data, request.seed, problem->m);
  ASSERT_EQ(bench.weight().format(), problem->weight)
      << "the weight of this seed packs as " << to_string(bench.weight().format());
  const Outcome outcome = bench.run(bench.make_case(*problem, *row, request.seed));
  ASSERT_TRUE(outcome.refusal.empty()) << outcome.refusal;
  EXPECT_TRUE(outcome.failure.empty()) << outcome.failure;
  fmt::print("{} elements, {} equal to the rounded result, {:.3f} of the allowance used\n", outcome.elements,
             outcome.rounded, outcome.closest);
}

}  // namespace

// Takes its own options out of argv; false: one of them is wrong, and was named.
bool take_options(int& argc, char** argv) {
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option != "--case" && option != "--kernel" && option != "--data" && option != "--seed") {
      argv[kept++] = argv[i];
      continue;
    }
    if (i + 1 == argc) return fmt::print(stderr, "{} needs a value\n", option), false;
    const std::string value = argv[++i];
    if (option == "--case") {
      request.problem = value;
    } else if (option == "--kernel") {
      request.kernel = value;
    } else if (option == "--seed") {
      const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), request.seed);
      if (error != std::errc{} || end != value.data() + value.size())
        return fmt::print(stderr, "--seed needs a whole number, not '{}'\n", value), false;
    } else {
      bool known = false;
      for (const auto& [data, name] : kDataNames)
        if (value == name) request.data = data, known = true;
      if (!known)
        return fmt::print(stderr, "--data is exact, extreme, random, spread or huge, not '{}'\n", value), false;
    }
  }
  argc = kept;
  return true;
}

bool repeats_case() { return !request.problem.empty(); }

}  // namespace nybble::testing

int main(int argc, char** argv) {
  if (!nybble::testing::take_options(argc, argv)) return 2;
  ::testing::InitGoogleTest(&argc, argv);
  if (nybble::testing::repeats_case()) GTEST_FLAG_SET(filter, "RepeatCase.*");
  return RUN_ALL_TESTS();
}
