#include "base/json_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <set>
#include <vector>

#include "base/check.h"
#include "base/error.h"

namespace nybble::base {
namespace {

// Goes through a document's events before a tree is made of it: it sees every object's keys, so it knows of the
// duplicates that the tree would drop, and stops before anything grows. (The library's own callback for this looks
// through all elements of a list at the end of each object in it.)
class Watcher {
 public:
  Watcher(const std::string& what, std::string_view text, const JsonLimits& limits)
      : what_(what), text_(text), limits_(limits) {}

  std::optional<Error> error() && { return std::move(error_); }

  bool null() { return count(); }
  bool boolean(bool) { return count(); }
  bool number_integer(int64_t) { return count(); }
  bool number_unsigned(uint64_t) { return count(); }
  bool number_float(double, const std::string&) { return count(); }
  bool string(std::string&) { return count(); }
  bool binary(nlohmann::json::binary_t&) { return count(); }
  bool start_object(size_t) {
    keys_.emplace_back();
    return count() && deeper();
  }
  bool end_object() {
    keys_.pop_back();
    --depth_;
    return true;
  }
  bool start_array(size_t) { return count() && deeper(); }
  bool end_array() {
    --depth_;
    return true;
  }
  bool key(std::string& key) {
    if (key.size() > kMaxNameBytes)
      return stop(invalid_data("{}: the key {} has {} bytes; at most {} are allowed", what_, printable(key), key.size(),
                               kMaxNameBytes));
    if (!keys_.back().insert(key).second)
      return stop(invalid_data("{}: the key {} stands twice in one object", what_, printable(key)));
    return count();
  }
  bool parse_error(size_t byte, const std::string&, const nlohmann::json::exception& error) {
    const auto line = 1 + std::count(text_.begin(), text_.begin() + std::min(byte, text_.size()), '\n');
    return stop(invalid_data("{}: is not valid JSON{}: {}", what_, line > 1 ? fmt::format(" at line {}", line) : "",
                             parse_error_words(error)));
  }

 private:
  bool stop(Error error) {
    error_ = std::move(error);
    return false;
  }
  bool count() {
    return ++values_ <= limits_.max_values ||
           stop(invalid_data("{}: holds more than {} JSON values", what_, limits_.max_values));
  }
  bool deeper() {
    return ++depth_ <= limits_.max_depth ||
           stop(invalid_data("{}: is nested deeper than {} levels", what_, limits_.max_depth));
  }

  const std::string& what_;
  std::string_view text_;
  const JsonLimits& limits_;
  int64_t values_ = 0;
  int depth_ = 0;
  std::vector<std::set<std::string>> keys_;  // of the objects that are open
  std::optional<Error> error_;
};

// What a character outside strings belongs to.
enum class Token : uint8_t { kWord, kSpace, kMark };

constexpr std::array<Token, 256> kTokens = [] {
  std::array<Token, 256> tokens{};
  for (const char c : {' ', '\t', '\r', '\n'}) tokens[static_cast<uint8_t>(c)] = Token::kSpace;
  for (const char c : {'{', '}', '[', ']', ',', ':', '"'}) tokens[static_cast<uint8_t>(c)] = Token::kMark;
  return tokens;
}();

Token token_of(char c) { return kTokens[static_cast<uint8_t>(c)]; }

// The end of the token that begins at `at`.
size_t end_of_token(std::string_view text, size_t at) {
  if (text[at] == '"') {
    for (++at; at < text.size() && text[at] != '"'; ++at)
      if (text[at] == '\\') ++at;
    return at + 1;
  }
  const Token token = token_of(text[at++]);
  while (token != Token::kMark && at < text.size() && token_of(text[at]) == token) ++at;
  return at;
}

}  // namespace

Result<std::string_view> bounded_json(std::string_view text, const std::string& what, size_t first_byte) {
  while (!text.empty() && token_of(text.back()) == Token::kSpace) text.remove_suffix(1);
  for (size_t begin = 0, end = 0; begin < text.size(); begin = end) {
    end = end_of_token(text, begin);
    if (end - begin > kMaxTokenBytes)
      return invalid_data("{}, byte {}: a string, a number or a run of spaces has more than {} bytes", what,
                          first_byte + begin, kMaxTokenBytes);
  }
  return text;
}

std::string printable(std::string_view text, size_t max_bytes) {
  std::string shown = "'";
  size_t end = std::min(text.size(), max_bytes);
  if (end < text.size())  // never cut a UTF-8 sequence in two
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  for (const char c : text.substr(0, end)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 32 || byte == 127)
      shown += fmt::format("\\x{:02x}", byte);
    else
      shown += c;
  }
  if (end < text.size()) shown += "...";
  return shown + "'";
}

bool has_control_character(std::string_view name) {
  for (const char c : name)
    if (static_cast<unsigned char>(c) < 32 || c == 127) return true;
  return false;
}

std::string parse_error_words(const nlohmann::json::exception& error) {
  std::string_view words =
      error.what();  // "[json.exception.parse_error.101] parse error at line 1, column 3: syntax ..."
  for (const std::string_view mark : {"] ", ": "})
    if (const size_t end = words.find(mark); end != std::string_view::npos) words.remove_prefix(end + mark.size());
  constexpr size_t kShown = 300;
  const std::string shown = printable(words, kShown);
  return shown.substr(1, shown.size() - 2);
}

std::vector<std::string> keys_in_order(std::string_view text, std::span<const std::string> path) {
  std::vector<std::string> keys;
  std::vector<std::string> open;  // the members that the parser is within; an element of an array has an empty name
  const auto watch = [&](int depth, nlohmann::json::parse_event_t event, const nlohmann::json& parsed) {
    if (event != nlohmann::json::parse_event_t::key) return true;
    open.resize(static_cast<size_t>(depth));
    open.back() = parsed.get_ref<const std::string&>();
    if (std::equal(open.begin(), open.end() - 1, path.begin(), path.end())) keys.push_back(open.back());
    return true;
  };
  const nlohmann::json tree = nlohmann::json::parse(text.begin(), text.end(), watch);
  return keys;
}

Result<nlohmann::json> parse_json(std::string_view text, const std::string& what, const JsonLimits& limits) {
  // The library takes a NUL for the end of the text and would let anything follow it.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos)
    return invalid_data("{}: is not valid JSON: a NUL at byte {}", what, nul);
  const Result<std::string_view> bounded = bounded_json(text, what);
  if (!bounded) return bounded.error();
  text = *bounded;
  Watcher watcher(what, text, limits);
  const bool fine = nlohmann::json::sax_parse(text.begin(), text.end(), &watcher);
  if (std::optional<Error> error = std::move(watcher).error()) return *std::move(error);
  NYBBLE_CHECK(fine, "the watcher gives a reason when it stops");
  return nlohmann::json::parse(text.begin(), text.end());
}

}  // namespace nybble::base
