#include "collect.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "dense_multiply.h"

namespace llama {

void HessianCollector::observe(const std::vector<std::string>& layers, const float* act, int64_t m, int64_t k) {
  Sums& sums = layers_[layers[0]];
  for (size_t i = 1; i < layers.size(); ++i) same_input_[layers[i]] = layers[0];
  if (sums.sums.empty()) {
    sums.k = k;
    sums.sums.resize(static_cast<size_t>(k * k));
  }
  transposed_.resize(static_cast<size_t>(m * k));
  for (int64_t row = 0; row < m; ++row)
    for (int64_t column = 0; column < k; ++column) transposed_[column * m + row] = act[row * k + column];
  dense_multiply(workers_, transposed_.data(), k, m, transposed_.data(), k, sums.sums.data(), true);
  sums.tokens += m;
}

Result<void> HessianCollector::write(const std::string& path) const {
  nlohmann::json header = nlohmann::json::object();
  nlohmann::json& metadata = header["__metadata__"];
  metadata["nybble.statistics"] = "1";
  uint64_t offset = 0;
  for (const auto& [layer, sums] : layers_) {
    const uint64_t end = offset + sums.sums.size() * sizeof(float);
    header[layer + ".hessian"] = {{"dtype", "F32"}, {"shape", {sums.k, sums.k}}, {"data_offsets", {offset, end}}};
    metadata["tokens." + layer] = std::to_string(sums.tokens);
    offset = end;
  }
  for (const auto& [layer, other] : same_input_) {
    metadata["same_input." + layer] = other;
    metadata["tokens." + layer] = std::to_string(layers_.at(other).tokens);
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  const std::string temporary = path + ".part";
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(&length), sizeof length);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  std::vector<float> means;
  for (const auto& [layer, sums] : layers_) {
    means = sums.sums;
    for (float& mean : means) mean = static_cast<float>(mean / static_cast<double>(sums.tokens));
    file.write(reinterpret_cast<const char*>(means.data()), static_cast<std::streamsize>(means.size() * sizeof(float)));
  }
  file.close();
  if (!file || std::rename(temporary.c_str(), path.c_str()) != 0) {
    std::remove(temporary.c_str());
    return Error{ErrorCode::kIo,
                 fmt::format("{}: cannot be written; is there room, and may this folder be written?", path)};
  }
  return {};
}

Result<void> run_text(Decoder& decoder, std::span<const int32_t> tokens, int64_t context,
                      const std::function<void(int64_t, int64_t)>& progress) {
  const auto count = static_cast<int64_t>(tokens.size());
  if (count == 0) return Error{ErrorCode::kInvalidArgument, "the text has no token"};
  if (context < 1) return Error{ErrorCode::kInvalidArgument, fmt::format("windows of {} tokens hold nothing", context)};
  for (int64_t begin = 0; begin < count; begin += context) {
    const int64_t size = std::min(context, count - begin);
    decoder.truncate(0);
    // A LM head of its own sees every token only if all logits are asked for.
    const LogitsOf which = decoder.has_own_head() ? LogitsOf::kAll : LogitsOf::kNone;
    constexpr int64_t kPiece = 128;
    for (int64_t at = 0; at < size; at += kPiece) {
      const auto piece =
          tokens.subspan(static_cast<size_t>(begin + at), static_cast<size_t>(std::min(kPiece, size - at)));
      const Result<std::vector<float>> logits = decoder.append(piece, which);
      if (!logits) return logits.error();
    }
    if (progress) progress(begin + size, count);
  }
  return {};
}

}  // namespace llama
