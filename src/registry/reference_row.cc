#include "registry/reference_row.h"

#include <memory>

#include "base/error.h"
#include "layout/blob.h"
#include "nybble/pack.h"
#include "reference/gemm.h"

namespace nybble {
namespace {

Result<void> launch(const Problem& problem, const Device& device, const LaunchArgs& args) {
  // A view of the caller's bytes: unpack() only reads them.
  const auto& header = layout::header_of(args.weight);
  const PackedWeight packed(
      std::shared_ptr<std::byte[]>(static_cast<std::byte*>(const_cast<void*>(args.weight)), [](std::byte*) {}),
      header.total_bytes);
  const Result<QuantizedWeight> weight = unpack(packed);
  if (!weight) return weight.error();
  reference_gemm({.weight = &*weight,
                  .m = problem.m,
                  .act_dtype = problem.act_dtype,
                  .out_dtype = problem.out_dtype,
                  .act = args.act,
                  .ld_act = args.ld_act,
                  .out = args.out,
                  .ld_out = args.ld_out,
                  .bias = args.bias,
                  .residual = args.residual,
                  .alpha = args.alpha_device != nullptr ? *args.alpha_device : args.alpha,
                  .numerics = Numerics::kExactWeight,
                  .num_threads = device.num_threads});
  return {};
}

}  // namespace

KernelEntry reference_row() {
  KernelEntry entry;
  entry.name = "cpu_reference";
  entry.device = DeviceKind::kCpu;
  entry.numerics = Numerics::kExactWeight;
  entry.why_not = [](const Problem& problem, const Device& device) -> std::string {
    if (device.kind != DeviceKind::kCpu) return fmt::format("runs on the CPU; {} is a GPU", device.name);
    if (problem.layout != layout::kLayoutVersion)
      return fmt::format("reads layout {}; the weight has {}: pack it again", layout::kLayoutVersion, problem.layout);
    if (problem.weight.zero_kind == ZeroKind::kTable) return layout::kWhyNoTable;
    return "";
  };
  entry.estimate_us = [](const Problem& problem,
                         const Device&) {  // a nanosecond per product and two per weight unpacked
    const double weights = static_cast<double>(problem.n) * static_cast<double>(problem.k);
    return weights * (static_cast<double>(problem.m) * 1e-3 + 2e-3) + 10;
  };
  entry.workspace_bytes = [](const Problem&, const Device&) { return size_t{0}; };
  entry.launch = [](const Problem& problem, const Device& device, const LaunchArgs& args, bool) {
    return launch(problem, device, args);
  };
  return entry;
}

}  // namespace nybble
