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

// A text without the white space around it, as Jinja's trim leaves it.
std::string trimmed(const std::string& text) {
  constexpr const char* kSpace = " \t\n\r\f\v";
  const size_t begin = text.find_first_not_of(kSpace);
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(kSpace) + 1 - begin);
}

// Tokens of text and names of special ones, one after the other; the first error is kept.
class Writer {
 public:
  explicit Writer(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  Writer& special(const char* name) {
    const Result<int32_t> token = tokenizer_.find(name);
    if (token)
      tokens_.push_back(*token);
    else if (!error_)
      error_ = token.error();
    return *this;
  }
  Writer& text(const std::string& words) {
    const Result<std::vector<int32_t>> more = tokenizer_.encode(words, false);
    if (more)
      tokens_.insert(tokens_.end(), more->begin(), more->end());
    else if (!error_)
      error_ = more.error();
    return *this;
  }
  Result<std::vector<int32_t>> finish() {
    if (error_) return *error_;
    return std::move(tokens_);
  }

 private:
  const Tokenizer& tokenizer_;
  std::vector<int32_t> tokens_;
  std::optional<Error> error_;
};

Result<std::vector<int32_t>> chat_ml(const std::string& chat_template, const Tokenizer& tokenizer, const Chat& chat) {
  Writer writer(tokenizer);
  const auto message = [&](const char* role, const std::string& words) {
    writer.special("<|im_start|>").text(fmt::format("{}\n{}", role, words)).special("<|im_end|>").text("\n");
  };
  const std::optional<std::string> system = chat.system ? chat.system : default_system(chat_template);
  if (system) message("system", *system);
  message("user", chat.user);
  return writer.special("<|im_start|>").text("assistant\n").finish();
}

Result<std::vector<int32_t>> llama3(const std::string& chat_template, const Tokenizer& tokenizer, const Chat& chat) {
  Writer writer(tokenizer);
  const auto role = [&](const char* name) -> Writer& {
    return writer.special("<|start_header_id|>").text(name).special("<|end_header_id|>");
  };
  const auto message = [&](const char* name, const std::string& words) {
    role(name).text("\n\n" + words).special("<|eot_id|>");
  };
  std::string system = trimmed(chat.system.value_or(""));
  const bool dated = chat_template.find("Cutting Knowledge Date") != std::string::npos;
  if (dated) system = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n" + system;
  if (chat.system || dated) message("system", system);
  message("user", trimmed(chat.user));
  return role("assistant").text("\n\n").finish();
}

}  // namespace

Result<ChatTemplate> ChatTemplate::from_gguf(const nybble::GgufMetadata& metadata) {
  Result<std::string> text = metadata.text("tokenizer.chat_template");
  if (!text) return text.error();
  return ChatTemplate{metadata.path(), std::move(*text)};
}

Result<std::vector<int32_t>> chat_tokens(const ChatTemplate& chat_template, const Tokenizer& tokenizer,
                                         const Chat& chat) {
  const auto names = [&](const char* token) { return chat_template.text.find(token) != std::string::npos; };
  if (names("<|im_start|>")) return chat_ml(chat_template.text, tokenizer, chat);
  if (names("<|start_header_id|>") && names("<|eot_id|>")) return llama3(chat_template.text, tokenizer, chat);
  return Error{
      ErrorCode::kUnsupported,
      fmt::format("{}: its chat template is neither ChatML nor Llama 3's, the two that this program knows; give "
                  "the whole text as a plain prompt",
                  chat_template.source)};
}

}  // namespace llama
