// The part of `nybble bench` that measures chains of layers (--chain).
#pragma once

#include <vector>

#include "bench/chain.h"
#include "bench/duty.h"
#include "bench/results.h"
#include "cli/output.h"

namespace nybble::cli {

struct ChainRequest {
  bench::ChainSpec spec;
  std::vector<int64_t> ms;
  std::vector<bench::Duty> duties;  // one for each m
  bench::ChainOptions options;      // all but the duty
  bench::TimeLimit limit;
};

int run_chain(const ChainRequest& request, const Device& device, bench::ResultLog log, const Output& output);

}  // namespace nybble::cli
