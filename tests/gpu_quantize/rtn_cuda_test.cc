// The GPU's quantizer against the CPU's, bit for bit: results and refusals.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "nybble/launch.h"
#include "nybble/quantize.h"
#include "support/dense.h"

namespace nybble {
namespace {

using testing::random_dense;

constexpr DType kDTypes[] = {DType::kBf16, DType::kFp16, DType::kFp32};
constexpr RangeSearch kSearches[] = {RangeSearch::kNone, RangeSearch::kSquaredError};

class RtnCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const Result<Device> device = Device::cuda(); !device) GTEST_SKIP() << device.error().message;
  }
};

void expect_same(const DenseWeight& dense, const RtnOptions& options) {
  const Result<QuantizedWeight> cpu = quantize_rtn(dense, options), gpu = quantize_rtn_cuda(dense, options);
  ASSERT_EQ(cpu.ok(), gpu.ok()) << (cpu ? gpu.error().message : cpu.error().message);
  if (!cpu) {
    ASSERT_EQ(cpu.error().message, gpu.error().message);
    return;
  }
  for (size_t i = 0; i < cpu->scales.size(); ++i)
    ASSERT_EQ(cpu->scales.bits_at(i), gpu->scales.bits_at(i)) << "scale " << i << ", group size " << options.group_size;
  for (size_t i = 0; i < cpu->int_zeros.size(); ++i) ASSERT_EQ(cpu->int_zeros[i], gpu->int_zeros[i]) << "zero " << i;
  for (size_t i = 0; i < cpu->codes.size(); ++i)
    ASSERT_EQ(cpu->codes[i], gpu->codes[i]) << "code " << i << ", group size " << options.group_size;
  ASSERT_EQ(*cpu, *gpu);
}

TEST_F(RtnCuda, EveryFormatIsBitEqual) {
  uint64_t seed = 0;
  for (const DType dtype : kDTypes)
    for (const DType scale_dtype : kDTypes)
      for (const bool symmetric : {true, false})
        for (const RangeSearch search : kSearches)
          for (const int group : {kPerColumn, 16, 32, 48, 64, 80, 128, 192, 1024})
            for (const auto& [n, k] : {std::pair<int64_t, int64_t>{3, 128}, {65, 300}, {9, 1000}, {1, 1}, {4, 16}})
              ASSERT_NO_FATAL_FAILURE(expect_same(
                  random_dense(n, k, dtype, ++seed),
                  {.group_size = group, .symmetric = symmetric, .range_search = search, .scale_dtype = scale_dtype}));
  RecordProperty("weights", static_cast<int>(seed));
}

TEST_F(RtnCuda, LargeWeights) {
  for (const bool symmetric : {true, false}) {
    for (const int group : {128, kPerColumn})
      ASSERT_NO_FATAL_FAILURE(
          expect_same(random_dense(2051, 4100, DType::kBf16, 3), {.group_size = group, .symmetric = symmetric}));
    ASSERT_NO_FATAL_FAILURE(expect_same(random_dense(259, 4100, DType::kBf16, 4),
                                        {.symmetric = symmetric, .range_search = RangeSearch::kSquaredError}));
  }
}

// Every magnitude, from numbers that vanish in the scale's type to those that overflow it; refusals included.
TEST_F(RtnCuda, EveryMagnitudeIsBitEqual) {
  for (const DType dtype : kDTypes)
    for (const DType scale_dtype : kDTypes)
      for (const bool symmetric : {true, false})
        for (const RangeSearch search : kSearches)
          for (int exponent = -150; exponent <= 126; exponent += 3) {
            if (dtype == DType::kFp16 && (exponent < -26 || exponent > 11)) continue;
            ASSERT_NO_FATAL_FAILURE(expect_same(
                random_dense(4, 64, dtype, 200 + exponent, exponent),
                {.group_size = 32, .symmetric = symmetric, .range_search = search, .scale_dtype = scale_dtype}));
          }
}

TEST_F(RtnCuda, TiesAndTheLargestNumbers) {
  for (const DType dtype : kDTypes) {
    const float top = dtype == DType::kFp16   ? 65504.0f
                      : dtype == DType::kBf16 ? 0x1.fep127f
                                              : std::numeric_limits<float>::max();
    for (const float unit : {top / 30, 0.5f}) {
      std::vector<float> values;
      for (int i = -15; i <= 16; ++i) values.push_back(static_cast<float>(i == 16 ? 30 : i) * unit / 2);
      for (const float lean : {1.0f, -1.0f}) {
        DenseWeight dense;
        dense.n = 1;
        dense.k = 32;
        for (float& value : values) value *= lean;
        values.back() = lean * (unit == 0.5f ? 3.75f : top);
        dense.values = FloatArray::from_floats(dtype, values);
        for (const DType scale_dtype : {DType::kBf16, DType::kFp32})
          for (const bool symmetric : {true, false})
            for (const RangeSearch search : kSearches)
              ASSERT_NO_FATAL_FAILURE(expect_same(
                  dense,
                  {.group_size = 32, .symmetric = symmetric, .range_search = search, .scale_dtype = scale_dtype}));
      }
    }
  }
}

TEST_F(RtnCuda, RefusesTheSameElementInTheSameWords) {
  for (const DType dtype : kDTypes) {
    for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::quiet_NaN()}) {
      DenseWeight dense = random_dense(100, 1000, dtype, 1);
      const uint32_t bits = FloatArray::from_floats(dtype, std::vector<float>{bad}).bits_at(0);
      for (const int64_t at : {99'002, 41'999, 41'998}) dense.values.set_bits(at, bits);
      for (const bool symmetric : {true, false}) {
        const RtnOptions options{.group_size = 64, .symmetric = symmetric};
        ASSERT_FALSE(quantize_rtn_cuda(dense, options));
        ASSERT_NO_FATAL_FAILURE(expect_same(dense, options));
      }
    }
  }
  const DenseWeight wide = random_dense(10, 100, DType::kFp32, 1, 30);
  const Result<QuantizedWeight> overflow = quantize_rtn_cuda(wide, {.group_size = 16, .scale_dtype = DType::kFp16});
  ASSERT_FALSE(overflow);
  EXPECT_EQ(overflow.error().code, ErrorCode::kInvalidArgument);
  ASSERT_NO_FATAL_FAILURE(expect_same(wide, {.group_size = 16, .scale_dtype = DType::kFp16}));
  EXPECT_EQ(quantize_rtn_cuda(wide, {.group_size = 8}).error().message,
            quantize_rtn(wide, {.group_size = 8}).error().message);
}

TEST_F(RtnCuda, NothingGivesNothing) {
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{0, 128}, {4, 0}}) {
    DenseWeight dense;
    dense.n = n;
    dense.k = k;
    ASSERT_NO_FATAL_FAILURE(expect_same(dense, {}));
  }
}

}  // namespace
}  // namespace nybble
