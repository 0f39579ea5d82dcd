// Quantizes, packs, plans and launches a linear layer small enough to be computed by hand.
#include <nybble/gemm.h>
#include <nybble/pack.h>
#include <nybble/quantize.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

template <class T> T take(nybble::Result<T> result) {
  if (!result) {
    std::fprintf(stderr, "%s: %s\n", nybble::error_code_name(result.error().code), result.error().message.c_str());
    std::exit(1);
  }
  return std::move(result).value();
}

}  // namespace

int main() {
  constexpr int kM = 2, kN = 4, kK = 16;
  // Row n: 3.75 c, -3.75 c, and c at 2 + n, with c = 2^n. The scale is 3.75 c / 7.5 = c / 2, so the levels are 7 (7.5
  // does not fit), -8 and 2, and the weights 3.5 c, -4 c and c.
  std::vector<float> values(kN * kK, 0.0f);
  for (int n = 0; n < kN; ++n) {
    const float c = static_cast<float>(1 << n);
    values[n * kK] = 3.75f * c;
    values[n * kK + 1] = -3.75f * c;
    values[n * kK + 2 + n] = c;
  }
  const nybble::DenseWeight dense{.name = "tiny",
                                  .n = kN,
                                  .k = kK,
                                  .values = nybble::FloatArray::from_floats(nybble::DType::kFp32, values),
                                  .bias = {}};
  const nybble::PackedWeight packed = take(nybble::pack(take(nybble::quantize_rtn(dense, {.group_size = 16}))));

  nybble::Problem problem = nybble::problem_for(packed, kM, nybble::DType::kBf16);
  problem.out_dtype = nybble::DType::kFp32;
  problem.epilogue.bias = true;
  problem.aligned = true;
  const nybble::Plan plan = take(nybble::make_plan(problem, nybble::Device::cpu()));
  std::printf("%s\n", nybble::to_string(plan).c_str());

  // Row 0 of act is all ones: 3.5 c - 4 c + c = c / 2. Row 1 counts 0, 1, ...: -4 c + (2 + n) c = (n - 2) c.
  std::vector<float> numbers(kM * kK, 1.0f);
  for (int k = 0; k < kK; ++k) numbers[kK + k] = static_cast<float>(k);
  const nybble::FloatArray act = nybble::FloatArray::from_floats(nybble::DType::kBf16, numbers);
  const nybble::FloatArray bias =
      nybble::FloatArray::from_floats(nybble::DType::kBf16, std::array{1.0f, 2.0f, 3.0f, 4.0f});
  alignas(16) std::array<float, kM * kN> out{};
  void* workspace = std::aligned_alloc(256, (plan.workspace_bytes() + 256) / 256 * 256);
  const nybble::Result<void> launched = nybble::launch(plan, {.act = act.bytes.data(),
                                                              .weight = packed.data(),
                                                              .out = out.data(),
                                                              .bias = bias.bytes.data(),
                                                              .alpha = 2.0f,
                                                              .workspace = workspace,
                                                              .workspace_bytes = plan.workspace_bytes()});
  std::free(workspace);
  if (!launched) {
    std::fprintf(stderr, "%s\n", launched.error().message.c_str());
    return 1;
  }

  const std::array<float, kM* kN> want = {2, 4, 7, 12, -3, -2, 3, 20};  // 2 * sum + bias
  int wrong = 0;
  for (int i = 0; i < kM * kN; ++i) {
    std::printf("out[%d, %d] = %g, by hand %g\n", i / kN, i % kN, out[i], want[i]);
    wrong += out[i] != want[i];
  }
  return wrong == 0 ? 0 : 1;
}
