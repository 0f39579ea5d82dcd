// Matrix products with sums in a fixed order: tiles and pieces do not show in a single bit.
#include "quantize/linear_algebra.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <random>
#include <vector>

namespace nybble::quantize {
namespace {

template <class T> void expect_plain_sums(int64_t rows, int64_t inner, int64_t columns) {
  const int64_t ld_a = inner + 3, ld_b = columns + 5, ld_out = columns + 1;
  std::mt19937_64 random(rows * 1000003 + inner * 1009 + columns);
  const auto numbers = [&]<class U>(std::vector<U> values) {
    for (U& x : values) x = static_cast<U>(std::ldexp(static_cast<double>(random()), -60) - 8);
    return values;
  };
  const auto a = numbers(std::vector<double>(rows * ld_a));
  const auto b = numbers(std::vector<T>(inner * ld_b));
  auto out = numbers(std::vector<double>(rows * ld_out));
  auto want = out;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t i = 0; i < inner; ++i) want[r * ld_out + j] += a[r * ld_a + i] * b[i * ld_b + j];
  multiply_add(a.data(), ld_a, b.data(), ld_b, out.data(), ld_out, rows, inner, columns);
  EXPECT_EQ(out, want) << rows << " x " << inner << " x " << columns;
}

TEST(LinearAlgebra, ProductsAreThePlainSumsToTheBit) {
  constexpr std::array<std::array<int64_t, 3>, 9> kShapes = {{{0, 4, 4},
                                                              {1, 1, 1},
                                                              {4, 16, 16},
                                                              {3, 130, 300},
                                                              {5, 127, 15},
                                                              {7, 133, 301},
                                                              {16, 128, 256},
                                                              {17, 257, 273},
                                                              {8, 5, 31}}};
  for (const auto& [rows, inner, columns] : kShapes) {
    expect_plain_sums<double>(rows, inner, columns);
    expect_plain_sums<float>(rows, inner, columns);
  }
}

}  // namespace
}  // namespace nybble::quantize
