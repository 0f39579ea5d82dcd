// The rows of the streaming kernel family, for a few tokens.
#pragma once

#include <vector>

#include "runtime/kernel_entry.h"

namespace nybble::kernels {

const std::vector<KernelEntry>& stream_sm90_kernels();

}  // namespace nybble::kernels
