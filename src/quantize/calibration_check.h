// Checks of what comes with a dense weight: statistics and options.
#pragma once

#include "nybble/quantize.h"

namespace nybble::quantize {

Result<void> check_range_options(const RangeOptions& options);

Result<void> check_same_k(const DenseWeight& dense, const LayerStatistics& statistics);

// The same, and what validate() refuses.
Result<void> check_fits(const DenseWeight& dense, const LayerStatistics& statistics);

}  // namespace nybble::quantize
