// The numbers of the kernel tests, made from a seed: canonical weights whose sums are exact or hard, activations, bias
// and residual, the same on the host and on the device.
#pragma once

#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "base/parallel.h"
#include "nybble/weight.h"
#include "support/numbers.h"
#include "support/random.h"

namespace nybble::testing {

// What a case's numbers are like; weights and activations together.
enum class Data : uint8_t {
  kExact,    // small integers times powers of two: every order of summation gives the same fp32 sums
  kExtreme,  // the same, and groups of zero weights whose scales are the type's smallest and largest numbers
  kRandom,   // normal activations, any mantissa in the scales, outputs around 1
  kSpread,   // the same with scales of both signs, over 20 binades, some zero
  kHuge,     // kRandom with activations of 2^70 (bf16) or 60000 (fp16) strewn in
};
inline constexpr std::pair<Data, const char*> kDataNames[] = {{Data::kExact, "exact"},
                                                              {Data::kExtreme, "extreme"},
                                                              {Data::kRandom, "random"},
                                                              {Data::kSpread, "spread"},
                                                              {Data::kHuge, "huge"}};
inline const char* data_name(Data data) {
  for (const auto& [value, name] : kDataNames)
    if (value == data) return name;
  return "unknown";
}
NYBBLE_HD constexpr bool is_exact(Data data) { return data == Data::kExact || data == Data::kExtreme; }

enum Purpose : uint64_t { kCodes, kScales, kZeros, kOrder, kAct, kBias, kResidual, kPlace, kChoice };

// The key of a weight's and its activations' numbers. m is not in it, so that one weight serves all m.
inline uint64_t weight_key(uint64_t seed, int64_t n, int64_t k, const WeightFormat& format) {
  uint64_t key = seed;
  for (uint64_t part : {static_cast<uint64_t>(n), static_cast<uint64_t>(k), static_cast<uint64_t>(format.group_size),
                        static_cast<uint64_t>(format.scale_dtype), static_cast<uint64_t>(format.zero_kind),
                        static_cast<uint64_t>(format.k_order)})
    key = RandomStream(key, part).bits(0);
  return key;
}

// One group's scale and zero point.
struct GroupNumbers {
  double scale = 0, zero = 0;
  bool zero_weights = false;  // every code of the group stands for 0
};

// Scales 0, 1/2, 1, 2 of both signs; zero points on a grid of 1/2: weights are multiples of 1/4 up to 64.
inline GroupNumbers exact_group(const RandomStream& scales, const RandomStream& zeros, uint64_t i,
                                const WeightFormat& format, bool extreme) {
  GroupNumbers group;
  const uint32_t choice = scales.below(2 * i, 32);
  group.scale = choice == 0 ? 0 : (choice & 1 ? 1.0 : choice & 2 ? 0.5 : 2.0) * (choice >= 24 ? -1 : 1);
  switch (format.zero_kind) {
    case ZeroKind::kNone:
      break;
    case ZeroKind::kInt:
      group.zero = zeros.below(i, 17);
      break;
    case ZeroKind::kFloat:
      group.zero = zeros.below(i, 33) * 0.5;
      break;
    case ZeroKind::kOffset:
      group.zero = static_cast<int>(zeros.below(i, 65)) * 0.5 - 16;
      break;
    case ZeroKind::kTable:  // never packed, so no kernel's case
      break;
  }
  if (extreme && (i == 0 || scales.below(2 * i + 1, 8) == 0)) {
    const FloatShape shape = float_shape(format.scale_dtype);
    const uint32_t patterns[] = {1, 1u << shape.mantissa_bits, shape.infinity() - 1,
                                 shape.sign() | (shape.infinity() - 1)};
    group.scale = widen(patterns[i % 4], format.scale_dtype);
    group.zero_weights = true;
    group.zero = format.zero_kind == ZeroKind::kOffset ? 0 : zeros.below(i, 16);
  }
  return group;
}

// Scales with all mantissas, such that sums over k are around 1.
inline GroupNumbers random_group(const RandomStream& scales, const RandomStream& zeros, uint64_t i,
                                 const WeightFormat& format, int64_t k, Data data) {
  GroupNumbers group;
  group.scale = (0.5 + scales.uniform(2 * i)) / (4.6 * std::sqrt(static_cast<double>(k)));
  if (data == Data::kSpread) {
    const uint32_t choice = scales.below(2 * i + 1, 640);
    group.scale *= choice < 20 ? 0 : (choice % 2 == 0 ? 1 : -1) * std::ldexp(1.0, -static_cast<int>(choice / 32));
  }
  switch (format.zero_kind) {
    case ZeroKind::kNone:
      break;
    case ZeroKind::kInt:
      group.zero = zeros.below(i, 17);
      break;
    case ZeroKind::kFloat:
      group.zero = 4 + 8 * zeros.uniform(i);
      break;
    case ZeroKind::kOffset:
      group.zero = -(4 + 8 * zeros.uniform(i)) * group.scale;
      break;
    case ZeroKind::kTable:
      break;
  }
  return group;
}

// n x k codes of `format` (its scales_in_window is ignored: pack() decides it).
inline QuantizedWeight make_weight(int64_t n, int64_t k, const WeightFormat& format, Data data, uint64_t seed) {
  const uint64_t key = weight_key(seed, n, k, format);
  const RandomStream codes(key, kCodes), scales(key, kScales), zeros(key, kZeros), order(key, kOrder);
  QuantizedWeight weight;
  weight.name = "case";
  weight.n = n;
  weight.k = k;
  weight.group_size = format.group_size;
  weight.zero_kind = format.zero_kind;
  weight.codes.resize(n * k);
  const int64_t groups = weight.groups();
  weight.scales.dtype = format.scale_dtype;
  weight.scales.resize(n * groups);
  if (format.zero_kind == ZeroKind::kInt) weight.int_zeros.resize(n * groups);
  if (format.zero_kind == ZeroKind::kFloat || format.zero_kind == ZeroKind::kOffset) {
    weight.float_zeros.dtype = format.scale_dtype;
    weight.float_zeros.resize(n * groups);
  }
  if (format.k_order) {
    weight.k_order.resize(k);
    std::iota(weight.k_order.begin(), weight.k_order.end(), 0);
    for (int64_t i = k - 1; i > 0; --i)
      std::swap(weight.k_order[i], weight.k_order[order.below(i, static_cast<uint32_t>(i + 1))]);
  }
  std::vector<int64_t> group_of(k, 0);
  for (int64_t p = 0; p < k && format.group_size != kPerColumn; ++p)
    group_of[format.k_order ? weight.k_order[p] : p] = p / format.group_size;
  base::parallel_for(n, 0, [&](int64_t row) {
    std::vector<int> only_code(groups, -1);
    for (int64_t g = 0; g < groups; ++g) {
      const uint64_t i = row * groups + g;
      const GroupNumbers group = is_exact(data) ? exact_group(scales, zeros, i, format, data == Data::kExtreme)
                                                : random_group(scales, zeros, i, format, k, data);
      weight.scales.set_bits(i, narrow(group.scale, format.scale_dtype));
      if (!weight.int_zeros.empty()) weight.int_zeros[i] = static_cast<uint8_t>(group.zero);
      if (!weight.float_zeros.empty()) weight.float_zeros.set_bits(i, narrow(group.zero, format.scale_dtype));
      if (group.zero_weights) only_code[g] = format.zero_kind == ZeroKind::kNone ? 8 : static_cast<int>(group.zero);
    }
    for (int64_t column = 0; column < k; ++column) {
      const uint64_t i = row * k + column;
      const int only = only_code[group_of[column]];
      weight.codes[i] = static_cast<uint8_t>(only >= 0 ? only : codes.bits(i) >> 60);
    }
  });
  return weight;
}

// Activation of token `row`, input feature `column`, as bits of `dtype`. Exact data: -2 to 2.
NYBBLE_HD inline uint32_t act_bits(const RandomStream& stream, int64_t row, int64_t column, int64_t k, DType dtype,
                                   Data data) {
  const uint64_t i = static_cast<uint64_t>(row * k + column);
  if (is_exact(data)) return narrow(static_cast<int>(stream.below(i, 5)) - 2, dtype);
  double value = stream.normal(i);
  if (data == Data::kHuge && stream.bits(i) % 13 == 0)
    value = dtype == DType::kFp16 ? (value < 0 ? -60000 : 60000) : value * 0x1p70;
  return narrow(value, dtype);
}

// Bias and residual. Exact data: multiples of 1/2 up to 8.
NYBBLE_HD inline uint32_t addend_bits(const RandomStream& stream, uint64_t i, DType dtype, Data data) {
  if (is_exact(data)) return narrow((static_cast<int>(stream.below(i, 33)) - 16) * 0.5, dtype);
  return narrow(stream.normal(i), dtype);
}

}  // namespace nybble::testing
