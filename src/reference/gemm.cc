// Plain loops. The product of an activation (24 bits) and a weight without a float zero point or a table (29 bits) is
// exact in double; sums run over the input features in order.
#include "reference/gemm.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/float16.h"
#include "base/parallel.h"
#include "weight/value.h"

namespace nybble {
namespace {

// Outputs are computed in tiles, so that converted activations and weights are used more than once.
constexpr int64_t kTileN = 16;
constexpr int64_t kTileM = 8;

float load(const void* values, DType dtype, int64_t i) {
  if (dtype == DType::kFp32) {
    float value;
    std::memcpy(&value, static_cast<const std::byte*>(values) + 4 * i, sizeof value);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, static_cast<const std::byte*>(values) + 2 * i, sizeof bits);
  return dtype == DType::kBf16 ? base::bf16_to_float(bits) : base::fp16_to_float(bits);
}

// `value` is one that dtype holds.
void store(void* values, DType dtype, int64_t i, float value) {
  if (dtype == DType::kFp32) {
    std::memcpy(static_cast<std::byte*>(values) + 4 * i, &value, sizeof value);
    return;
  }
  const uint16_t bits = dtype == DType::kBf16 ? base::float_to_bf16(value) : base::float_to_fp16(value);
  std::memcpy(static_cast<std::byte*>(values) + 2 * i, &bits, sizeof bits);
}

// Calls take(m, n, sum, magnitude) once for every output; magnitude is 0 unless wanted.
template <bool kMagnitude, class Take> void for_each_sum(const ReferenceArgs& args, const Take& take) {
  const QuantizedWeight& weight = *args.weight;
  const int64_t k_end = weight.k, groups = weight.groups(), ld_act = args.ld_act > 0 ? args.ld_act : k_end;
  const std::vector<int32_t> group_of = groups_of_features(weight);
  base::parallel_for((weight.n + kTileN - 1) / kTileN, args.num_threads, [&](int64_t tile) {
    const int64_t n_begin = tile * kTileN, n_end = std::min(weight.n, n_begin + kTileN);
    std::vector<double> values((n_end - n_begin) * k_end);
    for (int64_t n = n_begin; n < n_end; ++n) {
      for (int64_t k = 0; k < k_end; ++k) {
        double value = value_of_code(weight, weight.codes[n * k_end + k], n * groups + group_of[k]);
        if (args.numerics == Numerics::kRoundedWeight) value = round_once(value, args.act_dtype);
        values[(n - n_begin) * k_end + k] = value;
      }
    }
    std::vector<std::array<double, kTileM>> act(k_end);  // [k][m]: the tokens of a tile advance side by side
    for (int64_t m_begin = 0; m_begin < args.m; m_begin += kTileM) {
      const int64_t tokens = std::min(kTileM, args.m - m_begin);
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t k = 0; k < k_end; ++k) act[k][t] = load(args.act, args.act_dtype, (m_begin + t) * ld_act + k);
      for (int64_t n = n_begin; n < n_end; ++n) {
        const double* row = values.data() + (n - n_begin) * k_end;
        std::array<double, kTileM> sum{}, magnitude{};
        for (int64_t k = 0; k < k_end; ++k) {
          for (int64_t t = 0; t < kTileM; ++t) {
            const double product = act[k][t] * row[k];
            sum[t] += product;
            if constexpr (kMagnitude) magnitude[t] += std::abs(product);
          }
        }
        for (int64_t t = 0; t < tokens; ++t) take(m_begin + t, n, sum[t], magnitude[t]);
      }
    }
  });
}

}  // namespace

float reference_epilogue(double sum, float alpha, const float* bias, const float* residual, DType out_dtype) {
  float value = alpha * static_cast<float>(sum);
  if (bias != nullptr) value += *bias;
  if (residual != nullptr) value += *residual;
  return round_once(value, out_dtype);
}

void reference_gemm(const ReferenceArgs& args) {
  const int64_t ld_out = args.ld_out > 0 ? args.ld_out : args.weight->n;
  for_each_sum<false>(args, [&](int64_t m, int64_t n, double sum, double) {
    const int64_t i = m * ld_out + n;
    const float bias = args.bias != nullptr ? load(args.bias, args.act_dtype, n) : 0;
    const float residual = args.residual != nullptr ? load(args.residual, args.out_dtype, i) : 0;
    store(args.out, args.out_dtype, i,
          reference_epilogue(sum, args.alpha, args.bias != nullptr ? &bias : nullptr,
                             args.residual != nullptr ? &residual : nullptr, args.out_dtype));
  });
}

ReferenceSums reference_sums(const ReferenceArgs& args) {
  const int64_t n_end = args.weight->n;
  ReferenceSums sums{std::vector<double>(args.m * n_end), std::vector<double>(args.m * n_end)};
  for_each_sum<true>(args, [&](int64_t m, int64_t n, double sum, double magnitude) {
    sums.sum[m * n_end + n] = sum;
    sums.magnitude[m * n_end + n] = magnitude;
  });
  return sums;
}

}  // namespace nybble
