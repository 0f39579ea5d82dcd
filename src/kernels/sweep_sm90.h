// The sweeping family's rows of the registry.
#pragma once

#include <vector>

#include "runtime/kernel_entry.h"

namespace nybble::kernels {

const std::vector<KernelEntry>& sweep_sm90_kernels();

}  // namespace nybble::kernels
