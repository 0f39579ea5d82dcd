// nybble-llama: runs Llama-family models from GGUF files and Hugging Face folders, measures them, and collects
// statistics for quantizers.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "chat.h"
#include "collect.h"
#include "generate.h"
#include "perplexity.h"

namespace llama {
namespace {

struct Options {
  std::string model;
  std::optional<std::string> weights, against, system;
  std::vector<std::string> candidates;  // perplexity: each measured as `weights`
  bool dense = false, chat = false, cuda = false, json = false;
  int threads = 0;
  std::string prompt, text, out;
  int64_t max_tokens = 0;  // of the text; 0: all
  int64_t collect_context = 512;
  GenerateOptions generate;
  PerplexityOptions perplexity;
};

int fail(const Error& error) {
  fmt::print(stderr, "nybble-llama: {}\n", error.message);
  return 1;
}

Result<std::string> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file.is_open() || file.bad()) return Error{ErrorCode::kIo, fmt::format("{}: cannot be read", path)};
  return text;
}

struct Opened {
  std::optional<nybble::GgufMetadata> metadata;  // of a GGUF file
  Tokenizer tokenizer;
  std::unique_ptr<Decoder> decoder;
};

Result<std::unique_ptr<Decoder>> open_decoder(const Options& options, const std::optional<std::string>& weights,
                                              ActObserver observer) {
  DecoderOptions how;
  how.weights = weights;
  how.dense = options.dense;
  how.num_threads = options.threads;
  how.observer = std::move(observer);
  Result<std::unique_ptr<Decoder>> decoder =
      options.cuda ? make_cuda_decoder(options.model, how) : make_cpu_decoder(options.model, how);
  if (decoder) fmt::print(stderr, "{}\n", (*decoder)->describe());
  return decoder;
}

Result<Opened> open(const Options& options, ActObserver observer = {}) {
  std::optional<nybble::GgufMetadata> metadata;
  if (!is_hugging_face_folder(options.model)) {
    Result<nybble::GgufMetadata> read = nybble::GgufMetadata::read(options.model);
    if (!read) return read.error();
    metadata = std::move(*read);
  }
  Result<Tokenizer> tokenizer = metadata ? Tokenizer::from_gguf(*metadata) : Tokenizer::from_folder(options.model);
  if (!tokenizer) return tokenizer.error();
  Result<std::unique_ptr<Decoder>> decoder = open_decoder(options, options.weights, std::move(observer));
  if (!decoder) return decoder.error();
  return Opened{std::move(metadata), std::move(*tokenizer), std::move(*decoder)};
}

Result<std::vector<int32_t>> tokens_of_text(const Options& options, const Tokenizer& tokenizer) {
  const Result<std::string> text = read_file(options.text);
  if (!text) return text.error();
  Result<std::vector<int32_t>> tokens = tokenizer.encode(*text, false);
  if (!tokens) return Error{tokens.error().code, fmt::format("{}: {}", options.text, tokens.error().message)};
  if (options.max_tokens > 0 && static_cast<int64_t>(tokens->size()) > options.max_tokens)
    tokens->resize(static_cast<size_t>(options.max_tokens));
  return tokens;
}

// A line on the terminal that is overwritten as work goes on.
std::function<void(int64_t, int64_t)> progress_line(const char* what) {
  if (::isatty(STDERR_FILENO) == 0) return {};
  return [what](int64_t done, int64_t total) {
    fmt::print(stderr, "\r{} {} of {} tokens{}", what, done, total, done == total ? "\n" : "");
  };
}

Result<std::vector<int32_t>> chat_prompt(const Options& options, const Opened& opened) {
  const Result<ChatTemplate> chat_template =
      opened.metadata ? ChatTemplate::from_gguf(*opened.metadata) : ChatTemplate::from_folder(options.model);
  if (!chat_template) return chat_template.error();
  return chat_tokens(*chat_template, opened.tokenizer, {options.system, options.prompt});
}

int run_generate(const Options& options) {
  Result<Opened> opened = open(options);
  if (!opened) return fail(opened.error());
  const Tokenizer& tokenizer = opened->tokenizer;
  Result<std::vector<int32_t>> prompt =
      options.chat ? chat_prompt(options, *opened) : tokenizer.encode(options.prompt, true);
  if (!prompt) return fail(prompt.error());
  if (tokenizer.has_begin()) prompt->insert(prompt->begin(), tokenizer.begin());
  if (!options.chat) fmt::print("{}", options.prompt);
  const Result<Generated> generated =
      generate(*opened->decoder, tokenizer, *prompt, options.generate, [&](int32_t token) {
        const std::string words = tokenizer.decode({&token, 1});
        std::fwrite(words.data(), 1, words.size(), stdout);
        std::fflush(stdout);
      });
  if (!generated) return fail(generated.error());
  fmt::print("\n");
  std::fflush(stdout);
  const auto rate = [](int64_t tokens, double seconds) {
    return static_cast<double>(tokens) / std::max(seconds, 1e-9);
  };
  const auto count = static_cast<int64_t>(generated->tokens.size());
  fmt::print(stderr, "prompt: {} tokens, {:.1f} tokens/s; answer: {} tokens, {:.1f} tokens/s{}\n",
             generated->prompt_tokens, rate(generated->prompt_tokens, generated->prompt_seconds), count,
             rate(count, generated->seconds), generated->ended ? ", ended by the model" : "");
  return 0;
}

int run_perplexity(const Options& options) {
  Options first = options;
  if (!options.candidates.empty()) first.weights = options.candidates.front();
  Result<Opened> opened = open(first);
  if (!opened) return fail(opened.error());
  const Result<std::vector<int32_t>> tokens = tokens_of_text(options, opened->tokenizer);
  if (!tokens) return fail(tokens.error());
  std::vector<std::unique_ptr<Decoder>> owned;
  owned.push_back(std::move(opened->decoder));
  for (size_t i = 1; i < options.candidates.size(); ++i) {
    Result<std::unique_ptr<Decoder>> decoder = open_decoder(options, options.candidates[i], {});
    if (!decoder) return fail(decoder.error());
    owned.push_back(std::move(*decoder));
  }
  std::vector<Decoder*> decoders;
  for (const auto& decoder : owned) decoders.push_back(decoder.get());
  std::unique_ptr<Decoder> against;
  if (options.against) {
    DecoderOptions how;
    how.dense = true;
    how.num_threads = options.threads;
    Result<std::unique_ptr<Decoder>> decoder = make_cpu_decoder(*options.against, how);
    if (!decoder) return fail(decoder.error());
    against = std::move(*decoder);
  }
  PerplexityOptions how = options.perplexity;
  how.num_threads = options.threads;
  const Result<std::vector<Perplexity>> results =
      measure_perplexity(decoders, against.get(), *tokens, how, progress_line("scored"));
  if (!results) return fail(results.error());
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (size_t i = 0; i < results->size(); ++i) {
    const Perplexity& result = (*results)[i];
    const std::string weights = options.candidates.empty() ? options.model : options.candidates[i];
    if (options.json) {
      rows.push_back({{"weights", weights},
                      {"runs", decoders[i]->describe()},
                      {"tokens", result.scored},
                      {"mean_nll", result.mean_nll},
                      {"perplexity", result.perplexity}});
      if (result.compared)
        rows.back().update({{"against_perplexity", result.other_perplexity},
                            {"mean_kl", result.mean_kl},
                            {"top1_agreement", result.top1_agreement}});
      continue;
    }
    if (options.candidates.size() > 1) fmt::print("{}{}\n", i == 0 ? "" : "\n", weights);
    fmt::print("tokens scored     {}\nmean nll          {:.6f} nats\nperplexity        {:.4f}\n", result.scored,
               result.mean_nll, result.perplexity);
    if (result.compared)
      fmt::print("against           perplexity {:.4f}\nmean KL           {:.6f} nats\ntop-1 agreement   {:.4f}\n",
                 result.other_perplexity, result.mean_kl, result.top1_agreement);
  }
  if (options.json) fmt::print("{}\n", rows.dump(1));
  return 0;
}

int run_collect(const Options& options) {
  HessianCollector collector(options.threads);
  Result<Opened> opened = open(options, [&](const std::vector<std::string>& layers, const float* act, int64_t m,
                                            int64_t k) { collector.observe(layers, act, m, k); });
  if (!opened) return fail(opened.error());
  const Result<std::vector<int32_t>> tokens = tokens_of_text(options, opened->tokenizer);
  if (!tokens) return fail(tokens.error());
  if (Result<void> done = run_text(*opened->decoder, *tokens, options.collect_context, progress_line("read")); !done)
    return fail(done.error());
  if (Result<void> written = collector.write(options.out); !written) return fail(written.error());
  fmt::print("{}: statistics of {} tokens\n", options.out, tokens->size());
  return 0;
}

int run(int argc, char** argv) {
  Options options;
  CLI::App app("Runs Llama-family models from GGUF files and Hugging Face folders on nybble's 4-bit layers.",
               "nybble-llama");
  app.require_subcommand(1);
  int status = 0;
  const auto command = [&](const char* name, const char* words, int (*body)(const Options&)) {
    CLI::App* sub = app.add_subcommand(name, words);
    sub->add_option("model", options.model, "a .gguf file or a folder with one, or a Hugging Face folder")->required();
    sub->add_flag("--dense", options.dense, "run 4-bit layers dequantized to fp32: the reference");
    sub->add_option("--threads", options.threads, "0: all cores")->check(CLI::Range(0, 1024));
    sub->callback([&, body] { status = body(options); });
    return sub;
  };
  CLI::App* generate = command("generate", "continue a text, or answer in a chat", run_generate);
  std::string device = "cpu";
  generate->add_option("--prompt,-p", options.prompt, "the text to begin with")->required();
  generate->add_flag("--chat", options.chat, "the prompt is what a user says to the model");
  generate->add_option("--system", options.system, "the system message of a chat; else what the model's template says");
  generate->add_option("-n,--tokens", options.generate.tokens, "at most so many")->check(CLI::Range(1, 1 << 30));
  generate->add_option("--temperature", options.generate.temperature, "0: always the likeliest token")
      ->check(CLI::Range(0.0, 100.0));
  generate->add_option("--seed", options.generate.seed, "of the draw, with a temperature");

  CLI::App* perplexity = command("perplexity", "how well the model predicts a text", run_perplexity);
  constexpr char kWeights[] = "another checkpoint: its layers and tensors, where named alike, come before the model's";
  perplexity
      ->add_option("--weights", options.candidates, fmt::format("{}; given several times, each is measured", kWeights))
      ->allow_extra_args(false);
  perplexity->add_flag("--json", options.json, "print an array with an object for each");
  perplexity->add_option("--context", options.perplexity.context, "tokens of a window");
  perplexity->add_option("--stride", options.perplexity.stride, "tokens from window to window");
  perplexity->add_option("--against", options.against,
                         "another model of the same vocabulary, run in fp32: mean KL divergence and agreement");
  CLI::App* collect = command("collect", "write the statistics that quantizers weigh errors by", run_collect);
  collect->add_option("--context", options.collect_context, "tokens of a window");
  collect->add_option("--out", options.out, "the statistics file")->required();
  for (CLI::App* sub : {perplexity, collect}) {
    sub->add_option("--text", options.text, "a UTF-8 text file")->required();
    sub->add_option("--max-tokens", options.max_tokens, "use only the beginning of the text; 0: all");
  }
  for (CLI::App* sub : {generate, collect}) sub->add_option("--weights", options.weights, kWeights);
  for (CLI::App* sub : {generate, perplexity})
    sub->add_option("--device", device, "cpu or cuda")
        ->check(CLI::IsMember({"cpu", "cuda"}))
        ->each([&](const std::string& name) { options.cuda = name == "cuda"; });
  CLI11_PARSE(app, argc, argv);
  return status;
}

}  // namespace
}  // namespace llama

int main(int argc, char** argv) { return llama::run(argc, argv); }
