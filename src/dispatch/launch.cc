// launch: every check of the caller's arguments, then the kernel's own launch.
#include <cstring>

#include "base/error.h"
#include "layout/blob.h"
#include "nybble/gemm.h"
#include "runtime/kernel_entry.h"

namespace nybble {
namespace {

bool aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

struct Matrix {
  const char* name;
  const void* data;
  int64_t ld, columns;
  DType dtype;
};

Result<void> check_matrix(const Problem& problem, const Matrix& matrix) {
  if (matrix.data == nullptr) return invalid_argument("{} is null for '{}'", matrix.name, to_string(problem));
  const int64_t ld = matrix.ld == 0 ? matrix.columns : matrix.ld;
  if (ld < matrix.columns)
    return invalid_argument("ld_{} is {}, less than the {} elements of a row of '{}'", matrix.name, ld, matrix.columns,
                            to_string(problem));
  const size_t element = dtype_bytes(matrix.dtype);
  if (!aligned(matrix.data, element))
    return invalid_argument("{} is not aligned to its {}-byte elements", matrix.name, element);
  if (problem.aligned && (!aligned(matrix.data, 16) || static_cast<size_t>(ld) * element % 16 != 0))
    return invalid_argument(
        "{} has rows that begin off 16-byte boundaries (address {}, {} bytes a row), but the plan was made for "
        "aligned rows: align them, or plan with Problem::aligned = false",
        matrix.name, fmt::ptr(matrix.data), static_cast<size_t>(ld) * element);
  return {};
}

// Host memory can be looked into; a device blob is taken on trust.
Result<void> check_host_weight(const Problem& problem, const void* weight) {
  const layout::PackedHeader& header = layout::header_of(weight);
  if (std::memcmp(header.magic, layout::kMagic, sizeof layout::kMagic) != 0)
    return invalid_argument("weight is no packed weight: it does not begin with '{:.8s}'", layout::kMagic);
  if (static_cast<int>(header.layout_version) != problem.layout)
    return invalid_argument("weight has layout {}, the plan was made for {}", header.layout_version, problem.layout);
  if (header.n != problem.n || header.k != problem.k || !(layout::format_of(header) == problem.weight))
    return invalid_argument("weight is {} x {} ({}), the plan was made for '{}'", header.n, header.k,
                            to_string(layout::format_of(header)), to_string(problem));
  return {};
}

Result<void> check(const Problem& problem, const Device& device, size_t workspace_bytes, const LaunchArgs& args) {
  for (const Matrix& matrix : {Matrix{"act", args.act, args.ld_act, problem.k, problem.act_dtype},
                               Matrix{"out", args.out, args.ld_out, problem.n, problem.out_dtype}}) {
    if (matrix.columns == 0) continue;  // k = 0: there is no act to read
    if (Result<void> ok = check_matrix(problem, matrix); !ok) return ok.error();
  }
  if (args.weight == nullptr) return invalid_argument("weight is null for '{}'", to_string(problem));
  if (!aligned(args.weight, layout::kSectionAlign))
    return invalid_argument("weight is not aligned to {} bytes", layout::kSectionAlign);
  if (device.kind == DeviceKind::kCpu)
    if (Result<void> ok = check_host_weight(problem, args.weight); !ok) return ok.error();
  if ((args.bias != nullptr) != problem.epilogue.bias)
    return invalid_argument("bias is {}, but the plan was made {} one", args.bias ? "given" : "null",
                            problem.epilogue.bias ? "with" : "without");
  if ((args.residual != nullptr) != problem.epilogue.residual)
    return invalid_argument("residual is {}, but the plan was made {} one", args.residual ? "given" : "null",
                            problem.epilogue.residual ? "with" : "without");
  if (!aligned(args.bias, dtype_bytes(problem.act_dtype)))
    return invalid_argument("bias is not aligned to its elements");
  if (!aligned(args.residual, dtype_bytes(problem.out_dtype)))
    return invalid_argument("residual is not aligned to its elements");
  if (!aligned(args.alpha_device, alignof(float))) return invalid_argument("alpha_device is not aligned to a float");
  if (workspace_bytes > 0) {
    if (args.workspace == nullptr || args.workspace_bytes < workspace_bytes)
      return make_error(ErrorCode::kWorkspaceTooSmall, "the plan for '{}' needs a workspace of {} bytes; {} were given",
                        to_string(problem), workspace_bytes, args.workspace == nullptr ? 0 : args.workspace_bytes);
    if (device.kind == DeviceKind::kCuda && !aligned(args.workspace, 256))
      return invalid_argument("workspace is not aligned to 256 bytes");
  }
  return {};
}

}  // namespace

Result<void> launch(const Plan& plan, const LaunchArgs& args) {
  if (plan.entry_ == nullptr) return {};  // m or n is 0
  if (Result<void> ok = check(plan.problem_, plan.device_, plan.workspace_bytes_, args); !ok) return ok.error();
  return plan.entry_->launch(plan.problem_, plan.device_, args, plan.pdl_);
}

}  // namespace nybble
