// Chats as ChatML: <|im_start|>role, a line break, the words, <|im_end|>, a line break.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tokenizer.h"

namespace llama {

struct Chat {
  std::optional<std::string> system;  // absent: what the model's template says where a chat has none
  std::string user;
};

// The tokens of a chat up to where the assistant's answer begins. What the user wrote is text whatever it holds: names
// of special tokens in it are no special tokens. Refuses a model whose template is not ChatML.
Result<std::vector<int32_t>> chat_tokens(const nybble::GgufMetadata& metadata, const Tokenizer& tokenizer,
                                         const Chat& chat);

}  // namespace llama
