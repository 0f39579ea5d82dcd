// How well a model predicts a text, and how far it is from another model.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "decoder.h"

namespace llama {

struct PerplexityOptions {
  int64_t context = 512;  // tokens a window holds
  int64_t stride = 256;   // from window to window; a token is scored in the first window that holds it
  int num_threads = 0;    // of what is done with logits; 0: as many as the machine has
};

struct Perplexity {
  int64_t scored = 0;     // tokens predicted: all but the text's first
  double mean_nll = 0;    // nats
  double perplexity = 0;  // exp(mean_nll)
  // Against the other model, over the same tokens:
  bool compared = false;
  double mean_kl = 0;         // KL(other || this), nats
  double top1_agreement = 0;  // share of tokens where both have the same likeliest token
  double other_perplexity = 0;
};

// Of each of `decoders`, in their order, all in one pass over the text. `against` may be null. `progress(done, total)`
// counts scored tokens and may be empty.
Result<std::vector<Perplexity>> measure_perplexity(std::span<Decoder* const> decoders, Decoder* against,
                                                   std::span<const int32_t> tokens, const PerplexityOptions& options,
                                                   const std::function<void(int64_t, int64_t)>& progress);

}  // namespace llama
