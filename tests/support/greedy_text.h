// The example's decoders compared along a greedy text.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <span>
#include <vector>

#include "decoder.h"
#include "generate.h"

namespace llama::testing {

inline float largest(const std::vector<float>& values) {
  float most = 0;
  for (const float value : values) most = std::max(most, std::abs(value));
  return most;
}

inline float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  float most = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) most = std::max(most, std::abs(a[i] - b[i]));
  return std::isfinite(largest(a)) && a.size() == b.size() ? most : INFINITY;
}

// `other` is led along the greedy text of `model` for `count` tokens, whatever end of text the model sees in it, so
// that one divergence does not hide the rest. Logits may differ by `tolerance` of the largest, and a token may fall
// otherwise only where that explains it: where the two that were chosen are closer than twice as much.
inline void expect_same_greedy_text(Decoder& model, Decoder& other, std::span<const int32_t> prompt, int count,
                                    float tolerance) {
  auto want = model.append(prompt, LogitsOf::kLast), got = other.append(prompt, LogitsOf::kLast);
  int parted = 0;
  float worst = 0;
  for (int i = 0; i < count; ++i) {
    ASSERT_TRUE(want) << want.error().message;
    ASSERT_TRUE(got) << got.error().message;
    const float most = largest(*want), difference = largest_difference(*got, *want);
    worst = std::max(worst, difference / most);
    ASSERT_LE(difference, tolerance * most) << "at token " << i;
    const int32_t token = likeliest(*want), else_token = likeliest(*got);
    if (token != else_token) {
      ++parted;
      EXPECT_LT((*want)[token] - (*want)[else_token], 2 * tolerance * most) << "at token " << i;
    }
    want = model.append({&token, 1}, LogitsOf::kLast);
    got = other.append({&token, 1}, LogitsOf::kLast);
  }
  ::testing::Test::RecordProperty("tokens_parted", parted);
  std::printf("of %d tokens %d fall otherwise; logits differ by at most %.2e of the largest\n", count, parted, worst);
}

}  // namespace llama::testing
