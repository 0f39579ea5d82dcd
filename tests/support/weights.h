// Canonical weights for tests: every combination of format and shape, filled from a seed.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "nybble/weight.h"

namespace nybble::testing {

struct WeightSpec {
  int64_t n = 0;
  int64_t k = 0;
  WeightFormat format;
  uint64_t seed = 1;
};

inline std::string to_string(const WeightSpec& spec) {
  return fmt::format("n{} k{} {} s{} seed {}", spec.n, spec.k, nybble::to_string(spec.format),
                     dtype_name(spec.format.scale_dtype), spec.seed);
}

// Codes, zeros and order uniform; scales of both signs around 2^-8 (all inside the bf16 window), some of them zero.
inline QuantizedWeight random_weight(const WeightSpec& spec) {
  std::mt19937_64 random(spec.seed * 1000003 + spec.n * 8191 + spec.k);
  const auto below = [&](int end) { return static_cast<int>(random() % end); };
  QuantizedWeight weight;
  weight.name = to_string(spec);
  weight.n = spec.n;
  weight.k = spec.k;
  weight.group_size = spec.format.group_size;
  weight.zero_kind = spec.format.zero_kind;
  weight.codes.resize(spec.n * spec.k);
  for (uint8_t& code : weight.codes) code = static_cast<uint8_t>(below(16));
  const int64_t numbers = spec.n * weight.groups();
  std::vector<float> values(numbers);
  for (float& value : values)
    value = below(17) == 0
                ? 0.0f
                : std::ldexp(1.0f + static_cast<float>(below(256)) / 256.0f, -6 - below(6)) * (below(8) ? 1.0f : -1.0f);
  weight.scales = FloatArray::from_floats(spec.format.scale_dtype, values);
  if (spec.format.zero_kind == ZeroKind::kInt) {
    weight.int_zeros.resize(numbers);
    for (uint8_t& zero : weight.int_zeros) zero = static_cast<uint8_t>(below(17));
  } else if (spec.format.zero_kind != ZeroKind::kNone) {
    for (float& value : values) value = static_cast<float>(below(4096)) / 256.0f;
    weight.float_zeros = FloatArray::from_floats(spec.format.scale_dtype, values);
  }
  if (spec.format.k_order) {
    weight.k_order.resize(spec.k);
    std::iota(weight.k_order.begin(), weight.k_order.end(), 0);
    std::shuffle(weight.k_order.begin(), weight.k_order.end(), random);
  }
  return weight;
}

// Every format crossed with shapes whose sizes hit and miss the block in both directions.
inline std::vector<WeightSpec> all_specs() {
  std::vector<WeightSpec> specs;
  constexpr int64_t kShapes[][2] = {{64, 128}, {1, 1}, {65, 129}, {130, 300}, {7, 512}, {128, 40}};
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32})
    for (const ZeroKind zero : {ZeroKind::kNone, ZeroKind::kInt, ZeroKind::kFloat, ZeroKind::kOffset})
      for (const int group : {kPerColumn, 16, 32, 48, 64, 80, 96, 128, 192, 256, 1000, 1024})
        for (const bool order : {false, true})
          for (const auto& [n, k] : kShapes)
            specs.push_back({.n = n,
                             .k = k,
                             .format = {.scale_dtype = dtype, .zero_kind = zero, .group_size = group, .k_order = order},
                             .seed = specs.size() + 1});
  return specs;
}

}  // namespace nybble::testing
