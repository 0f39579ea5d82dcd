// The CPU's rows of the registry: fast kernels over the packed layout, one pair per instruction set.
#pragma once

#include <span>

#include "runtime/kernel_entry.h"

namespace nybble::cpu {

// Best instruction set first; within one, the few-token row before the many-token row.
std::span<const KernelEntry> cpu_kernels();

}  // namespace nybble::cpu
