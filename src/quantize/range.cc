// Range search, weighted by the inputs' mean squares where statistics are given.
#include "quantize/calibration_check.h"
#include "quantize/group_fit.h"
#include "quantize/rows.h"

namespace nybble {

using namespace quantize;

Result<QuantizedWeight> quantize_range(const DenseWeight& dense, const GridOptions& grid, const RangeOptions& options,
                                       const LayerStatistics* statistics) {
  if (Result<void> fine = check_range_options(options); !fine) return fine.error();
  if (statistics != nullptr)
    if (Result<void> fine = check_fits(dense, *statistics); !fine) return fine.error();
  Result<QuantizedWeight> prepared = quantize::prepare(dense, grid);
  if (!prepared || prepared->codes.empty()) return prepared;
  QuantizedWeight weight = std::move(*prepared);
  const GroupGrid group_grid{grid.symmetric, grid.scale_dtype};
  const auto fit = [&](const Group& group) {
    std::span<const float> importance;
    if (statistics != nullptr)
      importance = std::span<const float>(statistics->mean_square).subspan(group.features.begin, group.features.size());
    return store_group(weight, group, fit_group(group.weights, importance, group_grid, options));
  };
  if (Result<void> done = for_each_group(dense, grid, [&] { return fit; }); !done) return done.error();
  return weight;
}

}  // namespace nybble
