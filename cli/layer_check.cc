// The reference over the canonical weight, rounded as the kernel that ran says it rounds.
#include "cli/layer_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bench/random_data.h"
#include "reference/envelope.h"
#include "reference/gemm.h"
#include "weight/value.h"

namespace nybble::cli {
namespace {

constexpr double kMaxProducts = 1u << 31;  // of one judgement: a second or two on a core

// Output features to look at, evenly spread, the last among them.
std::vector<int64_t> features_to_check(int64_t m, int64_t n, int64_t k) {
  const double share = kMaxProducts / (static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k));
  const int64_t count = share >= 1 ? n : std::max<int64_t>(1, static_cast<int64_t>(share * static_cast<double>(n)));
  std::vector<int64_t> features;
  for (int64_t i = 0; i < count; ++i) features.push_back(count > 1 ? (n - 1) * i / (count - 1) : n - 1);
  return features;
}

}  // namespace

LayerVerdict judge_layer(const QuantizedWeight& weight, const FloatArray& act, int64_t m, const LayerRun& run,
                         int num_threads) {
  const std::vector<int64_t> features = features_to_check(m, weight.n, weight.k);
  const int64_t num_features = static_cast<int64_t>(features.size());
  const bool all = num_features == weight.n;
  const QuantizedWeight rows = all ? QuantizedWeight() : bench::take_rows(weight, features);
  ReferenceArgs args;
  args.weight = all ? &weight : &rows;
  args.m = m;
  args.act_dtype = act.dtype;
  args.act = act.bytes.data();
  args.numerics = run.plan.numerics();
  args.num_threads = num_threads;
  const ReferenceSums sums = reference_sums(args);

  std::vector<float> biases(features.size(), 0);
  for (size_t i = 0; i < biases.size() && !weight.bias.empty(); ++i)
    biases[i] = round_once(weight.bias.at(features[i]), act.dtype);

  LayerVerdict verdict;
  ErrorStats::Sum total;
  for (int64_t token = 0; token < m; ++token) {
    for (int64_t i = 0; i < num_features; ++i) {
      const int64_t feature = features[i];
      const double bias = biases[i];
      const double expected = sums.sum[token * num_features + i] + bias;
      const double magnitude = sums.magnitude[token * num_features + i] + std::abs(bias);
      const double got = run.out.at(token * weight.n + feature);
      total.add(got, expected);
      const double allowed = allowed_error(expected, magnitude, weight.k, run.out.dtype);
      // One rounding may take its half unit whole; what is beyond it comes from the sums.
      const double accumulation = allowed_accumulation(magnitude, weight.k);
      if (accumulation > 0)
        verdict.of_allowed =
            std::max(verdict.of_allowed, (std::abs(got - expected) - (allowed - accumulation)) / accumulation);
      if (verdict.ok() && !within_envelope(got, expected, magnitude, weight.k, run.out.dtype))
        verdict.first_bad =
            fmt::format("out[{}, {}] is {:.9g}; {:.9g} +- {:.2g} is right", token, feature, got, expected, allowed);
    }
  }
  verdict.stats = total.stats();
  verdict.checked = m * num_features;
  return verdict;
}

ErrorStats weight_error_of(const QuantizedWeight& weight, const DenseWeight& dense) {
  const std::vector<float> values = dequantize(weight);
  ErrorStats::Sum total;
  for (size_t i = 0; i < values.size(); ++i) total.add(values[i], dense.values.at(i));
  return total.stats();
}

}  // namespace nybble::cli
