#include "base/json_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>
#include <vector>

#include "base/error.h"

namespace nybble::base {
namespace {

// Thrown out of the library's parser, which offers no other way to stop it; caught in parse_json.
struct Stopped {
  Error error;
};

// Watches the parser's events. It sees every object's keys, so it knows of the duplicates that the tree would drop.
class Watcher {
 public:
  Watcher(const std::string& what, const JsonLimits& limits) : what_(what), limits_(limits) {}

  void see(int depth, nlohmann::json::parse_event_t event, const nlohmann::json& parsed) {
    using Event = nlohmann::json::parse_event_t;
    if (++values_ > limits_.max_values)
      throw Stopped{invalid_data("{}: holds more than {} JSON values", what_, limits_.max_values)};
    switch (event) {
      case Event::object_start:
      case Event::array_start:
        if (depth + 1 > limits_.max_depth)
          throw Stopped{invalid_data("{}: is nested deeper than {} levels", what_, limits_.max_depth)};
        if (event == Event::object_start) keys_.emplace_back();
        break;
      case Event::object_end:
        keys_.pop_back();
        break;
      case Event::key: {
        const std::string& key = parsed.get_ref<const std::string&>();
        if (key.size() > kMaxNameBytes)
          throw Stopped{invalid_data("{}: the key {} has {} bytes; at most {} are allowed", what_, printable(key),
                                     key.size(), kMaxNameBytes)};
        if (!keys_.back().insert(key).second)
          throw Stopped{invalid_data("{}: the key {} stands twice in one object", what_, printable(key))};
        break;
      }
      case Event::array_end:
      case Event::value:
        break;
    }
  }

 private:
  const std::string& what_;
  const JsonLimits& limits_;
  int64_t values_ = 0;
  std::vector<std::set<std::string>> keys_;  // of the objects that are open
};

}  // namespace

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
  Watcher watcher(what, limits);
  try {
    return nlohmann::json::parse(text.begin(), text.end(),
                                 [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
                                   watcher.see(depth, event, parsed);
                                   return true;
                                 });
  } catch (const Stopped& stopped) {
    return stopped.error;
  } catch (const nlohmann::json::parse_error& error) {
    const auto line = 1 + std::count(text.begin(), text.begin() + std::min(error.byte, text.size()), '\n');
    return invalid_data("{}: is not valid JSON{}: {}", what, line > 1 ? fmt::format(" at line {}", line) : "",
                        parse_error_words(error));
  } catch (const nlohmann::json::exception& error) {
    return invalid_data("{}: is not valid JSON: {}", what, parse_error_words(error));
  }
}

}  // namespace nybble::base
