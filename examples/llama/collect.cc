#include "collect.h"

#include <fmt/format.h>

#include <algorithm>

namespace llama {

void HessianCollector::observe(const std::vector<std::string>& layers, const float* act, int64_t m, int64_t k) {
  if (observed_) observed_ = add(layers, act, m, k);
}

Result<void> HessianCollector::add(const std::vector<std::string>& layers, const float* act, int64_t m, int64_t k) {
  if (declared_.insert(layers[0]).second) {
    if (Result<void> done = statistics_.declare(layers[0], k, nybble::StatisticsKind::kHessian); !done) return done;
    for (size_t i = 1; i < layers.size(); ++i)
      if (Result<void> done = statistics_.share(layers[i], layers[0]); !done) return done;
  }
  return statistics_.add(layers[0], std::span(act, static_cast<size_t>(m * k)), num_threads_);
}

Result<void> HessianCollector::write(const std::string& path) const {
  return observed_ ? statistics_.write(path) : observed_;
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
