#include "quantize/calibration_check.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace nybble {
namespace {

double root_of(const LayerStatistics& statistics, int64_t i) {
  return std::sqrt(static_cast<double>(statistics.mean_square[i]));
}

// Two elements that should be equal. Sums in another order differ by rounding, which the roots of the diagonal bound.
bool differ(float x, float y, double root_i, double root_j) {
  constexpr double kAsymmetry = 0x1p-8;
  return x != y && std::abs(static_cast<double>(x) - y) > kAsymmetry * root_i * root_j;
}

// True: validate() need not look for what is wrong with the Hessian. Tile by tile, so that what is read across the rows
// stays in the cache.
bool plainly_symmetric(const LayerStatistics& statistics) {
  constexpr int64_t kTile = 64;
  const int64_t k = statistics.k;
  const float* hessian = statistics.hessian.data();
  std::vector<double> roots(k);
  for (int64_t i = 0; i < k; ++i) {
    if (hessian[i * k + i] != statistics.mean_square[i]) return false;
    roots[i] = root_of(statistics, i);
  }
  for (int64_t first_row = 0; first_row < k; first_row += kTile)
    for (int64_t first_column = 0; first_column <= first_row; first_column += kTile)
      for (int64_t i = first_row; i < std::min(k, first_row + kTile); ++i)
        for (int64_t j = first_column; j < std::min(i, first_column + kTile); ++j) {
          const float x = hessian[i * k + j], y = hessian[j * k + i];
          if (!std::isfinite(x) || !std::isfinite(y) || differ(x, y, roots[i], roots[j])) return false;
        }
  return true;
}

}  // namespace

Result<void> validate(const LayerStatistics& statistics) {
  const std::string& layer = statistics.layer;
  const int64_t k = statistics.k;
  constexpr int64_t kMaxFeatures = int64_t{1} << 31;
  if (k < 0 || k >= kMaxFeatures) return invalid_data("statistics of '{}': k is {}; it may be 0 to 2^31 - 1", layer, k);
  if (statistics.mean_square.size() != static_cast<size_t>(k))
    return invalid_data("statistics of '{}': mean_square must hold k = {} numbers, but holds {}", layer, k,
                        statistics.mean_square.size());
  for (int64_t i = 0; i < k; ++i)
    if (const float x = statistics.mean_square[i]; !(std::isfinite(x) && x >= 0))
      return invalid_data("statistics of '{}': the mean square of input {} is {}; it must be finite and not negative",
                          layer, i, x);
  const std::vector<float>& hessian = statistics.hessian;
  if (hessian.empty()) return {};
  if (hessian.size() != static_cast<size_t>(k) * static_cast<size_t>(k))
    return invalid_data("statistics of '{}': the Hessian must hold {} x {} numbers, but holds {}", layer, k, k,
                        hessian.size());
  if (plainly_symmetric(statistics)) return {};
  for (int64_t i = 0; i < k; ++i) {
    if (hessian[i * k + i] != statistics.mean_square[i])
      return invalid_data("statistics of '{}': the Hessian's diagonal at {} is {}, but the mean square is {}", layer, i,
                          hessian[i * k + i], statistics.mean_square[i]);
    for (int64_t j = 0; j <= i; ++j) {
      const float x = hessian[i * k + j], y = hessian[j * k + i];
      if (!std::isfinite(x) || !std::isfinite(y))
        return invalid_data("statistics of '{}': the Hessian's element [{}, {}] is {}", layer, std::isfinite(x) ? j : i,
                            std::isfinite(x) ? i : j, std::isfinite(x) ? y : x);
      if (differ(x, y, root_of(statistics, i), root_of(statistics, j)))
        return invalid_data(
            "statistics of '{}': the Hessian is not symmetric: [{}, {}] is {}, [{}, {}] is {}; it must be the mean of "
            "x x^T",
            layer, i, j, x, j, i, y);
    }
  }
  return {};
}

namespace quantize {

Result<void> check_range_options(const RangeOptions& options) {
  if (options.rule > RangeRule::kPercentile)
    return invalid_argument("RangeOptions::rule has no meaning (enum value {})", int(options.rule));
  if (!(options.exponent >= 1 && options.exponent <= 8))
    return invalid_argument("RangeOptions::exponent is {}; it may be 1 to 8", options.exponent);
  return {};
}

Result<void> check_same_k(const DenseWeight& dense, const LayerStatistics& statistics) {
  if (statistics.k != dense.k)
    return invalid_argument("weight '{}' has k = {}, but the statistics of '{}' are those of {} inputs", dense.name,
                            dense.k, statistics.layer, statistics.k);
  return {};
}

Result<void> check_fits(const DenseWeight& dense, const LayerStatistics& statistics) {
  if (Result<void> same = check_same_k(dense, statistics); !same) return same;
  return validate(statistics);
}

}  // namespace quantize
}  // namespace nybble
