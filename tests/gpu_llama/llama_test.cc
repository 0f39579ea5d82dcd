// The example's decoder on the GPU against the same on the CPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>

#include "chat.h"
#include "decoder.h"
#include "generate.h"
#include "nybble/launch.h"

namespace llama {
namespace {

const std::string kTiny = NYBBLE_SOURCE_DIR "/tests/data/llama_tiny/model.gguf";
const std::string kSmolLm2 = NYBBLE_SOURCE_DIR "/.deps/models/SmolLM2-135M-Instruct/model.gguf";

// On the GPU weights and activations are rounded to fp16 (2^-11), which the CPU does not do: 14 products in a chain in
// the tiny model, 210 in the real one, whose errors add up like a random walk. 2^-6 of the largest logit leaves room.
constexpr float kTolerance = 0x1p-6f;

class GpuLlama : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto device = nybble::Device::cuda(); !device) GTEST_SKIP() << device.error().message;
  }
  static std::unique_ptr<Decoder> make(const std::string& model, bool cuda) {
    auto decoder = cuda ? make_cuda_decoder(model, {}) : make_cpu_decoder(model, {});
    EXPECT_TRUE(decoder) << decoder.error().message;
    return decoder ? std::move(*decoder) : nullptr;
  }
};

float largest(const std::vector<float>& values) {
  float most = 0;
  for (const float value : values) most = std::max(most, std::abs(value));
  return most;
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  float most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(a[i] - b[i]));
  return std::isfinite(largest(a)) && a.size() == b.size() ? most : INFINITY;
}

TEST_F(GpuLlama, LogitsAreTheCpus) {
  const auto cpu = make(kTiny, false), gpu = make(kTiny, true);
  ASSERT_TRUE(cpu && gpu);
  std::vector<int32_t> tokens;
  for (int i = 0; i < 40; ++i) tokens.push_back(3 + i * 37 % 380);
  const auto want = cpu->append(tokens, LogitsOf::kAll), got = gpu->append(tokens, LogitsOf::kAll);
  ASSERT_TRUE(got) << got.error().message;
  EXPECT_LE(largest_difference(*got, *want), kTolerance * largest(*want));

  // Token by token: the graph, captured at one position and replayed at all others.
  gpu->truncate(0);
  std::vector<float> steps;
  for (const int32_t token : tokens) {
    const auto logits = gpu->append({&token, 1}, LogitsOf::kLast);
    ASSERT_TRUE(logits) << logits.error().message;
    steps.insert(steps.end(), logits->begin(), logits->end());
  }
  EXPECT_LE(largest_difference(steps, *want), kTolerance * largest(*want));
}

TEST_F(GpuLlama, SmolLm2SaysWhatItSaysOnTheCpu) {
  if (!std::filesystem::exists(kSmolLm2)) GTEST_SKIP() << "SmolLM2 is not here; scripts/fetch_chat_model.sh fetches it";
  const auto metadata = nybble::GgufMetadata::read(kSmolLm2);
  const auto tokenizer = Tokenizer::from_gguf(*metadata);
  const auto prompt = chat_tokens(*ChatTemplate::from_gguf(*metadata), *tokenizer,
                                  {std::nullopt, "Tell me a long story about a lighthouse."});
  const auto cpu = make(kSmolLm2, false), gpu = make(kSmolLm2, true);
  ASSERT_TRUE(cpu && gpu);
  auto want = cpu->append(*prompt, LogitsOf::kLast), got = gpu->append(*prompt, LogitsOf::kLast);
  int parted = 0;
  float worst = 0;
  for (int i = 0; i < 200; ++i) {  // the GPU is led along the CPU's text, so that one divergence does not hide the rest
    ASSERT_TRUE(want) << want.error().message;
    ASSERT_TRUE(got) << got.error().message;
    const float bound = kTolerance * largest(*want);
    worst = std::max(worst, largest_difference(*got, *want) / largest(*want));
    ASSERT_LE(largest_difference(*got, *want), bound) << "at token " << i;
    const int32_t token = likeliest(*want), other = likeliest(*got);
    if (token != other) {
      ++parted;
      EXPECT_LT((*want)[token] - (*want)[other], 2 * bound) << "at token " << i;
    }
    want = cpu->append({&token, 1}, LogitsOf::kLast);
    got = gpu->append({&token, 1}, LogitsOf::kLast);
  }
  RecordProperty("tokens_parted", parted);
  std::printf("of 200 tokens %d fall otherwise on the GPU; logits differ by at most %.2e of the largest\n", parted,
              worst);
}

}  // namespace
}  // namespace llama
