// The sliced-k family: rows of the registry for GPUs of compute capability 9.0.
#pragma once

#include <vector>

#include "runtime/kernel_entry.h"

namespace nybble::kernels {

const std::vector<KernelEntry>& slice_sm90_kernels();

}  // namespace nybble::kernels
