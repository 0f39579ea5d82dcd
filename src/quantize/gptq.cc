#include "quantize/gptq.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "quantize/calibration_check.h"
#include "quantize/rows.h"

namespace nybble::quantize {
namespace {

constexpr double kMaxDamping = 1;

GptqOrder order_of(const std::vector<float>& diagonal, const GridOptions& grid, const GptqOptions& options) {
  const int64_t k = static_cast<int64_t>(diagonal.size());
  GptqOrder order;
  order.feature.resize(k);
  std::iota(order.feature.begin(), order.feature.end(), 0);
  const auto larger = [&](int32_t a, int32_t b) { return diagonal[a] > diagonal[b]; };
  const int64_t group_size = grid.group_size == kPerColumn ? std::max<int64_t>(1, k) : grid.group_size;
  const int64_t groups = (k + group_size - 1) / group_size;
  std::vector<int64_t> group_order(groups);
  std::iota(group_order.begin(), group_order.end(), 0);
  if (options.act_order == ActOrder::kFull) {
    std::stable_sort(order.feature.begin(), order.feature.end(), larger);
    order.stored = !options.static_groups && !std::is_sorted(order.feature.begin(), order.feature.end());
  } else if (options.act_order == ActOrder::kGroupAware) {
    std::vector<float> largest(groups, 0);
    for (int64_t i = 0; i < k; ++i) largest[i / group_size] = std::max(largest[i / group_size], diagonal[i]);
    std::stable_sort(group_order.begin(), group_order.end(),
                     [&](int64_t a, int64_t b) { return largest[a] > largest[b]; });
    auto out = order.feature.begin();
    for (const int64_t group : group_order) {
      const auto begin = out;
      for (int64_t i = group * group_size; i < std::min(k, (group + 1) * group_size); ++i)
        *out++ = static_cast<int32_t>(i);
      std::stable_sort(begin, out, larger);
    }
  }
  for (int64_t p = 0; p < k; ++p) order.group.push_back((order.stored ? p : order.feature[p]) / group_size);
  if (!options.static_groups) {
    for (int64_t p = 0; p < k;) {
      int64_t end = p;
      while (end < k && order.group[end] == order.group[p]) ++end;
      order.segments.push_back({p, end, order.group[p]});
      p = end;
    }
  }
  if (order.segments.empty()) {
    for (int64_t p = 0; p < k; p += kGptqBlock) order.blocks.push_back(std::min(k, p + kGptqBlock));
    return order;
  }
  int64_t block_begin = 0;
  for (const GptqSegment& segment : order.segments) {
    if (segment.end - block_begin > kGptqBlock && segment.begin > block_begin) {
      order.blocks.push_back(segment.begin);
      block_begin = segment.begin;
    }
    for (; segment.end - block_begin > kGptqBlock; block_begin += kGptqBlock)
      order.blocks.push_back(block_begin + kGptqBlock);
    if (segment.end - segment.begin > kGptqBlock && segment.end > block_begin) {
      order.blocks.push_back(segment.end);
      block_begin = segment.end;
    }
  }
  if (block_begin < k) order.blocks.push_back(k);
  return order;
}

Result<void> check(const GptqOptions& options) {
  if (options.act_order > ActOrder::kGroupAware)
    return invalid_argument("GptqOptions::act_order has no meaning (enum value {})", int(options.act_order));
  if (!(options.damping >= 0 && options.damping <= kMaxDamping))
    return invalid_argument("GptqOptions::damping is {}; it may be 0 to {}", options.damping, kMaxDamping);
  if (options.max_retries < 0 || options.max_retries > 100)
    return invalid_argument("GptqOptions::max_retries is {}; it may be 0 to 100", options.max_retries);
  return check_range_options(options.range);
}

// Of the Hessian's diagonal, dead columns counting 1.
double mean_diagonal(const LayerStatistics& statistics) {
  double mean = 0;
  for (const float x : statistics.mean_square) mean += x == 0 ? 1.0 : x;
  return mean / static_cast<double>(std::max<int64_t>(1, statistics.k));
}

Result<GptqResult> fall_back(const GptqJob& job, GptqResult result, const std::string& why) {
  RangeOptions range = job.options.range;
  if (range.rule == RangeRule::kFull) range = {};
  Result<QuantizedWeight> weight = quantize_range(job.dense, job.grid, range, &job.statistics);
  if (!weight) return weight.error();
  result.weight = std::move(*weight);
  result.fell_back = true;
  result.dead_columns = 0;
  result.warnings = {
      fmt::format("{}: {}; rounded to nearest, weighted by mean squares, instead of GPTQ", job.dense.name, why)};
  return result;
}

}  // namespace

Result<GptqResult> run_gptq(const GptqJob& job, GptqBackend& backend) {
  const DenseWeight& dense = job.dense;
  const LayerStatistics& statistics = job.statistics;
  const GptqOptions& options = job.options;
  if (Result<void> fine = check(options); !fine) return fine.error();
  if (Result<void> fine = check_fits(dense, statistics); !fine) return fine.error();
  if (statistics.hessian.empty() && dense.k > 0)
    return invalid_argument(
        "weight '{}': GPTQ needs the Hessian, but the statistics of '{}' hold mean squares only; collect Hessians, or "
        "take range search or AWQ",
        dense.name, statistics.layer);
  Result<QuantizedWeight> prepared = quantize::prepare(dense, job.grid);
  if (!prepared) return prepared.error();
  GptqResult result;
  result.weight = std::move(*prepared);
  result.damping = options.damping;
  if (result.weight.codes.empty()) return result;
  result.dead_columns = std::count(statistics.mean_square.begin(), statistics.mean_square.end(), 0.0f);
  if (result.dead_columns == dense.k) return fall_back(job, std::move(result), "all inputs were zero when calibrated");

  const GptqOrder order = order_of(statistics.mean_square, job.grid, options);
  const double mean = mean_diagonal(statistics);
  for (;;) {
    const Result<bool> positive = backend.factor(order, result.damping * mean);
    if (!positive) return positive.error();
    if (*positive) break;
    if (result.damping_retries == options.max_retries || result.damping >= kMaxDamping)
      return fall_back(job, std::move(result),
                       fmt::format("the Hessian is not positive definite even with damping {}", result.damping));
    ++result.damping_retries;
    result.damping = result.damping == 0 ? 0.0001 : std::min(kMaxDamping, 2 * result.damping);
  }
  const Result<bool> in_range = backend.round_rows(order, result.weight);
  if (!in_range) return in_range.error();
  if (!*in_range) return fall_back(job, std::move(result), "the corrections left the range of the scales or of fp32");
  if (order.stored) result.weight.k_order = order.feature;
  if (result.dead_columns > 0)
    result.warnings.push_back(
        fmt::format("{}: {} of {} inputs were always zero when calibrated; their weights are now zero", dense.name,
                    result.dead_columns, dense.k));
  if (result.damping_retries > 0)
    result.warnings.push_back(fmt::format("{}: the Hessian needed damping {} instead of {} to be positive definite",
                                          dense.name, result.damping, options.damping));
  return result;
}

}  // namespace nybble::quantize
