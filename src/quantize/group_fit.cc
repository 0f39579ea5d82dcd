#include "quantize/group_fit.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "quantize/per_isa.h"

namespace nybble::quantize {
namespace {

using rtn::GroupScale;
using rtn::Range;

// The candidates side by side: each sums over the elements in their order.
constexpr int kMaxCandidates = rtn::kShrinkSteps;
struct Candidates {
  std::array<float, kMaxCandidates> scale, low, high;
  std::array<double, kMaxCandidates> loss;
};

NYBBLE_PER_ISA void sum_losses(const float* weights, const float* importance, int64_t count, float exponent,
                               Candidates& candidates) {
  for (int64_t i = 0; i < count; ++i) {
    const double factor = importance == nullptr ? 1.0 : importance[i];
    for (int j = 0; j < kMaxCandidates; ++j) {
      const float x = weights[i] / candidates.scale[j];
      const float error = rtn::round_half_even(rtn::clamp(x, candidates.low[j], candidates.high[j])) - x;
      candidates.loss[j] += factor * power(error, exponent);
    }
  }
}

NYBBLE_PER_ISA void sum_squares(const float* weights, const float* importance, int64_t count, Candidates& candidates) {
  for (int64_t i = 0; i < count; ++i) {
    const double factor = importance == nullptr ? 1.0 : importance[i];
    for (int j = 0; j < kMaxCandidates; ++j)
      candidates.loss[j] +=
          factor * rtn::squared_error(weights[i], candidates.scale[j], candidates.low[j], candidates.high[j]);
  }
}

// Ranges that leave out the `j` outermost weights, widest first; at most kMaxCandidates.
std::vector<Range> inner_ranges(std::span<const float> weights, bool symmetric) {
  std::vector<float> sorted(weights.begin(), weights.end());
  if (symmetric)
    for (float& w : sorted) w = std::abs(w);
  std::sort(sorted.begin(), sorted.end());
  const size_t cuts = std::min<size_t>(sorted.size() / 10, kMaxCandidates - 1);
  std::vector<Range> ranges;
  for (size_t j = 0; j <= cuts; ++j) {
    const float high = sorted[sorted.size() - 1 - j];
    ranges.push_back(symmetric ? Range{-high, high} : Range{std::min(0.0f, sorted[j]), std::max(0.0f, high)});
  }
  return ranges;
}

}  // namespace

// Not inlined: among fit_group()'s many values the two that a loop carries would live in memory.
[[gnu::noinline]] Range range_of(std::span<const float> weights) {
  Range range;
  for (const float w : weights) {
    range.min = std::min(range.min, w);
    range.max = std::max(range.max, w);
  }
  return range;
}

GroupScale fit_group(std::span<const float> weights, std::span<const float> importance, GroupGrid grid,
                     const RangeOptions& options) {
  const Range full = range_of(weights);
  const GroupScale widest = scale_for(full, 1.0f, grid);
  if (options.rule == RangeRule::kFull || widest.scale == 0 || widest.overflows) return widest;
  std::vector<GroupScale> scales;
  if (options.rule == RangeRule::kShrink) {
    for (int step = 0; step < rtn::kShrinkSteps; ++step)
      scales.push_back(scale_for(full, rtn::shrink_factor(step), grid));
  } else {
    for (const Range& range : inner_ranges(weights, grid.symmetric))
      if (const GroupScale scale = scale_for(range, 1.0f, grid); scale.scale > 0) scales.push_back(scale);
  }
  Candidates candidates;
  candidates.loss.fill(0);
  for (int j = 0; j < kMaxCandidates; ++j) {
    const GroupScale& scale = scales[std::min<size_t>(j, scales.size() - 1)];
    candidates.scale[j] = scale.scale;
    candidates.low[j] = static_cast<float>(-scale.zero);
    candidates.high[j] = static_cast<float>(15 - scale.zero);
  }
  const float* factors = importance.empty() ? nullptr : importance.data();
  const int64_t count = static_cast<int64_t>(weights.size());
  if (options.exponent == 2)
    sum_squares(weights.data(), factors, count, candidates);
  else
    sum_losses(weights.data(), factors, count, static_cast<float>(options.exponent), candidates);
  size_t best = 0;
  double least = 0;
  for (size_t j = 0; j < scales.size(); ++j) {
    const double loss = candidates.loss[j] * loss_unit(scales[j].scale, scales[0].scale, options.exponent);
    if (j == 0 || loss < least) best = j, least = loss;
  }
  return scales[best];
}

bool store_group(QuantizedWeight& weight, const Group& group, const GroupScale& scale) {
  if (scale.overflows) return false;
  uint8_t* codes = weight.codes.data() + group.first_code;
  for (size_t i = 0; i < group.weights.size(); ++i) codes[i] = code_for(group.weights[i], scale);
  weight.scales.set_bits(group.index, scale.bits);
  if (weight.zero_kind == ZeroKind::kInt) weight.int_zeros[group.index] = static_cast<uint8_t>(scale.zero);
  return true;
}

}  // namespace nybble::quantize
