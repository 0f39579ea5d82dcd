// Workspace for CPU plans, aligned as LaunchArgs::workspace demands.
#pragma once

#include <cstddef>
#include <memory>

namespace nybble::bench {

class HostWorkspace {
 public:
  explicit HostWorkspace(size_t bytes) : size_(bytes), memory_(new std::byte[bytes + kAlign]) {}

  void* data() const {
    void* aligned = memory_.get();
    size_t room = size_ + kAlign;
    return std::align(kAlign, size_, aligned, room);
  }
  size_t size_bytes() const { return size_; }

 private:
  static constexpr size_t kAlign = 256;
  size_t size_;
  std::unique_ptr<std::byte[]> memory_;
};

}  // namespace nybble::bench
