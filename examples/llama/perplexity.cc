#include "perplexity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "generate.h"
#include "workers.h"

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

struct Scores {
  double nll = 0, kl = 0, agreed = 0;

  Scores& operator+=(const Scores& other) {
    nll += other.nll;
    kl += other.kl;
    agreed += other.agreed;
    return *this;
  }
};

// Of the rows of `logits`, each against its target; against the rows of `reference` too, unless that is empty.
Scores score(Workers& workers, std::span<const float> logits, std::span<const float> reference,
             std::span<const int32_t> targets) {
  const size_t vocabulary = logits.size() / targets.size();
  std::vector<Scores> rows(targets.size());
  workers.run(static_cast<int64_t>(targets.size()), [&](int64_t row) {
    const size_t begin = static_cast<size_t>(row) * vocabulary;
    const auto mine = logits.subspan(begin, vocabulary);
    const double log_sum = log_sum_exp(mine);
    Scores& scores = rows[static_cast<size_t>(row)];
    scores.nll = log_sum - mine[static_cast<size_t>(targets[static_cast<size_t>(row)])];
    if (reference.empty()) return;
    const auto other = reference.subspan(begin, vocabulary);
    scores.kl = kl_divergence(other, log_sum_exp(other), mine, log_sum);
    scores.agreed = likeliest(mine) == likeliest(other) ? 1 : 0;
  });
  Scores sum;
  for (const Scores& scores : rows) sum += scores;
  return sum;
}

}  // namespace

Result<std::vector<Perplexity>> measure_perplexity(std::span<Decoder* const> decoders, Decoder* against,
                                                   std::span<const int32_t> tokens, const PerplexityOptions& options,
                                                   const std::function<void(int64_t, int64_t)>& progress) {
  const auto count = static_cast<int64_t>(tokens.size());
  if (decoders.empty()) return Error{ErrorCode::kInvalidArgument, "there is no model to measure"};
  if (count < 2) return Error{ErrorCode::kInvalidArgument, fmt::format("the text has {} tokens; 2 are needed", count)};
  if (options.context < 2 || options.stride < 1 || options.stride >= options.context)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("windows of {} tokens every {} do not work; the stride is from 1 to below the context",
                             options.context, options.stride)};
  const int64_t vocabulary = decoders.front()->vocabulary();
  std::vector<Decoder*> all(decoders.begin(), decoders.end());
  if (against != nullptr) all.insert(all.begin(), against);  // first, since the others are compared to its logits
  for (const Decoder* decoder : all)
    if (decoder->vocabulary() != vocabulary)
      return Error{ErrorCode::kInvalidArgument, fmt::format("the models have {} and {} tokens; they cannot be compared",
                                                            decoder->vocabulary(), vocabulary)};
  constexpr int64_t kPiece = 128;  // rows of logits held at a time
  Workers workers(options.num_threads);
  std::vector<Scores> sums(all.size());
  int64_t scored = 0;
  int64_t scored_to = 1;  // targets before this have their score
  for (int64_t begin = 0; scored_to < count; begin += options.stride) {
    const int64_t end = std::min(begin + options.context, count);
    for (Decoder* decoder : all) decoder->truncate(0);
    for (int64_t at = begin; at < end - 1;) {
      // What only serves as context needs no logits: it goes first, up to the token whose logits score the next target.
      const bool context_only = at + 1 < scored_to;
      const int64_t piece = context_only ? std::min(scored_to - 1, end - 1) - at : std::min(kPiece, end - 1 - at);
      const auto these = tokens.subspan(static_cast<size_t>(at), static_cast<size_t>(piece));
      const auto targets = tokens.subspan(static_cast<size_t>(at + 1), static_cast<size_t>(piece));
      std::vector<float> reference;
      for (size_t i = 0; i < all.size(); ++i) {
        Result<std::vector<float>> logits = all[i]->append(these, context_only ? LogitsOf::kNone : LogitsOf::kAll);
        if (!logits) return logits.error();
        if (context_only) continue;
        sums[i] += score(workers, *logits, reference, targets);
        if (against != nullptr && i == 0) reference = std::move(*logits);
      }
      at += piece;
      if (!context_only) {
        scored_to = at + 1;
        scored += piece;
      }
      if (progress) progress(scored, count - 1);
    }
  }
  std::vector<Perplexity> results;
  const auto mean = [&](double sum) { return sum / static_cast<double>(scored); };
  for (size_t i = all.size() - decoders.size(); i < all.size(); ++i) {
    Perplexity result;
    result.scored = scored;
    result.mean_nll = mean(sums[i].nll);
    result.perplexity = std::exp(result.mean_nll);
    result.compared = against != nullptr;
    if (result.compared) {
      result.mean_kl = std::max(0.0, mean(sums[i].kl));  // rounding may put equal models below
      result.top1_agreement = mean(sums[i].agreed);
      result.other_perplexity = std::exp(mean(sums[0].nll));
    }
    results.push_back(result);
  }
  return results;
}

}  // namespace llama
