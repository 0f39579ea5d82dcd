// CUDA calls whose failure becomes an Error that names the call.
#pragma once

#include <cuda_runtime_api.h>

#include "base/error.h"

namespace nybble::runtime {

inline Error cuda_failure(cudaError_t code, const char* call) {
  const ErrorCode kind = code == cudaErrorMemoryAllocation ? ErrorCode::kOutOfMemory : ErrorCode::kCuda;
  return make_error(kind, "{} failed: {} ({})", call, cudaGetErrorName(code), cudaGetErrorString(code));
}

// In a function that returns Result<...>: runs the call, returns its failure as an Error. Clears the sticky last error
// only of this call.
#define NYBBLE_CUDA(call)                                                     \
  do {                                                                        \
    if (const cudaError_t nybble_code = (call); nybble_code != cudaSuccess) { \
      (void)cudaGetLastError();                                               \
      return ::nybble::runtime::cuda_failure(nybble_code, #call);             \
    }                                                                         \
  } while (0)

// Device memory that frees itself.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(DeviceBuffer&& other) noexcept : data_(other.data_), size_(other.size_) {
    other.data_ = nullptr, other.size_ = 0;
  }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceBuffer() {
    if (data_ != nullptr) cudaFree(data_);
  }

  static Result<DeviceBuffer> allocate(size_t bytes) {
    DeviceBuffer buffer;
    if (bytes > 0) NYBBLE_CUDA(cudaMalloc(&buffer.data_, bytes));
    buffer.size_ = bytes;
    return Result<DeviceBuffer>(std::move(buffer));  // nvcc does not move here by itself
  }

  // At least this many bytes. What was in the buffer is lost when it has to grow.
  Result<void> reserve(size_t bytes) {
    if (size_ >= bytes) return {};
    *this = DeviceBuffer();  // give back first: both may not fit
    Result<DeviceBuffer> grown = allocate(bytes);
    if (!grown) return grown.error();
    *this = std::move(*grown);
    return {};
  }

  void* data() const { return data_; }
  template <class T> T* as() const { return static_cast<T*>(data_); }
  size_t size_bytes() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace nybble::runtime
