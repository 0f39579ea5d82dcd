// Regular expressions over names of layers and kernels, in PCRE2's syntax, of which Python's is a part but for details.
// They may come from a hostile config.json, where one expression can take ages and many can take long together: what
// compiling and matching cost is counted, and whoever has several patterns counts them together.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "nybble/result.h"

namespace nybble::base {

// What the patterns of one list, or of one model, may cost together. A step is an item of a pattern that is tried
// somewhere in a name; a pattern costs steps for the memory that it takes, too.
class MatchBudget {
 public:
  // One to two seconds of a processor; a model of 46,000 experts' layers and ten expressions needs less than 40
  // million.
  static constexpr int64_t kSteps = 50'000'000;

  // False from the first time on that there are not so many left.
  bool spend(int64_t steps) {
    left_ = left_ < steps ? -1 : left_ - steps;
    return left_ >= 0;
  }
  bool is_spent() const { return left_ < 0; }
  int64_t spent() const { return kSteps - left_; }
  // The error of a budget that is spent; `subject` begins it and says whose patterns they are.
  Result<void> check(const std::string& subject) const;

 private:
  int64_t left_ = kSteps;
};

class NamePattern {
 public:
  // `budget` of the list that it belongs to.
  static Result<NamePattern> compile(const std::string& text, MatchBudget& budget);
  static Result<std::vector<NamePattern>> compile_all(const std::vector<std::string>& texts, MatchBudget& budget);

  const std::string& text() const { return text_; }
  // Both are false where the budget is spent before they know: ask it before the answers are used.
  bool found_in(const std::string& name, MatchBudget& budget) const;  // anywhere
  bool matches_start(const std::string& name,
                     MatchBudget& budget) const;  // Python's re.match: from the beginning, not to the end

 private:
  bool matches(const std::string& name, uint32_t options, MatchBudget& budget) const;

  std::string text_;
  std::shared_ptr<const void> code_;  // pcre2_code, which is not named here: its header depends on a macro
};

// Whether one of them is found anywhere in the name.
bool any_found_in(const std::vector<NamePattern>& patterns, const std::string& name, MatchBudget& budget);

}  // namespace nybble::base
