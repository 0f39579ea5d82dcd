// GPTQ (Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
// Transformers", ICLR 2023) in the form without an inverse (Chee, Cai, Kuleshov, De Sa, "QuIP", 2023, theorem 6):
// with H = (I + U) D (I + U)^T, U strictly upper triangular, D diagonal, the error e = w - w^ of a row costs
//
//   e H e^T = sum over j of D_j (e_j + sum over i < j of e_i U_ij)^2,
//
// so that column by column w^_j = round(w_j + c_j), c_j = sum over i < j of e_i U_ij, makes each term as small as it
// can be: the same numbers as pushing each error onto the columns after it through the inverse's Cholesky factor. What
// later columns would become if nothing were rounded, which the ranges of a group are taken from, is a forward
// substitution within the group. Rows do not depend on each other.
//
// Here stands what the CPU's and the GPU's GPTQ have in common. Both add up c_j in double, in the order of i, every
// product and every sum rounded by itself, so their results are equal bit for bit.
#pragma once

#include <cmath>
#include <vector>

#include "quantize/rtn.h"

namespace nybble::quantize {

inline constexpr int64_t kGptqBlock = 128;  // columns whose errors reach the columns after them by one matrix product

// A group in the order in which its columns are done.
struct GptqSegment {
  int64_t begin = 0, end = 0;  // positions
  int64_t group = 0;           // of the scales
};

struct GptqOrder {
  std::vector<int32_t> feature;       // at each position
  std::vector<int64_t> group;         // at each position
  std::vector<GptqSegment> segments;  // whose scales are found on the way; none with static groups
  std::vector<int64_t> blocks;        // ends of blocks; a segment of more than one begins and ends one, all others lie
                                      // within one
  bool stored = false;                // the result needs it as its k_order
};

struct GptqJob {
  const DenseWeight& dense;
  const GridOptions& grid;
  const GptqOptions& options;
  const LayerStatistics& statistics;
};

// The code's distance from the zero point for a weight with its correction.
NYBBLE_HD inline double nearest_level(double updated, float scale, int zero) {
  if (!(scale > 0)) return 0;
  const double low = -zero, high = 15 - zero, x = updated / scale;
  const double level = rint(x < low ? low : high < x ? high : x);
  return rtn::may_overflow(scale) ? rtn::finite_level(static_cast<float>(level), scale) : level;
}

// Where the arithmetic is done.
class GptqBackend {
 public:
  virtual ~GptqBackend() = default;
  // Finds and keeps I + U of the Hessian, in the order of the columns, with 1 on the diagonal of dead columns and
  // `added` on the whole of it. False: it is not positive definite.
  virtual Result<bool> factor(const GptqOrder& order, double added) = 0;
  // Codes, scales and zeros of all rows, by what factor() kept. False: the corrections left the range of numbers.
  virtual Result<bool> round_rows(const GptqOrder& order, QuantizedWeight& weight) = 0;
};

// quantize_gptq() around the arithmetic: checks before, damping, falling back, what the caller is told.
Result<GptqResult> run_gptq(const GptqJob& job, GptqBackend& backend);

}  // namespace nybble::quantize
