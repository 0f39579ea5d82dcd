#include "generate.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace llama {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

float margin_of(std::span<const float> logits, int32_t token) {
  float second = -INFINITY;
  for (size_t i = 0; i < logits.size(); ++i)
    if (static_cast<int32_t>(i) != token) second = std::max(second, logits[i]);
  return logits[static_cast<size_t>(token)] - second;
}

}  // namespace

int32_t likeliest(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

int32_t draw(std::span<const float> logits, double temperature, std::mt19937_64& random) {
  const double most = *std::max_element(logits.begin(), logits.end());
  std::vector<double> sums(logits.size());
  double sum = 0;
  for (size_t i = 0; i < logits.size(); ++i) sums[i] = sum += std::exp((logits[i] - most) / temperature);
  // 53 bits of one draw: the same on every platform, which std::uniform_real_distribution does not promise.
  const double point = static_cast<double>(random() >> 11) * 0x1p-53 * sum;
  const auto at = std::upper_bound(sums.begin(), sums.end(), point);
  return static_cast<int32_t>(std::min<ptrdiff_t>(at - sums.begin(), static_cast<ptrdiff_t>(sums.size()) - 1));
}

Result<Generated> generate(Decoder& decoder, const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                           const GenerateOptions& options, const std::function<void(int32_t)>& each) {
  if (prompt.empty()) return Error{ErrorCode::kInvalidArgument, "the prompt has no token; give at least one character"};
  Generated generated;
  generated.prompt_tokens = static_cast<int64_t>(prompt.size());
  std::mt19937_64 random(options.seed);
  auto start = std::chrono::steady_clock::now();
  Result<std::vector<float>> logits = decoder.append(prompt, LogitsOf::kLast);
  if (!logits) return logits.error();
  generated.prompt_seconds = seconds_since(start);
  start = std::chrono::steady_clock::now();
  while (static_cast<int64_t>(generated.tokens.size()) < options.tokens) {
    const int32_t token = options.temperature > 0 ? draw(*logits, options.temperature, random) : likeliest(*logits);
    if (token < tokenizer.size() && tokenizer.is_end(token)) {
      generated.ended = true;
      break;
    }
    generated.tokens.push_back(token);
    generated.margins.push_back(margin_of(*logits, token));
    each(token);
    if (decoder.length() == decoder.config().context) break;
    logits = decoder.append(std::span(&token, 1), LogitsOf::kLast);
    if (!logits) return logits.error();
  }
  generated.seconds = seconds_since(start);
  return generated;
}

}  // namespace llama
