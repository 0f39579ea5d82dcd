// Eight 4-bit numbers in a 32-bit word, the first in the lowest bits: how compressed-tensors (and GPTQ) store them.
#pragma once

#include <cstdint>
#include <span>

namespace nybble::checkpoint {

inline constexpr int64_t kNibblesPerWord = 8;
constexpr int64_t words_for(int64_t nibbles) { return (nibbles + kNibblesPerWord - 1) / kNibblesPerWord; }

constexpr uint8_t nibble_of(uint32_t word, int64_t i) { return static_cast<uint8_t>(word >> (4 * i) & 15u); }
constexpr uint32_t nibble_at(uint8_t value, int64_t i) { return static_cast<uint32_t>(value) << (4 * i); }

// nibbles.size() numbers out of words_for() words, and back; what is left of the last word is not read, and written as
// 0.
inline void unpack_words(std::span<const uint32_t> words, std::span<uint8_t> nibbles) {
  for (size_t i = 0; i < nibbles.size(); ++i)
    nibbles[i] = nibble_of(words[i / kNibblesPerWord], static_cast<int64_t>(i % kNibblesPerWord));
}
inline void pack_words(std::span<const uint8_t> nibbles, std::span<uint32_t> words) {
  for (uint32_t& word : words) word = 0;
  for (size_t i = 0; i < nibbles.size(); ++i)
    words[i / kNibblesPerWord] |= nibble_at(nibbles[i], static_cast<int64_t>(i % kNibblesPerWord));
}

}  // namespace nybble::checkpoint
