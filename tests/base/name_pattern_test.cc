// Regular expressions from files that may be hostile.
#include "base/name_pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nybble::base {
namespace {

using ::testing::HasSubstr;

NamePattern compiled(const std::string& text) {
  MatchBudget budget;
  const Result<NamePattern> pattern = NamePattern::compile(text, budget);
  EXPECT_TRUE(pattern) << pattern.error().message;
  return *pattern;
}

TEST(NamePattern, FindsAndMatchesAsPythonDoes) {
  const struct {
    const char *pattern, *name;
    bool found, start;
  } cases[] = {
      {"^(?!.*experts).*proj$", "layers.0.up_proj", true, true},
      {"^(?!.*experts).*proj$", "layers.0.experts.1.up_proj", false, false},
      {".*lm_head", "model.lm_head", true, true},
      {"lm_head", "model.lm_head", true, false},
      {R"(model\.layers\.\d+\.mlp)", "model.layers.17.mlp.up_proj", true, true},
      {R"(model\.layers\.\d+\.mlp$)", "model.layers.17.mlp.up_proj", false, false},
      {"(?i)VISION", "model.vision", true, false},
      {"(?P<which>up|gate)_proj", "gate_proj", true, true},
      {"(a)\\1", "baa", true, false},
      {"", "x", true, true},
  };
  for (const auto& c : cases) {
    MatchBudget budget;
    const NamePattern pattern = compiled(c.pattern);
    EXPECT_EQ(pattern.found_in(c.name, budget), c.found) << c.pattern << " " << c.name;
    EXPECT_EQ(pattern.matches_start(c.name, budget), c.start) << c.pattern << " " << c.name;
    EXPECT_FALSE(budget.is_spent()) << c.pattern;
    EXPECT_LT(budget.spent(), 1000) << c.pattern;
  }
}

TEST(NamePattern, SaysWhatIsWrong) {
  MatchBudget budget;
  EXPECT_THAT(NamePattern::compile("a(b", budget).error().message, HasSubstr("'a(b' is no regular expression"));
  EXPECT_THAT(NamePattern::compile(std::string(2049, 'a'), budget).error().message, HasSubstr("2049 bytes"));
  EXPECT_FALSE(NamePattern::compile("((a{1000}){1000}){1000}", budget));
  EXPECT_FALSE(NamePattern::compile("a{7777777777777777777}", budget));  // std::regex multiplied it past an int64_t
  EXPECT_FALSE(NamePattern::compile("(*UTF)a", budget));
  EXPECT_FALSE(NamePattern::compile(std::string(100, '(') + std::string(100, ')'), budget));
}

// Expressions that make a matcher run for ages, one by backtracking, one by looking ahead from everywhere within
// looking ahead, and one that takes much memory to come back to: the budget ends them.
TEST(NamePattern, IsNotStalledByWhatItMeets) {
  const std::string name(4096, 'a');
  std::string ahead = "x";
  for (int i = 0; i < 60; ++i) ahead = "(?=.*" + ahead + ")";
  for (const std::string& text : {std::string("(a+)+(a+)+(a|aa)*$x"), ahead + "a", std::string("(?:(a)|b)*x")}) {
    MatchBudget budget;
    const Result<NamePattern> evil = NamePattern::compile(text, budget);
    ASSERT_TRUE(evil) << evil.error().message;
    for (int i = 0; i < 1000 && !budget.is_spent(); ++i) evil->found_in(name + 'x' + name, budget);
    EXPECT_TRUE(budget.is_spent()) << text;
    EXPECT_THAT(budget.check("it").error().message,
                HasSubstr("it: comparing names with all that it lists takes more than 50000000 steps"));
    EXPECT_FALSE(compiled("a").found_in("a", budget)) << "a budget that is spent stays so";
  }
}

// Their memory is counted: a budget holds no more than a few hundred of these.
TEST(NamePattern, CountsWhatPatternsTake) {
  MatchBudget budget;
  int held = 0;
  while (NamePattern::compile("(?:ab){1000}", budget)) ++held;
  EXPECT_GT(held, 50);
  EXPECT_LT(held, 500);
  EXPECT_TRUE(budget.is_spent());
}

}  // namespace
}  // namespace nybble::base
