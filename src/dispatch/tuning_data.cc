// Building a table's data, and the correction of estimates.
#include "dispatch/tuning_data.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/parallel.h"
#include "registry/registry.h"
#include "runtime/machine.h"

namespace nybble {
namespace {

constexpr double kOwnReach = 3;         // |ln m| at which the problem's own shape counts by 1 / e
constexpr double kNear = 0.1;           // squared distance at which another shape counts half of what a twin would
constexpr double kTokenDistance = 0.3;  // of ln m squared, beside ln n and ln k
constexpr double kPrior = 3;            // weight of what is assumed before anything was measured

double squared(double x) { return x * x; }
double log_ratio(int64_t a, int64_t b) { return std::log(static_cast<double>(a) / static_cast<double>(b)); }

const KernelEntry* find_entry(const std::string& name) {
  for (const KernelEntry& entry : registry())
    if (entry.name == name) return &entry;
  return nullptr;
}

template <class List, class Matches> auto find_where(List& list, const Matches& matches) {
  const auto found = std::find_if(list.begin(), list.end(), matches);
  return found != list.end() ? &*found : nullptr;
}

// A kernel's ln(measured / estimated) on one shape.
struct Ratio {
  double log;
  double distance;  // |ln m| to the nearest measurement
};

std::optional<Ratio> ratio_at(const TunedShape& shape, int64_t m, bool without_m) {
  const TunedTime *below = nullptr, *above = nullptr;  // the nearest; at m itself both are the same
  for (const TunedTime& time : shape.times) {
    if (time.estimate_us <= 0 || (without_m && time.m == m)) continue;
    if (time.m <= m) below = &time;
    if (time.m >= m && above == nullptr) above = &time;
  }
  if (below == nullptr && above == nullptr) return {};
  const auto ratio_of = [m](const TunedTime& time) {
    return Ratio{std::log(time.us / time.estimate_us), std::abs(log_ratio(time.m, m))};
  };
  if (below == nullptr || above == nullptr || below == above) return ratio_of(below != nullptr ? *below : *above);
  const Ratio low = ratio_of(*below), high = ratio_of(*above);
  return Ratio{(low.log * high.distance + high.log * low.distance) / (low.distance + high.distance),
               std::min(low.distance, high.distance)};
}

}  // namespace

TunedFormat TunedFormat::of(const Problem& problem) {
  return {problem.act_dtype, problem.weight.scale_dtype, problem.weight.zero_kind, problem.weight.group_size};
}

Problem TunedFormat::problem(int64_t m, int64_t n, int64_t k) const {
  Problem problem{.m = m, .n = n, .k = k, .act_dtype = act_dtype, .out_dtype = act_dtype};
  problem.weight = {.scale_dtype = scale_dtype, .zero_kind = zero_kind, .group_size = group_size};
  return problem;
}

bool TuningData::add(const Problem& problem, const std::string& kernel, double us, double estimate_us) {
  TunedFormatTimes* format = find(problem);
  if (format == nullptr) {
    format = &formats.emplace_back();
    format->format = TunedFormat::of(problem);
  }
  auto* row = find_where(format->kernels, [&](const TunedKernel& one) { return one.name == kernel; });
  if (row == nullptr) row = &format->kernels.emplace_back(TunedKernel{kernel, find_entry(kernel), {}});
  auto* shape =
      find_where(row->shapes, [&](const TunedShape& one) { return one.n == problem.n && one.k == problem.k; });
  if (shape == nullptr) shape = &row->shapes.emplace_back(TunedShape{problem.n, problem.k, {}});
  const auto at = std::lower_bound(shape->times.begin(), shape->times.end(), problem.m,
                                   [](const TunedTime& time, int64_t m) { return time.m < m; });
  if (at != shape->times.end() && at->m == problem.m) return false;
  shape->times.insert(at, {problem.m, us, estimate_us});
  return true;
}

TunedFormatTimes* TuningData::find(const Problem& problem) {
  const TunedFormat format = TunedFormat::of(problem);
  return find_where(formats, [&](const TunedFormatTimes& one) { return one.format == format; });
}

std::string tuned_device_name(const Device& device) {
  return device.kind == DeviceKind::kCuda ? device.name : runtime::cpu_model();
}

std::string TuningTable::device() const { return data_ != nullptr ? data_->device : ""; }

bool TuningTable::made_for(const Device& device) const {
  if (data_ == nullptr) return true;
  if (data_->device != tuned_device_name(device)) return false;
  if (device.kind == DeviceKind::kCuda) return true;
  return data_->num_threads == (device.num_threads > 0 ? device.num_threads : base::default_threads());
}

size_t TuningTable::num_problems() const {
  size_t count = 0;
  if (data_ == nullptr) return count;
  for (const TunedFormatTimes& format : data_->formats) {
    std::vector<std::array<int64_t, 3>> problems;
    for (const TunedKernel& kernel : format.kernels)
      for (const TunedShape& shape : kernel.shapes)
        for (const TunedTime& time : shape.times) problems.push_back({shape.n, shape.k, time.m});
    std::sort(problems.begin(), problems.end());
    count += std::unique(problems.begin(), problems.end()) - problems.begin();
  }
  return count;
}

std::vector<std::string> TuningTable::unknown_kernels() const {
  std::vector<std::string> names;
  if (data_ == nullptr) return names;
  for (const TunedFormatTimes& format : data_->formats)
    for (const TunedKernel& kernel : format.kernels)
      if (kernel.entry == nullptr) names.push_back(kernel.name);
  return names;
}

double counted_us(const KernelEntry* entry, const Problem& problem, double us) {
  return entry != nullptr && entry->chain_factor ? us * entry->chain_factor(problem) : us;
}

Expectations::Expectations(const TuningTable& table, const Problem& problem, const Device& device, LeaveOut leave_out)
    : problem_(problem), leave_out_(leave_out) {
  if (table.empty()) return;
  TunedFormatTimes* const times = table.data()->find(problem);
  times_ = times;
  if (times == nullptr) return;
  std::call_once(times->estimated, [&] {
    for (TunedKernel& kernel : times->kernels) {
      if (kernel.entry == nullptr) continue;
      for (TunedShape& shape : kernel.shapes)
        for (TunedTime& time : shape.times) {
          const Problem measured = times->format.problem(time.m, shape.n, shape.k);
          if (kernel.entry->why_not(measured, device).empty())
            time.estimate_us = kernel.entry->estimate_us(measured, device);
        }
    }
  });
  Sum sum;
  for (const TunedKernel& kernel : times->kernels) sum.add(around(kernel, true));
  sum.add(kPrior, 0);
  common_ = sum.mean();
}

Expectations::Sum Expectations::around(const TunedKernel& kernel, bool own_too) const {
  Sum sum;
  for (const TunedShape& shape : kernel.shapes) {
    const bool own = is_own(shape);
    if (own && (!own_too || leave_out_ == LeaveOut::kShape)) continue;
    const std::optional<Ratio> ratio = ratio_at(shape, problem_.m, own && leave_out_ == LeaveOut::kProblem);
    if (!ratio) continue;
    const double distance = squared(log_ratio(shape.n, problem_.n)) + squared(log_ratio(shape.k, problem_.k)) +
                            kTokenDistance * squared(ratio->distance);
    sum.add(1 / (kNear + distance), ratio->log);
  }
  return sum;
}

Expectations::Expectation Expectations::expect(const std::string& kernel, double estimate_us) const {
  if (times_ == nullptr) return {estimate_us, false, 1};
  const auto* row = find_where(times_->kernels, [&](const TunedKernel& one) { return one.name == kernel; });
  double log = common_;
  if (row != nullptr) {
    Sum sum = around(*row, false);
    sum.add(kPrior, common_);
    log = sum.mean();
    const auto* own = find_where(row->shapes, [&](const TunedShape& shape) { return is_own(shape); });
    if (own != nullptr && leave_out_ == LeaveOut::kNothing)
      for (const TunedTime& time : own->times)
        if (time.m == problem_.m) return {time.us, true, time.us / estimate_us};
    if (own != nullptr && leave_out_ != LeaveOut::kShape)
      if (const std::optional<Ratio> ratio = ratio_at(*own, problem_.m, leave_out_ == LeaveOut::kProblem)) {
        const double trust = std::exp(-ratio->distance / kOwnReach);
        log = trust * ratio->log + (1 - trust) * log;
      }
  }
  const double correction = std::exp(log);
  return {estimate_us * correction, false, correction};
}

}  // namespace nybble
