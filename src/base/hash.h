// A 64-bit hash of bytes (XXH3), fed piece by piece. Recognizes what changed by accident; no protection against intent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace nybble::base {

class ContentHash {
 public:
  ContentHash();
  ContentHash(ContentHash&&) noexcept;
  ContentHash& operator=(ContentHash&&) noexcept;
  ~ContentHash();

  void update(std::span<const std::byte> bytes);
  uint64_t digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nybble::base
