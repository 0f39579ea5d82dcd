// Statistics of what goes into each linear layer: what quantizers weigh errors by.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "decoder.h"
#include "workers.h"

namespace llama {

// Sums of x x^T over tokens, one matrix for layers that share their input. Sums are fp32, of one piece of text at a
// time.
class HessianCollector {
 public:
  explicit HessianCollector(int num_threads) : workers_(num_threads) {}

  // To be given to a decoder as its observer.
  void observe(const std::vector<std::string>& layers, const float* act, int64_t m, int64_t k);

  // A statistics file (safetensors): `<layer>.hessian`, F32 [k, k], is the mean over tokens of x x^T; in __metadata__
  // "nybble.statistics" is "1", "tokens.<layer>" the number of tokens, and "same_input.<layer>" names the layer whose
  // tensor holds for this one, too.
  Result<void> write(const std::string& path) const;

 private:
  struct Sums {
    int64_t k = 0, tokens = 0;
    std::vector<float> sums;  // [k, k]
  };

  Workers workers_;
  std::map<std::string, Sums> layers_;
  std::map<std::string, std::string> same_input_;  // layer -> the one that has the sums
  std::vector<float> transposed_;
};

// Runs the text through the decoder in windows of `context` tokens that do not overlap.
Result<void> run_text(Decoder& decoder, std::span<const int32_t> tokens, int64_t context,
                      const std::function<void(int64_t, int64_t)>& progress);

}  // namespace llama
