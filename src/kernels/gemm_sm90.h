// The rows of the wgmma kernel family.
#pragma once

#include <vector>

#include "runtime/kernel_entry.h"

namespace nybble::kernels {

const std::vector<KernelEntry>& gemm_sm90_kernels();

}  // namespace nybble::kernels
