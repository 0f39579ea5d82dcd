// Every kernel of the library in one list: GPU families, the GPU rows that take everything, CPU rows, the reference
// last.
#pragma once

#include <vector>

#include "runtime/kernel_entry.h"

namespace nybble {

const std::vector<KernelEntry>& registry();

}  // namespace nybble
