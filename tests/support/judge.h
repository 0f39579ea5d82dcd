// How one output stands to the pass rules of docs/testing.md, on the host and the device.
#pragma once

#include <cmath>

#include "support/numbers.h"

namespace nybble::testing {

// badness 0: right. `used`: the share of the accumulation allowance that the element used. `rounded`: it is the
// correctly rounded result.
struct Judgement {
  double badness, used;
  bool rounded;
};

// `exact` is the result before the store, `absolute` the sum of the absolute values of everything added to it.
// `equality`: the data leave nothing to round before the store, so its one right answer is demanded.
NYBBLE_HD inline Judgement judge(uint32_t got, double exact, double absolute, bool equality, int64_t k, DType dtype) {
  const uint32_t nearest = narrow(exact, dtype);
  const bool same = same_number(got, nearest, dtype);
  if (equality) {
    if (same) return {0, 0, true};
    const double error = fabs(widen(got, dtype) - exact);
    return {error > 0 && error < 1e30 ? error : 1e30, 0, false};
  }
  const double allowance = accumulation_allowance(absolute, k), value = widen(got, dtype);
  if (!is_finite(got, dtype)) {  // right only where fp32 sums may round past the range, on that side
    const bool reached = !is_nan(got, dtype) && (value < 0) == (exact < 0) &&
                         !is_finite(narrow(exact + (exact < 0 ? -allowance : allowance), dtype), dtype);
    return {reached ? 0.0 : 1e30, 0, same};
  }
  const double error = fabs(value - exact), half = half_step(fabs(exact) + allowance, dtype);
  if (!(error <= 1e300)) return {1e30, 0, same};
  const double used = error > half ? (allowance > 0 ? (error - half) / allowance : 1e30) : 0;
  return {used > 1 ? used : 0, used, same};
}

}  // namespace nybble::testing
