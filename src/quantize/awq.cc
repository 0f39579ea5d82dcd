#include "quantize/awq.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "base/error.h"
#include "base/parallel.h"
#include "quantize/calibration_check.h"
#include "quantize/group_fit.h"

namespace nybble {
namespace quantize {
namespace {

// Every row, or some evenly spaced ones.
std::vector<int64_t> judged_rows(int64_t n, int64_t at_most) {
  const int64_t count = at_most > 0 ? std::min(n, at_most) : n;
  std::vector<int64_t> rows(count);
  for (int64_t i = 0; i < count; ++i) rows[i] = (2 * i + 1) * n / (2 * count);
  return rows;
}

// The mean over all rows of all layers of |weight| / (largest of its group), per input feature.
std::vector<double> mean_sizes(std::span<const DenseWeight* const> layers, const GridOptions& grid) {
  constexpr int64_t kColumnsPerItem = 64;
  const int64_t k = layers.front()->k, group_size = grid.group_size == kPerColumn ? k : grid.group_size;
  const int64_t groups = (k + group_size - 1) / group_size;
  std::vector<double> mean(k, 0);
  int64_t total_rows = 0;
  for (const DenseWeight* layer : layers) {
    std::vector<float> largest(layer->n * groups, 0);
    base::parallel_for(tiles_of(layer->n), grid.num_threads, [&](int64_t tile) {
      std::vector<float> row(k);
      for (int64_t n = tile * kRowsPerItem; n < std::min(layer->n, (tile + 1) * kRowsPerItem); ++n) {
        read_row(*layer, n, row.data());
        for (int64_t group = 0; group < groups; ++group) {
          const GroupSpan span = group_span(group, grid.group_size, k);
          const rtn::Range range = range_of(std::span<const float>(row).subspan(span.begin, span.size()));
          largest[n * groups + group] = std::max(-range.min, range.max);
        }
      }
    });
    // Columns are split among threads, so that each sum runs over the rows in their order.
    base::parallel_for((k + kColumnsPerItem - 1) / kColumnsPerItem, grid.num_threads, [&](int64_t item) {
      const int64_t begin = item * kColumnsPerItem, end = std::min(k, begin + kColumnsPerItem);
      const DType dtype = layer->values.dtype;
      std::vector<float> part(end - begin);
      for (int64_t n = 0; n < layer->n; ++n) {
        const int64_t first = (n * k + begin) * static_cast<int64_t>(dtype_bytes(dtype));
        widen(layer->values.bytes.data() + first, dtype, end - begin, part.data());
        for (int64_t i = begin; i < end;) {
          const int64_t group = i / group_size, stop = std::min(end, (group + 1) * group_size);
          const float most = largest[n * groups + group];
          if (most == 0) i = stop;
          for (; i < stop; ++i) mean[i] += std::abs(static_cast<double>(part[i - begin])) / most;
        }
      }
    });
    total_rows += layer->n;
  }
  for (double& x : mean) x /= static_cast<double>(std::max<int64_t>(1, total_rows));
  return mean;
}

// Scales of one ratio, their largest and smallest one reciprocal. Features that are always zero keep theirs.
std::vector<float> scales_of(double ratio, bool duo, const LayerStatistics& statistics,
                             const std::vector<double>& weight_sizes) {
  constexpr double kLeast = 1e-4;
  const int64_t k = statistics.k;
  const double largest =
      std::sqrt(static_cast<double>(*std::max_element(statistics.mean_square.begin(), statistics.mean_square.end())));
  std::vector<double> scales(k, 1);
  double least = 0, most = 0;
  for (int64_t i = 0; i < k; ++i) {
    if (statistics.mean_square[i] == 0) continue;
    const double x = std::sqrt(static_cast<double>(statistics.mean_square[i])) / largest;
    const double scale = std::pow(x, ratio) / (duo ? std::pow(weight_sizes[i], 1 - ratio) + kLeast : 1);
    scales[i] = std::max(kLeast, scale);
    least = least == 0 ? scales[i] : std::min(least, scales[i]);
    most = std::max(most, scales[i]);
  }
  std::vector<float> result(k, 1);
  for (int64_t i = 0; i < k; ++i)
    if (statistics.mean_square[i] != 0) result[i] = static_cast<float>(scales[i] / std::sqrt(least * most));
  return result;
}

Result<void> check(const AwqOptions& options) {
  if (options.steps < 1 || options.steps > 1000)
    return invalid_argument("AwqOptions::steps is {}; it may be 1 to 1000", options.steps);
  if (options.rows < 0) return invalid_argument("AwqOptions::rows is {}; it may be 0 (all) or more", options.rows);
  return {};
}

// The output error of round to nearest on weights scaled by each candidate, over all layers.
Result<std::vector<double>> losses_of(std::span<const DenseWeight* const> layers, int64_t at_most,
                                      const std::vector<std::vector<float>>& candidates, AwqBackend& backend) {
  std::vector<double> losses(candidates.size(), 0);
  for (const DenseWeight* layer : layers) {
    const std::vector<int64_t> rows = judged_rows(layer->n, at_most);
    const double share = rows.empty() ? 0 : static_cast<double>(layer->n) / static_cast<double>(rows.size());
    const Result<std::vector<double>> parts = backend.scaled_losses(*layer, rows, candidates);
    if (!parts) return parts.error();
    for (size_t item = 0; item < parts->size(); ++item) losses[item % candidates.size()] += share * (*parts)[item];
  }
  return losses;
}

}  // namespace

Result<AwqScales> run_awq_search(std::span<const DenseWeight* const> layers, const GridOptions& grid,
                                 const AwqOptions& options, const LayerStatistics& statistics, AwqBackend& backend) {
  if (Result<void> fine = check(options); !fine) return fine.error();
  if (layers.empty()) return invalid_argument("AWQ: no layer was given to search scales for");
  for (const DenseWeight* layer : layers) {
    if (Result<void> fits = check_same_k(*layer, statistics); !fits) return fits.error();
    if (Result<QuantizedWeight> fine = quantize::prepare(*layer, grid); !fine) return fine.error();
  }
  if (Result<void> fine = validate(statistics); !fine) return fine.error();
  const int64_t k = statistics.k;
  AwqScales best;
  best.scales.assign(k, 1);
  std::vector<std::vector<float>> candidates = {best.scales};
  const bool dead = std::all_of(statistics.mean_square.begin(), statistics.mean_square.end(),
                                [](float x) { return x == 0; });  // also k = 0
  if (dead) return best;
  const std::vector<double> weight_sizes = mean_sizes(layers, grid);
  for (int step = 0; step < options.steps; ++step)
    candidates.push_back(scales_of(static_cast<double>(step) / options.steps, options.duo, statistics, weight_sizes));
  const Result<std::vector<double>> losses = losses_of(layers, options.rows, candidates, backend);
  if (!losses) return losses.error();
  best.loss = best.unscaled_loss = losses->front();
  for (size_t i = 1; i < losses->size(); ++i) {
    const double loss = (*losses)[i];
    const auto usable = [](float scale) { return std::isfinite(scale) && scale >= FLT_MIN; };
    if (!(loss < best.loss) || !std::all_of(candidates[i].begin(), candidates[i].end(), usable)) continue;
    best.loss = loss;
    best.ratio = static_cast<double>(i - 1) / options.steps;
    best.scales = candidates[i];
  }
  return best;
}

Result<QuantizedWeight> run_clipping(const DenseWeight& dense, const GridOptions& grid, int clip_steps,
                                     const LayerStatistics& statistics, AwqBackend& backend) {
  if (clip_steps < 1 || clip_steps > kMaxClipSteps)
    return invalid_argument("clip_steps is {}; it may be 1 to {}", clip_steps, kMaxClipSteps);
  if (Result<void> fine = check_fits(dense, statistics); !fine) return fine.error();
  Result<QuantizedWeight> prepared = quantize::prepare(dense, grid);
  if (!prepared || prepared->codes.empty()) return prepared;
  QuantizedWeight weight = std::move(*prepared);
  if (Result<void> done = backend.round_clipped(dense, clip_steps, weight); !done) return done.error();
  return weight;
}

Result<double> run_output_error(const DenseWeight& dense, const QuantizedWeight& weight,
                                const LayerStatistics& statistics, AwqBackend& backend) {
  if (Result<void> fine = check_fits(dense, statistics); !fine) return fine.error();
  if (Result<void> fine = validate(weight); !fine) return fine.error();
  if (weight.n != dense.n || weight.k != dense.k)
    return invalid_argument("weight '{}' is {} x {}, but its quantized form is {} x {}", dense.name, dense.n, dense.k,
                            weight.n, weight.k);
  const Result<std::vector<TileErrors>> tiles = backend.output_errors(dense, dequantize(weight));
  if (!tiles) return tiles.error();
  TileErrors all;
  for (const TileErrors& tile : *tiles) all.error += tile.error, all.size += tile.size;
  return all.size > 0 ? all.error / all.size : 0.0;
}

}  // namespace quantize

using namespace quantize;

Result<DenseWeight> scale_columns(const DenseWeight& dense, std::span<const float> scales, int num_threads) {
  if (static_cast<int64_t>(scales.size()) != dense.k)
    return invalid_argument("weight '{}' has k = {}, but {} scales were given", dense.name, dense.k, scales.size());
  DenseWeight scaled{.name = dense.name, .n = dense.n, .k = dense.k, .bias = dense.bias};
  scaled.values.dtype = DType::kFp32;
  scaled.values.resize(dense.n * dense.k);
  std::atomic<int64_t> bad{rtn::kNoFault};
  base::parallel_for((dense.n + kRowsPerItem - 1) / kRowsPerItem, num_threads, [&](int64_t item) {
    std::vector<float> row(dense.k);
    for (int64_t n = item * kRowsPerItem; n < std::min(dense.n, (item + 1) * kRowsPerItem); ++n) {
      read_row(dense, n, row.data());
      for (int64_t i = 0; i < dense.k; ++i) {
        row[i] *= scales[i];
        if (!std::isfinite(row[i])) lower(bad, n * dense.k + i);
        scaled.values.set_bits(n * dense.k + i, rtn::bits_of(row[i]));
      }
    }
  });
  if (bad != rtn::kNoFault)
    return invalid_data("weight '{}': values[{}, {}] = {} times its scale {} is no finite fp32 number", dense.name,
                        bad / dense.k, bad % dense.k, dense.values.at(bad), scales[bad % dense.k]);
  return scaled;
}

Result<LayerStatistics> scale_input(const LayerStatistics& statistics, std::span<const float> scales) {
  const int64_t k = statistics.k;
  if (static_cast<int64_t>(scales.size()) != k)
    return invalid_argument("statistics of '{}' are those of {} inputs, but {} scales were given", statistics.layer, k,
                            scales.size());
  LayerStatistics scaled = statistics;
  const auto divide = [&](float& value, int64_t i, int64_t j) {
    value = static_cast<float>(value / (static_cast<double>(scales[i]) * scales[j]));
    return std::isfinite(value);
  };
  for (int64_t i = 0; i < k; ++i) {
    bool finite = divide(scaled.mean_square[i], i, i);
    for (int64_t j = 0; j < k && !scaled.hessian.empty(); ++j) finite &= divide(scaled.hessian[i * k + j], i, j);
    if (!finite)
      return invalid_data("statistics of '{}': divided by the scale {} of input {} they leave the range of fp32",
                          statistics.layer, scales[i], i);
  }
  return scaled;
}

}  // namespace nybble
