// Regular expressions from files that may be hostile.
#include "base/name_pattern.h"

#include <gtest/gtest.h>

namespace nybble::base {
namespace {

// An expression that makes a backtracking matcher run for ages, and one that makes a recursive one overflow its stack.
TEST(NamePattern, IsNotStalledByWhatItMeets) {
  const auto evil = NamePattern::compile("(a+)+(a+)+(a|aa)*$x");
  ASSERT_TRUE(evil) << evil.error().message;
  EXPECT_FALSE(evil->matches_start(std::string(4096, 'a')));
  const auto ahead = NamePattern::compile("^(?!.*experts).*proj$");
  ASSERT_TRUE(ahead) << ahead.error().message;
  EXPECT_TRUE(ahead->found_in("layers.0.up_proj"));
  EXPECT_FALSE(ahead->found_in("layers.0.experts.1.up_proj"));
  EXPECT_FALSE(NamePattern::compile("((a{1000}){1000}){1000}"));
}

}  // namespace
}  // namespace nybble::base
