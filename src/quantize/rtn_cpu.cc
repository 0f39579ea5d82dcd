// Round to nearest on the CPU. The loops over elements are plain and vectorized by the compiler, once per instruction
// set; which one runs does not show in the result.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "base/parallel.h"
#include "nybble/quantize.h"
#include "quantize/per_isa.h"
#include "quantize/prepare.h"
#include "quantize/rows.h"
#include "quantize/rtn.h"

namespace nybble {
namespace {

using namespace rtn;
using quantize::lower;
using quantize::widen;

constexpr int64_t kElementsPerItem = 1 << 16;

struct KeyRange {
  int32_t min = 0, max = 0;
};
NYBBLE_PER_ISA KeyRange find_range(const float* weights, int64_t count) {
  int32_t min = 0, max = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t key = key_of(weights[i]);
    min = std::min(min, key);
    max = std::max(max, key);
  }
  return {min, max};
}

NYBBLE_PER_ISA void write_codes(const float* weights, int64_t count, float scale, int zero, uint8_t* codes) {
  const float low = static_cast<float>(-zero), high = static_cast<float>(15 - zero);
  const int32_t offset = static_cast<int32_t>(bits_of(kRounder)) - zero;
  for (int64_t i = 0; i < count; ++i)  // level_of() whose result is read off the bits of level + kRounder
    codes[i] = static_cast<uint8_t>(
        static_cast<int32_t>(bits_of(clamp(divide(weights[i], scale), low, high) + kRounder)) - offset);
}

// The candidates of the range search side by side: each sums over the elements in order.
struct Candidates {
  std::array<float, kShrinkSteps> scale, low, high;
  std::array<double, kShrinkSteps> error;
};
NYBBLE_PER_ISA void sum_errors(const float* weights, int64_t count, Candidates& candidates) {
  for (int64_t i = 0; i < count; ++i)
    for (int step = 0; step < kShrinkSteps; ++step)
      candidates.error[step] +=
          squared_error(weights[i], candidates.scale[step], candidates.low[step], candidates.high[step]);
}

GroupScale search(const float* weights, int64_t count, Range range, const RtnOptions& options) {
  std::array<GroupScale, kShrinkSteps> scales;
  Candidates candidates;
  candidates.error.fill(0);
  for (int step = 0; step < kShrinkSteps; ++step) {
    scales[step] = scale_of(range, shrink_factor(step), options.symmetric, options.scale_dtype);
    candidates.scale[step] = scales[step].scale;
    candidates.low[step] = static_cast<float>(-scales[step].zero);
    candidates.high[step] = static_cast<float>(15 - scales[step].zero);
  }
  if (scales[0].overflows) return scales[0];
  sum_errors(weights, count, candidates);
  int best = 0;
  double least = in_weight_units(candidates.error[0], scales[0].scale);
  for (int step = 1; step < kShrinkSteps; ++step) {
    const double error = in_weight_units(candidates.error[step], scales[step].scale);
    if (error < least) best = step, least = error;
  }
  return scales[best];
}

}  // namespace

Result<QuantizedWeight> quantize_rtn(const DenseWeight& dense, const RtnOptions& options) {
  Result<QuantizedWeight> prepared = prepare(dense, options);
  if (!prepared) return prepared.error();
  QuantizedWeight weight = std::move(prepared).value();
  if (weight.codes.empty()) return weight;
  const int64_t k = weight.k, groups = weight.groups();
  const int64_t group_size = options.group_size == kPerColumn ? k : options.group_size;
  const int64_t rows_per_item = std::max<int64_t>(1, kElementsPerItem / std::max<int64_t>(1, k));
  const float limit = quantize::finite_limit(dense.values.dtype);
  std::atomic<int64_t> bad_element{kNoFault}, bad_group{kNoFault};

  base::parallel_for((weight.n + rows_per_item - 1) / rows_per_item, options.num_threads, [&](int64_t item) {
    std::vector<float> row(k);
    for (int64_t n = item * rows_per_item; n < std::min(weight.n, (item + 1) * rows_per_item); ++n) {
      widen(dense.values.bytes.data() + n * k * dtype_bytes(dense.values.dtype), dense.values.dtype, k, row.data());
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t begin = group * group_size, count = std::min(group_size, k - begin), index = n * groups + group;
        const float* weights = row.data() + begin;
        uint8_t* codes = weight.codes.data() + n * k + begin;
        const KeyRange keys = find_range(weights, count);
        if (keys.max >= key_of(limit) || keys.min <= key_of(-limit)) {
          const auto finite = [&](float w) { return key_of(w) < key_of(limit) && key_of(w) > key_of(-limit); };
          lower(bad_element, n * k + begin + (std::find_if_not(weights, weights + count, finite) - weights));
          continue;
        }
        const Range range{value_of_key(keys.min), value_of_key(keys.max)};
        GroupScale scale;
        scale.zero = options.symmetric ? 8 : 0;
        if (range.min == 0 && range.max == 0) {
          std::fill_n(codes, count, static_cast<uint8_t>(scale.zero));
        } else {
          scale = options.range_search == RangeSearch::kNone
                      ? scale_of(range, 1.0f, options.symmetric, options.scale_dtype)
                      : search(weights, count, range, options);
          if (scale.overflows) {
            lower(bad_group, index);
            continue;
          }
          write_codes(weights, count, scale.scale, scale.zero, codes);
          if (may_overflow(scale.scale))
            for (int64_t i = 0; i < count; ++i)
              codes[i] = static_cast<uint8_t>(
                  static_cast<int>(finite_level(static_cast<float>(codes[i] - scale.zero), scale.scale)) + scale.zero);
        }
        weight.scales.set_bits(index, scale.bits);
        if (!options.symmetric) weight.int_zeros[index] = static_cast<uint8_t>(scale.zero);
      }
    }
  });

  if (Result<void> fine = report(dense, options, {.element = bad_element, .group = bad_group}); !fine)
    return fine.error();
  return weight;
}

}  // namespace nybble
