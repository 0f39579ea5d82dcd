// The bench on a GPU; open_bench() chooses it.
#pragma once

#include "bench/bench.h"

namespace nybble::bench {
Result<std::unique_ptr<Bench>> open_cuda_bench(const Device& device, const std::string& cublas);
}
