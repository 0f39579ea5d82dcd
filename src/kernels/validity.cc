#include "kernels/validity.h"

#include <fmt/format.h>

namespace nybble::kernels {
namespace {

std::string group_name(int groups) {
  return groups == 0 ? "per column" : fmt::format("groups of {}", layout::kBlockK / groups);
}

}  // namespace

std::string why_not_hopper_format(const GemmFormat& format, const Problem& problem, const Device& device) {
  const WeightFormat& weight = problem.weight;
  if (device.kind != DeviceKind::kCuda || device.sm != 90)
    return fmt::format(
        "runs on GPUs of compute capability 9.0; {} is {}", device.name,
        device.kind == DeviceKind::kCpu ? "no GPU" : fmt::format("{}.{}", device.sm / 10, device.sm % 10));
  if (problem.layout != layout::kLayoutVersion)
    return fmt::format("reads layout {}; the weight has {}: pack it again", layout::kLayoutVersion, problem.layout);
  if (problem.act_dtype != format.act)
    return fmt::format("multiplies {} activations; these are {}", dtype_name(format.act),
                       dtype_name(problem.act_dtype));
  const ZeroKind zero_kind = format.zero_point ? ZeroKind::kInt : ZeroKind::kNone;
  if (weight.zero_kind != zero_kind)
    return fmt::format("reads zero points of kind '{}'; the weight's are '{}'", zero_kind_name(zero_kind),
                       zero_kind_name(weight.zero_kind));
  const int groups = layout::groups_per_block(weight.group_size);
  if (groups != format.groups)
    return fmt::format("reads scales {}; the weight is packed {}", group_name(format.groups), group_name(groups));
  if (weight.scale_dtype != format.act)
    return fmt::format("reads {} scales; the weight's are {}: pack it with PackOptions::scale_dtype = {}",
                       dtype_name(format.act), dtype_name(weight.scale_dtype), dtype_name(format.act));
  if (weight.k_order) return "reads input features in order; the weight is act-ordered";
  if (!problem.aligned)
    return "needs rows of act and out that begin at 16-byte boundaries: pad the leading dimensions to multiples of 8";
  if (problem.m < 1 || problem.n < 1 || problem.k < 1) return "needs at least one token, output and input feature";
  if (problem.m > INT32_MAX || problem.n > INT32_MAX - 1024 || problem.k > INT32_MAX - 1024)
    return "m, n and k are below 2^31";
  return "";
}

}  // namespace nybble::kernels
