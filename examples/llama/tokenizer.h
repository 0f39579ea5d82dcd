// Byte-level BPE from a model's own tables.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "nybble/gguf.h"

namespace llama {

using nybble::Error;
using nybble::ErrorCode;
using nybble::Result;

class PreTokenizer;

// What a file says of its tokenizer.
struct TokenizerTables {
  std::string source;               // the file, for messages
  std::string pre;                  // how text is cut into words, as PreTokenizer::make() knows it
  std::vector<std::string> tokens;  // by number, each byte spelled by its letter
  std::vector<bool> special;        // of each token: whether it names something instead of spelling it
  std::vector<std::pair<std::string, std::string>> merges;  // in the order they are done
  std::vector<int32_t> ends;                                // tokens that end a text
  int32_t begin = -1;                                       // what stands before every text; -1: nothing
  bool whole_words = false;  // a word that is a token is that token, whatever the merges make of it
};

// Text <-> tokens as GPT-2 does it: text is cut into words, each word's bytes become one letter each, and neighbours
// are merged in the order of the merge list (Sennrich et al. 2016, arXiv:1508.07909; Radford et al. 2019).
class Tokenizer {
 public:
  static Result<Tokenizer> from_gguf(const nybble::GgufMetadata& metadata);
  // A Hugging Face folder: tokenizer.json (the tokenizers library's form) and config.json, for the token that ends a
  // text.
  static Result<Tokenizer> from_folder(const std::string& folder);

  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }
  // `text` is UTF-8; anything else is an error that names the byte. With `special`, names of special tokens in the text
  // stand for these tokens; without, they are text like any other, as is right for what a stranger wrote.
  Result<std::vector<int32_t>> encode(std::string_view text, bool special) const;
  // The bytes of tokens, which need not be whole UTF-8 characters; special tokens by their names if asked for.
  std::string decode(std::span<const int32_t> tokens, bool with_special = false) const;

  bool is_special(int32_t token) const { return special_[static_cast<size_t>(token)]; }
  // Whether a text ends here.
  bool is_end(int32_t token) const;
  // Set if the file wants this token before every text.
  bool has_begin() const { return begin_ >= 0; }
  int32_t begin() const { return begin_; }
  Result<int32_t> find(const std::string& token) const;

 private:
  struct Merge {
    int32_t rank, token;
  };

  static Result<Tokenizer> make(TokenizerTables tables);
  void encode_plain(std::string_view text, std::vector<int32_t>& tokens) const;
  void encode_word(std::string_view word, std::vector<int32_t>& tokens) const;

  std::vector<std::string> tokens_;  // by number, as the file spells them
  std::vector<bool> special_;
  std::unordered_map<std::string, int32_t> numbers_;
  std::unordered_map<uint64_t, Merge> merges_;  // by left << 32 | right
  std::vector<int32_t> special_numbers_;        // longest name first
  int32_t byte_tokens_[256];                    // -1: the vocabulary lacks it
  int32_t begin_ = -1;
  bool whole_words_ = false;
  std::vector<int32_t> ends_;
  std::shared_ptr<const PreTokenizer> words_;
};

}  // namespace llama
