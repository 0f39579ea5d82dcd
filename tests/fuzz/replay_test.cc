// The fuzzer's targets without the fuzzer: what it once found, where it begins, and as many changes of that as a test
// has time for. A broken promise ends the program with words. With --gtest_repeat=N --gtest_shuffle, each round of
// which has another seed, and under the sanitizers (PRESET=sanitize), the last test is a fuzzer of its own.
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <set>

#include "fuzz/mutate.h"
#include "fuzz/seeds.h"
#include "fuzz/targets.h"
#include "support/temp_folder.h"

namespace nybble::fuzz {
namespace {

constexpr char kData[] = NYBBLE_SOURCE_DIR "/tests/data";
constexpr char kRegressions[] = NYBBLE_SOURCE_DIR "/tests/fuzz/regressions";

void run(const std::string& name, const std::string& input) {
  const Target* target = find_target(name);
  ASSERT_NE(target, nullptr) << name;
  target->run(*target, {reinterpret_cast<const uint8_t*>(input.data()), input.size()});
}

TEST(Fuzz, EveryTargetHasSeedsThatKeepThePromises) {
  std::set<std::string> seeded;
  for (const Seed& seed : seeds(kData)) {
    SCOPED_TRACE(seed.target + '/' + seed.name);
    run(seed.target, seed.bytes);
    seeded.insert(seed.target);
  }
  for (const Target& target : targets()) EXPECT_TRUE(seeded.contains(target.name)) << target.name;
}

TEST(Fuzz, WhatWasFoundStaysMended) {
  for (const auto& entry : std::filesystem::recursive_directory_iterator(kRegressions)) {
    if (!entry.is_regular_file()) continue;
    SCOPED_TRACE(entry.path().string());
    run(entry.path().parent_path().filename(), testing::read_text(entry.path()));
  }
}

TEST(Fuzz, MutantsOfTheSeedsKeepThePromises) {
  constexpr int kRounds = 100, kChanges = 3;
  constexpr size_t kMaxBytes = 16384;
  const auto seed = static_cast<uint64_t>(::testing::UnitTest::GetInstance()->random_seed());
  std::minstd_rand random(seed + 1);
  const auto blind = [&](std::string& bytes, size_t max_bytes) {
    const size_t at = bytes.empty() ? 0 : random() % bytes.size();
    if (bytes.empty() || (random() % 4 == 0 && bytes.size() < max_bytes))
      bytes.insert(at, 1, static_cast<char>(random()));
    else if (random() % 3 == 0)
      bytes.erase(at, 1 + random() % 4);
    else
      bytes[at] = static_cast<char>(random());
  };
  for (const Seed& each : seeds(kData)) {
    const Target* target = find_target(each.target);
    ASSERT_NE(target, nullptr) << each.target;
    for (int round = 0; round < kRounds; ++round) {
      std::string input = each.bytes;
      Mutator mutator(random(), blind);
      for (uint64_t changes = 1 + random() % kChanges; changes > 0; --changes)
        mutator.apply(target->kind, input, kMaxBytes);
      run(each.target, input);
    }
  }
}

}  // namespace
}  // namespace nybble::fuzz
