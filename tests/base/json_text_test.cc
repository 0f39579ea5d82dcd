// What parse_json refuses beside broken syntax, and how untrusted text is shown.
#include "base/json_text.h"

#include <gmock/gmock.h>

namespace nybble {
namespace {

using ::testing::HasSubstr;

TEST(JsonText, BoundsTheNumberOfValues) {
  std::string text = "[";
  for (int i = 0; i < 100; ++i) text += "[],";
  text += "0]";
  EXPECT_TRUE(base::parse_json(text, "x", {.max_values = 400}));
  EXPECT_THAT(base::parse_json(text, "x", {.max_values = 100}).error().message, HasSubstr("more than 100 JSON values"));
}

// One byte more than a token may have: a string (escaped quotes do not end it), a number, a run of spaces.
TEST(JsonText, BoundsTokens) {
  const std::string full(base::kMaxTokenBytes - 2, 'a');
  for (const std::string& token :
       {'"' + full + '"', std::string(base::kMaxTokenBytes, '9'), std::string(base::kMaxTokenBytes, ' ') + "1"}) {
    EXPECT_TRUE(base::bounded_json("[" + token + "]", "x")) << token[0];
    const std::string longer = token.substr(0, 1) + (token[0] == '"' ? "\\" : token.substr(0, 1)) + token.substr(1);
    const auto bounded = base::bounded_json("[" + longer + "]", "x", 8);
    ASSERT_FALSE(bounded) << token[0];
    EXPECT_EQ(bounded.error().message, "x, byte 9: a string, a number or a run of spaces has more than 4194304 bytes");
    EXPECT_THAT(base::parse_json("[" + longer + "]", "x", {}).error().message, HasSubstr("byte 1: a string"));
  }
  EXPECT_FALSE(base::bounded_json("[\"" + full + full, "x"));  // without an end
  EXPECT_FALSE(base::bounded_json("[\"" + std::string(base::kMaxTokenBytes, '\\'), "x"));
  EXPECT_EQ(*base::bounded_json("{} \n" + std::string(2 * base::kMaxTokenBytes, ' '), "x"), "{}");
  EXPECT_TRUE(base::parse_json("[1]" + std::string(2 * base::kMaxTokenBytes, ' '), "x", {}));
  EXPECT_EQ(*base::bounded_json(" \t", "x"), "");
}

TEST(JsonText, KeysInTheOrderOfTheText) {
  const std::string text = R"({"a":{"z":1,"b":[{"z":2,"a":{"q":3}}],"a":{}},"z":{"a":{"y":0}},"b":[{"a":{"x":0}}]})";
  const auto keys = [&](const std::vector<std::string>& path) { return base::keys_in_order(text, path); };
  EXPECT_EQ(keys({}), (std::vector<std::string>{"a", "z", "b"}));
  EXPECT_EQ(keys({"a"}), (std::vector<std::string>{"z", "b", "a"}));
  EXPECT_EQ(keys({"z", "a"}), std::vector<std::string>{"y"});
  EXPECT_EQ(keys({"a", "a"}), std::vector<std::string>{});
  EXPECT_EQ(keys({"b", "a"}), std::vector<std::string>{});  // an array's element is not passed through
  EXPECT_EQ(keys({"a", "z"}), std::vector<std::string>{});
}

TEST(JsonText, PrintsUntrustedText) {
  EXPECT_EQ(base::printable("plain"), "'plain'");
  EXPECT_EQ(base::printable("a\x1b[31m\n\x7f"), "'a\\x1b[31m\\x0a\\x7f'");
  EXPECT_EQ(base::printable(std::string(101, 'a')), "'" + std::string(100, 'a') + "...'");
  EXPECT_EQ(base::printable(std::string(99, 'a') + "\xc3\xa9"),
            "'" + std::string(99, 'a') + "...'");  // no half of a character
}

TEST(JsonText, NamesTheLineOfAnError) {
  EXPECT_THAT(base::parse_json("{\n\"a\": 1,\n\"b\": }", "x.json", {}).error().message,
              HasSubstr("x.json: is not valid JSON at line 3: syntax error"));
}

}  // namespace
}  // namespace nybble
