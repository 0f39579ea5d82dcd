// The measurements that are compiled into the library.
#pragma once

#include <vector>

#include "nybble/tuning.h"

namespace nybble {

std::vector<TuningTable> read_shipped_tables();

}  // namespace nybble
