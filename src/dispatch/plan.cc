// make_plan and explain_kernels: the registry's rows, judged for one problem.
#include <limits>

#include "base/error.h"
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

KernelVerdict judge(const KernelEntry& entry, const Problem& problem, const Device& device) {
  KernelVerdict verdict{.kernel = entry.name, .reason = entry.why_not(problem, device)};
  verdict.fits = verdict.reason.empty();
  if (verdict.fits) verdict.estimated_us = entry.estimate_us(problem, device);
  return verdict;
}

}  // namespace

std::vector<KernelVerdict> explain_kernels(const Problem& problem, const Device& device) {
  std::vector<KernelVerdict> verdicts;
  for (const KernelEntry& entry : registry()) verdicts.push_back(judge(entry, problem, device));
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
    const std::vector<KernelVerdict> verdicts = explain_kernels(problem, device);
    size_t best = verdicts.size(), second = verdicts.size(), refused = 0;
    const auto faster = [&](size_t a, size_t b) {
      return b == verdicts.size() || verdicts[a].estimated_us < verdicts[b].estimated_us;
    };
    for (size_t i = 0; i < verdicts.size(); ++i) {
      if (!verdicts[i].fits) {
        ++refused;
      } else if (faster(i, best)) {
        second = best;
        best = i;
      } else if (faster(i, second)) {
        second = i;
      }
    }
    if (best == verdicts.size())
      return unsupported("no kernel for '{}' on {}:{}", to_string(problem), device.name, summary_of(verdicts));
    plan.entry_ = &registry()[best];
    plan.why_ = fmt::format("lowest estimate, {:.1f} us", verdicts[best].estimated_us);
    if (second < verdicts.size())
      plan.why_ += fmt::format("; next {}, {:.1f} us", verdicts[second].kernel, verdicts[second].estimated_us);
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
