#include "perplexity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "generate.h"

namespace llama {
namespace {

// log(sum(exp(logits))), so that logits[i] - it is token i's log probability.
double log_sum_exp(std::span<const float> logits) {
  const float most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - most);
  return most + std::log(sum);
}

double kl_divergence(std::span<const float> other, double other_log_sum, std::span<const float> mine, double log_sum) {
  double sum = 0;
  for (size_t i = 0; i < mine.size(); ++i) {
    const double log_p = other[i] - other_log_sum;
    sum += std::exp(static_cast<float>(log_p)) * (log_p - (mine[i] - log_sum));
  }
  return sum;
}

}  // namespace

Result<Perplexity> measure_perplexity(Decoder& decoder, Decoder* against, std::span<const int32_t> tokens,
                                      const PerplexityOptions& options,
                                      const std::function<void(int64_t, int64_t)>& progress) {
  const auto count = static_cast<int64_t>(tokens.size());
  if (count < 2) return Error{ErrorCode::kInvalidArgument, fmt::format("the text has {} tokens; 2 are needed", count)};
  if (options.context < 2 || options.stride < 1 || options.stride >= options.context)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("windows of {} tokens every {} do not work; the stride is from 1 to below the context",
                             options.context, options.stride)};
  if (against != nullptr && against->vocabulary() != decoder.vocabulary())
    return Error{ErrorCode::kInvalidArgument, fmt::format("the models have {} and {} tokens; they cannot be compared",
                                                          decoder.vocabulary(), against->vocabulary())};
  constexpr int64_t kPiece = 128;  // rows of logits held at a time
  const int64_t vocabulary = decoder.vocabulary();
  Perplexity result;
  result.compared = against != nullptr;
  double nll = 0, other_nll = 0, kl = 0;
  int64_t agreed = 0;
  int64_t scored_to = 1;  // targets before this have their score
  for (int64_t begin = 0; scored_to < count; begin += options.stride) {
    const int64_t end = std::min(begin + options.context, count);
    decoder.truncate(0);
    if (against != nullptr) against->truncate(0);
    for (int64_t at = begin; at < end - 1;) {
      // What only serves as context needs no logits: it goes first, up to the token whose logits score the next target.
      const bool context_only = at + 1 < scored_to;
      const int64_t piece = context_only ? std::min(scored_to - 1, end - 1) - at : std::min(kPiece, end - 1 - at);
      const auto these = tokens.subspan(static_cast<size_t>(at), static_cast<size_t>(piece));
      const LogitsOf which = context_only ? LogitsOf::kNone : LogitsOf::kAll;
      const Result<std::vector<float>> logits = decoder.append(these, which);
      if (!logits) return logits.error();
      Result<std::vector<float>> others = std::vector<float>();
      if (against != nullptr) others = against->append(these, which);
      if (!others) return others.error();
      for (int64_t row = 0; !context_only && row < piece; ++row) {
        const auto mine =
            std::span(*logits).subspan(static_cast<size_t>(row * vocabulary), static_cast<size_t>(vocabulary));
        const int32_t target = tokens[static_cast<size_t>(at + row + 1)];
        const double log_sum = log_sum_exp(mine);
        nll += log_sum - mine[static_cast<size_t>(target)];
        ++result.scored;
        if (against == nullptr) continue;
        const auto other =
            std::span(*others).subspan(static_cast<size_t>(row * vocabulary), static_cast<size_t>(vocabulary));
        const double other_log_sum = log_sum_exp(other);
        other_nll += other_log_sum - other[static_cast<size_t>(target)];
        kl += kl_divergence(other, other_log_sum, mine, log_sum);
        agreed += likeliest(mine) == likeliest(other);
      }
      at += piece;
      if (!context_only) scored_to = at + 1;
      if (progress) progress(result.scored, count - 1);
    }
  }
  const auto scored = static_cast<double>(result.scored);
  result.mean_nll = nll / scored;
  result.perplexity = std::exp(result.mean_nll);
  result.mean_kl = std::max(0.0, kl / scored);  // rounding may put equal models below
  result.top1_agreement = static_cast<double>(agreed) / scored;
  result.other_perplexity = against != nullptr ? std::exp(other_nll / scored) : 0;
  return result;
}

}  // namespace llama
