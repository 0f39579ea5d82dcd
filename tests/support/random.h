// Numbers from a seed and a counter: the same on the host and on the device, in any order, so that a case can be made
// again from its seed alone.
#pragma once

#include <cstdint>

#include "layout/packed.h"

namespace nybble::testing {

// One stream of numbers per purpose (codes, scales, activations, ...).
class RandomStream {
 public:
  NYBBLE_HD RandomStream(uint64_t seed, uint64_t purpose) : key_(mix(seed + kStep * mix(purpose + kStep))) {}

  NYBBLE_HD uint64_t bits(uint64_t i) const { return mix(key_ + i * kStep); }
  NYBBLE_HD uint32_t below(uint64_t i, uint32_t count) const {
    return static_cast<uint32_t>(((bits(i) >> 32) * count) >> 32);
  }
  NYBBLE_HD double uniform(uint64_t i) const { return (static_cast<double>(bits(i) >> 12) + 0.5) * 0x1p-52; }
  // Mean 0, variance 1, within 3.5: four uniform numbers added, bell enough for activations, and plain arithmetic that
  // gives the same bits everywhere.
  NYBBLE_HD double normal(uint64_t i) const {
    const uint64_t b = bits(i);
    const int sum = static_cast<int>(b & 0xFFFF) + static_cast<int>(b >> 16 & 0xFFFF) +
                    static_cast<int>(b >> 32 & 0xFFFF) + static_cast<int>(b >> 48);
    return (sum - 2 * 65535) * (1.7320508075688772 / 65536);
  }

 private:
  static constexpr uint64_t kStep = 0x9E3779B97F4A7C15u;
  NYBBLE_HD static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }

  uint64_t key_;
};

}  // namespace nybble::testing
