// The bench on the CPU; open_bench() chooses it.
#pragma once

#include "bench/bench.h"

namespace nybble::bench {
Result<std::unique_ptr<Bench>> open_cpu_bench(const Device& device);
}
