// Host memory with red zones on both sides, for tests of code that writes through pointers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string>

namespace nybble::testing {

inline constexpr size_t kRedZoneBytes = 4096;
inline constexpr unsigned char kRedZoneByte = 0xA5;
inline constexpr unsigned char kPoisonByte = 0xFF;  // 0xFFFF and 0xFFFFFFFF are NaN in every float type here

// `bytes` of poison at a 64-byte boundary plus `offset`; the first byte before and the first behind are red.
class GuardedHostBuffer {
 public:
  explicit GuardedHostBuffer(size_t bytes, size_t offset = 0)
      : bytes_(bytes), total_(bytes + offset + 2 * kRedZoneBytes + 64), memory_(new unsigned char[total_]) {
    std::memset(memory_.get(), kRedZoneByte, total_);
    const size_t start = reinterpret_cast<uintptr_t>(memory_.get()) + kRedZoneBytes;
    data_ = memory_.get() + kRedZoneBytes + (64 - start % 64) % 64 + offset;
    std::memset(data_, kPoisonByte, bytes);
  }

  void* data() const { return data_; }
  template <class T> T* as() const { return reinterpret_cast<T*>(data_); }
  size_t size_bytes() const { return bytes_; }

  // Empty: nothing was written outside. Else the nearest damaged byte, in words.
  std::string damage() const {
    const unsigned char *begin = memory_.get(), *end = begin + total_;
    const auto red = [](unsigned char byte) { return byte == kRedZoneByte; };
    if (const auto* bad = std::find_if_not(data_ + bytes_, const_cast<unsigned char*>(end), red); bad != end)
      return "byte " + std::to_string(bad - data_ - bytes_) + " past the end was written";
    const auto bad = std::find_if_not(std::make_reverse_iterator(static_cast<const unsigned char*>(data_)),
                                      std::make_reverse_iterator(begin), red);
    if (bad != std::make_reverse_iterator(begin))
      return "byte " + std::to_string(data_ - bad.base() + 1) + " before the beginning was written";
    return "";
  }

 private:
  size_t bytes_, total_;
  std::unique_ptr<unsigned char[]> memory_;
  unsigned char* data_ = nullptr;
};

}  // namespace nybble::testing
