// fit_group() by one warp: the same candidates, each judged by the same sum over the elements in their order, so that
// the scale is the CPU's bit for bit. Built without contraction into FMA.
#pragma once

#include "quantize/group_fit.h"
#include "quantize/on_gpu.cuh"

namespace nybble::quantize {

struct FitOptions {
  GroupGrid grid;
  RangeRule rule = RangeRule::kFull;
  double exponent = 2;
};

__device__ inline float largest_of_warp(float x) {
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, distance));
  return x;
}

// min <= 0 <= max of a group's finite weights: weight(0) to weight(count - 1).
template <class Weight> __device__ rtn::Range range_by_warp(int64_t count, int lane, const Weight& weight) {
  rtn::Range range;
  for (int64_t i = lane; i < count; i += kWarpSize) {
    const float w = weight(i);
    range.min = fminf(range.min, w);
    range.max = fmaxf(range.max, w);
  }
  return {-largest_of_warp(-range.min), largest_of_warp(range.max)};
}

// The largest of `sign` * weights (of their magnitudes where `sign` is 0), then the next one, and so on: what sorting
// would list. Equal ones are listed as often as they occur.
class Descending {
 public:
  __device__ Descending(const float* weights, int64_t count, float sign, int lane)
      : weights_(weights), count_(count), sign_(sign), lane_(lane) {}

  __device__ float next() {
    if (left_ == 0) {
      float largest = -INFINITY;
      for (int64_t i = lane_; i < count_; i += kWarpSize)
        if (const float x = key(i); x < value_) largest = fmaxf(largest, x);
      value_ = largest_of_warp(largest);
      int equal = 0;
      for (int64_t i = lane_; i < count_; i += kWarpSize) equal += key(i) == value_ ? 1 : 0;
      left_ = __reduce_add_sync(kAllLanes, equal);
    }
    --left_;
    return value_;
  }

 private:
  __device__ float key(int64_t i) const { return sign_ == 0 ? fabsf(weights_[i]) : sign_ * weights_[i]; }

  const float* weights_;
  int64_t count_;
  float sign_;
  int lane_;
  float value_ = INFINITY;
  int left_ = 0;
};

// All lanes of a warp, with the same arguments but `lane`; all get the result. `weights` and `importance` (may be null)
// were written before the last __syncwarp().
__device__ inline rtn::GroupScale fit_group_by_warp(const float* weights, const float* importance, int64_t count,
                                                    const FitOptions& options, int lane) {
  constexpr int kCandidates = (rtn::kShrinkSteps + kWarpSize - 1) / kWarpSize;  // a lane's
  const rtn::Range full = range_by_warp(count, lane, [&](int64_t i) { return weights[i]; });
  const rtn::GroupScale widest = scale_for(full, 1.0f, options.grid);
  if (options.rule == RangeRule::kFull || widest.scale == 0 || widest.overflows) return widest;

  rtn::GroupScale scale[kCandidates];
  for (rtn::GroupScale& s : scale) s.scale = 0;
  if (options.rule == RangeRule::kShrink) {
    for (int c = 0; c < kCandidates; ++c)
      if (const int step = lane + c * kWarpSize; step < rtn::kShrinkSteps)
        scale[c] = scale_for(full, rtn::shrink_factor(step), options.grid);
  } else {
    Descending high(weights, count, options.grid.symmetric ? 0.0f : 1.0f, lane), low(weights, count, -1.0f, lane);
    const int64_t cuts = count / 10 < rtn::kShrinkSteps - 1 ? count / 10 : rtn::kShrinkSteps - 1;
    for (int step = 0; step <= cuts; ++step) {
      const float max = high.next();
      const rtn::Range range =
          options.grid.symmetric ? rtn::Range{-max, max} : rtn::Range{fminf(0.0f, -low.next()), fmaxf(0.0f, max)};
      for (int c = 0; c < kCandidates; ++c)
        if (step == lane + c * kWarpSize) scale[c] = scale_for(range, 1.0f, options.grid);
    }
  }

  double loss[kCandidates] = {};
  for (int64_t i = 0; i < count; ++i) {
    const float weight = weights[i];
    const double factor = importance == nullptr ? 1.0 : importance[i];
    for (int c = 0; c < kCandidates; ++c) {
      if (scale[c].scale == 0) continue;
      const float low = static_cast<float>(-scale[c].zero), high = static_cast<float>(15 - scale[c].zero);
      if (options.exponent == 2) {
        loss[c] += factor * rtn::squared_error(weight, scale[c].scale, low, high);
      } else {
        const float x = rtn::divide(weight, scale[c].scale);
        const float error = rtn::round_half_even(rtn::clamp(x, low, high)) - x;
        loss[c] += factor * power(error, static_cast<float>(options.exponent));
      }
    }
  }

  // The first of the least ones. A loss that is no number (0 * infinity) loses to every other, but for the widest's
  // own.
  const float unit_scale = __shfl_sync(kAllLanes, scale[0].scale, 0);
  const bool widest_has_none = __shfl_sync(kAllLanes, isnan(loss[0]) ? 1 : 0, 0) != 0;
  double least = INFINITY;
  int best = rtn::kShrinkSteps;  // none
  for (int c = 0; c < kCandidates; ++c) {
    if (scale[c].scale == 0) continue;
    const double in_units = loss[c] * loss_unit(scale[c].scale, unit_scale, options.exponent);
    if (!isnan(in_units) && (best == rtn::kShrinkSteps || in_units < least))
      least = in_units, best = lane + c * kWarpSize;
  }
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    const double other = __shfl_xor_sync(kAllLanes, least, distance);
    const int other_best = __shfl_xor_sync(kAllLanes, best, distance);
    if (other < least || (other == least && other_best < best)) least = other, best = other_best;
  }
  if (widest_has_none) best = 0;
  rtn::GroupScale chosen;
  for (int c = 0; c < kCandidates; ++c)
    if (best / kWarpSize == c) chosen = scale[c];
  const int owner = best % kWarpSize;
  chosen.bits = __shfl_sync(kAllLanes, chosen.bits, owner);
  chosen.scale = __shfl_sync(kAllLanes, chosen.scale, owner);
  chosen.zero = __shfl_sync(kAllLanes, chosen.zero, owner);
  chosen.overflows = false;
  return chosen;
}

}  // namespace nybble::quantize
