// The GPU's packer and unpacker against the CPU's, bit for bit, over every format.
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "layout/blob.h"
#include "nybble/launch.h"
#include "nybble/pack.h"
#include "support/device_memory.h"
#include "support/weights.h"

namespace nybble {
namespace {

using testing::DeviceScratch;
using ::testing::HasSubstr;
using testing::kPoisonByte;
using testing::kRedZoneByte;
using testing::kRedZoneBytes;
using testing::random_weight;
using testing::WeightSpec;

class PackCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const Result<Device> device = Device::cuda(); !device) GTEST_SKIP() << device.error().message;
  }

  // `bytes` of poison on the device, red behind.
  std::byte* poisoned(size_t bytes) {
    std::byte* data = scratch_.reserve_as<std::byte>(bytes + kRedZoneBytes);
    CUDA_OK(cudaMemset(data, kPoisonByte, bytes));
    CUDA_OK(cudaMemset(data + bytes, kRedZoneByte, kRedZoneBytes));
    return data;
  }
  std::vector<std::byte> download(const std::byte* data, size_t bytes) {
    std::vector<std::byte> host(bytes);
    CUDA_OK(cudaMemcpy(host.data(), data, bytes, cudaMemcpyDeviceToHost));
    return host;
  }

  void expect_same_both_ways(const QuantizedWeight& weight, const PackOptions& options = {}) {
    const Result<PackedWeight> expected = pack(weight, options);
    ASSERT_TRUE(expected) << expected.error().message;
    const size_t bytes = expected->size_bytes();
    std::byte* device = poisoned(bytes);
    const Result<void> packed = pack_cuda(weight, options, device, bytes);
    ASSERT_TRUE(packed) << packed.error().message;
    const std::vector<std::byte> got = download(device, bytes + kRedZoneBytes);
    for (size_t i = 0; i < bytes; ++i)
      ASSERT_EQ(got[i], expected->data()[i]) << weight.name << ": byte " << i << " of " << bytes;
    for (size_t i = bytes; i < got.size(); ++i)
      ASSERT_EQ(got[i], std::byte{kRedZoneByte}) << weight.name << ": " << i - bytes << " bytes past the end";

    const Result<QuantizedWeight> back = unpack_cuda(device, bytes);
    ASSERT_TRUE(back) << back.error().message;
    ASSERT_EQ(*back, *unpack(*expected)) << weight.name;
    const Result<QuantizedWeight> from_longer = unpack_cuda(device, bytes + kRedZoneBytes);
    ASSERT_TRUE(from_longer) << from_longer.error().message;
  }

  DeviceScratch scratch_;
};

TEST_F(PackCuda, EveryFormatAndShapeGivesTheSameBytes) {
  int compared = 0;
  for (const WeightSpec& spec : testing::all_specs()) {
    if (!layout::packable_group_size(spec.format.group_size, spec.k)) continue;
    ASSERT_NO_FATAL_FAILURE(expect_same_both_ways(random_weight(spec)));
    ++compared;
  }
  RecordProperty("weights", compared);
  EXPECT_GT(compared, 1000);
}

TEST_F(PackCuda, LargeWeights) {
  for (const ZeroKind zero : {ZeroKind::kNone, ZeroKind::kInt, ZeroKind::kOffset})
    for (const bool order : {false, true})
      ASSERT_NO_FATAL_FAILURE(expect_same_both_ways(
          random_weight({.n = 2051, .k = 4100, .format = {.zero_kind = zero, .k_order = order}})));
}

TEST_F(PackCuda, ShiftedRawAndConvertedScales) {
  QuantizedWeight weight = random_weight({.n = 65, .k = 256, .format = {.group_size = 64}});
  for (const float largest : {0x1p-7f, 1.0f, 0x1p60f, 0x1p100f}) {
    std::vector<float> scales(weight.scales.size(), 0x1p-20f);
    scales[77] = largest;
    weight.scales = FloatArray::from_floats(DType::kBf16, scales);
    ASSERT_NO_FATAL_FAILURE(expect_same_both_ways(weight));
  }
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32})
    ASSERT_NO_FATAL_FAILURE(expect_same_both_ways(
        random_weight({.n = 65, .k = 256, .format = {.scale_dtype = DType::kFp32}}), {.scale_dtype = dtype}));
}

TEST_F(PackCuda, NothingAtAll) {
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{0, 128}, {64, 0}})
    ASSERT_NO_FATAL_FAILURE(expect_same_both_ways(random_weight({.n = n, .k = k})));
}

TEST_F(PackCuda, RefusesBeforeItWrites) {
  const QuantizedWeight weight = random_weight({.n = 64, .k = 128});
  const size_t bytes = *packed_bytes(64, 128, weight.format());
  std::byte* device = poisoned(bytes);
  const auto refusal = [&](const QuantizedWeight& from, void* to, size_t size) {
    const Result<void> packed = pack_cuda(from, {}, to, size);
    return packed ? std::string() : packed.error().message;
  };
  EXPECT_THAT(refusal(weight, device, bytes - 1),
              HasSubstr(fmt::format("takes {} bytes, but device_blob holds {}", bytes, bytes - 1)));
  EXPECT_THAT(refusal(weight, nullptr, bytes), HasSubstr("is null"));
  EXPECT_THAT(refusal(weight, device + 16, bytes), HasSubstr("is not 128-byte aligned"));
  QuantizedWeight broken = weight;
  broken.codes[3] = 16;
  EXPECT_THAT(refusal(broken, device, bytes), HasSubstr("codes[0, 3] is 16"));
  EXPECT_THAT(refusal(random_weight({.n = 1, .k = 128, .format = {.group_size = 40}}), device, bytes),
              HasSubstr("group_size 40 at k = 128"));
  EXPECT_EQ(download(device, bytes), std::vector<std::byte>(bytes, std::byte{kPoisonByte}));
}

TEST_F(PackCuda, UnpackRefusesDamage) {
  const QuantizedWeight weight = random_weight({.n = 64, .k = 128});
  const size_t bytes = *packed_bytes(64, 128, weight.format());
  std::byte* device = poisoned(bytes);
  ASSERT_TRUE(pack_cuda(weight, {}, device, bytes));
  CUDA_OK(cudaMemset(device + 1000, 0x77, 1));
  const Result<QuantizedWeight> damaged = unpack_cuda(device, bytes);
  ASSERT_FALSE(damaged);
  EXPECT_THAT(damaged.error().message, HasSubstr("packed weight in device memory: damaged"));
  EXPECT_THAT(unpack_cuda(device, bytes - 128).error().message, HasSubstr("truncated"));
  EXPECT_THAT(unpack_cuda(device, 100).error().message, HasSubstr("less than the header"));
  EXPECT_THAT(unpack_cuda(nullptr, bytes).error().message, HasSubstr("is null"));
}

}  // namespace
}  // namespace nybble
