// GPTQ (Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
// Transformers", ICLR 2023) in the form without an inverse (Chee, Cai, Kuleshov, De Sa, "QuIP", 2023, theorem 6):
// with H = (I + U) D (I + U)^T, U strictly upper triangular, D diagonal, the error e = w - w^ of a row costs
//
//   e H e^T = sum over j of D_j (e_j + sum over i < j of e_i U_ij)^2,
//
// so that column by column w^_j = round(w_j + c_j), c_j = sum over i < j of e_i U_ij, makes each term as small as it
// can be: the same numbers as pushing each error onto the columns after it through the inverse's Cholesky factor. What
// later columns would become if nothing were rounded, which the ranges of a group are taken from, is a forward
// substitution within the group. Rows do not depend on each other; a thread takes some of them from the first column to
// the last.
#include <atomic>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/parallel.h"
#include "quantize/calibration_check.h"
#include "quantize/group_fit.h"
#include "quantize/linear_algebra.h"
#include "quantize/rows.h"

namespace nybble {

using namespace quantize;

namespace {

constexpr int64_t kBlock = 128;  // columns whose errors reach the columns after them by one matrix product
constexpr double kMaxDamping = 1;

// A group in the order in which its columns are done.
struct Segment {
  int64_t begin = 0, end = 0;  // positions
  int64_t group = 0;           // of the scales
};

struct Order {
  std::vector<int32_t> feature;   // at each position
  std::vector<int64_t> group;     // at each position
  std::vector<Segment> segments;  // whose scales are found on the way; none with static groups
  std::vector<int64_t> blocks;    // ends of blocks; a segment of more than one ends one, all others lie within one
  bool stored = false;            // the result needs it as its k_order
};

Order order_of(const std::vector<float>& diagonal, const GridOptions& grid, const GptqOptions& options) {
  const int64_t k = static_cast<int64_t>(diagonal.size());
  Order order;
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
    for (int64_t p = 0; p < k; p += kBlock) order.blocks.push_back(std::min(k, p + kBlock));
    return order;
  }
  int64_t block_begin = 0;
  for (const Segment& segment : order.segments) {
    if (segment.end - block_begin > kBlock && segment.begin > block_begin) {
      order.blocks.push_back(segment.begin);
      block_begin = segment.begin;
    }
    for (; segment.end - block_begin > kBlock; block_begin += kBlock) order.blocks.push_back(block_begin + kBlock);
    if (segment.end - segment.begin > kBlock && segment.end > block_begin) {
      order.blocks.push_back(segment.end);
      block_begin = segment.end;
    }
  }
  if (block_begin < k) order.blocks.push_back(k);
  return order;
}

// I + U of the damped Hessian, in the order of the columns. 1 stands on the diagonal of dead columns.
struct Factor {
  std::vector<double> unit_upper;  // [k, k]; only what is right of the diagonal has a meaning
  double damping = 0;
  int retries = 0;
  bool failed = false;
};

Factor factor(const LayerStatistics& statistics, const Order& order, const GptqOptions& options, int num_threads) {
  const int64_t k = statistics.k;
  double mean = 0;
  for (const float x : statistics.mean_square) mean += x == 0 ? 1.0 : x;
  mean /= static_cast<double>(std::max<int64_t>(1, k));
  Factor result;
  result.damping = options.damping;
  result.unit_upper.resize(static_cast<size_t>(k) * static_cast<size_t>(k));
  for (;;) {
    base::parallel_for(k, num_threads, [&](int64_t i) {
      const int64_t row = order.feature[i];
      for (int64_t j = 0; j <= i; ++j) {
        const int64_t column = order.feature[j];
        // One of the two that should be equal: the same one, whatever the order.
        result.unit_upper[i * k + j] = statistics.hessian[std::max(row, column) * k + std::min(row, column)];
      }
      if (statistics.mean_square[row] == 0) result.unit_upper[i * k + i] = 1;
      result.unit_upper[i * k + i] += result.damping * mean;
    });
    if (factor_upper(result.unit_upper, k, num_threads)) break;
    if (result.retries == options.max_retries || result.damping >= kMaxDamping) {
      result.failed = true;
      return result;
    }
    ++result.retries;
    result.damping = result.damping == 0 ? 0.0001 : std::min(kMaxDamping, 2 * result.damping);
  }
  std::vector<double> diagonal(k);
  for (int64_t i = 0; i < k; ++i) diagonal[i] = result.unit_upper[i * k + i];
  base::parallel_for(k, num_threads, [&](int64_t i) {
    for (int64_t j = i + 1; j < k; ++j) result.unit_upper[i * k + j] /= diagonal[j];
  });
  return result;
}

// Some rows, from the first column to the last.
class RowTile {
 public:
  RowTile(const DenseWeight& dense, const GridOptions& grid, const GptqOptions& options,
          const LayerStatistics& statistics, const Order& order, const std::vector<double>& unit_upper)
      : dense_(dense),
        grid_(grid),
        options_(options),
        order_(order),
        unit_upper_(unit_upper),
        mean_square_(statistics.mean_square),
        group_grid_{grid.symmetric, grid.scale_dtype} {}

  // False: the corrections left the range of numbers.
  bool run(int64_t begin, int64_t end, QuantizedWeight& weight) {
    const int64_t k = dense_.k, rows = end - begin;
    read(begin, end);
    corrections_.assign(rows * k, 0);
    scales_.assign(rows * weight.groups(), {});
    if (order_.segments.empty())
      for (int64_t r = 0; r < rows; ++r)
        if (!fit_static_groups(r, weight.groups())) return false;
    auto segment = order_.segments.begin();
    int64_t first = 0;
    for (const int64_t last : order_.blocks) {
      errors_.assign(rows * (last - first), 0);
      for (int64_t p = first; p < last; ++p) {
        const bool begins = segment != order_.segments.end() && segment->begin == p;
        for (int64_t r = 0; r < rows; ++r) {
          if (begins && !fit_on_the_way(r, *segment, weight.groups())) return false;
          if (!round_column(r, p, first, last, begin, weight)) return false;
        }
        if (begins) ++segment;
      }
      multiply_add(errors_.data(), last - first, unit_upper_.data() + first * k + last, k, corrections_.data() + last,
                   k, rows, last - first, k - last);
      first = last;
    }
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t group = 0; group < weight.groups(); ++group) {
        const rtn::GroupScale& scale = scales_[r * weight.groups() + group];
        const int64_t index = (begin + r) * weight.groups() + group;
        weight.scales.set_bits(index, scale.bits);
        if (!grid_.symmetric) weight.int_zeros[index] = static_cast<uint8_t>(scale.zero);
      }
    return true;
  }

 private:
  // The rows in the order of the columns, those of dead inputs zero.
  void read(int64_t begin, int64_t end) {
    const int64_t k = dense_.k;
    std::vector<float> row(k);
    weights_.resize((end - begin) * k);
    for (int64_t n = begin; n < end; ++n) {
      read_row(dense_, n, row.data());
      for (int64_t p = 0; p < k; ++p) {
        const int32_t feature = order_.feature[p];
        weights_[(n - begin) * k + p] = mean_square_[feature] == 0 ? 0.0f : row[feature];
      }
    }
  }

  bool fit(int64_t r, int64_t group, int64_t groups, std::span<const float> part, std::span<const float> importance) {
    rtn::GroupScale& scale = scales_[r * groups + group];
    scale = fit_group(part, importance, group_grid_, options_.range);
    return !scale.overflows;
  }

  bool fit_static_groups(int64_t r, int64_t groups) {
    const int64_t k = dense_.k;
    std::vector<float> row(k);
    for (int64_t p = 0; p < k; ++p) row[order_.feature[p]] = weights_[r * k + p];
    for (int64_t group = 0; group < groups; ++group) {
      const GroupSpan span = group_span(group, grid_.group_size, k);
      std::span<const float> importance;
      if (options_.weighted_range) importance = std::span(mean_square_).subspan(span.begin, span.size());
      if (!fit(r, group, groups, std::span<const float>(row).subspan(span.begin, span.size()), importance))
        return false;
    }
    return true;
  }

  // The group as it would be if its own columns were not rounded: e_j = -(c_j + sum over i < j within of e_i U_ij).
  bool fit_on_the_way(int64_t r, const Segment& segment, int64_t groups) {
    const int64_t k = dense_.k, size = segment.end - segment.begin;
    double* pushed = scratch(size);
    std::copy_n(corrections_.data() + r * k + segment.begin, size, pushed);
    std::vector<float> part(size), importance;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t p = segment.begin + i;
      const double updated = weights_[r * k + p] + pushed[i];
      if (!(std::abs(updated) <= FLT_MAX)) return false;
      part[i] = static_cast<float>(updated);
      if (options_.weighted_range) importance.push_back(mean_square_[order_.feature[p]]);
      if (pushed[i] == 0) continue;
      const double error = -pushed[i];
      multiply_add(&error, 1, unit_upper_.data() + p * k + p + 1, k, pushed + i + 1, size, 1, 1, size - i - 1);
    }
    return fit(r, segment.group, groups, part, importance);
  }

  bool round_column(int64_t r, int64_t p, int64_t first, int64_t last, int64_t begin, QuantizedWeight& weight) {
    const int64_t k = dense_.k;
    const rtn::GroupScale& scale = scales_[r * weight.groups() + order_.group[p]];
    const double updated = weights_[r * k + p] + corrections_[r * k + p];
    if (!std::isfinite(updated)) return false;
    double level = 0;
    if (scale.scale > 0) {
      level = std::nearbyint(
          std::clamp(updated / scale.scale, static_cast<double>(-scale.zero), static_cast<double>(15 - scale.zero)));
      if (rtn::may_overflow(scale.scale)) level = rtn::finite_level(static_cast<float>(level), scale.scale);
    }
    weight.codes[(begin + r) * k + order_.feature[p]] = static_cast<uint8_t>(static_cast<int>(level) + scale.zero);
    const double error = weights_[r * k + p] - level * scale.scale;
    errors_[r * (last - first) + p - first] = error;
    if (error != 0)
      multiply_add(&error, 1, unit_upper_.data() + p * k + p + 1, k, corrections_.data() + r * k + p + 1, k, 1, 1,
                   last - p - 1);
    return true;
  }

  double* scratch(int64_t size) {
    scratch_.resize(size);
    return scratch_.data();
  }

  const DenseWeight& dense_;
  const GridOptions& grid_;
  const GptqOptions& options_;
  const Order& order_;
  const std::vector<double>& unit_upper_;
  const std::vector<float>& mean_square_;
  GroupGrid group_grid_;
  std::vector<float> weights_;       // [rows, k], in the order of the columns
  std::vector<double> corrections_;  // [rows, k]: c
  std::vector<double> errors_;       // [rows, block]
  std::vector<rtn::GroupScale> scales_;
  std::vector<double> scratch_;
};

Result<void> check(const GptqOptions& options) {
  if (options.act_order > ActOrder::kGroupAware)
    return invalid_argument("GptqOptions::act_order has no meaning (enum value {})", int(options.act_order));
  if (!(options.damping >= 0 && options.damping <= kMaxDamping))
    return invalid_argument("GptqOptions::damping is {}; it may be 0 to {}", options.damping, kMaxDamping);
  if (options.max_retries < 0 || options.max_retries > 100)
    return invalid_argument("GptqOptions::max_retries is {}; it may be 0 to 100", options.max_retries);
  return check_range_options(options.range);
}

Result<GptqResult> fall_back(const DenseWeight& dense, const GridOptions& grid, const GptqOptions& options,
                             const LayerStatistics& statistics, GptqResult result, const std::string& why) {
  RangeOptions range = options.range;
  if (range.rule == RangeRule::kFull) range = {};
  Result<QuantizedWeight> weight = quantize_range(dense, grid, range, &statistics);
  if (!weight) return weight.error();
  result.weight = std::move(*weight);
  result.fell_back = true;
  result.dead_columns = 0;
  result.warnings = {
      fmt::format("{}: {}; rounded to nearest, weighted by mean squares, instead of GPTQ", dense.name, why)};
  return result;
}

}  // namespace

Result<GptqResult> quantize_gptq(const DenseWeight& dense, const GridOptions& grid, const GptqOptions& options,
                                 const LayerStatistics& statistics) {
  if (Result<void> fine = check(options); !fine) return fine.error();
  if (Result<void> fine = check_fits(dense, statistics); !fine) return fine.error();
  if (statistics.hessian.empty() && dense.k > 0)
    return invalid_argument(
        "weight '{}': GPTQ needs the Hessian, but the statistics of '{}' hold mean squares only; collect Hessians, or "
        "take range search or AWQ",
        dense.name, statistics.layer);
  Result<QuantizedWeight> prepared = quantize::prepare(dense, grid);
  if (!prepared) return prepared.error();
  GptqResult result;
  result.weight = std::move(*prepared);
  result.damping = options.damping;
  if (result.weight.codes.empty()) return result;
  result.dead_columns = std::count(statistics.mean_square.begin(), statistics.mean_square.end(), 0.0f);
  if (result.dead_columns == dense.k)
    return fall_back(dense, grid, options, statistics, std::move(result), "all inputs were zero when calibrated");

  const Order order = order_of(statistics.mean_square, grid, options);
  const Factor factored = factor(statistics, order, options, grid.num_threads);
  result.damping = factored.damping;
  result.damping_retries = factored.retries;
  if (factored.failed)
    return fall_back(dense, grid, options, statistics, std::move(result),
                     fmt::format("the Hessian is not positive definite even with damping {}", factored.damping));
  std::atomic<bool> failed{false};
  base::parallel_for((dense.n + kRowsPerItem - 1) / kRowsPerItem, grid.num_threads, [&](int64_t item) {
    RowTile tile(dense, grid, options, statistics, order, factored.unit_upper);
    if (!tile.run(item * kRowsPerItem, std::min(dense.n, (item + 1) * kRowsPerItem), result.weight)) failed = true;
  });
  if (failed)
    return fall_back(dense, grid, options, statistics, std::move(result),
                     "the corrections left the range of the scales or of fp32");
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

}  // namespace nybble
