// Duty cycles, floors and statistics: what does not depend on the device.
#include "bench/duty.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "bench/cpu_bench.h"
#include "bench/cuda_bench.h"
#include "nybble/pack.h"

namespace nybble::bench {
namespace {

constexpr int kAllGet = 2;  // replays, before slow ones are left out

// Whether one that took `us` in its replays so far, against a lowest median of best_us, gets replay number `replay`.
bool keeps_up(int replay, const std::vector<double>& us, double best_us, double keep_within) {
  return keep_within == 0 || replay < kAllGet || quantile(us, 0.5) <= keep_within * best_us;
}

}  // namespace

const char* duty_name(Duty duty) {
  switch (duty) {
    case Duty::kIdle10:
      return "idle10";
    case Duty::kBurst:
      return "burst";
    case Duty::kSustained:
      return "sustained";
  }
  return "unknown";
}

Result<Duty> parse_duty(std::string_view text) {
  for (Duty duty : {Duty::kIdle10, Duty::kBurst, Duty::kSustained})
    if (text == duty_name(duty)) return duty;
  return invalid_argument("'{}' is no duty cycle; known are idle10, burst and sustained", text);
}

DutyCycle duty_cycle(Duty duty) {
  switch (duty) {
    case Duty::kIdle10:
      return {.idle_ms = 10, .replay_ms = 4, .replays = 15};
    case Duty::kBurst:
      return {.idle_ms = 100, .replay_ms = 4, .replays = 9};
    case Duty::kSustained:
      return {.idle_ms = 0, .replay_ms = 400, .replays = 5};
  }
  return {};
}

Duty usual_duty(int64_t m) { return m < 256 ? Duty::kIdle10 : Duty::kBurst; }

double quantile(std::vector<double> samples, double q) {
  std::sort(samples.begin(), samples.end());
  const double position = q * static_cast<double>(samples.size() - 1);
  const size_t below = static_cast<size_t>(position);
  const size_t above = std::min(below + 1, samples.size() - 1);
  return samples[below] + (position - static_cast<double>(below)) * (samples[above] - samples[below]);
}

Timing timing_of(const std::vector<double>& us, const std::vector<double>& sm_mhz) {
  Timing timing;
  timing.us = quantile(us, 0.5);
  timing.spread = (quantile(us, 0.9) - quantile(us, 0.1)) / timing.us;
  if (!sm_mhz.empty()) timing.sm_mhz = quantile(sm_mhz, 0.5);
  return timing;
}

Result<std::vector<Timing>> time_in_turn(size_t count, Duty duty, int replays, double keep_within,
                                         const std::function<Result<Sample>(size_t)>& sample) {
  if (replays <= 0) replays = duty_cycle(duty).replays;
  struct Series {
    std::vector<double> us, sm_mhz;
  };
  std::vector<Series> series(count);
  // Without pauses the chip needs a while to reach the clock that it then keeps.
  const int warm_up = duty == Duty::kSustained ? 1 : 0;
  for (int replay = -warm_up; replay < replays; ++replay) {
    double best_us = std::numeric_limits<double>::infinity();
    for (const Series& one : series)
      if (!one.us.empty()) best_us = std::min(best_us, quantile(one.us, 0.5));
    for (size_t i = 0; i < count; ++i) {
      if (!keeps_up(replay, series[i].us, best_us, keep_within)) continue;
      const Result<Sample> taken = sample(i);
      if (!taken) return taken.error();
      if (replay < 0) continue;
      series[i].us.push_back(taken->us);
      if (taken->sm_mhz) series[i].sm_mhz.push_back(*taken->sm_mhz);
    }
  }
  std::vector<Timing> timings;
  for (const Series& one : series) timings.push_back(timing_of(one.us, one.sm_mhz));
  return timings;
}

Result<double> floor_us(const Problem& problem) {
  const Result<size_t> weight = packed_bytes(problem.n, problem.k, problem.weight);
  if (!weight) return weight.error();
  const double m = static_cast<double>(problem.m), n = static_cast<double>(problem.n),
               k = static_cast<double>(problem.k);
  const double bytes = static_cast<double>(*weight) + m * k * static_cast<double>(dtype_bytes(problem.act_dtype)) +
                       m * n * static_cast<double>(dtype_bytes(problem.out_dtype));
  return std::max(bytes / (kFloorTbS * 1e6), 2 * m * n * k / (kFloorTflopS * 1e6));
}

Result<std::unique_ptr<Bench>> open_bench(const Device& device, const std::string& cublas) {
  return device.kind == DeviceKind::kCuda ? open_cuda_bench(device, cublas) : open_cpu_bench(device);
}

}  // namespace nybble::bench
