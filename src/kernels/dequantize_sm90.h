// The last GPU rows: dequantize the whole weight into the workspace, then multiply. They take whatever the others
// refuse.
#pragma once

#include <vector>

#include "runtime/kernel_entry.h"

namespace nybble::kernels {

const std::vector<KernelEntry>& dequantize_sm90_kernels();

}  // namespace nybble::kernels
