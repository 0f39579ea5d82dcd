// The last row: unpacks the weight and multiplies in plain loops. Takes everything that has a meaning, on the CPU.
#pragma once

#include "runtime/kernel_entry.h"

namespace nybble {

KernelEntry reference_row();

}  // namespace nybble
