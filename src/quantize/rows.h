// Rows of a dense weight as floats, and which group an input feature belongs to.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "quantize/prepare.h"

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

}  // namespace nybble::quantize
