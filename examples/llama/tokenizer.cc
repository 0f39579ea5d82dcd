#include "tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <queue>

#include "pre_tokenizer.h"

namespace llama {
namespace {

// ggml's token types that name something instead of spelling it.
constexpr int64_t kControl = 3, kUserDefined = 4;

// The letter that stands for a byte: itself where it is printable Latin-1, else the next free one from U+0100 on.
std::string letter_of(int byte) {
  const auto printable = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
  int code = byte;
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += !printable(b);
  }
  if (code < 128) return {static_cast<char>(code)};
  return {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 63))};
}

}  // namespace

Result<Tokenizer> Tokenizer::from_gguf(const nybble::GgufMetadata& metadata) {
  TokenizerTables tables;
  tables.source = metadata.path();
  const auto broken = [&](const std::string& words) {
    return Error{ErrorCode::kInvalidData, fmt::format("{}: {}", metadata.path(), words)};
  };
  const Result<std::string> model = metadata.text("tokenizer.ggml.model");
  if (!model) return model.error();
  if (*model != "gpt2")
    return Error{ErrorCode::kUnsupported,
                 fmt::format("{}: its tokenizer is of the kind '{}'; byte-level BPE ('gpt2') can be done",
                             metadata.path(), *model)};
  Result<std::string> pre = metadata.text("tokenizer.ggml.pre");
  if (!pre) return pre.error();
  tables.pre = std::move(*pre);
  Result<std::vector<std::string>> tokens = metadata.texts("tokenizer.ggml.tokens");
  if (!tokens) return tokens.error();
  tables.tokens = std::move(*tokens);
  const auto count = static_cast<int64_t>(tables.tokens.size());

  tables.special.assign(tables.tokens.size(), false);
  if (metadata.has("tokenizer.ggml.token_type")) {
    const Result<std::vector<int64_t>> types = metadata.integers("tokenizer.ggml.token_type");
    if (!types) return types.error();
    if (static_cast<int64_t>(types->size()) != count)
      return broken(fmt::format("tokenizer.ggml.token_type has {} elements for {} tokens", types->size(), count));
    for (int64_t i = 0; i < count; ++i) tables.special[i] = (*types)[i] == kControl || (*types)[i] == kUserDefined;
  }
  const Result<std::vector<std::string>> merges = metadata.texts("tokenizer.ggml.merges");
  if (!merges) return merges.error();
  for (const std::string& merge : *merges) {
    const size_t space = merge.find(' ', 1);
    if (space == std::string::npos)
      return broken(
          fmt::format("tokenizer.ggml.merges: number {} is not two tokens with a space between", tables.merges.size()));
    tables.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }

  const auto token_of = [&](const char* key) -> Result<int32_t> {
    const Result<int64_t> token = metadata.integer(key);
    if (!token) return token.error();
    if (*token < 0 || *token >= count) return broken(fmt::format("{} is {}; there are {} tokens", key, *token, count));
    return static_cast<int32_t>(*token);
  };
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    if (!metadata.has(key)) continue;
    const Result<int32_t> end = token_of(key);
    if (!end) return end.error();
    tables.ends.push_back(*end);
  }
  if (metadata.has("tokenizer.ggml.add_bos_token")) {
    const Result<bool> wanted = metadata.boolean("tokenizer.ggml.add_bos_token");
    if (!wanted) return wanted.error();
    if (*wanted) {
      const Result<int32_t> begin = token_of("tokenizer.ggml.bos_token_id");
      if (!begin) return begin.error();
      tables.begin = *begin;
    }
  }
  return make(std::move(tables));
}

Result<Tokenizer> Tokenizer::make(TokenizerTables tables) {
  const auto broken = [&](const std::string& words) {
    return Error{ErrorCode::kInvalidData, fmt::format("{}: {}", tables.source, words)};
  };
  Tokenizer tokenizer;
  Result<std::shared_ptr<const PreTokenizer>> words = PreTokenizer::make(tables.pre);
  if (!words) return Error{words.error().code, fmt::format("{}: {}", tables.source, words.error().message)};
  tokenizer.words_ = std::move(*words);
  tokenizer.tokens_ = std::move(tables.tokens);
  tokenizer.begin_ = tables.begin;
  tokenizer.whole_words_ = tables.whole_words;
  tokenizer.ends_ = std::move(tables.ends);

  const size_t count = tokenizer.tokens_.size();
  if (count == 0 || count > INT32_MAX) return broken(fmt::format("has {} tokens", count));
  for (size_t i = 0; i < count; ++i) tokenizer.numbers_.emplace(tokenizer.tokens_[i], static_cast<int32_t>(i));
  tokenizer.special_.assign(count, false);
  for (size_t i = 0; i < count; ++i)
    if (tables.special[i] && !tokenizer.tokens_[i].empty()) {
      tokenizer.special_[i] = true;
      tokenizer.special_numbers_.push_back(static_cast<int32_t>(i));
    }
  std::stable_sort(tokenizer.special_numbers_.begin(), tokenizer.special_numbers_.end(),
                   [&](int32_t a, int32_t b) { return tokenizer.tokens_[a].size() > tokenizer.tokens_[b].size(); });
  for (size_t rank = 0; rank < tables.merges.size(); ++rank) {
    const auto& [left, right] = tables.merges[rank];
    const auto a = tokenizer.numbers_.find(left), b = tokenizer.numbers_.find(right),
               both = tokenizer.numbers_.find(left + right);
    if (a == tokenizer.numbers_.end() || b == tokenizer.numbers_.end() || both == tokenizer.numbers_.end())
      return broken(fmt::format("merge number {} names what is no token", rank));
    tokenizer.merges_.emplace(static_cast<uint64_t>(a->second) << 32 | static_cast<uint32_t>(b->second),
                              Merge{static_cast<int32_t>(rank), both->second});
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto at = tokenizer.numbers_.find(letter_of(byte));
    tokenizer.byte_tokens_[byte] = at == tokenizer.numbers_.end() ? -1 : at->second;
  }
  for (const char* name : {"<|im_end|>", "<|endoftext|>", "<|eot_id|>"})
    if (const auto at = tokenizer.numbers_.find(name); at != tokenizer.numbers_.end())
      tokenizer.ends_.push_back(at->second);
  return tokenizer;
}

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text, bool special) const {
  if (const size_t at = first_invalid_utf8(text); at < text.size())
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("byte {} of the text is not UTF-8; convert the text first, e.g. with iconv", at)};
  std::vector<int32_t> tokens;
  size_t plain = 0;  // where text begins that is not encoded yet
  for (size_t at = 0; special && at < text.size();) {
    const auto found = std::find_if(special_numbers_.begin(), special_numbers_.end(), [&](int32_t number) {
      return text.substr(at).starts_with(tokens_[static_cast<size_t>(number)]);
    });
    if (found == special_numbers_.end()) {
      ++at;
      continue;
    }
    encode_plain(text.substr(plain, at - plain), tokens);
    tokens.push_back(*found);
    at += tokens_[static_cast<size_t>(*found)].size();
    plain = at;
  }
  encode_plain(text.substr(plain), tokens);
  return tokens;
}

void Tokenizer::encode_plain(std::string_view text, std::vector<int32_t>& tokens) const {
  for (const std::string_view word : words_->split(text)) encode_word(word, tokens);
}

// A list of symbols and a heap of the merges that its neighbours allow: n log n, also for a word of a million letters.
void Tokenizer::encode_word(std::string_view word, std::vector<int32_t>& tokens) const {
  struct Symbol {
    int32_t token;
    int64_t before, after;  // -1: none
  };
  if (whole_words_) {
    std::string letters;
    for (const char byte : word) letters += letter_of(static_cast<unsigned char>(byte));
    if (const auto whole = numbers_.find(letters); whole != numbers_.end()) {
      tokens.push_back(whole->second);
      return;
    }
  }
  std::vector<Symbol> symbols;
  for (const char byte : word)
    if (const int32_t token = byte_tokens_[static_cast<unsigned char>(byte)]; token >= 0) {
      const auto at = static_cast<int64_t>(symbols.size());
      symbols.push_back({token, at - 1, at + 1});
    }
  if (symbols.empty()) return;
  symbols.back().after = -1;

  struct Candidate {
    int32_t rank;
    int64_t at;
    int32_t left, right, merged;
    bool operator<(const Candidate& other) const {  // the heap's top is the greatest
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  std::priority_queue<Candidate> heap;
  const auto consider = [&](int64_t at) {
    if (at < 0 || symbols[at].after < 0) return;
    const int32_t left = symbols[at].token, right = symbols[symbols[at].after].token;
    const auto merge = merges_.find(static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right));
    if (merge != merges_.end()) heap.push({merge->second.rank, at, left, right, merge->second.token});
  };
  constexpr int32_t kGone = -1;
  for (size_t at = 0; at < symbols.size(); ++at) consider(static_cast<int64_t>(at));
  while (!heap.empty()) {
    const Candidate top = heap.top();
    heap.pop();
    Symbol& left = symbols[top.at];
    if (left.token != top.left || left.after < 0 || symbols[left.after].token != top.right) continue;  // out of date
    Symbol& right = symbols[left.after];
    left.token = top.merged;
    left.after = right.after;
    if (right.after >= 0) symbols[right.after].before = top.at;
    right.token = kGone;
    consider(left.before);
    consider(top.at);
  }
  for (int64_t at = 0; at >= 0; at = symbols[at].after) tokens.push_back(symbols[at].token);
}

std::string Tokenizer::decode(std::span<const int32_t> tokens, bool with_special) const {
  static const std::unordered_map<std::string, char> kBytes = [] {
    std::unordered_map<std::string, char> bytes;
    for (int byte = 0; byte < 256; ++byte) bytes.emplace(letter_of(byte), static_cast<char>(byte));
    return bytes;
  }();
  std::string text;
  for (const int32_t token : tokens) {
    const std::string& spelled = tokens_[static_cast<size_t>(token)];
    if (is_special(token)) {
      if (with_special) text += spelled;
      continue;
    }
    for (size_t at = 0; at < spelled.size();) {
      const size_t length = (spelled[at] & 0x80) == 0 ? 1 : (spelled[at] & 0xE0) == 0xC0 ? 2 : 3;
      const auto byte = kBytes.find(spelled.substr(at, length));
      if (byte != kBytes.end())
        text += byte->second;
      else
        text += spelled.substr(at, length);  // no byte's letter: some files spell added tokens in plain text
      at += length;
    }
  }
  return text;
}

bool Tokenizer::is_end(int32_t token) const { return std::find(ends_.begin(), ends_.end(), token) != ends_.end(); }

Result<int32_t> Tokenizer::find(const std::string& token) const {
  const auto at = numbers_.find(token);
  if (at == numbers_.end())
    return Error{ErrorCode::kInvalidData, fmt::format("the vocabulary has no token '{}'", token)};
  return at->second;
}

}  // namespace llama
