// Device memory for tests: buffers that end where their mapping ends, so that a read past them faults, and buffers with
// red zones on both sides, so that a write past them is seen.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "support/guarded_host.h"

namespace nybble::testing {

// A CUDA call of the test itself that fails ends the test: after a fault nothing later can be trusted.
inline void cuda_ok(cudaError_t code, const char* call) {
  if (code != cudaSuccess)
    throw std::runtime_error(std::string(call) + ": " + cudaGetErrorName(code) + ", " + cudaGetErrorString(code));
}
#define CUDA_OK(call) ::nybble::testing::cuda_ok((call), #call)

// Plain device memory that grows on demand and keeps nothing when it does.
class DeviceScratch {
 public:
  DeviceScratch() = default;
  DeviceScratch(const DeviceScratch&) = delete;
  DeviceScratch& operator=(const DeviceScratch&) = delete;
  ~DeviceScratch() { cudaFree(data_); }

  void* reserve(size_t bytes) {
    if (bytes > bytes_) {
      CUDA_OK(cudaDeviceSynchronize());
      CUDA_OK(cudaFree(data_));
      data_ = nullptr, bytes_ = 0;
      CUDA_OK(cudaMalloc(&data_, bytes + bytes / 4));
      bytes_ = bytes + bytes / 4;
    }
    return data_;
  }
  template <class T> T* reserve_as(size_t count) { return static_cast<T*>(reserve(count * sizeof(T))); }
  template <class T> T* upload(const T* host, size_t count) {
    T* device = reserve_as<T>(count);
    if (count > 0) CUDA_OK(cudaMemcpy(device, host, count * sizeof(T), cudaMemcpyHostToDevice));
    return device;
  }
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Device memory of which place() gives the last bytes of a mapping: what follows is mapped nowhere, so that reading
// past the end faults (a whole granule of address space is kept free behind it). Where the driver has no virtual memory
// calls it is plain memory, and only red zones guard it.
class EndBuffer {
 public:
  EndBuffer() = default;
  EndBuffer(const EndBuffer&) = delete;
  EndBuffer& operator=(const EndBuffer&) = delete;
  ~EndBuffer() { release(); }

  // `bytes` at a multiple of `align` as near to the end as that allows; the bytes before and the few behind are red.
  void* place(size_t bytes, size_t align) {
    reserve(bytes + align + kRedZoneBytes);
    const size_t end = base_ + size_;
    const size_t start = (end - bytes) / align * align;
    CUDA_OK(cudaMemset(reinterpret_cast<void*>(start - kRedZoneBytes), kRedZoneByte, kRedZoneBytes));
    if (start + bytes < end)
      CUDA_OK(cudaMemset(reinterpret_cast<void*>(start + bytes), kRedZoneByte, end - start - bytes));
    data_ = reinterpret_cast<void*>(start);
    bytes_ = bytes;
    return data_;
  }
  void* data() const { return data_; }
  size_t size_bytes() const { return bytes_; }
  // The bytes between the buffer and the end of its mapping.
  size_t slack_bytes() const { return base_ + size_ - reinterpret_cast<size_t>(data_) - bytes_; }
  bool faults_past_end() const { return mapped_; }

 private:
  struct Driver {
    decltype(&cuMemAddressReserve) address_reserve = nullptr;
    decltype(&cuMemAddressFree) address_free = nullptr;
    decltype(&cuMemCreate) create = nullptr;
    decltype(&cuMemRelease) release = nullptr;
    decltype(&cuMemMap) map = nullptr;
    decltype(&cuMemUnmap) unmap = nullptr;
    decltype(&cuMemSetAccess) set_access = nullptr;
    decltype(&cuMemGetAllocationGranularity) granularity = nullptr;
    bool complete = false;

    template <class F> static bool get(const char* name, F& function) {
      void* address = nullptr;
      cudaDriverEntryPointQueryResult found{};
      const cudaError_t code = cudaGetDriverEntryPointByVersion(name, &address, 12000, cudaEnableDefault, &found);
      function = reinterpret_cast<F>(address);
      return code == cudaSuccess && found == cudaDriverEntryPointSuccess && address != nullptr;
    }
    Driver() {
      complete = get("cuMemAddressReserve", address_reserve) && get("cuMemAddressFree", address_free) &&
                 get("cuMemCreate", create) && get("cuMemRelease", release) && get("cuMemMap", map) &&
                 get("cuMemUnmap", unmap) && get("cuMemSetAccess", set_access) &&
                 get("cuMemGetAllocationGranularity", granularity);
    }
  };
  static const Driver& driver() {
    static const Driver instance;
    return instance;
  }

  void reserve(size_t bytes) {
    if (bytes <= size_) return;
    release();
    bytes += bytes / 4;
    if (!driver().complete || !map_memory(bytes)) {
      void* memory = nullptr;
      CUDA_OK(cudaMalloc(&memory, bytes));
      base_ = reinterpret_cast<size_t>(memory), size_ = bytes, mapped_ = false;
    }
  }

  bool map_memory(size_t bytes) {
    int device = 0;
    CUDA_OK(cudaGetDevice(&device));
    CUDA_OK(cudaFree(nullptr));  // makes the context current
    CUmemAllocationProp property{};
    property.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    property.location = {CU_MEM_LOCATION_TYPE_DEVICE, device};
    size_t granule = 0;
    if (driver().granularity(&granule, &property, CU_MEM_ALLOC_GRANULARITY_MINIMUM) != CUDA_SUCCESS) return false;
    const size_t size = (bytes + granule - 1) / granule * granule;
    CUdeviceptr address = 0;
    if (driver().address_reserve(&address, size + granule, 0, 0, 0) != CUDA_SUCCESS) return false;
    CUmemAccessDesc access{property.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    bool created = false, mapped = false;
    created = driver().create(&handle_, size, &property, 0) == CUDA_SUCCESS;
    mapped = created && driver().map(address, size, 0, handle_, 0) == CUDA_SUCCESS;
    if (!mapped || driver().set_access(address, size, &access, 1) != CUDA_SUCCESS) {
      if (mapped) driver().unmap(address, size);
      if (created) driver().release(handle_);
      driver().address_free(address, size + granule);
      return false;
    }
    base_ = address, size_ = size, reserved_ = size + granule, mapped_ = true;
    return true;
  }

  void release() {
    if (size_ == 0) return;
    cudaDeviceSynchronize();
    if (mapped_) {
      driver().unmap(base_, size_);
      driver().release(handle_);
      driver().address_free(base_, reserved_);
    } else {
      cudaFree(reinterpret_cast<void*>(base_));
    }
    base_ = size_ = 0;
    data_ = nullptr;
  }

  size_t base_ = 0, size_ = 0, reserved_ = 0;
  CUmemGenericAllocationHandle handle_{};
  bool mapped_ = false;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Device memory for what kernels write: poison() makes `bytes` of NaN with a red zone right before and right behind.
class GuardedDeviceBuffer {
 public:
  void* place(size_t bytes, size_t offset) {  // offset: from a 256-byte boundary
    bytes_ = bytes;
    data_ =
        static_cast<unsigned char*>(memory_.reserve(2 * kRedZoneBytes + 256 + offset + bytes)) + kRedZoneBytes + offset;
    return data_;
  }
  void poison(cudaStream_t stream, unsigned char byte = kPoisonByte) const {
    CUDA_OK(cudaMemsetAsync(data_ - kRedZoneBytes, kRedZoneByte, kRedZoneBytes, stream));
    if (bytes_ > 0) CUDA_OK(cudaMemsetAsync(data_, byte, bytes_, stream));
    CUDA_OK(cudaMemsetAsync(data_ + bytes_, kRedZoneByte, kRedZoneBytes, stream));
  }
  void* data() const { return data_; }
  size_t size_bytes() const { return bytes_; }

 private:
  DeviceScratch memory_;
  unsigned char* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace nybble::testing
