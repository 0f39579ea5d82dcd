#include <gtest/gtest.h>

#include <cmath>

#include "base/float16.h"
#include "base/parallel.h"
#include "nybble/types.h"

namespace nybble {
namespace {

TEST(ProblemText, RoundTrips) {
  for (const char* text : {"m16 n4096 k4096 bf16 g128", "m1 n512 k300 fp16 out=fp32 g64 zp bias", "m0 n1 k1 bf16 col",
                           "m3 n64 k64 bf16 g32 sfp16 offset order wide residual unaligned",
                           "m3 n64 k64 bf16 g48 fzp layout=2", "m3 n64 k64 bf16 g16 sfp32 table"}) {
    const Result<Problem> problem = parse_problem(text);
    ASSERT_TRUE(problem) << problem.error().message;
    EXPECT_EQ(to_string(*problem), text);
  }
}

TEST(ProblemText, RefusesWithTheWord) {
  for (const char* text :
       {"m16 n4096 bf16 g128", "m16 n4096 k4096 bf16 g0", "m-1 n1 k1 bf16", "m1 n1 k1 int8", "m1 n1 k1x bf16"}) {
    const Result<Problem> problem = parse_problem(text);
    ASSERT_FALSE(problem) << text;
    EXPECT_EQ(problem.error().code, ErrorCode::kInvalidArgument);
  }
  EXPECT_NE(parse_problem("m1 n1 k1 bf16 bananas").error().message.find("bananas"), std::string::npos);
}

TEST(Float16, EveryHalfSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float half = base::fp16_to_float(static_cast<uint16_t>(bits)),
                brain = base::bf16_to_float(static_cast<uint16_t>(bits));
    if (std::isnan(half)) {
      EXPECT_TRUE(std::isnan(base::fp16_to_float(base::float_to_fp16(half))));
    } else {
      EXPECT_EQ(base::float_to_fp16(half), bits);
    }
    if (!std::isnan(brain)) {
      EXPECT_EQ(base::float_to_bf16(brain), bits);
    }
  }
}

TEST(Float16, RoundsToNearestEven) {
  EXPECT_EQ(base::float_to_fp16(65519.996f), 0x7BFF);
  EXPECT_EQ(base::float_to_fp16(65520.0f), 0x7C00);
  EXPECT_EQ(base::float_to_fp16(0x1p-25f), 0);  // half of the smallest subnormal: ties to even
  EXPECT_EQ(base::float_to_fp16(0x1.000002p-25f), 1);
  EXPECT_EQ(base::float_to_fp16(1.0f + 0x1p-11f), 0x3C00);
  EXPECT_EQ(base::float_to_fp16(1.0f + 0x3p-11f), 0x3C02);
  EXPECT_EQ(base::float_to_bf16(1.0f + 0x1p-8f), 0x3F80);
  EXPECT_EQ(base::float_to_bf16(1.0f + 0x3p-8f), 0x3F82);
}

TEST(ParallelFor, RunsEveryItemOnceAndNests) {
  for (int threads : {1, 2, 3, 7}) {
    std::vector<int> hits(1000, 0);
    base::parallel_for(10, threads, [&](int64_t i) {
      base::parallel_for(100, threads, [&](int64_t j) { ++hits[static_cast<size_t>(i * 100 + j)]; });
    });
    for (int h : hits) EXPECT_EQ(h, 1);
  }
}

}  // namespace
}  // namespace nybble
