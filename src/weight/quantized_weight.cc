// The canonical weight: its invariants and its meaning.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/parallel.h"
#include "nybble/weight.h"
#include "weight/value.h"

namespace nybble {

int64_t QuantizedWeight::groups() const { return group_size <= 0 ? 1 : (k + group_size - 1) / group_size; }

WeightFormat QuantizedWeight::format() const {
  return {.scale_dtype = scales.dtype, .zero_kind = zero_kind, .group_size = group_size, .k_order = !k_order.empty()};
}

namespace {

constexpr int64_t kMaxFeatures = std::numeric_limits<int32_t>::max();  // k_order counts input features in 32 bits

bool is_dtype(DType dtype) { return dtype == DType::kBf16 || dtype == DType::kFp16 || dtype == DType::kFp32; }

template <class... Args> Error broken(const QuantizedWeight& weight, fmt::format_string<Args...> text, Args&&... args) {
  return invalid_data("weight '{}': {}", weight.name, fmt::format(text, std::forward<Args>(args)...));
}

Result<void> check_count(const QuantizedWeight& weight, const char* what, size_t have, int64_t rows, int64_t columns) {
  if (have != static_cast<size_t>(rows * columns))
    return broken(weight, "{} must hold {} x {} numbers, but holds {}", what, rows, columns, have);
  return {};
}

Result<void> check_floats(const QuantizedWeight& weight, const char* what, const FloatArray& values) {
  const int64_t groups = weight.groups();
  if (!is_dtype(values.dtype))
    return broken(weight, "{} have no element type (enum value {})", what, int(values.dtype));
  if (values.bytes.size() % dtype_bytes(values.dtype) != 0)
    return broken(weight, "{} end inside a number: {} bytes of {}", what, values.bytes.size(),
                  dtype_name(values.dtype));
  if (Result<void> count = check_count(weight, what, values.size(), weight.n, groups); !count) return count;
  for (size_t i = 0; i < values.size(); ++i)
    if (const float value = values.at(i); !std::isfinite(value))
      return broken(weight, "{}[{}, {}] is {}; only finite numbers have a meaning", what,
                    static_cast<int64_t>(i) / groups, static_cast<int64_t>(i) % groups, value);
  return {};
}

Result<void> check_codes(const QuantizedWeight& weight) {
  if (Result<void> count = check_count(weight, "codes", weight.codes.size(), weight.n, weight.k); !count) return count;
  constexpr int64_t kChunk = 1 << 20;
  const int64_t size = static_cast<int64_t>(weight.codes.size()), chunks = (size + kChunk - 1) / kChunk;
  std::vector<uint8_t> bad(chunks, 0);
  base::parallel_for(chunks, 0, [&](int64_t chunk) {
    uint8_t any = 0;
    const uint8_t* codes = weight.codes.data();
    const int64_t end = std::min(size, (chunk + 1) * kChunk);  // both local: the loop is vectorized
    for (int64_t i = chunk * kChunk; i < end; ++i) any |= codes[i];
    bad[chunk] = any > 15;
  });
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    if (!bad[chunk]) continue;
    for (int64_t i = chunk * kChunk; i < size; ++i)
      if (weight.codes[i] > 15)
        return broken(weight, "codes[{}, {}] is {}; a code is 0 to 15", i / weight.k, i % weight.k, weight.codes[i]);
  }
  return {};
}

Result<void> check_zeros(const QuantizedWeight& weight) {
  const bool integers = weight.zero_kind == ZeroKind::kInt;
  const bool floats = weight.zero_kind == ZeroKind::kFloat || weight.zero_kind == ZeroKind::kOffset;
  const char* kind = zero_kind_name(weight.zero_kind);
  if (!integers && !weight.int_zeros.empty())
    return broken(weight, "int_zeros holds {} numbers, but the kind of zero point is {}", weight.int_zeros.size(),
                  kind);
  if (!floats && !weight.float_zeros.empty())
    return broken(weight, "float_zeros holds {} numbers, but the kind of zero point is {}", weight.float_zeros.size(),
                  kind);
  if (integers) {
    const int64_t groups = weight.groups();
    if (Result<void> count = check_count(weight, "int_zeros", weight.int_zeros.size(), weight.n, groups); !count)
      return count;
    for (size_t i = 0; i < weight.int_zeros.size(); ++i)
      if (weight.int_zeros[i] > 16)
        return broken(weight, "int_zeros[{}, {}] is {}; an integer zero point is 0 to 16",
                      static_cast<int64_t>(i) / groups, static_cast<int64_t>(i) % groups, weight.int_zeros[i]);
  }
  if (floats) {
    if (weight.float_zeros.dtype != weight.scales.dtype)
      return broken(weight, "float_zeros are {}, but scales are {}; both must have one type",
                    dtype_name(weight.float_zeros.dtype), dtype_name(weight.scales.dtype));
    if (Result<void> result = check_floats(weight, "float_zeros", weight.float_zeros); !result) return result;
  }
  return {};
}

Result<void> check_table(const QuantizedWeight& weight) {
  if (weight.zero_kind != ZeroKind::kTable) {
    if (weight.table.empty()) return {};
    return broken(weight, "table holds {} numbers, but the kind of zero point is {}", weight.table.size(),
                  zero_kind_name(weight.zero_kind));
  }
  constexpr size_t kEntries = 16;  // a value for every code
  if (weight.table.size() != kEntries)
    return broken(weight, "table must hold {} numbers, but holds {}", kEntries, weight.table.size());
  for (size_t code = 0; code < kEntries; ++code)
    if (!std::isfinite(weight.table[code]))
      return broken(weight, "table[{}] is {}; only finite numbers have a meaning", code, weight.table[code]);
  return {};
}

Result<void> check_order(const QuantizedWeight& weight) {
  if (weight.k_order.empty()) return {};
  if (static_cast<int64_t>(weight.k_order.size()) != weight.k)
    return broken(weight, "k_order must hold {} numbers or none, but holds {}", weight.k, weight.k_order.size());
  std::vector<int32_t> position(weight.k, -1);
  for (int64_t p = 0; p < weight.k; ++p) {
    const int32_t feature = weight.k_order[p];
    if (feature < 0 || feature >= weight.k)
      return broken(weight, "k_order[{}] is {}; input features are 0 to {}", p, feature, weight.k - 1);
    if (position[feature] >= 0)
      return broken(weight, "k_order[{}] is {}, which k_order[{}] holds already", p, feature, position[feature]);
    position[feature] = static_cast<int32_t>(p);
  }
  return {};
}

// As the formats' own libraries compute it in fp32. HQQ alone, whose the float zero points are, rounds twice.
float float_of_code(const QuantizedWeight& weight, uint8_t code, size_t group) {
  if (weight.zero_kind == ZeroKind::kFloat)
    return (static_cast<float>(code) - weight.float_zeros.at(group)) * weight.scales.at(group);
  return static_cast<float>(value_of_code(weight, code, group));
}

}  // namespace

Result<void> validate(const QuantizedWeight& weight) {
  if (weight.n < 0 || weight.k < 0 || weight.n > kMaxFeatures || weight.k > kMaxFeatures)
    return broken(weight, "the shape is {} x {}; both may be 0 to {}", weight.n, weight.k, kMaxFeatures);
  if (weight.group_size < 0)
    return broken(weight, "group_size is {}; it must be positive, or kPerColumn (0)", weight.group_size);
  if (weight.zero_kind > ZeroKind::kTable)
    return broken(weight, "zero_kind has no meaning (enum value {})", int(weight.zero_kind));
  if (Result<void> result = check_codes(weight); !result) return result;
  if (Result<void> result = check_floats(weight, "scales", weight.scales); !result) return result;
  if (Result<void> result = check_zeros(weight); !result) return result;
  if (Result<void> result = check_table(weight); !result) return result;
  if (Result<void> result = check_order(weight); !result) return result;
  if (weight.bias.bytes.size() % dtype_bytes(weight.bias.dtype) != 0 ||
      (!weight.bias.empty() && static_cast<int64_t>(weight.bias.size()) != weight.n))
    return broken(weight, "bias must hold {} numbers or none, but holds {} bytes of {}", weight.n,
                  weight.bias.bytes.size(), dtype_name(weight.bias.dtype));
  return {};
}

std::vector<float> dequantize(const QuantizedWeight& weight) {
  const int64_t groups = weight.groups();
  const std::vector<int32_t> group_of = groups_of_features(weight);
  std::vector<float> dense(weight.n * weight.k);
  base::parallel_for(weight.n, 0, [&](int64_t n) {
    for (int64_t i = n * weight.k, k = 0; k < weight.k; ++k, ++i)
      dense[i] = float_of_code(weight, weight.codes[i], n * groups + group_of[k]);
  });
  return dense;
}

}  // namespace nybble
