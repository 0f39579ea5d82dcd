// Counter-based random numbers, so that threads need no order among themselves.
#include "bench/random_data.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/parallel.h"

namespace nybble::bench {
namespace {

uint64_t mix(uint64_t x) {  // splitmix64's output function
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

// The standard Gaussian's value below which a share p of it lies, by bisection of its distribution function.
double gaussian_quantile(double p) {
  double low = -8, high = 8;
  for (int step = 0; step < 60; ++step) {
    const double middle = (low + high) / 2;
    (0.5 * std::erfc(-middle / std::sqrt(2.0)) < p ? low : high) = middle;
  }
  return low;
}

// Codes of a random byte: how often each code stands here is how often it stands in a random weight.
const std::array<uint8_t, 256>& code_of_byte() {
  static const std::array<uint8_t, 256> table = [] {
    std::array<uint8_t, 256> codes;
    for (int i = 0; i < 256; ++i)
      codes[i] = static_cast<uint8_t>(std::clamp(std::lround(8 + 2.7 * gaussian_quantile((i + 0.5) / 256)), 0l, 15l));
    return codes;
  }();
  return table;
}

// What a group's random bits say of its zero point: an integer of mean 8, and for a fractional one a quarter more or
// less. A zero point that is not the codes' mean would let every product amplify the mean of what it multiplies.
constexpr int kIntZeros[4] = {7, 8, 8, 9};
constexpr float kFraction = 0.25f;

constexpr int64_t kChunk = 1 << 16;

// Calls body(begin, end) over [0, count) on all cores.
template <class Body> void in_chunks(int64_t count, const Body& body) {
  base::parallel_for((count + kChunk - 1) / kChunk, 0,
                     [&](int64_t i) { body(i * kChunk, std::min(count, (i + 1) * kChunk)); });
}

}  // namespace

QuantizedWeight random_weight(int64_t n, int64_t k, const WeightFormat& format, uint64_t seed, float mean_scale) {
  const std::array<uint8_t, 256>& code_of = code_of_byte();
  QuantizedWeight weight;
  weight.name = "random";
  weight.n = n;
  weight.k = k;
  weight.group_size = format.group_size;
  weight.zero_kind = format.zero_kind;
  weight.codes.resize(n * k);
  in_chunks(n * k, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += 8) {
      const uint64_t random = mix(seed + static_cast<uint64_t>(i / 8));
      for (int64_t j = i; j < std::min(end, i + 8); ++j) weight.codes[j] = code_of[random >> 8 * (j - i) & 255];
    }
  });
  const int64_t num_scales = n * weight.groups();
  std::vector<float> scales(num_scales), zeros;
  for (int64_t i = 0; i < num_scales; ++i) {
    const uint64_t random = mix(~seed + static_cast<uint64_t>(i));
    scales[i] = 0.5f * mean_scale + mean_scale * static_cast<float>(random >> 40) * 0x1p-24f;
    const int zero = kIntZeros[random & 3];
    if (format.zero_kind == ZeroKind::kInt) weight.int_zeros.push_back(static_cast<uint8_t>(zero));
    if (format.zero_kind == ZeroKind::kFloat)
      zeros.push_back(static_cast<float>(zero) + (random & 4 ? kFraction : -kFraction));
    if (format.zero_kind == ZeroKind::kOffset) zeros.push_back(-static_cast<float>(zero) * scales[i]);
  }
  weight.scales = FloatArray::from_floats(format.scale_dtype, scales);
  if (!zeros.empty()) weight.float_zeros = FloatArray::from_floats(format.scale_dtype, zeros);
  return weight;
}

float neutral_scale(int64_t k, const WeightFormat& format) {
  double square = 0;  // mean of (code - zero point)^2
  for (const uint8_t code : code_of_byte()) square += (code - 8.0) * (code - 8.0) / 256;
  if (format.zero_kind != ZeroKind::kNone) {
    for (const int zero : kIntZeros) square += (zero - 8.0) * (zero - 8.0) / 4;
    if (format.zero_kind == ZeroKind::kFloat) square += kFraction * kFraction;
  }
  const double scale_square = 1 + 1.0 / 12;  // mean of the square of what is uniform in 0.5 .. 1.5
  return static_cast<float>(1 / std::sqrt(static_cast<double>(k) * square * scale_square));
}

FloatArray random_numbers(int64_t count, DType dtype, double deviation, uint64_t seed) {
  constexpr int kSteps = 4096;
  std::vector<float> quantiles(kSteps);
  for (int i = 0; i < kSteps; ++i) quantiles[i] = static_cast<float>(deviation * gaussian_quantile((i + 0.5) / kSteps));
  const FloatArray table = FloatArray::from_floats(dtype, quantiles);
  const size_t width = dtype_bytes(dtype);
  FloatArray numbers{.dtype = dtype};
  numbers.resize(count);
  in_chunks(count, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const uint64_t pick = mix(seed + static_cast<uint64_t>(i)) % kSteps;
      std::memcpy(numbers.bytes.data() + i * width, table.bytes.data() + pick * width, width);
    }
  });
  return numbers;
}

QuantizedWeight take_rows(const QuantizedWeight& weight, const std::vector<int64_t>& rows) {
  const int64_t groups = weight.groups();
  const auto take_floats = [&](const FloatArray& from, int64_t per_row) {
    FloatArray to{.dtype = from.dtype};
    if (from.empty()) return to;
    const size_t bytes = per_row * dtype_bytes(from.dtype);
    for (int64_t row : rows)
      to.bytes.insert(to.bytes.end(), &from.bytes[row * bytes], &from.bytes[row * bytes] + bytes);
    return to;
  };
  QuantizedWeight taken;
  taken.name = weight.name;
  taken.n = static_cast<int64_t>(rows.size());
  taken.k = weight.k;
  taken.group_size = weight.group_size;
  taken.zero_kind = weight.zero_kind;
  taken.k_order = weight.k_order;
  for (int64_t row : rows) {
    taken.codes.insert(taken.codes.end(), &weight.codes[row * weight.k], &weight.codes[row * weight.k] + weight.k);
    if (!weight.int_zeros.empty())
      taken.int_zeros.insert(taken.int_zeros.end(), &weight.int_zeros[row * groups],
                             &weight.int_zeros[row * groups] + groups);
  }
  taken.scales = take_floats(weight.scales, groups);
  taken.float_zeros = take_floats(weight.float_zeros, groups);
  taken.bias = take_floats(weight.bias, 1);
  return taken;
}

}  // namespace nybble::bench
