// Chains of layers with real dependencies: launches that overlap must leave the bits that launches one after the other
// leave, whatever kernels follow each other.
#include "bench/chain.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

namespace nybble::bench {
namespace {

// Small layers in the proportions of a decoder's, so that many launches stand in one graph and each is short: the
// shorter a launch, the more of it overlaps its neighbours.
const std::vector<Shape> kLayers = {
    {1536, 1024, "qkv"}, {1024, 1024, "o"}, {3072, 1024, "gate_up"}, {1024, 1536, "down"}};
constexpr int64_t kTokens[] = {1, 5, 16, 100};

class GpuChain : public ::testing::Test {
 protected:
  void SetUp() override {
    const Result<Device> device = Device::cuda();
    if (!device) GTEST_SKIP() << device.error().message;
    if (device->sm != 90) GTEST_SKIP() << "needs compute capability 9.0, " << device->name << " has another";
    device_ = *device;
    Result<std::unique_ptr<Chain>> chain = open_chain(device_);
    ASSERT_TRUE(chain) << chain.error().message;
    chain_ = std::move(*chain);
  }

  void load(const ChainSpec& spec) {
    const Result<void> loaded = chain_->load(spec, *std::max_element(std::begin(kTokens), std::end(kTokens)));
    ASSERT_TRUE(loaded) << loaded.error().message;
  }

  void expect_same_bits(const ChainSpec& spec, int64_t m, const std::vector<std::string>& kernels) {
    const Result<ChainCheck> check = chain_->check(m, {.kernels = kernels});
    ASSERT_TRUE(check) << check.error().message;
    EXPECT_EQ(check->wrong, "") << chain_text(spec, m);
  }

  // Kernels that can run all layers at m.
  std::vector<std::string> kernels_for_all(const ChainSpec& spec, int64_t m) const {
    std::vector<std::string> names;
    for (size_t j = 0; j < spec.layers.size(); ++j) {
      const Problem problem{.m = m,
                            .n = spec.layers[j].n,
                            .k = spec.layers[j].k,
                            .act_dtype = spec.act_dtype,
                            .out_dtype = spec.act_dtype,
                            .weight = spec.format};
      std::vector<std::string> here;
      for (const KernelVerdict& verdict : explain_kernels(problem, device_))
        if (verdict.fits && (j == 0 || std::find(names.begin(), names.end(), verdict.kernel) != names.end()))
          here.push_back(verdict.kernel);
      names = here;
    }
    return names;
  }

  Device device_;
  std::unique_ptr<Chain> chain_;
};

TEST_F(GpuChain, OverlapLeavesTheSameBitsWithTheKernelsOfChoice) {
  for (const DType act : {DType::kBf16, DType::kFp16}) {
    for (const ZeroKind zero : {ZeroKind::kNone, ZeroKind::kInt}) {
      const ChainSpec spec{.name = "small",
                           .layers = kLayers,
                           .blocks = 32,
                           .format = {.scale_dtype = act, .zero_kind = zero, .group_size = 128},
                           .act_dtype = act};
      ASSERT_NO_FATAL_FAILURE(load(spec));
      for (const int64_t m : kTokens) expect_same_bits(spec, m, {});
    }
  }
}

TEST_F(GpuChain, OverlapLeavesTheSameBitsWhateverKernelsFollowEachOther) {
  const ChainSpec spec{.name = "small", .layers = kLayers, .blocks = 32, .format = {.group_size = 128}};
  ASSERT_NO_FATAL_FAILURE(load(spec));
  std::mt19937 random(7);
  for (const int64_t m : kTokens) {
    const std::vector<std::string> names = kernels_for_all(spec, m);
    ASSERT_GE(names.size(), 2u) << "too few kernels to follow each other at m = " << m;
    std::set<std::pair<std::string, std::string>> neighbours;
    for (int round = 0; round < 8; ++round) {
      std::vector<std::string> kernels;
      for (size_t i = 0; i < spec.layers.size() * spec.blocks; ++i) kernels.push_back(names[random() % names.size()]);
      for (size_t i = 1; i < kernels.size(); ++i) neighbours.insert({kernels[i - 1], kernels[i]});
      expect_same_bits(spec, m, kernels);
    }
    RecordProperty("neighbours_m" + std::to_string(m), static_cast<int>(neighbours.size()));
    EXPECT_GT(neighbours.size(), names.size()) << "the draw left kernels beside themselves only";
  }
}

TEST_F(GpuChain, FiguresArePossible) {
  const ChainSpec spec{.name = "small", .layers = kLayers, .blocks = 8, .format = {.group_size = 128}};
  ASSERT_NO_FATAL_FAILURE(load(spec));
  const Result<ChainMeasurement> measured = chain_->measure(1, {.replays = 3});
  ASSERT_TRUE(measured) << measured.error().message;
  EXPECT_EQ(measured->check.wrong, "");
  EXPECT_GT(measured->floor_us, 0);
  EXPECT_GT(measured->overlapped.us, 0);
  EXPECT_LT(measured->plain.us, 10'000);
  ASSERT_EQ(measured->layers.size(), spec.layers.size());
  ASSERT_EQ(measured->kernels.size(), spec.layers.size());
  for (const Timing& timing : measured->layers) EXPECT_GT(timing.us, 0);
}

}  // namespace
}  // namespace nybble::bench
