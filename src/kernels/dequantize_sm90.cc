// The dequantize-and-multiply rows: validity, cost model, launch.
#include "kernels/dequantize_sm90.h"

#include <algorithm>
#include <memory>

#include "base/error.h"
#include "kernels/dense_params.h"
#include "kernels/kernel_launch.h"
#include "layout/blob.h"

namespace nybble::kernels {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t dense_ld(const Problem& problem) { return ceil_div(problem.k, 8) * 8; }
int64_t num_blocks(const Problem& problem) {
  return ceil_div(problem.n, layout::kBlockN) * ceil_div(problem.k, layout::kBlockK);
}
int64_t num_tiles(const Problem& problem) { return ceil_div(problem.m, kDenseTile) * ceil_div(problem.n, kDenseTile); }

std::string why_not(DType act, const Problem& problem, const Device& device) {
  if (device.kind != DeviceKind::kCuda || device.sm != 90)
    return fmt::format("runs on GPUs of compute capability 9.0; {} is not one", device.name);
  if (problem.layout != layout::kLayoutVersion)
    return fmt::format("reads layout {}; the weight has {}: pack it again", layout::kLayoutVersion, problem.layout);
  if (problem.weight.zero_kind == ZeroKind::kTable) return layout::kWhyNoTable;
  if (problem.act_dtype != act)
    return fmt::format("multiplies {} activations; these are {}", dtype_name(act), dtype_name(problem.act_dtype));
  if (num_blocks(problem) > INT32_MAX || num_tiles(problem) > INT32_MAX)
    return "m x n or n x k is more than 2^31 tiles";
  return "";
}

// Reads four bits and writes sixteen, then a plain tensor-core kernel, of which about half the speed of a tuned one is
// expected and a tile of 128 tokens always paid.
double estimate_us(const Problem& problem, const Device& device) {
  const double weights = static_cast<double>(problem.n) * static_cast<double>(problem.k);
  const double waves = static_cast<double>(ceil_div(num_tiles(problem), 2 * std::max(device.num_sms, 1)));
  return 6 + weights * 2.6 / 2.5e6 + waves * static_cast<double>(problem.k) * 0.012;
}

Result<void> launch(PreparedDevices& dequantize_prepared, PreparedDevices (&gemm_prepared)[3][2],
                    const Problem& problem, const LaunchArgs& args) {
  if (problem.k > 0) {
    const DequantizeParams params{.weight = static_cast<const uint8_t*>(args.weight),
                                  .map = layout::blob_map(problem.n, problem.k, problem.weight),
                                  .scale_dtype = problem.weight.scale_dtype,
                                  .zero_kind = problem.weight.zero_kind,
                                  .dense = args.workspace,
                                  .ld = dense_ld(problem),
                                  .n = problem.n,
                                  .k = problem.k};
    const LaunchShape shape{
        .grid = dim3(static_cast<unsigned>(num_blocks(problem))), .threads = kDequantizeThreads, .stream = args.stream};
    Result<void> launched = launch_kernel(dequantize_kernel(problem.act_dtype), dequantize_prepared, shape, params);
    if (!launched) return launched.error();
  }
  const int64_t ld_out = args.ld_out ? args.ld_out : problem.n;
  const DenseGemmParams params{.act = args.act,
                               .ld_act = args.ld_act ? args.ld_act : problem.k,
                               .dense = args.workspace,
                               .ld_dense = dense_ld(problem),
                               .out = args.out,
                               .ld_out = ld_out,
                               .m = problem.m,
                               .n = problem.n,
                               .k = problem.k,
                               .epilogue = EpilogueParams::from(args, ld_out)};
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(num_tiles(problem))),
                          .threads = kDenseGemmThreads,
                          .smem_bytes = dense_gemm_smem_bytes(),
                          .stream = args.stream};
  return launch_kernel(dense_gemm_kernel(problem.act_dtype, problem.out_dtype, problem.aligned),
                       gemm_prepared[static_cast<int>(problem.out_dtype)][problem.aligned], shape, params);
}

// Neither kernel starts early or lets the next one: the workspace may still be read by the launch before.
KernelEntry entry_of(DType act) {
  struct Prepared {
    PreparedDevices dequantize, gemm[3][2];
  };
  auto prepared = std::make_shared<Prepared>();
  KernelEntry entry;
  entry.name = std::string("sm90_dequantize_gemm_") + dtype_name(act);
  entry.device = DeviceKind::kCuda;
  entry.numerics = Numerics::kRoundedWeight;
  entry.why_not = [act](const Problem& problem, const Device& device) { return why_not(act, problem, device); };
  entry.estimate_us = estimate_us;
  entry.workspace_bytes = [](const Problem& problem, const Device&) {
    return static_cast<size_t>(ceil_div(problem.n * dense_ld(problem) * 2, 256) * 256);
  };
  entry.launch = [prepared](const Problem& problem, const Device&, const LaunchArgs& args, bool) {
    return launch(prepared->dequantize, prepared->gemm, problem, args);
  };
  return entry;
}

}  // namespace

const std::vector<KernelEntry>& dequantize_sm90_kernels() {
  static const std::vector<KernelEntry> entries = {entry_of(DType::kBf16), entry_of(DType::kFp16)};
  return entries;
}

}  // namespace nybble::kernels
