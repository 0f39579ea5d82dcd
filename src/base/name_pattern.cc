#include "base/name_pattern.h"

#include <algorithm>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/check.h"
#include "base/error.h"
#include "base/json_text.h"

namespace nybble::base {
namespace {

constexpr size_t kMaxPatternBytes = 2048;
constexpr uint32_t kMaxNesting = 64;       // of parentheses; PCRE2 compiles them recursively
constexpr uint32_t kMatchHeapKib = 4096;   // for what one match may have to come back to
constexpr int64_t kStepsPerByte = 8;       // of a compiled pattern: a whole budget is 6 MB
constexpr int64_t kStepsPerMatch = 8;      // a match that fails at once
constexpr size_t kNameBytesPerStep = 256;  // an item such as .* runs over the name within one step

struct FreeContext {
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

std::string message_of(int error) {
  char text[256] = "";
  pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(text), sizeof text);
  return text;
}

// PCRE2 calls this before each item of the pattern that it tries.
struct Count {
  MatchBudget* budget;
  int64_t steps;

  static int one(pcre2_callout_block*, void* self) {
    const Count& count = *static_cast<Count*>(self);
    return count.budget->spend(count.steps) ? 0 : PCRE2_ERROR_CALLOUT;
  }
};

}  // namespace

Result<void> MatchBudget::check(const std::string& subject) const {
  if (!is_spent()) return {};
  return unsupported(
      "{}: comparing names with all that it lists takes more than {} steps; list fewer or simpler expressions", subject,
      kSteps);
}

Result<NamePattern> NamePattern::compile(const std::string& text, MatchBudget& budget) {
  if (text.size() > kMaxPatternBytes)
    return invalid_argument("the regular expression {} has {} bytes; at most {} are allowed", printable(text),
                            text.size(), kMaxPatternBytes);
  const std::unique_ptr<pcre2_compile_context, FreeContext> context(pcre2_compile_context_create(nullptr));
  NYBBLE_CHECK(context != nullptr, "memory for a regular expression");
  pcre2_set_parens_nest_limit(context.get(), kMaxNesting);
  int error = 0;
  PCRE2_SIZE at = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                   PCRE2_AUTO_CALLOUT | PCRE2_NEVER_UTF | PCRE2_NEVER_UCP | PCRE2_NEVER_BACKSLASH_C,
                                   &error, &at, context.get());
  if (code == nullptr)
    return invalid_argument("{} is no regular expression that nybble can use (PCRE2's syntax): {}, at byte {}",
                            printable(text), message_of(error), at);
  NamePattern pattern;
  pattern.text_ = text;
  pattern.code_ = {code,
                   [](const void* owned) { pcre2_code_free(static_cast<pcre2_code*>(const_cast<void*>(owned))); }};
  size_t bytes = 0;
  NYBBLE_CHECK(pcre2_pattern_info(code, PCRE2_INFO_SIZE, &bytes) == 0, "a compiled pattern has a size");
  if (!budget.spend(static_cast<int64_t>(bytes) * kStepsPerByte))
    return budget.check("the regular expression " + printable(text)).error();
  return pattern;
}

Result<std::vector<NamePattern>> NamePattern::compile_all(const std::vector<std::string>& texts, MatchBudget& budget) {
  std::vector<NamePattern> patterns;
  for (const std::string& text : texts) {
    Result<NamePattern> pattern = compile(text, budget);
    if (!pattern) return pattern.error();
    patterns.push_back(std::move(*pattern));
  }
  return patterns;
}

bool NamePattern::matches(const std::string& name, uint32_t options, MatchBudget& budget) const {
  const auto name_steps = static_cast<int64_t>(name.size() / kNameBytesPerStep);
  if (!budget.spend(kStepsPerMatch + name_steps)) return false;
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_data, FreeContext> data(pcre2_match_data_create_from_pattern(code, nullptr));
  const std::unique_ptr<pcre2_match_context, FreeContext> context(pcre2_match_context_create(nullptr));
  NYBBLE_CHECK(data != nullptr && context != nullptr, "memory for matching a regular expression");
  Count count{&budget, 1 + name_steps};
  pcre2_set_callout(context.get(), Count::one, &count);
  pcre2_set_heap_limit(context.get(), kMatchHeapKib);
  pcre2_set_match_limit(context.get(), UINT32_MAX);  // the budget is the limit
  const int found =
      pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(name.data()), name.size(), 0, options, data.get(), context.get());
  if (found >= 0) return true;
  // Whatever else stopped it, its memory for one, is a cost that the budget is for.
  if (found != PCRE2_ERROR_NOMATCH) budget.spend(MatchBudget::kSteps + 1);
  return false;
}

bool NamePattern::found_in(const std::string& name, MatchBudget& budget) const { return matches(name, 0, budget); }

bool NamePattern::matches_start(const std::string& name, MatchBudget& budget) const {
  return matches(name, PCRE2_ANCHORED, budget);
}

bool any_found_in(const std::vector<NamePattern>& patterns, const std::string& name, MatchBudget& budget) {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const NamePattern& pattern) { return pattern.found_in(name, budget); });
}

}  // namespace nybble::base
