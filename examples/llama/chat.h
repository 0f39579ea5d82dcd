// Chats in the two forms that models of this family are trained on, told apart by the special tokens that a model's
// template names. ChatML: <|im_start|>role, a line break, the words, <|im_end|>, a line break. Llama 3:
// <|start_header_id|>role<|end_header_id|>, two line breaks, the words without white space around them, <|eot_id|>.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tokenizer.h"

namespace llama {

// A model's chat template, which is a program (Jinja) that is not run: its special tokens say what it does.
struct ChatTemplate {
  std::string source;  // the file, for messages
  std::string text;

  static Result<ChatTemplate> from_gguf(const nybble::GgufMetadata& metadata);
  // chat_template.jinja of a Hugging Face folder, or the member of that name of its tokenizer_config.json.
  static Result<ChatTemplate> from_folder(const std::string& folder);
};

struct Chat {
  std::optional<std::string> system;  // absent: what the model's template says where a chat has none
  std::string user;
};

// The tokens of a chat up to where the assistant's answer begins, without the token that begins every text. What the
// user wrote is text whatever it holds: names of special tokens in it are no special tokens. Refuses a template that is
// neither ChatML nor Llama 3's. Where Llama 3's puts dates before the system message, they are those that it has itself
// for chats without a date: knowledge until December 2023, written on 26 Jul 2024.
Result<std::vector<int32_t>> chat_tokens(const ChatTemplate& chat_template, const Tokenizer& tokenizer,
                                         const Chat& chat);

}  // namespace llama
