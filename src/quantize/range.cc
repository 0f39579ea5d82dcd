// Range search, weighted by the inputs' mean squares where statistics are given.
#include <atomic>
#include <cmath>

#include "base/parallel.h"
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
  const int64_t k = weight.k, groups = weight.groups();
  const GroupGrid group_grid{grid.symmetric, grid.scale_dtype};
  std::atomic<int64_t> bad_group{rtn::kNoFault};

  base::parallel_for((weight.n + kRowsPerItem - 1) / kRowsPerItem, grid.num_threads, [&](int64_t item) {
    std::vector<float> row(k);
    for (int64_t n = item * kRowsPerItem; n < std::min(weight.n, (item + 1) * kRowsPerItem); ++n) {
      read_row(dense, n, row.data());
      for (int64_t group = 0; group < groups; ++group) {
        const GroupSpan span = group_span(group, grid.group_size, k);
        const auto part = std::span<const float>(row).subspan(span.begin, span.size());
        std::span<const float> importance;
        if (statistics != nullptr)
          importance = std::span<const float>(statistics->mean_square).subspan(span.begin, span.size());
        const rtn::GroupScale scale = fit_group(part, importance, group_grid, options);
        const int64_t index = n * groups + group;
        if (scale.overflows) {
          lower(bad_group, index);
          continue;
        }
        encode_group(part, scale, weight.codes.data() + n * k + span.begin);
        weight.scales.set_bits(index, scale.bits);
        if (!grid.symmetric) weight.int_zeros[index] = static_cast<uint8_t>(scale.zero);
      }
    }
  });
  if (bad_group != rtn::kNoFault) return scale_overflow(dense, grid, bad_group);
  return weight;
}

}  // namespace nybble
