// Statistics of made-up inputs for tests of quantizers.
#pragma once

#include <cmath>
#include <vector>

#include "nybble/quantize.h"
#include "support/random.h"

namespace nybble::testing {

// Inputs that lean on their neighbours and of which every 13th is eight times as large.
inline LayerStatistics correlated_statistics(int64_t k, uint64_t seed, int64_t tokens = 0) {
  if (tokens == 0) tokens = 2 * k;
  const RandomStream random(seed, 77);
  LayerStatistics statistics{.layer = "calibrated", .k = k, .tokens = tokens};
  std::vector<double> sum(k * k, 0), x(k);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < k; ++i)
      x[i] = 0.7 * (i > 0 ? x[i - 1] / (i % 13 == 1 ? 8 : 1) : 0) + random.normal(t * k + i);
    for (int64_t i = 0; i < k; i += 13) x[i] *= 8;
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < k; ++j) sum[i * k + j] += x[i] * x[j];
  }
  for (const double s : sum) statistics.hessian.push_back(static_cast<float>(s / static_cast<double>(tokens)));
  for (int64_t i = 0; i < k; ++i) statistics.mean_square.push_back(statistics.hessian[i * k + i]);
  return statistics;
}

// As if an input had always been zero.
inline void make_dead(LayerStatistics& statistics, int64_t input) {
  const int64_t k = statistics.k;
  for (int64_t i = 0; i < k; ++i) statistics.hessian[i * k + input] = statistics.hessian[input * k + i] = 0;
  statistics.mean_square[input] = 0;
}

// The same with some such inputs.
inline LayerStatistics with_dead_inputs(LayerStatistics statistics) {
  for (int64_t input = 5; input < statistics.k; input += 57) make_dead(statistics, input);
  return statistics;
}

// The same without the Hessian.
inline LayerStatistics squares_only(LayerStatistics statistics) {
  statistics.hessian.clear();
  return statistics;
}

// Statistics with this Hessian.
inline LayerStatistics statistics_of(std::vector<float> hessian) {
  LayerStatistics statistics{.layer = "by hand", .tokens = 1};
  while (statistics.k * statistics.k < static_cast<int64_t>(hessian.size())) ++statistics.k;
  for (int64_t i = 0; i < statistics.k; ++i) statistics.mean_square.push_back(hessian[i * statistics.k + i]);
  statistics.hessian = std::move(hessian);
  return statistics;
}

}  // namespace nybble::testing
