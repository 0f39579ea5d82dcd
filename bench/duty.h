// The numbers behind Duty, and the statistics over replays.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <vector>

#include "bench/bench.h"

namespace nybble::bench {

struct DutyCycle {
  int idle_ms;       // before each replay
  double replay_ms;  // about; one launch where that is longer
  int replays;       // when the caller names no number
};

DutyCycle duty_cycle(Duty duty);

// From 256 tokens on power limits, so that the chip must rest longer.
Duty usual_duty(int64_t m);

// So long new problems are begun.
class TimeLimit {
 public:
  TimeLimit() = default;                                     // without end
  explicit TimeLimit(double seconds) : seconds_(seconds) {}  // 0: likewise
  bool over() const { return seconds_ > 0 && std::chrono::duration<double>(Clock::now() - begin_).count() > seconds_; }

 private:
  using Clock = std::chrono::steady_clock;
  double seconds_ = 0;
  Clock::time_point begin_ = Clock::now();
};

// `samples` is not empty; q in [0, 1], linear between neighbours.
double quantile(std::vector<double> samples, double q);

Timing timing_of(const std::vector<double>& us, const std::vector<double>& sm_mhz);

// What a launch took in one replay.
struct Sample {
  double us = 0;
  std::optional<double> sm_mhz;
};

// `count` things take turns, so that all meet the same clock; sample(i) replays number i once, after the duty cycle's
// pause. `replays` of each count, or what the duty cycle says where it is 0; keep_within as in MeasureOptions.
Result<std::vector<Timing>> time_in_turn(size_t count, Duty duty, int replays, double keep_within,
                                         const std::function<Result<Sample>(size_t)>& sample);

}  // namespace nybble::bench
