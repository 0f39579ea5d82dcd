// AWQ on the CPU: awq.h says by which formula. A thread takes a tile of rows.
#include <cmath>
#include <limits>

#include "base/parallel.h"
#include "quantize/awq.h"
#include "quantize/group_fit.h"
#include "quantize/linear_algebra.h"

namespace nybble {

using namespace quantize;

namespace {

// sum over the rows of e H e^T; `errors` is [rows, k].
double output_error(const std::vector<double>& errors, int64_t rows, const LayerStatistics& statistics,
                    std::vector<double>& products) {
  const int64_t k = statistics.k;
  double sum = 0;
  if (statistics.hessian.empty()) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < k; ++i) sum += errors[r * k + i] * errors[r * k + i] * statistics.mean_square[i];
    return sum;
  }
  products.assign(rows * k, 0);
  multiply_add(errors.data(), k, statistics.hessian.data(), k, products.data(), k, rows, k, k);
  for (int64_t i = 0; i < rows * k; ++i) sum += errors[i] * products[i];
  return sum;
}

class AwqOnCpu final : public AwqBackend {
 public:
  AwqOnCpu(const GridOptions& grid, const LayerStatistics& statistics)
      : grid_(grid), group_grid_{grid.symmetric, grid.scale_dtype}, statistics_(statistics) {}

  Result<std::vector<double>> scaled_losses(const DenseWeight& layer, const std::vector<int64_t>& rows,
                                            const std::vector<std::vector<float>>& candidates) override {
    const int64_t k = layer.k, count = static_cast<int64_t>(candidates.size());
    const int64_t judged = static_cast<int64_t>(rows.size()), tiles = tiles_of(judged);
    std::vector<double> losses(tiles * count);
    base::parallel_for(tiles * count, grid_.num_threads, [&](int64_t item) {
      const std::vector<float>& scales = candidates[item % count];
      const int64_t begin = item / count * kRowsPerItem, end = std::min(judged, begin + kRowsPerItem);
      std::vector<float> row(k), scaled(k);
      std::vector<double> errors((end - begin) * k), products;
      for (int64_t r = begin; r < end; ++r) {
        read_row(layer, rows[r], row.data());
        for (int64_t i = 0; i < k; ++i) scaled[i] = row[i] * scales[i];
        for (int64_t group = 0; group_span(group, grid_.group_size, k).begin < k; ++group) {
          const GroupSpan span = group_span(group, grid_.group_size, k);
          const auto part = std::span<const float>(scaled).subspan(span.begin, span.size());
          const rtn::GroupScale scale = scale_for(range_of(part), 1.0f, group_grid_);
          if (scale.overflows) {
            losses[item] = std::numeric_limits<double>::infinity();
            return;
          }
          for (int64_t i = span.begin; i < span.end; ++i)
            errors[(r - begin) * k + i] = rounded(scaled[i], scale) / scales[i] - row[i];
          if (grid_.group_size == kPerColumn) break;
        }
      }
      losses[item] = output_error(errors, end - begin, statistics_, products);
    });
    return losses;
  }

  Result<void> round_clipped(const DenseWeight& dense, int steps, QuantizedWeight& weight) override {
    const int64_t k = weight.k;
    const auto make_fit = [&] {
      return [&, errors = std::vector<double>(), products = std::vector<double>()](const Group& group) mutable {
        const int64_t begin = group.features.begin, size = group.features.size();
        const rtn::Range range = range_of(group.weights);
        rtn::GroupScale best;
        double least = 0;
        for (int step = 0; step < steps; ++step) {
          const rtn::GroupScale scale = scale_for(range, clip_factor(step), group_grid_);
          errors.resize(size);
          for (int64_t i = 0; i < size; ++i) errors[i] = rounded(group.weights[i], scale) - group.weights[i];
          double loss = 0;
          if (statistics_.hessian.empty()) {
            for (int64_t i = 0; i < size; ++i) loss += errors[i] * errors[i] * statistics_.mean_square[begin + i];
          } else {
            products.assign(size, 0);
            multiply_add(errors.data(), size, statistics_.hessian.data() + begin * k + begin, k, products.data(), size,
                         1, size, size);
            for (int64_t i = 0; i < size; ++i) loss += errors[i] * products[i];
          }
          if (step == 0 || loss < least) best = scale, least = loss;
          if (scale.scale == 0 || scale.overflows) break;
        }
        return store_group(weight, group, best);
      };
    };
    return for_each_group(dense, grid_, make_fit);
  }

  Result<std::vector<TileErrors>> output_errors(const DenseWeight& dense, const std::vector<float>& values) override {
    const int64_t k = dense.k;
    std::vector<TileErrors> tiles(tiles_of(dense.n));
    base::parallel_for(static_cast<int64_t>(tiles.size()), grid_.num_threads, [&](int64_t tile) {
      const int64_t begin = tile * kRowsPerItem, end = std::min(dense.n, begin + kRowsPerItem);
      std::vector<float> row(k);
      std::vector<double> difference((end - begin) * k), whole((end - begin) * k), products;
      for (int64_t n = begin; n < end; ++n) {
        read_row(dense, n, row.data());
        for (int64_t i = 0; i < k; ++i) {
          whole[(n - begin) * k + i] = row[i];
          difference[(n - begin) * k + i] = static_cast<double>(values[n * k + i]) - row[i];
        }
      }
      tiles[tile] = {output_error(difference, end - begin, statistics_, products),
                     output_error(whole, end - begin, statistics_, products)};
    });
    return tiles;
  }

 private:
  const GridOptions& grid_;
  GroupGrid group_grid_;
  const LayerStatistics& statistics_;
};

}  // namespace

Result<AwqScales> search_awq_scales(std::span<const DenseWeight* const> layers, const GridOptions& grid,
                                    const AwqOptions& options, const LayerStatistics& statistics) {
  AwqOnCpu backend(grid, statistics);
  return run_awq_search(layers, grid, options, statistics, backend);
}

Result<QuantizedWeight> quantize_clipped(const DenseWeight& dense, const GridOptions& grid, int clip_steps,
                                         const LayerStatistics& statistics) {
  AwqOnCpu backend(grid, statistics);
  return run_clipping(dense, grid, clip_steps, statistics, backend);
}

Result<double> relative_output_error(const DenseWeight& dense, const QuantizedWeight& weight,
                                     const LayerStatistics& statistics, int num_threads) {
  const GridOptions grid{.num_threads = num_threads};
  AwqOnCpu backend(grid, statistics);
  return run_output_error(dense, weight, statistics, backend);
}

}  // namespace nybble
