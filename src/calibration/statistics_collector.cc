#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/json_text.h"
#include "base/parallel.h"
#include "calibration/statistics_names.h"
#include "checkpoint/safetensors_writer.h"
#include "nybble/statistics.h"
#include "quantize/linear_algebra.h"

namespace nybble {

using namespace calibration;

Result<void> StatisticsCollector::declare(const std::string& layer, int64_t k, StatisticsKind kind) {
  constexpr int64_t kMaxFeatures = int64_t{1} << 31;
  if (k < 1 || k >= kMaxFeatures)
    return invalid_argument("layer {}: k is {}; it may be 1 to 2^31 - 1", base::printable(layer), k);
  if (layer.empty() || base::has_control_character(layer) || layer.size() > base::kMaxNameBytes / 2)
    return invalid_argument("layer {}: is no name of a layer", base::printable(layer));
  if (sums_.contains(layer) || shared_.contains(layer))
    return invalid_argument("layer {}: is declared already", base::printable(layer));
  Sums sums{.k = k, .kind = kind};
  sums.values.assign(kind == StatisticsKind::kHessian ? k * k : k, 0);
  sums_.emplace(layer, std::move(sums));
  return {};
}

Result<void> StatisticsCollector::share(const std::string& layer, const std::string& declared) {
  if (!sums_.contains(declared))
    return invalid_argument("layer {}: is to share the input of {}, which is not declared", base::printable(layer),
                            base::printable(declared));
  if (layer.empty() || base::has_control_character(layer) || layer.size() > base::kMaxNameBytes / 2)
    return invalid_argument("layer {}: is no name of a layer", base::printable(layer));
  if (sums_.contains(layer) || !shared_.emplace(layer, declared).second)
    return invalid_argument("layer {}: is declared already", base::printable(layer));
  return {};
}

Result<void> StatisticsCollector::add(const std::string& layer, std::span<const float> act, int num_threads) {
  const auto found = sums_.find(layer);
  if (found == sums_.end()) return invalid_argument("layer {}: is not declared", base::printable(layer));
  Sums& sums = found->second;
  const int64_t k = sums.k, m = static_cast<int64_t>(act.size()) / k;
  if (static_cast<int64_t>(act.size()) != m * k)
    return invalid_argument("layer {}: {} activations are no whole tokens of {}", base::printable(layer), act.size(),
                            k);
  const auto bad = std::find_if_not(act.begin(), act.end(), [](float x) { return std::isfinite(x); });
  if (bad != act.end())
    return invalid_data("layer {}: input {} of token {} is {}", base::printable(layer), (bad - act.begin()) % k,
                        (bad - act.begin()) / k, *bad);
  constexpr int64_t kRows = 32;
  const bool hessian = sums.kind == StatisticsKind::kHessian;
  base::parallel_for((k + kRows - 1) / kRows, num_threads, [&](int64_t item) {
    const int64_t begin = item * kRows, end = std::min(k, begin + kRows), rows = end - begin;
    if (!hessian) {
      for (int64_t i = begin; i < end; ++i) {
        double sum = 0;
        for (int64_t t = 0; t < m; ++t) sum += static_cast<double>(act[t * k + i]) * act[t * k + i];
        sums.values[i] = static_cast<float>(sums.values[i] + sum);
      }
      return;
    }
    std::vector<double> transposed(rows * m), products(rows * end, 0);
    for (int64_t i = begin; i < end; ++i)
      for (int64_t t = 0; t < m; ++t) transposed[(i - begin) * m + t] = act[t * k + i];
    quantize::multiply_add(transposed.data(), m, act.data(), k, products.data(), end, rows, m, end);
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j <= i; ++j) {
        float& sum = sums.values[i * k + j];
        sum = static_cast<float>(sum + products[(i - begin) * end + j]);
      }
  });
  sums.tokens += m;
  return {};
}

Result<void> StatisticsCollector::write(const std::string& path) const {
  std::vector<checkpoint::TensorEntry> entries;
  checkpoint::Metadata metadata = {{"format", "pt"}, {kFormatKey, kFormatValue}};
  uint64_t bytes = 0;
  for (const auto& [layer, sums] : sums_) {
    if (sums.tokens == 0) return invalid_argument("layer {}: no token came through", base::printable(layer));
    const bool hessian = sums.kind == StatisticsKind::kHessian;
    std::vector<int64_t> shape(hessian ? 2 : 1, sums.k);
    entries.push_back({layer + (hessian ? kHessian : kMeanSquare), checkpoint::TensorType::kF32, std::move(shape)});
    metadata[kTokensPrefix + layer] = std::to_string(sums.tokens);
    bytes += entries.back().size_bytes();
  }
  if (entries.empty()) return invalid_argument("{}: no layer was declared, so there is nothing to write", path);
  for (const auto& [layer, declared] : shared_) metadata[kSameInputPrefix + layer] = declared;
  Result<checkpoint::SafetensorsWriter> writer = checkpoint::SafetensorsWriter::create(path, entries, bytes, metadata);
  if (!writer) return writer.error();
  for (const auto& [layer, sums] : sums_) {
    const int64_t k = sums.k, rows = sums.kind == StatisticsKind::kHessian ? k : 1;
    std::vector<float> row(k);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        const float sum = sums.values[std::max(i, rows > 1 ? j : 0) * k + (rows > 1 ? std::min(i, j) : j)];
        row[j] = static_cast<float>(sum / static_cast<double>(sums.tokens));
        if (!std::isfinite(row[j]))
          return invalid_data("layer {}: the squares of input {} leave the range of fp32", base::printable(layer), j);
      }
      if (Result<void> written = writer->write(std::as_bytes(std::span<const float>(row))); !written) return written;
    }
  }
  const Result<uint64_t> finished = writer->finish(entries, metadata);
  if (!finished) return finished.error();
  return {};
}

}  // namespace nybble
