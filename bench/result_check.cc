// Sampled outputs against the reference.
#include "bench/result_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "bench/random_data.h"
#include "reference/envelope.h"
#include "reference/gemm.h"

namespace nybble::bench {
namespace {

// Up to `count` of [0, size), the first, the last and the neighbours of tile edges among them, in order.
std::vector<int64_t> spread(int64_t size, int count) {
  std::vector<int64_t> picks = {0, 1, 7, 8, 15, 16, 63, 64, 127, 128, size - 2, size - 1};
  for (int i = 0; i < count; ++i) picks.push_back(size * i / count + i % 61);  // every residue of small tiles in turn
  std::erase_if(picks, [size](int64_t pick) { return pick < 0 || pick >= size; });
  std::sort(picks.begin(), picks.end());
  picks.erase(std::unique(picks.begin(), picks.end()), picks.end());
  return picks;
}

FloatArray take_tokens(const FloatArray& act, int64_t k, const std::vector<int64_t>& tokens) {
  const size_t bytes = k * dtype_bytes(act.dtype);
  FloatArray taken{.dtype = act.dtype};
  for (int64_t token : tokens)
    taken.bytes.insert(taken.bytes.end(), &act.bytes[token * bytes], &act.bytes[token * bytes] + bytes);
  return taken;
}

}  // namespace

std::vector<int64_t> ResultCheck::sampled_tokens(int64_t m) { return spread(m, 4); }
std::vector<int64_t> ResultCheck::sampled_features(int64_t n) { return spread(n, 64); }

ResultCheck::ResultCheck(const QuantizedWeight& weight, const FloatArray& act, int64_t m, Numerics numerics)
    : n_(weight.n), k_(weight.k), tokens_(sampled_tokens(m)), features_(sampled_features(weight.n)) {
  const QuantizedWeight rows = take_rows(weight, features_);
  const FloatArray inputs = take_tokens(act, k_, tokens_);
  ReferenceArgs args;
  args.weight = &rows;
  args.m = static_cast<int64_t>(tokens_.size());
  args.act_dtype = act.dtype;
  args.act = inputs.bytes.data();
  args.numerics = numerics;
  ReferenceSums sums = reference_sums(args);
  sum_ = std::move(sums.sum);
  magnitude_ = std::move(sums.magnitude);
}

ResultCheck::ResultCheck(int64_t n, int64_t k, const FloatArray& rows, const FloatArray& act, int64_t m)
    : n_(n), k_(k), tokens_(sampled_tokens(m)), features_(sampled_features(n)) {
  const int64_t num_features = static_cast<int64_t>(features_.size());
  sum_.resize(tokens_.size() * features_.size());
  magnitude_.resize(sum_.size());
  base::parallel_for(static_cast<int64_t>(sum_.size()), 0, [&](int64_t i) {
    const int64_t token = tokens_[i / num_features], row = i % num_features;
    for (int64_t j = 0; j < k; ++j) {
      const double product = static_cast<double>(act.at(token * k + j)) * rows.at(row * k + j);
      sum_[i] += product;
      magnitude_[i] += std::abs(product);
    }
  });
}

std::string ResultCheck::judge(const FloatArray& out) const {
  for (size_t i = 0; i < sum_.size(); ++i) {
    const size_t token = i / features_.size(), feature = i % features_.size();
    const double got = out.at(token * n_ + features_[feature]);
    if (!within_envelope(got, sum_[i], magnitude_[i], k_, out.dtype))
      return fmt::format("out[{}, {}] is {:.9g}; {:.9g} +- {:.2g} is right", tokens_[token], features_[feature], got,
                         sum_[i], allowed_error(sum_[i], magnitude_[i], k_, out.dtype));
  }
  return "";
}

}  // namespace nybble::bench
