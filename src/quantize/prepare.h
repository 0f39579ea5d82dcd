// What the CPU's and the GPU's quantizer have in common around the arithmetic: checks before, errors after.
#pragma once

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "nybble/quantize.h"

namespace nybble::rtn {

// Where the first fault stands; none: kNoFault.
inline constexpr int64_t kNoFault = std::numeric_limits<int64_t>::max();
struct Faults {
  int64_t element = kNoFault;  // of the dense weight: not finite
  int64_t group = kNoFault;    // of the scales: overflows their type
};

// Refuses bad options and shapes; else a weight with room for all numbers.
Result<QuantizedWeight> prepare(const DenseWeight& dense, const RtnOptions& options);

// The error that `faults` mean for the caller, if they mean one.
Result<void> report(const DenseWeight& dense, const RtnOptions& options, const Faults& faults);

}  // namespace nybble::rtn
