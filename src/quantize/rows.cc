#include "quantize/rows.h"

#include <cfloat>
#include <cmath>
#include <cstring>

#include "base/parallel.h"
#include "quantize/per_isa.h"
#include "quantize/rtn.h"

namespace nybble::quantize {
namespace {

using rtn::bits_of;
using rtn::float_of;

}  // namespace

NYBBLE_PER_ISA void widen(const std::byte* values, DType dtype, int64_t count, float* out) {
  if (dtype == DType::kFp32) {
    std::memcpy(out, values, count * sizeof(float));
    return;
  }
  const uint16_t* bits = reinterpret_cast<const uint16_t*>(values);
  if (dtype == DType::kBf16) {
    for (int64_t i = 0; i < count; ++i) out[i] = float_of(uint32_t{bits[i]} << 16);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {  // exponent and mantissa in place, times 2^112 for the difference of the biases
    const float magnitude = float_of((bits[i] & 0x7FFFu) << 13) * 0x1p112f;
    out[i] = float_of(bits_of(magnitude) | (bits[i] & 0x8000u) << 16);
  }
}

float finite_limit(DType dtype) { return dtype == DType::kFp16 ? 0x1p16f : float_of(0x7F800000); }

void read_row(const DenseWeight& dense, int64_t n, float* out) {
  widen(dense.values.bytes.data() + n * dense.k * static_cast<int64_t>(dtype_bytes(dense.values.dtype)),
        dense.values.dtype, dense.k, out);
}

void lower(std::atomic<int64_t>& minimum, int64_t value) {
  int64_t current = minimum.load(std::memory_order_relaxed);
  while (value < current && !minimum.compare_exchange_weak(current, value, std::memory_order_relaxed)) {
  }
}

namespace {

RtnOptions as_rtn(const GridOptions& grid) {
  return {.group_size = grid.group_size,
          .symmetric = grid.symmetric,
          .scale_dtype = grid.scale_dtype,
          .num_threads = grid.num_threads};
}

}  // namespace

Result<QuantizedWeight> prepare(const DenseWeight& dense, const GridOptions& grid) {
  Result<QuantizedWeight> weight = rtn::prepare(dense, as_rtn(grid));
  if (!weight) return weight;
  const float limit = finite_limit(dense.values.dtype);
  std::atomic<int64_t> bad{rtn::kNoFault};
  base::parallel_for((dense.n + kRowsPerItem - 1) / kRowsPerItem, grid.num_threads, [&](int64_t item) {
    std::vector<float> row(dense.k);
    for (int64_t n = item * kRowsPerItem; n < std::min(dense.n, (item + 1) * kRowsPerItem); ++n) {
      read_row(dense, n, row.data());
      const auto finite = [&](float w) { return std::abs(w) < limit; };
      const auto first = std::find_if_not(row.begin(), row.end(), finite);
      if (first != row.end()) lower(bad, n * dense.k + (first - row.begin()));
    }
  });
  if (Result<void> fine = rtn::report(dense, as_rtn(grid), {.element = bad}); !fine) return fine.error();
  return weight;
}

Error scale_overflow(const DenseWeight& dense, const GridOptions& grid, int64_t group) {
  return rtn::report(dense, as_rtn(grid), {.group = group}).error();
}

}  // namespace nybble::quantize
