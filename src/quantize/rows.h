// Rows of a dense weight as floats, and which group an input feature belongs to.
#pragma once

#include <algorithm>
#include <atomic>
#include <span>
#include <vector>

#include "base/parallel.h"
#include "quantize/prepare.h"
#include "quantize/rtn.h"

namespace nybble::quantize {

// Exact widening of finite numbers. What is not finite comes out as finite_limit(dtype) and more, or as NaN.
void widen(const std::byte* values, DType dtype, int64_t count, float* out);
float finite_limit(DType dtype);

// Row n, k floats. The weight's values were checked to be finite.
void read_row(const DenseWeight& dense, int64_t n, float* out);

// Keeps the least of what several threads report.
void lower(std::atomic<int64_t>& minimum, int64_t value);

// Refuses what quantize_rtn() refuses of options and shapes, and elements that are not finite; else a weight with room
// for all numbers: int zeros where the grid is not symmetric.
Result<QuantizedWeight> prepare(const DenseWeight& dense, const GridOptions& grid);

// The error of a group whose scale overflows its type.
Error scale_overflow(const DenseWeight& dense, const GridOptions& grid, int64_t group);

// Rows that one item of a parallel loop takes. Fixed, so that no result depends on the number of threads.
inline constexpr int64_t kRowsPerItem = 16;

// [begin, end) of the input features of a group.
struct GroupSpan {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};
inline GroupSpan group_span(int64_t group, int group_size, int64_t k) {
  if (group_size == kPerColumn) return {0, k};
  return {group * group_size, std::min(k, (group + 1) * group_size)};
}

// One group of one row.
struct Group {
  int64_t index = 0;       // among the scales
  int64_t first_code = 0;  // among the codes
  GroupSpan features;
  std::span<const float> weights;
};

// Calls a function with every group of what prepare() made of `dense`, several threads at a time. The function is
// `make()`, made anew for each item of the loop, so that it may keep buffers; it returns false where the group's scale
// overflows its type, and the first such group is the error.
template <typename Make>
Result<void> for_each_group(const DenseWeight& dense, const GridOptions& grid, const Make& make) {
  const int64_t groups = grid.group_size == kPerColumn ? 1 : (dense.k + grid.group_size - 1) / grid.group_size;
  std::atomic<int64_t> bad_group{rtn::kNoFault};
  base::parallel_for((dense.n + kRowsPerItem - 1) / kRowsPerItem, grid.num_threads, [&](int64_t item) {
    auto take = make();
    std::vector<float> row(dense.k);
    for (int64_t n = item * kRowsPerItem; n < std::min(dense.n, (item + 1) * kRowsPerItem); ++n) {
      read_row(dense, n, row.data());
      for (int64_t i = 0; i < groups; ++i) {
        const GroupSpan span = group_span(i, grid.group_size, dense.k);
        const Group group{n * groups + i, n * dense.k + span.begin, span,
                          std::span<const float>(row).subspan(span.begin, span.size())};
        if (!take(group)) lower(bad_group, group.index);
      }
    }
  });
  if (bad_group != rtn::kNoFault) return scale_overflow(dense, grid, bad_group);
  return {};
}

}  // namespace nybble::quantize
