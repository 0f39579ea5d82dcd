#include "rope.h"

#include <cmath>
#include <numbers>

namespace llama {
namespace {

// Llama 3.1's rule: what turns less than low_frequency times within the original context is slowed down by `factor`,
// what turns more than high_frequency times stays, and between the two it goes over from one to the other.
double slowed(double frequency, const Llama3Rope& rope) {
  const double turns = rope.original_context * frequency / (2 * std::numbers::pi);
  if (turns < rope.low_frequency) return frequency / rope.factor;
  if (turns > rope.high_frequency) return frequency;
  const double kept = (turns - rope.low_frequency) / (rope.high_frequency - rope.low_frequency);
  return (1 - kept) * frequency / rope.factor + kept * frequency;
}

}  // namespace

std::vector<double> rope_frequencies(const Config& config, std::span<const float> factors) {
  std::vector<double> frequencies(static_cast<size_t>(config.rope_dim / 2));
  for (size_t pair = 0; pair < frequencies.size(); ++pair) {
    const double exponent = 2 * static_cast<double>(pair) / static_cast<double>(config.rope_dim);
    frequencies[pair] = std::pow(config.rope_base, -exponent) / config.rope_scale;
    if (!factors.empty()) frequencies[pair] /= factors[pair];
    if (config.llama3_rope) frequencies[pair] = slowed(frequencies[pair], *config.llama3_rope);
  }
  return frequencies;
}

}  // namespace llama
