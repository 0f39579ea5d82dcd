// How fast each pair of numbers of a head is turned with a token's position (Su et al. 2021, arXiv:2104.09864).
#pragma once

#include <span>
#include <vector>

#include "model.h"

namespace llama {

// Radians a position of each pair: [rope_dim / 2]. `factors`, of as many or none, is what a GGUF file has each of them
// divided by (rope_freqs.weight).
std::vector<double> rope_frequencies(const Config& config, std::span<const float> factors);

}  // namespace llama
