// How a multiplication is cut into tasks for the instruction-set routines, and the scratch memory that takes.
#pragma once

#include "cpu/isa.h"
#include "nybble/launch.h"
#include "nybble/result.h"

namespace nybble::cpu {

// A few tokens: every pass over the codes serves up to IsaRoutines::max_tokens of them.
inline constexpr int64_t kMaxGemvTokens = 64;
size_t gemv_workspace_bytes(const Problem& problem);
Result<void> launch_gemv(const IsaRoutines& isa, const Problem& problem, const Device& device, const LaunchArgs& args);

// Many tokens: fp32 tiles of the weight times up to kGemmRows rows of act.
inline constexpr int64_t kGemmRows = 512;
size_t gemm_workspace_bytes(const Problem& problem, const Device& device);
Result<void> launch_gemm(const IsaRoutines& isa, const Problem& problem, const Device& device, const LaunchArgs& args);

}  // namespace nybble::cpu
