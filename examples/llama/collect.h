// Statistics of what goes into each linear layer: what quantizers weigh errors by.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "decoder.h"
#include "nybble/statistics.h"

namespace llama {

// What a decoder's observer hands to nybble's statistics file: one matrix for layers that share their input.
class HessianCollector {
 public:
  explicit HessianCollector(int num_threads) : num_threads_(num_threads) {}

  // To be given to a decoder as its observer.
  void observe(const std::vector<std::string>& layers, const float* act, int64_t m, int64_t k);

  // The statistics file, or the first error of an observation.
  nybble::Result<void> write(const std::string& path) const;

 private:
  nybble::Result<void> add(const std::vector<std::string>& layers, const float* act, int64_t m, int64_t k);

  int num_threads_;
  nybble::StatisticsCollector statistics_;
  std::set<std::string> declared_;  // the first of the layers that share an input
  nybble::Result<void> observed_;
};

// Runs the text through the decoder in windows of `context` tokens that do not overlap.
Result<void> run_text(Decoder& decoder, std::span<const int32_t> tokens, int64_t context,
                      const std::function<void(int64_t, int64_t)>& progress);

}  // namespace llama
