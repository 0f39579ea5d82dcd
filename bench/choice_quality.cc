// Goes through a table's problems as if each were asked anew.
#include "bench/choice_quality.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "dispatch/tuning_data.h"

namespace nybble::bench {
namespace {

struct Measured {
  const TunedKernel* kernel;
  double us, estimate_us;
};

// The device that the table speaks of, as far as it can be had here; the estimates of one that cannot are the file's.
Device device_of(const TuningTable& table) {
  if (table.data()->num_threads > 0) return Device::cpu(table.data()->num_threads);
  if (Device h200 = Device::h200(); table.made_for(h200)) return h200;
  if (Result<Device> gpu = Device::cuda(); gpu && table.made_for(*gpu)) return *gpu;
  return {.kind = DeviceKind::kCuda, .name = table.device()};
}

ChoiceQuality judge(const char* name, const std::map<std::tuple<int64_t, int64_t, int64_t>, std::vector<Measured>>& all,
                    const TunedFormat& format, const TuningTable& table, const Device& device, LeaveOut leave_out) {
  ChoiceQuality quality{.choice = name};
  double log = 0;
  for (const auto& [key, kernels] : all) {
    const auto& [n, k, m] = key;
    const Problem problem = format.problem(m, n, k);
    const Expectations expectations(table, problem, device, leave_out);
    const Measured *best = &kernels[0], *chosen = nullptr;
    Expectations::Expectation lowest{};
    const auto counted = [&](const Measured& one) { return counted_us(one.kernel->entry, problem, one.us); };
    for (const Measured& one : kernels) {
      if (counted(one) < counted(*best)) best = &one;
      Expectations::Expectation expected = expectations.expect(one.kernel->name, one.estimate_us);
      expected.us = counted_us(one.kernel->entry, problem, expected.us);
      if (chosen == nullptr || expected.measured > lowest.measured ||
          (expected.measured == lowest.measured && expected.us < lowest.us))
        chosen = &one, lowest = expected;
    }
    const double loss = counted(*chosen) / counted(*best);
    log += std::log(loss) / static_cast<double>(all.size());
    quality.over_3 += loss > 1.03;
    quality.over_10 += loss > 1.1;
    if (loss <= quality.worst) continue;
    quality.worst = loss;
    quality.worst_problem = to_string(problem);
    quality.chosen = chosen->kernel->name, quality.best = best->kernel->name;
  }
  quality.geomean = std::exp(log);
  return quality;
}

}  // namespace

std::vector<FormatQuality> judge_choices(const TuningTable& table) {
  std::vector<FormatQuality> qualities;
  if (table.empty()) return qualities;
  const Device device = device_of(table);
  for (TunedFormatTimes& times : table.data()->formats) {
    FormatQuality quality;
    const std::string one = to_string(times.format.problem(1, 1, 1));
    quality.format = one.substr(std::string("m1 n1 k1 ").size());
    const Expectations estimates(table, times.format.problem(1, 1, 1), device);  // puts this build's in place
    std::map<std::tuple<int64_t, int64_t, int64_t>, std::vector<Measured>> all;
    for (const TunedKernel& kernel : times.kernels) {
      quality.foreign += kernel.entry == nullptr ? 1 : 0;
      for (const TunedShape& shape : kernel.shapes)
        for (const TunedTime& time : shape.times)
          if (time.estimate_us > 0) all[{shape.n, shape.k, time.m}].push_back({&kernel, time.us, time.estimate_us});
    }
    std::erase_if(all, [](const auto& problem) { return problem.second.size() < 2; });
    quality.problems = static_cast<int>(all.size());
    for (const auto& [problem, kernels] : all) {
      quality.fewest = quality.fewest == 0 ? kernels.size() : std::min(quality.fewest, kernels.size());
      quality.most = std::max(quality.most, kernels.size());
    }
    const auto add = [&](const char* name, const TuningTable& by, LeaveOut leave_out) {
      quality.ways.push_back(judge(name, all, times.format, by, device, leave_out));
    };
    add("the cost model alone", {}, LeaveOut::kNothing);
    if (device.kind == DeviceKind::kCuda)
      if (const TuningTable shipped = shipped_tuning_table(device); !shipped.empty())
        add("with the table that ships", shipped, LeaveOut::kNothing);
    add("with this table", table, LeaveOut::kNothing);
    add("with this table, but for the problem", table, LeaveOut::kProblem);
    add("with this table, but for the shape", table, LeaveOut::kShape);
    qualities.push_back(std::move(quality));
  }
  return qualities;
}

}  // namespace nybble::bench
