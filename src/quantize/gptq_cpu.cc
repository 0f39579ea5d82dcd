// GPTQ on the CPU: gptq.h says by which formula. A thread takes some rows from the first column to the last.
#include <atomic>
#include <cmath>

#include "base/parallel.h"
#include "quantize/gptq.h"
#include "quantize/group_fit.h"
#include "quantize/linear_algebra.h"
#include "quantize/rows.h"

namespace nybble {

using namespace quantize;

namespace {

// Some rows, from the first column to the last.
class RowTile {
 public:
  RowTile(const DenseWeight& dense, const GridOptions& grid, const GptqOptions& options,
          const LayerStatistics& statistics, const GptqOrder& order, const std::vector<double>& unit_upper)
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
  bool fit_on_the_way(int64_t r, const GptqSegment& segment, int64_t groups) {
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
    const double level = nearest_level(updated, scale.scale, scale.zero);
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
  const GptqOrder& order_;
  const std::vector<double>& unit_upper_;
  const std::vector<float>& mean_square_;
  GroupGrid group_grid_;
  std::vector<float> weights_;       // [rows, k], in the order of the columns
  std::vector<double> corrections_;  // [rows, k]: c
  std::vector<double> errors_;       // [rows, block]
  std::vector<rtn::GroupScale> scales_;
  std::vector<double> scratch_;
};

class GptqOnCpu final : public GptqBackend {
 public:
  explicit GptqOnCpu(const GptqJob& job) : job_(job) {}

  Result<bool> factor(const GptqOrder& order, double added) override {
    const LayerStatistics& statistics = job_.statistics;
    const int64_t k = statistics.k;
    const int num_threads = job_.grid.num_threads;
    unit_upper_.resize(static_cast<size_t>(k) * static_cast<size_t>(k));
    base::parallel_for(k, num_threads, [&](int64_t i) {
      const int64_t row = order.feature[i];
      for (int64_t j = 0; j <= i; ++j) {
        const int64_t column = order.feature[j];
        // One of the two that should be equal: the same one, whatever the order.
        unit_upper_[i * k + j] = statistics.hessian[std::max(row, column) * k + std::min(row, column)];
      }
      if (statistics.mean_square[row] == 0) unit_upper_[i * k + i] = 1;
      unit_upper_[i * k + i] += added;
    });
    if (!factor_upper(unit_upper_, k, num_threads)) return false;
    std::vector<double> diagonal(k);
    for (int64_t i = 0; i < k; ++i) diagonal[i] = unit_upper_[i * k + i];
    base::parallel_for(k, num_threads, [&](int64_t i) {
      for (int64_t j = i + 1; j < k; ++j) unit_upper_[i * k + j] /= diagonal[j];
    });
    return true;
  }

  Result<bool> round_rows(const GptqOrder& order, QuantizedWeight& weight) override {
    const DenseWeight& dense = job_.dense;
    std::atomic<bool> failed{false};
    base::parallel_for((dense.n + kRowsPerItem - 1) / kRowsPerItem, job_.grid.num_threads, [&](int64_t item) {
      RowTile tile(dense, job_.grid, job_.options, job_.statistics, order, unit_upper_);
      if (!tile.run(item * kRowsPerItem, std::min(dense.n, (item + 1) * kRowsPerItem), weight)) failed = true;
    });
    return !failed;
  }

 private:
  const GptqJob& job_;
  std::vector<double> unit_upper_;  // [k, k]; only what is right of the diagonal has a meaning
};

}  // namespace

Result<GptqResult> quantize_gptq(const DenseWeight& dense, const GridOptions& grid, const GptqOptions& options,
                                 const LayerStatistics& statistics) {
  const GptqJob job{dense, grid, options, statistics};
  GptqOnCpu backend(job);
  return run_gptq(job, backend);
}

}  // namespace nybble
