// The example program against a forward pass in double precision and the tokenizers library (tests/data/make_llama.py),
// and, where it was fetched, on SmolLM2.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "chat.h"
#include "collect.h"
#include "generate.h"
#include "llama/tiny_folder.h"
#include "perplexity.h"
#include "pre_tokenizer.h"
#include "rope.h"
#include "support/greedy_text.h"
#include "support/temp_folder.h"

namespace llama {
namespace {

using nybble::testing::read_text;
using nybble::testing::TempFolder;
using nybble::testing::write_text;
using ::testing::HasSubstr;

const std::string kData = NYBBLE_SOURCE_DIR "/tests/data/";
const std::string kLlama3 = kData + "llama3";
const std::string kSmolLm2 = NYBBLE_SOURCE_DIR "/.deps/models/SmolLM2-135M-Instruct/model.gguf";

template <class T> std::vector<T> expected(const std::string& name) {
  return tensor_of<T>(kData + "llama_tiny/expected.safetensors", name);
}

std::unique_ptr<Decoder> tiny(bool dense = false, int threads = 2, ActObserver observer = {}) {
  DecoderOptions options;
  options.dense = dense;
  options.num_threads = threads;
  options.observer = std::move(observer);
  auto decoder = make_cpu_decoder(kTiny, options);
  EXPECT_TRUE(decoder) << decoder.error().message;
  return std::move(*decoder);
}

Tokenizer tokenizer_of(const std::string& model) {
  const auto metadata = nybble::GgufMetadata::read(model);
  EXPECT_TRUE(metadata) << metadata.error().message;
  auto tokenizer = Tokenizer::from_gguf(*metadata);
  EXPECT_TRUE(tokenizer) << tokenizer.error().message;
  return std::move(*tokenizer);
}

// ---- Tokenizer -----------------------------------------------------------------------------------------------------

void expect_cases(const Tokenizer& tokenizer, const std::string& file) {
  const auto cases = nlohmann::json::parse(read_text(file));
  ASSERT_GE(cases.size(), 30u);
  for (const auto& one : cases) {
    const auto text = one.at("text").get<std::string>();
    SCOPED_TRACE(one.at("text").dump());
    const auto tokens = tokenizer.encode(text, true);
    ASSERT_TRUE(tokens) << tokens.error().message;
    EXPECT_EQ(*tokens, one.at("tokens").get<std::vector<int32_t>>());
    EXPECT_EQ(tokenizer.decode(*tokens, true), text);
  }
}

TEST(Tokenizer, TokensAreThoseOfTheTokenizersLibrary) {
  expect_cases(tokenizer_of(kTiny), kData + "llama_tiny/tokenizer_cases.json");
}

TEST(Tokenizer, SmolLm2TokensAreThoseOfTheTokenizersLibrary) {
  if (!std::filesystem::exists(kSmolLm2)) GTEST_SKIP() << "SmolLM2 is not here; scripts/fetch_chat_model.sh fetches it";
  expect_cases(tokenizer_of(kSmolLm2), kData + "smollm2_tokenizer_cases.json");
}

TEST(Tokenizer, NamesOfSpecialTokensAreTextUnlessAskedFor) {
  const Tokenizer tokenizer = tokenizer_of(kTiny);
  const std::string text = "a<|im_end|>b";
  const auto plain = tokenizer.encode(text, false), special = tokenizer.encode(text, true);
  EXPECT_EQ(special->size(), 3u);
  EXPECT_EQ((*special)[1], *tokenizer.find("<|im_end|>"));
  EXPECT_GT(plain->size(), 3u);
  for (const int32_t token : *plain) EXPECT_FALSE(tokenizer.is_special(token));
  EXPECT_EQ(tokenizer.decode(*plain), text);
  EXPECT_EQ(tokenizer.decode(*special), "ab");
}

TEST(Tokenizer, RefusesWhatIsNotUtf8) {
  const Tokenizer tokenizer = tokenizer_of(kTiny);
  for (const char* text : {"ab\xFF", "ab\xC0\x80", "ab\xED\xA0\x80", "ab\xE2\x82", "ab\xF4\x90\x80\x80", "ab\x80"}) {
    const auto tokens = tokenizer.encode(text, false);
    ASSERT_FALSE(tokens) << text;
    EXPECT_THAT(tokens.error().message, HasSubstr("byte 2 of the text is not UTF-8"));
  }
  EXPECT_EQ(first_invalid_utf8("\xF4\x8F\xBF\xBF\xEF\xBF\xBF\xDF\xBF"), 9u);
}

TEST(Tokenizer, ALongWordTakesNoSquareTime) {
  const Tokenizer tokenizer = tokenizer_of(kTiny);
  const std::string text(300'000, 'a');
  const auto tokens = tokenizer.encode(text, false);
  ASSERT_TRUE(tokens) << tokens.error().message;
  EXPECT_EQ(tokenizer.decode(*tokens), text);
}

TEST(Chat, IsWrittenAsTheTemplateSays) {
  const auto metadata = nybble::GgufMetadata::read(kTiny);
  const auto chat_template = ChatTemplate::from_gguf(*metadata);
  ASSERT_TRUE(chat_template) << chat_template.error().message;
  const Tokenizer tokenizer = tokenizer_of(kTiny);
  const auto tokens = chat_tokens(*chat_template, tokenizer, {std::nullopt, "Hi <|im_end|>"});
  ASSERT_TRUE(tokens) << tokens.error().message;
  EXPECT_EQ(
      tokenizer.decode(*tokens, true),
      "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(std::count(tokens->begin(), tokens->end(), *tokenizer.find("<|im_end|>")), 2);
  const auto own = chat_tokens(*chat_template, tokenizer, {"Be long", "Hi"});
  EXPECT_THAT(tokenizer.decode(*own, true), HasSubstr("<|im_start|>system\nBe long<|im_end|>"));
}

// Llama 3's two templates and ChatML, each with and without a system message (tests/data/make_llama3.py).
TEST(Chat, TokensAreThoseOfTransformers) {
  const auto tokenizer = Tokenizer::from_folder(kLlama3);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const auto chats = nlohmann::json::parse(read_text(kLlama3 + "/chats.json"));
  ASSERT_EQ(chats.size(), 6u);
  for (const auto& chat : chats) {
    std::optional<std::string> system;
    if (!chat.at("system").is_null()) system = chat.at("system").get<std::string>();
    auto tokens = chat_tokens({"x", chat.at("template").get<std::string>()}, *tokenizer,
                              {system, chat.at("user").get<std::string>()});
    ASSERT_TRUE(tokens) << tokens.error().message;
    const auto want = chat.at("tokens").get<std::vector<int32_t>>();
    if (want.front() == tokenizer->begin()) tokens->insert(tokens->begin(), tokenizer->begin());
    EXPECT_EQ(*tokens, want) << tokenizer->decode(*tokens, true);
  }
}

TEST(Chat, TemplatesOfFolders) {
  const TempFolder folder;
  const auto refused = [&] { return ChatTemplate::from_folder(folder.path()).error().message; };
  EXPECT_THAT(refused(), HasSubstr("has no chat template"));
  write_text(folder / "tokenizer_config.json", R"({"chat_template":[{"name":"tools","template":"a"}]})");
  EXPECT_THAT(refused(), HasSubstr("has no chat template"));
  write_text(folder / "tokenizer_config.json",
             R"({"chat_template":[{"name":"tools","template":"a"},{"name":"default","template":"b"}]})");
  EXPECT_EQ(ChatTemplate::from_folder(folder.path())->text, "b");
  write_text(folder / "tokenizer_config.json", R"({"chat_template":"c"})");
  EXPECT_EQ(ChatTemplate::from_folder(folder.path())->text, "c");
  write_text(folder / "chat_template.jinja", "[INST] {{ x }} [/INST]");
  const auto other = ChatTemplate::from_folder(folder.path());
  ASSERT_TRUE(other) << other.error().message;
  EXPECT_THAT(chat_tokens(*other, tokenizer_of(kTiny), {std::nullopt, "Hi"}).error().message,
              ::testing::AllOf(HasSubstr("chat_template.jinja"), HasSubstr("neither ChatML nor Llama 3's")));
  EXPECT_THAT(
      chat_tokens({"x", "<|start_header_id|><|eot_id|>"}, tokenizer_of(kTiny), {std::nullopt, "Hi"}).error().message,
      HasSubstr("no token '<|start_header_id|>'"));
}

// ---- Forward pass --------------------------------------------------------------------------------------------------

// 15 layers of sums of at most 64 fp32 products in a chain, each off by at most 64 * 2^-24 of its operands' size: 2^-13
// of the largest logit leaves a factor of two.
constexpr float kForwardTolerance = 0x1p-13f;

void expect_close(std::span<const float> got, std::span<const float> want) {
  ASSERT_EQ(got.size(), want.size());
  float most = 0, off = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    most = std::max(most, std::abs(want[i]));
    off = std::max(off, std::abs(got[i] - want[i]));
  }
  EXPECT_GT(most, 0.5f);
  EXPECT_LE(off, kForwardTolerance * most);
}

TEST(Forward, LogitsAreThoseOfADoublePrecisionForwardPass) {
  const auto tokens = expected<int32_t>("tokens");
  const auto want = expected<float>("logits");
  for (const bool dense : {false, true}) {
    SCOPED_TRACE(dense ? "dense" : "4 bit");
    const auto decoder = tiny(dense);
    const auto logits = decoder->append(tokens, LogitsOf::kAll);
    ASSERT_TRUE(logits) << logits.error().message;
    expect_close(std::span(*logits).last(want.size()), want);
    EXPECT_EQ(decoder->length(), 24);
  }
}

TEST(Forward, TokenByTokenIsTheSameAsAllAtOnce) {
  const auto tokens = expected<int32_t>("tokens");
  const auto decoder = tiny(true);
  const auto at_once = decoder->append(tokens, LogitsOf::kAll);
  decoder->truncate(0);
  std::vector<float> one_by_one;
  for (const int32_t token : tokens) {
    const auto logits = decoder->append({&token, 1}, LogitsOf::kLast);
    ASSERT_TRUE(logits) << logits.error().message;
    one_by_one.insert(one_by_one.end(), logits->begin(), logits->end());
  }
  EXPECT_EQ(one_by_one, *at_once);  // in the dense path a token's sums do not depend on its company
  decoder->truncate(20);
  const auto again = decoder->append(std::span(tokens).subspan(20), LogitsOf::kLast);
  EXPECT_TRUE(std::equal(again->begin(), again->end(), at_once->end() - decoder->vocabulary()));
}

TEST(Forward, ThreadsDoNotChangeABit) {
  const auto tokens = expected<int32_t>("tokens");
  EXPECT_EQ(*tiny(false, 1)->append(tokens, LogitsOf::kAll), *tiny(false, 3)->append(tokens, LogitsOf::kAll));
}

TEST(Forward, RefusesWhatItCannotDo) {
  const auto decoder = tiny();
  const std::vector<int32_t> strange = {5, 100000}, negative = {-1}, many(65, 5);
  EXPECT_THAT(decoder->append(strange, LogitsOf::kLast).error().message, HasSubstr("token 100000 is none of"));
  EXPECT_THAT(decoder->append(negative, LogitsOf::kLast).error().message, HasSubstr("token -1 is none of"));
  EXPECT_THAT(decoder->append(many, LogitsOf::kLast).error().message,
              HasSubstr("do not fit into the model's context of 64"));
  DecoderOptions options;
  options.weights = kData + "ct_group_symmetric";
  EXPECT_THAT(make_cpu_decoder(kTiny, options).error().message, HasSubstr("holds none of the model's layers"));
}

TEST(Forward, WeightsComeFromAnotherCheckpoint) {
  // The embedding alone, ten times as large: the norm before the first block takes the factor out of what the blocks
  // see, so it must come through in the logits.
  const TempFolder folder;
  const auto checkpoint = nybble::open_checkpoint(kTiny);
  const auto embedding = (*checkpoint)->read_dense("token_embd");
  std::vector<float> larger(embedding->values.size());
  for (size_t i = 0; i < larger.size(); ++i) larger[i] = 10 * embedding->values.at(i);
  const std::string header =
      nlohmann::json{
          {"token_embd.weight",
           {{"dtype", "F32"}, {"shape", {embedding->n, embedding->k}}, {"data_offsets", {0, larger.size() * 4}}}}}
          .dump();
  const uint64_t length = header.size();
  write_text(folder / "model.safetensors",
             std::string(reinterpret_cast<const char*>(&length), 8) + header +
                 std::string(reinterpret_cast<const char*>(larger.data()), larger.size() * 4));
  DecoderOptions options;
  options.weights = folder.path();
  const auto decoder = make_cpu_decoder(kTiny, options);
  ASSERT_TRUE(decoder) << decoder.error().message;
  EXPECT_THAT((*decoder)->describe(), HasSubstr("1 of them from"));
  const auto tokens = expected<int32_t>("tokens");
  EXPECT_NE(*(*decoder)->append(tokens, LogitsOf::kLast), *tiny()->append(tokens, LogitsOf::kLast));
}

// ---- Hugging Face folders ------------------------------------------------------------------------------------------

// Replaces a member, named by a JSON pointer, in a JSON file.
void change(const std::string& file, const std::string& pointer, const nlohmann::json& value) {
  nlohmann::json content = nlohmann::json::parse(read_text(file));
  content[nlohmann::json::json_pointer(pointer)] = value;
  write_text(file, content.dump());
}

TEST(Folder, LogitsAreThoseOfADoublePrecisionForwardPass) {
  const TempFolder folder;
  write_tiny_folder(folder.path());
  std::vector<std::string> seen;
  DecoderOptions options;
  options.observer = [&](const std::vector<std::string>& layers, const float*, int64_t, int64_t) {
    seen.insert(seen.end(), layers.begin(), layers.end());
  };
  const auto decoder = make_cpu_decoder(folder.path(), options);
  ASSERT_TRUE(decoder) << decoder.error().message;
  const auto want = expected<float>("logits");
  const auto logits = (*decoder)->append(expected<int32_t>("tokens"), LogitsOf::kAll);
  ASSERT_TRUE(logits) << logits.error().message;
  expect_close(std::span(*logits).last(want.size()), want);
  EXPECT_EQ(seen.front(),
            "model.layers.0.self_attn.q_proj");  // statistics are under the names that quantizers look for
  EXPECT_EQ(seen.back(), "model.layers.1.mlp.down_proj");
}

TEST(Folder, TokensAreThoseOfTheTokenizersLibrary) {
  const TempFolder folder;
  write_tiny_folder(folder.path());
  const auto tokenizer = Tokenizer::from_folder(folder.path());
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  expect_cases(*tokenizer, kData + "llama_tiny/tokenizer_cases.json");
  EXPECT_TRUE(tokenizer->is_end(2));
  EXPECT_FALSE(tokenizer->has_begin());
}

TEST(Folder, Llama3TokensAreThoseOfTheTokenizersLibrary) {
  const auto tokenizer = Tokenizer::from_folder(kLlama3);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  expect_cases(*tokenizer, kLlama3 + "/cases.json");
  EXPECT_EQ(tokenizer->begin(), *tokenizer->find("<|begin_of_text|>"));
  EXPECT_TRUE(tokenizer->is_end(*tokenizer->find("<|eot_id|>")));
}

// transformers computes them in fp32: turns within the original context, four roundings of 2^-24 of at most 4, go as an
// absolute error into a frequency that is by no more than `factor` smaller than it was.
TEST(Folder, FrequenciesAreThoseOfTransformers) {
  const auto cases = nlohmann::json::parse(read_text(kLlama3 + "/rope.json"));
  ASSERT_EQ(cases.size(), 4u);
  for (const auto& one : cases) {
    for (const char* key : {"/rope_scaling", "/rope_parameters"}) {
      SCOPED_TRACE(one.at("rope_scaling").dump() + key);
      const TempFolder folder;
      write_tiny_folder(folder.path());
      change(folder / "config.json", "/head_dim", one.at("head_dim"));
      change(folder / "config.json", "/rope_theta", one.at("rope_theta"));
      change(folder / "config.json", key, one.at("rope_scaling"));
      const auto config = read_folder_config(folder.path());
      ASSERT_TRUE(config) << config.error().message;
      const auto got = rope_frequencies(*config, {}), want = one.at("frequencies").get<std::vector<double>>();
      ASSERT_EQ(got.size(), want.size());
      const double factor = one.at("rope_scaling").at("factor");
      for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 0x1p-20 * factor * want[i]) << i;
    }
  }
}

TEST(Folder, RefusesWhatItCannotDo) {
  struct Case {
    const char *file, *pointer;
    nlohmann::json value;
    const char* words;
  };
  const Case cases[] = {
      {"config.json", "/model_type", "gemma", "its model_type is \"gemma\""},
      {"config.json", "/hidden_act", "gelu", "its hidden_act is \"gelu\""},
      {"config.json", "/rope_scaling", {{"rope_type", "yarn"}, {"factor", 8}}, "scaled by \"yarn\""},
      {"config.json", "/rope_scaling", {{"rope_type", "llama3"}, {"factor", 8}}, "low_freq_factor is not there"},
      {"config.json",
       "/rope_scaling",
       {{"rope_type", "llama3"},
        {"factor", 8},
        {"low_freq_factor", 4},
        {"high_freq_factor", 4},
        {"original_max_position_embeddings", 64}},
       "low_freq_factor is 4; it must be below"},
      {"config.json", "/num_hidden_layers", "two", "num_hidden_layers is \"two\"; an integer from 1 to 4096"},
      {"config.json", "/hidden_size", -1, "hidden_size is -1"},
      {"config.json", "/num_key_value_heads", 3, "do not fit together"},
      {"config.json", "/rms_norm_eps", 0, "rms_norm_eps is 0; a positive number"},
      {"config.json", "/eos_token_id", 384, "eos_token_id is 384; there are 384 tokens"},
      {"tokenizer.json", "/model/type", "Unigram", "its model is 'Unigram'"},
      {"tokenizer.json", "/normalizer", {{"type", "NFC"}}, "a normalizer 'NFC'"},
      {"tokenizer.json", "/post_processor", {{"type", "TemplateProcessing"}}, "post_processor 'TemplateProcessing'"},
      {"tokenizer.json", "/post_processor", {{"type", "BertProcessing"}}, "post_processor 'BertProcessing'"},
      {"tokenizer.json", "/pre_tokenizer", {{"type", "Split"}}, "another than ByteLevel"},
      {"tokenizer.json", "/model/vocab/a", 1000, "\"a\" has the number 1000"},
      {"tokenizer.json", "/model/vocab/a", 385, "some numbers have no token"},
      {"tokenizer.json", "/model/vocab/a", 5, "each number has one token"},
      {"tokenizer.json", "/model/merges/0", "ab", "number 0 is not two tokens"},
      {"tokenizer.json", "/model/merges/0", {"a", "\u65e5"}, "merge number 0 names what is no token"},
      {"tokenizer.json", "/added_tokens/0", {{"id", 400}, {"content", "x"}}, "does not fit into the vocabulary"},
  };
  for (const Case& one : cases) {
    SCOPED_TRACE(std::string(one.file) + one.pointer);
    const TempFolder folder;
    write_tiny_folder(folder.path());
    change(folder / one.file, one.pointer, one.value);
    const auto config = read_folder_config(folder.path());
    const auto tokenizer = Tokenizer::from_folder(folder.path());
    EXPECT_FALSE(config && tokenizer);
    EXPECT_THAT(!config ? config.error().message : tokenizer.error().message, HasSubstr(one.words));
  }
}

// ---- What is made of it --------------------------------------------------------------------------------------------

TEST(Generate, GreedyTextIsTheDenseModelsAndSeedsRepeat) {
  const Tokenizer tokenizer = tokenizer_of(kTiny);
  const auto prompt = *tokenizer.encode("The quick", true);
  GenerateOptions options;
  options.tokens = 40;
  std::vector<int32_t> seen;
  const auto decoder = tiny();
  const auto four_bit = generate(*decoder, tokenizer, prompt, options, [&](int32_t token) { seen.push_back(token); });
  ASSERT_TRUE(four_bit) << four_bit.error().message;
  EXPECT_EQ(seen, four_bit->tokens);
  EXPECT_GT(seen.size(), 0u);
  const auto dense = generate(*tiny(true), tokenizer, prompt, options, [](int32_t) {});
  EXPECT_EQ(dense->tokens, four_bit->tokens);

  options.temperature = 1.5;
  options.seed = 7;
  const auto one = generate(*tiny(), tokenizer, prompt, options, [](int32_t) {});
  const auto two = generate(*tiny(), tokenizer, prompt, options, [](int32_t) {});
  options.seed = 8;
  const auto three = generate(*tiny(), tokenizer, prompt, options, [](int32_t) {});
  EXPECT_EQ(one->tokens, two->tokens);
  EXPECT_NE(one->tokens, three->tokens);
  EXPECT_THAT(generate(*decoder, tokenizer, {}, options, [](int32_t) {}).error().message, HasSubstr("prompt"));
}

Result<Perplexity> measure(Decoder& decoder, Decoder* against, std::span<const int32_t> tokens,
                           const PerplexityOptions& options) {
  Decoder* const only[] = {&decoder};
  const auto results = measure_perplexity(only, against, tokens, options, {});
  if (!results) return results.error();
  return results->front();
}

TEST(Perplexity, OfOneWindowIsThatOfItsLogits) {
  const auto tokens = expected<int32_t>("tokens");
  const auto decoder = tiny(true), against = tiny(true);
  const auto result = measure(*decoder, against.get(), tokens, {.context = 24, .stride = 12});
  ASSERT_TRUE(result) << result.error().message;
  decoder->truncate(0);
  const auto logits = *decoder->append(tokens, LogitsOf::kAll);
  double nll = 0;
  for (size_t row = 0; row + 1 < tokens.size(); ++row) {
    double sum = 0;
    const float* at = logits.data() + row * static_cast<size_t>(decoder->vocabulary());
    for (int64_t i = 0; i < decoder->vocabulary(); ++i) sum += std::exp(static_cast<double>(at[i]));
    nll += std::log(sum) - at[tokens[row + 1]];
  }
  EXPECT_EQ(result->scored, 23);
  EXPECT_NEAR(result->mean_nll, nll / 23, 1e-6);
  EXPECT_NEAR(result->perplexity, std::exp(nll / 23), 1e-5 * std::exp(nll / 23));
  EXPECT_NEAR(result->mean_kl, 0, 1e-9);
  EXPECT_EQ(result->top1_agreement, 1.0);
  EXPECT_NEAR(result->other_perplexity, result->perplexity, 1e-9);
}

TEST(Perplexity, EveryTokenIsScoredOnceWhateverTheWindows) {
  const auto tokens = expected<int32_t>("tokens");
  const auto decoder = tiny();
  for (const PerplexityOptions options : {PerplexityOptions{8, 4}, {8, 7}, {5, 1}, {2, 1}, {64, 63}, {24, 5}}) {
    const auto result = measure(*decoder, nullptr, tokens, options);
    ASSERT_TRUE(result) << result.error().message;
    EXPECT_EQ(result->scored, 23) << options.context << " " << options.stride;
    EXPECT_TRUE(std::isfinite(result->perplexity));
  }
  EXPECT_FALSE(measure(*decoder, nullptr, tokens, {8, 8}));
  EXPECT_FALSE(measure(*decoder, nullptr, std::span(tokens).first(1), {8, 4}));
}

TEST(Perplexity, SeveralModelsInOnePassAreEachAsAlone) {
  const auto tokens = expected<int32_t>("tokens");
  const auto four_bit = tiny(), dense = tiny(true), against = tiny(true);
  const PerplexityOptions options = {.context = 8, .stride = 4};
  Decoder* const both[] = {four_bit.get(), dense.get()};
  const auto together = measure_perplexity(both, against.get(), tokens, options, {});
  ASSERT_TRUE(together) << together.error().message;
  ASSERT_EQ(together->size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    const auto alone = measure(*both[i], against.get(), tokens, options);
    EXPECT_EQ((*together)[i].mean_nll, alone->mean_nll);
    EXPECT_EQ((*together)[i].mean_kl, alone->mean_kl);
    EXPECT_EQ((*together)[i].other_perplexity, alone->other_perplexity);
  }
  EXPECT_NE((*together)[0].mean_nll, (*together)[1].mean_nll);
  EXPECT_FALSE(measure_perplexity({}, nullptr, tokens, options, {}));
}

TEST(Collect, HessiansAreThoseOfADoublePrecisionForwardPass) {
  const TempFolder folder;
  const auto tokens = expected<int32_t>("tokens");
  HessianCollector collector(2);
  const auto decoder =
      tiny(false, 2, [&](const std::vector<std::string>& layers, const float* act, int64_t m, int64_t k) {
        collector.observe(layers, act, m, k);
      });
  const auto ran = run_text(*decoder, tokens, 24, {});
  ASSERT_TRUE(ran) << ran.error().message;
  const std::string path = folder / "stats.safetensors";
  ASSERT_TRUE(collector.write(path));
  for (const char* layer : {"blk.0.attn_q", "blk.1.ffn_down"}) {
    const std::string name = std::string(layer) + ".hessian";
    expect_close(tensor_of<float>(path, name), expected<float>(name));
  }
  const std::string file = read_text(path);
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  const auto metadata = nlohmann::json::parse(file.substr(8, length)).at("__metadata__");
  EXPECT_EQ(metadata.at("nybble.statistics"), "1");
  EXPECT_EQ(metadata.at("tokens.blk.0.attn_q"), "24");
  EXPECT_EQ(metadata.at("same_input.blk.0.attn_k"), "blk.0.attn_q");
  EXPECT_EQ(metadata.at("same_input.blk.1.ffn_up"), "blk.1.ffn_gate");
  EXPECT_FALSE(metadata.contains("same_input.blk.1.ffn_down"));
  EXPECT_EQ(collector.write(folder / "none/stats.safetensors").error().code, ErrorCode::kIo);
}

// The program: exit status and what it printed on both streams.
std::pair<int, std::string> run_program(const std::string& arguments) {
  FILE* pipe = ::popen((std::string(NYBBLE_LLAMA) + " " + arguments + " 2>&1").c_str(), "r");
  std::string output;
  char piece[4096];
  for (size_t count; (count = std::fread(piece, 1, sizeof piece, pipe)) > 0;) output.append(piece, count);
  return {WEXITSTATUS(::pclose(pipe)), output};
}

TEST(Program, CommandsWork) {
  const TempFolder folder;
  write_text(folder / "text.txt", "The quick brown fox jumps over the lazy dog. 12345 1,234.56");
  const auto [status, output] = run_program("generate " + kTiny + " --prompt 'The quick' -n 5");
  EXPECT_EQ(status, 0) << output;
  EXPECT_THAT(output, HasSubstr("The quick"));
  EXPECT_THAT(output, HasSubstr("tokens/s"));
  const auto [chat_status, chat_output] = run_program("generate " + kTiny + " --prompt Hi --chat -n 5");
  EXPECT_EQ(chat_status, 0) << chat_output;
  const auto [perplexity_status, perplexity_output] = run_program(
      "perplexity " + kTiny + " --text " + folder.path() + "/text.txt --context 16 --stride 8 --against " + kTiny);
  EXPECT_EQ(perplexity_status, 0) << perplexity_output;
  EXPECT_THAT(perplexity_output, HasSubstr("top-1 agreement   1.0000"));
  write_tiny_folder(folder.path());
  const auto [folder_status, folder_output] = run_program(
      "perplexity " + folder.path() + " --text " + folder.path() + "/text.txt --context 16 --stride 8 --json" +
      " --weights " + folder.path() + " --weights " + folder.path() + " --against " + folder.path());
  EXPECT_EQ(folder_status, 0) << folder_output;
  const auto rows = nlohmann::json::parse(folder_output.substr(folder_output.find('[')));
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[1].at("top1_agreement"), 1.0);
  const auto [chat_folder_status, chat_folder_output] =
      run_program("generate " + folder.path() + " --chat --prompt Hi");
  EXPECT_EQ(chat_folder_status, 1);
  EXPECT_THAT(chat_folder_output, HasSubstr("has no chat template"));
  write_text(folder / "chat_template.jinja", "{{ '<|im_start|>user' }}");
  const auto [template_status, template_output] = run_program("generate " + folder.path() + " --chat --prompt Hi -n 5");
  EXPECT_EQ(template_status, 0) << template_output;
  const auto [collect_status, collect_output] = run_program("collect " + kTiny + " --text " + folder.path() +
                                                            "/text.txt --out " + folder.path() + "/s.safetensors");
  EXPECT_EQ(collect_status, 0) << collect_output;
  EXPECT_TRUE(std::filesystem::exists(folder / "s.safetensors"));
  const auto [wrong_status, wrong_output] = run_program("generate " + kData + "gguf_q4_0/model.gguf --prompt x");
  EXPECT_EQ(wrong_status, 1);
  EXPECT_THAT(wrong_output, HasSubstr("has no key 'tokenizer.ggml.model'"));
}

// ---- The real model ------------------------------------------------------------------------------------------------

// Greedy text in 4 bits is the dequantized model's. Both sum the same exact products in fp32, in another order: 210
// products in a chain, of at most 1536 terms, which a tolerance of 2^-16 leaves room for.
TEST(SmolLm2, GreedyTextIsTheDenseModels) {
  if (!std::filesystem::exists(kSmolLm2)) GTEST_SKIP() << "SmolLM2 is not here; scripts/fetch_chat_model.sh fetches it";
  constexpr int kTokens = 200;
  constexpr float kTolerance = 0x1p-16f;
  const auto metadata = nybble::GgufMetadata::read(kSmolLm2);
  const Tokenizer tokenizer = tokenizer_of(kSmolLm2);
  const auto prompt = chat_tokens(*ChatTemplate::from_gguf(*metadata), tokenizer,
                                  {std::nullopt, "Tell me a long story about a lighthouse."});
  ASSERT_TRUE(prompt) << prompt.error().message;
  const auto dense = make_cpu_decoder(kSmolLm2, {.weights = {}, .dense = true, .num_threads = 0, .observer = {}});
  const auto four_bit = make_cpu_decoder(kSmolLm2, {});
  ASSERT_TRUE(dense) << dense.error().message;
  ASSERT_TRUE(four_bit) << four_bit.error().message;
  testing::expect_same_greedy_text(**dense, **four_bit, *prompt, kTokens, kTolerance);
}

}  // namespace
}  // namespace llama
