#include "base/name_pattern.h"

#include "base/error.h"
#include "base/json_text.h"

namespace nybble::base {
namespace {

// libstdc++'s default matcher recurses once per character and backtracks exponentially; this one does neither. It knows
// no back references, which names have no use for.
#ifdef __GLIBCXX__
constexpr auto kBounded = std::regex_constants::__polynomial;
#else
constexpr auto kBounded = std::regex_constants::ECMAScript;
#endif

constexpr size_t kMaxPatternBytes = 2048;

}  // namespace

Result<NamePattern> NamePattern::compile(const std::string& text) {
  if (text.size() > kMaxPatternBytes)
    return invalid_argument("the regular expression {} has {} bytes; at most {} are allowed", printable(text),
                            text.size(), kMaxPatternBytes);
  NamePattern pattern;
  pattern.text_ = text;
  try {
    pattern.regex_ = std::regex(text, std::regex_constants::ECMAScript | kBounded);
  } catch (const std::regex_error& error) {
    return invalid_argument(
        "{} is no regular expression that nybble can use (ECMAScript syntax, no back references): {}", printable(text),
        error.what());
  }
  return pattern;
}

bool NamePattern::found_in(const std::string& name) const { return std::regex_search(name, regex_); }

bool NamePattern::matches_start(const std::string& name) const {
  return std::regex_search(name, regex_, std::regex_constants::match_continuous);
}

}  // namespace nybble::base
