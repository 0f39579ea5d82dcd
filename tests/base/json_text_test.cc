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
