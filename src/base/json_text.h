// JSON from files that may lie: parsed under limits, with duplicate keys refused; and untrusted text made printable.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nybble/result.h"

namespace nybble::base {

inline constexpr int64_t kMaxExactInteger = int64_t{1} << 53;  // what every JSON reader agrees on
inline constexpr size_t kMaxNameBytes = 4096;

// Untrusted text for an error message: in quotes, control characters as \xNN, shortened past max_bytes.
std::string printable(std::string_view text, size_t max_bytes = 100);

// Whether a name could deceive whoever reads it in a log.
bool has_control_character(std::string_view name);

// The text without spaces at its end, none of its strings, numbers and runs of spaces longer than kMaxTokenBytes: the
// JSON library keeps a token twice, in buffers that double. `what` begins the error, `first_byte` is the text's own.
inline constexpr size_t kMaxTokenBytes = 4 << 20;
Result<std::string_view> bounded_json(std::string_view text, const std::string& what, size_t first_byte = 0);

struct JsonLimits {
  int max_depth = 8;
  int64_t max_values = 1'000'000;  // keys count, too
};

// The document as a value tree; `what` names its file in errors. Object keys are at most kMaxNameBytes long.
Result<nlohmann::json> parse_json(std::string_view text, const std::string& what, const JsonLimits& limits);

// The keys of one object in the order of the text, which a value tree forgets. `path` names the members that lead to it
// from the top; no keys where nothing is there. The text is one that parse_json() took.
std::vector<std::string> keys_in_order(std::string_view text, std::span<const std::string> path);

// The words of a parse error of the JSON library, without its number and place.
std::string parse_error_words(const nlohmann::json::exception& error);

}  // namespace nybble::base
