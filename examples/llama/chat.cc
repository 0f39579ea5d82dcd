#include "chat.h"

#include <fmt/format.h>

namespace llama {
namespace {

// The words between "<|im_start|>system" and "<|im_end|>" in the template, if they are constant: what it puts before a
// chat without a system message.
std::optional<std::string> default_system(const std::string& chat_template) {
  const std::string opening = "<|im_start|>system";
  size_t begin = chat_template.find(opening);
  if (begin == std::string::npos) return std::nullopt;
  begin += opening.size();
  if (chat_template.compare(begin, 2, "\\n") == 0)
    begin += 2;
  else if (chat_template.compare(begin, 1, "\n") == 0)
    begin += 1;
  else
    return std::nullopt;
  const size_t end = chat_template.find("<|im_end|>", begin);
  if (end == std::string::npos) return std::nullopt;
  std::string words = chat_template.substr(begin, end - begin);
  if (words.find_first_of("{}'\"\\") != std::string::npos) return std::nullopt;
  return words;
}

}  // namespace

Result<std::vector<int32_t>> chat_tokens(const nybble::GgufMetadata& metadata, const Tokenizer& tokenizer,
                                         const Chat& chat) {
  const Result<std::string> chat_template = metadata.text("tokenizer.chat_template");
  if (!chat_template) return chat_template.error();
  if (chat_template->find("<|im_start|>") == std::string::npos)
    return Error{
        ErrorCode::kUnsupported,
        fmt::format("{}: its chat template is not ChatML, the one that this program knows; give the whole text "
                    "as a plain prompt",
                    metadata.path())};
  const Result<int32_t> start = tokenizer.find("<|im_start|>"), end = tokenizer.find("<|im_end|>");
  if (!start) return start.error();
  if (!end) return end.error();

  std::vector<int32_t> tokens;
  std::optional<Error> error;
  const auto add = [&](const std::string& text) {
    const Result<std::vector<int32_t>> more = tokenizer.encode(text, false);
    if (more)
      tokens.insert(tokens.end(), more->begin(), more->end());
    else if (!error)
      error = more.error();
  };
  const auto message = [&](const char* role, const std::string& words) {
    tokens.push_back(*start);
    add(fmt::format("{}\n{}", role, words));
    tokens.push_back(*end);
    add("\n");
  };
  const std::optional<std::string> system = chat.system ? chat.system : default_system(*chat_template);
  if (system) message("system", *system);
  message("user", chat.user);
  tokens.push_back(*start);
  add("assistant\n");
  if (error) return *error;
  return tokens;
}

}  // namespace llama
