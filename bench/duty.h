// The numbers behind Duty, and the statistics over replays.
#pragma once

#include <vector>

#include "bench/bench.h"

namespace nybble::bench {

struct DutyCycle {
  int idle_ms;       // before each replay
  double replay_ms;  // about; one launch where that is longer
  int replays;       // when the caller names no number
};

DutyCycle duty_cycle(Duty duty);

// `samples` is not empty; q in [0, 1], linear between neighbours.
double quantile(std::vector<double> samples, double q);

Timing timing_of(const std::vector<double>& us, const std::vector<double>& sm_mhz);

}  // namespace nybble::bench
