// Text from a model, token by token.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <span>
#include <vector>

#include "decoder.h"
#include "tokenizer.h"

namespace llama {

struct GenerateOptions {
  int64_t tokens = 200;    // at most; an end-of-text token ends it before
  double temperature = 0;  // 0: the likeliest token, always
  uint64_t seed = 0;
};

struct Generated {
  std::vector<int32_t> tokens;  // without the one that ended it
  bool ended = false;           // by the model
  double prompt_seconds = 0, seconds = 0;
  int64_t prompt_tokens = 0;
  // Of each token, how far its logit stood above the second: where a greedy choice could fall otherwise.
  std::vector<float> margins;
};

// The likeliest token of one row of logits, the first of equals.
int32_t likeliest(std::span<const float> logits);
// One drawn from softmax(logits / temperature).
int32_t draw(std::span<const float> logits, double temperature, std::mt19937_64& random);

// Appends `prompt` to the decoder, then generates; `each` sees every token as it comes.
Result<Generated> generate(Decoder& decoder, const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                           const GenerateOptions& options, const std::function<void(int32_t)>& each);

}  // namespace llama
