// make_plan and explain_kernels: the registry's rows, judged for one problem.
#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "dispatch/tuning_data.h"
#include "layout/blob.h"
#include "nybble/gemm.h"
#include "registry/registry.h"

namespace nybble {
namespace {

constexpr int64_t kMaxDimension = int64_t{1} << 40;

Result<void> check(const Problem& problem) {
  for (const auto& [name, value] : {std::pair{"m", problem.m}, {"n", problem.n}, {"k", problem.k}})
    if (value < 0 || value > kMaxDimension)
      return invalid_argument("{} is {} in '{}'; it must lie between 0 and 2^40", name, value, to_string(problem));
  if (!layout::packable_group_size(problem.weight.group_size, problem.k))
    return invalid_argument(
        "group_size is {} in '{}'; packed weights have one scale per column (0) or per group of a multiple of "
        "16 input features (or one group for all of k)",
        problem.weight.group_size, to_string(problem));
  return {};
}

// "34 rows: <reason>" for every distinct reason, most frequent first.
std::string summary_of(const std::vector<KernelVerdict>& verdicts) {
  std::vector<std::pair<std::string, int>> reasons;
  for (const KernelVerdict& verdict : verdicts) {
    const auto found =
        std::find_if(reasons.begin(), reasons.end(), [&](const auto& r) { return r.first == verdict.reason; });
    if (found != reasons.end())
      ++found->second;
    else
      reasons.emplace_back(verdict.reason, 1);
  }
  std::stable_sort(reasons.begin(), reasons.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  std::string text;
  for (const auto& [reason, count] : reasons)
    text += fmt::format("\n  {} {}: {}", count, count == 1 ? "kernel" : "kernels", reason);
  return text;
}

const KernelEntry* find(const std::string& name) {
  for (const KernelEntry& entry : registry())
    if (entry.name == name) return &entry;
  return nullptr;
}

KernelVerdict judge(const KernelEntry& entry, const Problem& problem, const Device& device,
                    const Expectations& expectations) {
  KernelVerdict verdict{.kernel = entry.name, .reason = entry.why_not(problem, device)};
  verdict.fits = verdict.reason.empty();
  if (!verdict.fits) return verdict;
  verdict.estimated_us = entry.estimate_us(problem, device);
  const Expectations::Expectation expectation = expectations.expect(entry.name, verdict.estimated_us);
  verdict.expected_us = expectation.us;
  verdict.counted_us = counted_us(&entry, problem, expectation.us);
  if (expectation.measured) verdict.measured_us = expectation.us;
  return verdict;
}

// Whether `a` is chosen rather than `b`. What was measured is believed before what was estimated.
bool better(const KernelVerdict& a, const KernelVerdict& b) {
  if (a.fits != b.fits) return a.fits;
  if (a.measured_us.has_value() != b.measured_us.has_value()) return a.measured_us.has_value();
  return a.counted_us < b.counted_us;
}

std::string expectation_text(const KernelVerdict& verdict) {
  std::string text = verdict.measured_us ? fmt::format("measured {:.1f} us", *verdict.measured_us)
                                         : fmt::format("{:.1f} us", verdict.expected_us);
  if (verdict.counted_us != verdict.expected_us)
    text += fmt::format(" counted as {:.1f} for what it costs a chain", verdict.counted_us);
  if (!verdict.measured_us && verdict.expected_us != verdict.estimated_us)
    text += fmt::format(", {:.1f} before correction by measurements nearby", verdict.estimated_us);
  return text;
}

}  // namespace

std::vector<KernelVerdict> explain_kernels(const Problem& problem, const Device& device, const PlanOptions& options) {
  TuningTable table = options.table ? *options.table : shipped_tuning_table(device);
  if (!table.made_for(device)) table = {};
  const Expectations expectations(table, problem, device);
  std::vector<KernelVerdict> verdicts;
  for (const KernelEntry& entry : registry()) verdicts.push_back(judge(entry, problem, device, expectations));
  return verdicts;
}

Result<Plan> make_plan(const Problem& problem, const Device& device, const PlanOptions& options) {
  if (Result<void> ok = check(problem); !ok) return ok.error();
  Plan plan;
  plan.problem_ = problem;
  plan.device_ = device;
  plan.pdl_ = options.pdl;

  if (!options.kernel.empty()) {
    const KernelEntry* entry = find(options.kernel);
    if (entry == nullptr)
      return invalid_argument("there is no kernel '{}'; `nybble kernels` lists all {}", options.kernel,
                              registry().size());
    if (const std::string reason = entry->why_not(problem, device); !reason.empty())
      return unsupported("kernel {} cannot do '{}' on {}: it {}", options.kernel, to_string(problem), device.name,
                         reason);
    plan.entry_ = entry;
    plan.why_ = "asked for by name";
  } else if (problem.m == 0 || problem.n == 0) {
    plan.why_ = "nothing to compute";
    return plan;
  } else {
    if (options.table && !options.table->made_for(device))
      return invalid_argument(
          "the tuning table was measured on '{}', the plan is for '{}'{}: tune on this device, or leave the table out",
          options.table->device(), tuned_device_name(device),
          device.kind == DeviceKind::kCpu ? " with another number of threads, or another CPU" : "");
    const std::vector<KernelVerdict> verdicts = explain_kernels(problem, device, options);
    std::vector<size_t> order(verdicts.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return better(verdicts[a], verdicts[b]); });
    const KernelVerdict &best = verdicts[order[0]], &second = verdicts[order[1]];  // the reference makes them two
    if (!best.fits)
      return unsupported("no kernel for '{}' on {}:{}", to_string(problem), device.name, summary_of(verdicts));
    plan.entry_ = &registry()[order[0]];
    plan.why_ = best.measured_us ? expectation_text(best) : "lowest estimate, " + expectation_text(best);
    if (second.fits) plan.why_ += fmt::format("; next {}, {}", second.kernel, expectation_text(second));
    const auto refused = std::count_if(verdicts.begin(), verdicts.end(), [](const auto& v) { return !v.fits; });
    plan.why_ += fmt::format("; {} of {} kernels cannot do it", refused, verdicts.size());
  }
  plan.workspace_bytes_ = plan.entry_->workspace_bytes(problem, device);
  return plan;
}

const std::string& Plan::kernel() const {
  static const std::string none = "none";
  return entry_ != nullptr ? entry_->name : none;
}

Numerics Plan::numerics() const { return entry_ != nullptr ? entry_->numerics : Numerics::kExactWeight; }

std::string to_string(const Plan& plan) {
  return fmt::format("{} -> {} on {}, workspace {} B ({})", to_string(plan.problem()), plan.kernel(),
                     plan.device().name, plan.workspace_bytes(), plan.why());
}

}  // namespace nybble
