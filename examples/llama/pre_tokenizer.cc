#include "pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <cstdlib>

namespace llama {
namespace {

using nybble::Error;
using nybble::ErrorCode;
using nybble::Result;

// White space is spelled out: PCRE2's \s has U+180E, which Unicode (and the tokenizers library) counts as none.
#define SPACE R"(\t-\r\x{85}\p{Z})"
// GPT-2's pattern (openai/gpt-2, encoder.py).
constexpr const char* kGpt2 =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SPACE "\\p{L}\\p{N}]+|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+";
// Llama 3's.
constexpr const char* kLlama3 =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^" SPACE
    "\\p{L}\\p{N}]+[\\r\\n]*|[" SPACE "]*[\\r\\n]+|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+";
#undef SPACE
constexpr const char* kDigit = "\\p{N}";

struct Known {
  const char* name;
  std::vector<const char*> patterns;  // each cuts the words that the one before left
};
const Known kKnown[] = {
    {"gpt-2", {kGpt2}},
    {"smollm", {kDigit, kGpt2}},
    {"llama-bpe", {kLlama3}},
};

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatch {
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
};
using Code = std::unique_ptr<pcre2_code, FreeCode>;

class PatternPreTokenizer final : public PreTokenizer {
 public:
  explicit PatternPreTokenizer(std::vector<Code> patterns) : patterns_(std::move(patterns)) {}

  std::vector<std::string_view> split(std::string_view text) const override {
    std::vector<std::string_view> words;
    if (!text.empty()) words.push_back(text);
    for (const Code& pattern : patterns_) {
      std::vector<std::string_view> finer;
      for (const std::string_view word : words) cut(pattern.get(), word, finer);
      words = std::move(finer);
    }
    return words;
  }

 private:
  // Every match is a word, and so is what lies between two.
  static void cut(const pcre2_code* pattern, std::string_view text, std::vector<std::string_view>& words) {
    const std::unique_ptr<pcre2_match_data, FreeMatch> match(pcre2_match_data_create_from_pattern(pattern, nullptr));
    size_t at = 0;
    while (at < text.size()) {
      const int found = pcre2_match(pattern, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                                    PCRE2_NO_UTF_CHECK, match.get(), nullptr);
      size_t begin = text.size(), end = text.size();
      if (found > 0) {
        const size_t* ends = pcre2_get_ovector_pointer(match.get());
        begin = ends[0];
        end = ends[1];
      }
      if (begin > at) words.push_back(text.substr(at, begin - at));
      if (end > begin) words.push_back(text.substr(begin, end - begin));
      at = end;
    }
  }

  std::vector<Code> patterns_;
};

}  // namespace

Result<std::shared_ptr<const PreTokenizer>> PreTokenizer::make(const std::string& name) {
  std::string names;
  for (const Known& known : kKnown) {
    names += fmt::format("{}'{}'", names.empty() ? "" : ", ", known.name);
    if (name != known.name) continue;
    std::vector<Code> patterns;
    for (const char* text : known.patterns) {
      int error = 0;
      size_t offset = 0;
      patterns.emplace_back(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text), PCRE2_ZERO_TERMINATED,
                                          PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr));
      if (patterns.back() == nullptr)
        return Error{
            ErrorCode::kUnsupported,
            fmt::format("this build of PCRE2 refuses the pattern {} at {} (error {}); it needs Unicode support", text,
                        offset, error)};
    }
    return std::shared_ptr<const PreTokenizer>(std::make_shared<PatternPreTokenizer>(std::move(patterns)));
  }
  return Error{ErrorCode::kUnsupported,
               fmt::format("the tokenizer cuts text by the rule '{}'; known rules are {}", name, names)};
}

size_t first_invalid_utf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
    const unsigned lead = byte(at);
    const size_t length = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
    if (length == 0) return at;
    for (size_t i = 1; i < length; ++i)
      if ((byte(at + i) & 0xC0) != 0x80) return at;
    const unsigned second = byte(at + 1);
    if ((lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F) ||  // overlong; surrogates
        (lead == 0xF0 && second < 0x90) || (lead == 0xF4 && second > 0x8F))    // overlong; past U+10FFFF
      return at;
    at += length;
  }
  return at;
}

}  // namespace llama
