// Dense weights for tests of quantizers.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "nybble/weight.h"

namespace nybble::testing {

// Bell-shaped numbers times 2^exponent, with groups of zeros, single outliers and one-sided runs among them.
inline DenseWeight random_dense(int64_t n, int64_t k, DType dtype, uint64_t seed, int exponent = -5) {
  std::mt19937_64 random(seed);
  std::vector<float> values(n * k);
  for (int64_t i = 0; i < n * k; ++i) {
    double x = 0;
    for (int j = 0; j < 4; ++j) x += static_cast<double>(random() >> 40) * 0x1p-24 - 0.5;
    if (random() % 97 == 0) x *= 8;
    const int64_t run = i / 48 % 11;
    if (run == 3) x = 0;
    if (run == 7) x = std::abs(x);
    if (run == 9) x = -std::abs(x);
    values[i] = static_cast<float>(std::ldexp(x, exponent));
  }
  DenseWeight dense;
  dense.name = "random";
  dense.n = n;
  dense.k = k;
  dense.values = FloatArray::from_floats(dtype, values);
  return dense;
}

}  // namespace nybble::testing
