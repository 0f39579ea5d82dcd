// The example's decoder on the GPU against the same on the CPU.
#include <gtest/gtest.h>

#include <filesystem>

#include "chat.h"
#include "llama/tiny_folder.h"
#include "nybble/launch.h"
#include "support/greedy_text.h"

namespace llama {
namespace {

using testing::largest;
using testing::largest_difference;

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
  static std::vector<int32_t> some_tokens() {
    std::vector<int32_t> tokens;
    for (int i = 0; i < 40; ++i) tokens.push_back(3 + i * 37 % 380);
    return tokens;
  }
};

TEST_F(GpuLlama, LogitsAreTheCpus) {
  const auto cpu = make(kTiny, false), gpu = make(kTiny, true);
  ASSERT_TRUE(cpu && gpu);
  const std::vector<int32_t> tokens = some_tokens();
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

TEST_F(GpuLlama, AFolderSaysWhatTheFileSays) {
  const nybble::testing::TempFolder folder;
  write_tiny_folder(folder.path());
  const auto file = make(kTiny, false), gpu = make(folder.path(), true);
  ASSERT_TRUE(file && gpu);
  const std::vector<int32_t> tokens = some_tokens();
  const auto want = file->append(tokens, LogitsOf::kAll), got = gpu->append(tokens, LogitsOf::kAll);
  ASSERT_TRUE(got) << got.error().message;
  EXPECT_LE(largest_difference(*got, *want), kTolerance * largest(*want));
}

// Against the dequantized model in fp32.
TEST_F(GpuLlama, SmolLm2SaysWhatTheDenseModelSays) {
  if (!std::filesystem::exists(kSmolLm2)) GTEST_SKIP() << "SmolLM2 is not here; scripts/fetch_chat_model.sh fetches it";
  constexpr int kTokens = 200;
  const auto metadata = nybble::GgufMetadata::read(kSmolLm2);
  const auto tokenizer = Tokenizer::from_gguf(*metadata);
  const auto prompt = chat_tokens(*ChatTemplate::from_gguf(*metadata), *tokenizer,
                                  {std::nullopt, "Tell me a long story about a lighthouse."});
  const auto dense = make_cpu_decoder(kSmolLm2, {.weights = {}, .dense = true, .num_threads = 0, .observer = {}});
  const auto gpu = make(kSmolLm2, true);
  ASSERT_TRUE(dense) << dense.error().message;
  ASSERT_TRUE(gpu);
  testing::expect_same_greedy_text(**dense, *gpu, *prompt, kTokens, kTolerance);
}

}  // namespace
}  // namespace llama
