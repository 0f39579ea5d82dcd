// The statistics file: what the collector writes, what the reader makes of it, and what it refuses.
#include "nybble/statistics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "checkpoint/model_building.h"
#include "support/random.h"
#include "support/temp_folder.h"

namespace nybble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using namespace testing;

TEST(StatisticsFile, WhatTheCollectorAddsUp) {
  const TempFolder folder;
  StatisticsCollector collector;
  ASSERT_TRUE(collector.declare("a.q", 2, StatisticsKind::kHessian));
  ASSERT_TRUE(collector.share("a.k", "a.q"));
  ASSERT_TRUE(collector.declare("a.down", 3, StatisticsKind::kMeanSquare));
  ASSERT_TRUE(collector.add("a.q", std::vector<float>{1, 2, 3, -4}, 0));
  ASSERT_TRUE(collector.add("a.q", std::vector<float>{0, 5}, 0));
  ASSERT_TRUE(collector.add("a.down", std::vector<float>{1, 0, 2, 3, 0, 4}, 0));
  ASSERT_TRUE(collector.write(folder / "stats.safetensors"));

  const Result<StatisticsFile> file = StatisticsFile::open(folder / "stats.safetensors");
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_THAT(file->layers(), ElementsAre("a.down", "a.k", "a.q"));
  EXPECT_TRUE(file->has("a.k"));
  EXPECT_FALSE(file->has("a.v"));
  for (const char* name : {"a.q", "a.k"}) {
    const LayerStatistics statistics = *file->read(name);
    EXPECT_EQ(statistics.layer, name);
    EXPECT_EQ(statistics.k, 2);
    EXPECT_EQ(statistics.tokens, 3);
    EXPECT_THAT(statistics.hessian, ElementsAre(10.0f / 3, -10.0f / 3, -10.0f / 3, 15));
    EXPECT_THAT(statistics.mean_square, ElementsAre(10.0f / 3, 15));
  }
  const LayerStatistics down = *file->read("a.down");
  EXPECT_TRUE(down.hessian.empty());
  EXPECT_THAT(down.mean_square, ElementsAre(5, 0, 10));
  EXPECT_THAT(file->read("a.v").error().message, HasSubstr("'a.v'"));
  EXPECT_EQ(*file->content_hash(), *StatisticsFile::open(folder / "stats.safetensors")->content_hash());
}

TEST(StatisticsCollector, LargerSumsAndThreads) {
  const TempFolder folder;
  constexpr int64_t kK = 75, kTokens = 90;
  const RandomStream random(3, 1);
  std::vector<float> act(kTokens * kK);
  for (size_t i = 0; i < act.size(); ++i) act[i] = static_cast<float>(random.normal(i));
  for (const int threads : {1, 4}) {
    StatisticsCollector collector;
    ASSERT_TRUE(collector.declare("x", kK, StatisticsKind::kHessian));
    ASSERT_TRUE(collector.add("x", act, threads));
    ASSERT_TRUE(collector.write(folder / std::to_string(threads)));
  }
  EXPECT_EQ(read_text(folder / "1"), read_text(folder / "4"));
  const LayerStatistics statistics = *StatisticsFile::open(folder / "1")->read("x");
  for (int64_t i = 0; i < kK; ++i) {
    for (int64_t j = 0; j < kK; ++j) {
      double sum = 0;
      for (int64_t t = 0; t < kTokens; ++t) sum += double{act[t * kK + i]} * act[t * kK + j];
      ASSERT_NEAR(statistics.hessian[i * kK + j], sum / kTokens, 1e-6);
    }
  }
}

TEST(StatisticsCollector, WrongRequests) {
  const TempFolder folder;
  StatisticsCollector collector;
  EXPECT_THAT(collector.write(folder / "x").error().message, HasSubstr("no layer"));
  EXPECT_THAT(collector.declare("a", 0, StatisticsKind::kHessian).error().message, HasSubstr("k is 0"));
  EXPECT_THAT(collector.share("b", "a").error().message, HasSubstr("not declared"));
  EXPECT_THAT(collector.add("a", {}, 0).error().message, HasSubstr("not declared"));
  ASSERT_TRUE(collector.declare("a", 2, StatisticsKind::kHessian));
  EXPECT_THAT(collector.declare("a", 2, StatisticsKind::kHessian).error().message, HasSubstr("already"));
  EXPECT_THAT(collector.share("a", "a").error().message, HasSubstr("already"));
  EXPECT_THAT(collector.add("a", std::vector<float>{1, 2, 3}, 0).error().message, HasSubstr("whole tokens"));
  EXPECT_THAT(collector.add("a", std::vector<float>{1, 2, 3, INFINITY}, 0).error().message,
              HasSubstr("input 1 of token 1"));
  EXPECT_THAT(collector.write(folder / "x").error().message, HasSubstr("no token"));
  ASSERT_TRUE(collector.add("a", std::vector<float>{3e38f, 1}, 0));
  EXPECT_THAT(collector.write(folder / "x").error().message, HasSubstr("fp32"));
  EXPECT_TRUE(files_in(folder.path()).empty());
}

constexpr char kGood[] = R"({"nybble.statistics":"1","tokens.a":"7"})";

std::string refusal(const std::string& metadata, const std::vector<TestTensor>& tensors) {
  const TempFolder folder;
  write_text(folder / "s", safetensors(tensors, metadata));
  const Result<StatisticsFile> file = StatisticsFile::open(folder / "s");
  if (!file) return file.error().message;
  for (const std::string& layer : file->layers())
    if (const Result<LayerStatistics> read = file->read(layer); !read) return read.error().message;
  return "accepted";
}

TEST(StatisticsFile, RefusesWhatLies) {
  const TestTensor good{"a.mean_square", "F32", {2}, f32({1, 2})};
  const TestTensor hessian{"a.hessian", "F32", {2, 2}, f32({1, 0.5f, 0.5f, 2})};
  EXPECT_EQ(refusal(kGood, {good}), "accepted");
  EXPECT_EQ(refusal(kGood, {hessian}), "accepted");
  EXPECT_THAT(refusal(R"({"format":"pt"})", {good}), HasSubstr("no statistics file"));
  EXPECT_THAT(refusal(R"({"nybble.statistics":"2","tokens.a":"7"})", {good}), HasSubstr("format '2'"));
  EXPECT_THAT(refusal(R"({"nybble.statistics":"1"})", {good}), HasSubstr("tokens."));
  for (const char* tokens : {"0", "-1", "1.5", "", "7 ", "99999999999999999999"})
    EXPECT_THAT(refusal(std::string(R"({"nybble.statistics":"1","tokens.a":")") + tokens + "\"}", {good}),
                HasSubstr("number of tokens"))
        << tokens;
  EXPECT_THAT(refusal(R"({"nybble.statistics":"1","tokens.a":"7","tokens.b":"7"})", {good}), HasSubstr("tokens.b"));
  EXPECT_THAT(refusal(R"({"nybble.statistics":"1"})", {}), HasSubstr("no layer"));
  EXPECT_THAT(refusal(kGood, {good, hessian}), HasSubstr("both"));
  EXPECT_THAT(refusal(kGood, {{"a.mean_square", "F32", {1, 2}, f32({1, 2})}}), HasSubstr("[1, 2]"));
  EXPECT_THAT(refusal(kGood, {{"a.hessian", "F32", {1, 2}, f32({1, 2})}}), HasSubstr("[1, 2]"));
  EXPECT_THAT(refusal(kGood, {{"a.mean_square", "F16", {2}, u16({1, 2})}}), HasSubstr("F16"));
  EXPECT_THAT(refusal(kGood, {{"a.mean_square", "F32", {0}, ""}}), HasSubstr("[0]"));
  EXPECT_THAT(refusal(kGood, {{"a.max", "F32", {2}, f32({1, 2})}}), HasSubstr(".hessian"));
  EXPECT_THAT(refusal(kGood, {{"a.mean_square", "F32", {2}, f32({1, -2})}}), HasSubstr("input 1"));
  EXPECT_THAT(refusal(kGood, {{"a.mean_square", "F32", {2}, f32({NAN, 2})}}), HasSubstr("input 0"));
  EXPECT_THAT(refusal(kGood, {{"a.hessian", "F32", {2, 2}, f32({1, 0.5f, 0.25f, 2})}}), HasSubstr("not symmetric"));
  EXPECT_THAT(refusal(kGood, {{"a.hessian", "F32", {2, 2}, f32({1, INFINITY, INFINITY, 2})}}), HasSubstr("[1, 0]"));
  EXPECT_THAT(refusal(R"({"nybble.statistics":"1","tokens.a":"7","same_input.b":"c"})", {good}), HasSubstr("'c'"));
  EXPECT_THAT(refusal(R"({"nybble.statistics":"1","tokens.a":"7","same_input.a":"a"})", {good}),
              HasSubstr("of its own"));
  EXPECT_THAT(refusal(R"({"nybble.statistics":"1","tokens.a":"7","same_input.b":"a","same_input.c":"b"})", {good}),
              HasSubstr("'b'"));
  EXPECT_EQ(refusal(R"({"nybble.statistics":"1","tokens.a":"7","same_input.b":"a"})", {good}), "accepted");
}

TEST(StatisticsFile, TruncationIsSeen) {
  const TempFolder folder;
  const std::string whole = safetensors({{"a.mean_square", "F32", {2}, f32({1, 2})}}, kGood);
  for (size_t length = 0; length < whole.size(); ++length) {
    write_text(folder / "s", whole.substr(0, length));
    ASSERT_FALSE(StatisticsFile::open(folder / "s")) << length;
  }
  EXPECT_FALSE(StatisticsFile::open(folder / "missing"));
}

}  // namespace
}  // namespace nybble
