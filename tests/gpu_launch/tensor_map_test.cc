// What the cache of tensor maps rests on: a map depends on its arguments alone.
#include "runtime/tensor_map.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "nybble/launch.h"
#include "support/device_memory.h"

namespace nybble::runtime {
namespace {

class TensorMap : public ::testing::Test {
 protected:
  void SetUp() override {
    const Result<Device> device = Device::cuda();
    if (!device) GTEST_SKIP() << device.error().message;
    if (device->sm != 90) GTEST_SKIP() << "needs compute capability 9.0, " << device->name << " has another";
  }
};

MatrixView view_of(const void* data) { return {data, 48, 512, 640, true}; }

::testing::AssertionResult same(const Result<CUtensorMap>& a, const Result<CUtensorMap>& b) {
  for (const Result<CUtensorMap>* map : {&a, &b})
    if (!*map) return ::testing::AssertionFailure() << map->error().message;
  return std::memcmp(&*a, &*b, sizeof(CUtensorMap)) == 0 ? ::testing::AssertionSuccess()
                                                         : ::testing::AssertionFailure() << "the maps differ";
}

TEST_F(TensorMap, OutlivesTheMemoryItPointsTo) {
  void* memory = nullptr;
  CUDA_OK(cudaMalloc(&memory, 1 << 20));
  const Result<CUtensorMap> before = encode_tensor_map(view_of(memory), {16});
  EXPECT_TRUE(same(before, encode_tensor_map(view_of(memory), {16})));
  CUDA_OK(cudaFree(memory));
  EXPECT_TRUE(same(before, encode_tensor_map(view_of(memory), {16})));
}

TEST_F(TensorMap, IsTheSameOnEveryDevice) {
  int devices = 0;
  CUDA_OK(cudaGetDeviceCount(&devices));
  if (devices < 2) GTEST_SKIP() << "needs two GPUs";
  void* memory = nullptr;
  CUDA_OK(cudaMalloc(&memory, 1 << 20));
  const Result<CUtensorMap> first = encode_tensor_map(view_of(memory), {16});
  for (int device = 1; device < devices; ++device) {
    CUDA_OK(cudaSetDevice(device));
    CUDA_OK(cudaFree(nullptr));  // makes the context current
    EXPECT_TRUE(same(first, encode_tensor_map(view_of(memory), {16}))) << "device " << device;
  }
  CUDA_OK(cudaSetDevice(0));
  CUDA_OK(cudaFree(memory));
}

TEST_F(TensorMap, RememberedMapsAreTheDrivers) {
  void* memory = nullptr;
  CUDA_OK(cudaMalloc(&memory, 4 << 20));
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    const int64_t columns = 64 << (random() % 2);
    const MatrixView matrix{static_cast<std::byte*>(memory) + 256 * (random() % 16),
                            1 + static_cast<int64_t>(random() % 4), columns,
                            columns + 8 * static_cast<int64_t>(random() % 2), random() % 2 == 0};
    const int box_rows = 8 << (random() % 2);
    ASSERT_TRUE(same(tensor_map(matrix, {box_rows}), encode_tensor_map(matrix, {box_rows}))) << "call " << i;
  }
  CUDA_OK(cudaFree(memory));
}

}  // namespace
}  // namespace nybble::runtime
