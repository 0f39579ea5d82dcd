// Eight 4-bit numbers in a 32-bit word, the first in the lowest bits: how compressed-tensors (and GPTQ) store them.
#pragma once

#include <cstdint>
#include <cstring>
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
  const size_t whole = nibbles.size() / kNibblesPerWord;
  for (size_t i = 0; i < whole; ++i) {
    uint64_t bytes;  // the first nibble in the lowest byte; each step halves the room between neighbours
    std::memcpy(&bytes, nibbles.data() + i * kNibblesPerWord, sizeof bytes);
    bytes = (bytes | bytes >> 4) & 0x00FF00FF00FF00FFu;
    bytes = (bytes | bytes >> 8) & 0x0000FFFF0000FFFFu;
    words[i] = static_cast<uint32_t>(bytes | bytes >> 16);
  }
  for (uint32_t& word : words.subspan(whole)) word = 0;
  for (size_t i = whole * kNibblesPerWord; i < nibbles.size(); ++i)
    words[whole] |= nibble_at(nibbles[i], static_cast<int64_t>(i % kNibblesPerWord));
}

}  // namespace nybble::checkpoint
