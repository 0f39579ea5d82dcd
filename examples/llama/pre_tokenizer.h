// Cuts text into the words that byte-pair encoding never crosses.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "nybble/result.h"

namespace llama {

class PreTokenizer {
 public:
  // `name` as in tokenizer.ggml.pre. An unknown one is an error that lists those known.
  static nybble::Result<std::shared_ptr<const PreTokenizer>> make(const std::string& name);
  virtual ~PreTokenizer() = default;
  // `text` is valid UTF-8. The words in order; together they are the text.
  virtual std::vector<std::string_view> split(std::string_view text) const = 0;
};

// The first byte of `text` that is not part of a UTF-8 character; text.size() if there is none.
size_t first_invalid_utf8(std::string_view text);

}  // namespace llama
