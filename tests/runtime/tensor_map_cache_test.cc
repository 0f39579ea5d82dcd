// The cache of tensor maps, with an encoder that writes its arguments into the map: hits, misses, replacement, and the
// right map whatever the mix.
#include "runtime/tensor_map_cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <type_traits>
#include <vector>

#include "base/error.h"

namespace nybble::runtime {
namespace {

// Every thread that launches has one.
static_assert(sizeof(TensorMapCache) <= 20'000);
static_assert(std::is_trivially_destructible_v<TensorMapCache>);

struct Key {
  MatrixView matrix;
  int box_rows;
};

CUtensorMap map_of(const Key& key) {
  CUtensorMap map{};
  const uint64_t words[] = {reinterpret_cast<uintptr_t>(key.matrix.data), static_cast<uint64_t>(key.matrix.rows),
                            static_cast<uint64_t>(key.matrix.columns),    static_cast<uint64_t>(key.matrix.ld),
                            static_cast<uint64_t>(key.matrix.bf16),       static_cast<uint64_t>(key.box_rows)};
  std::memcpy(map.opaque, words, sizeof words);
  return map;
}

Key key_at(uintptr_t address) { return {{reinterpret_cast<const void*>(address), 16, 4096, 4096, true}, 16}; }

// A cache whose encoder counts its calls.
class CountingCache {
 public:
  // Asks the cache, holds the answer against the key; true: the encoder was not needed.
  bool hits(const Key& key) {
    const int before = encoded_;
    const Result<CUtensorMap> map =
        cache_.get(key.matrix, {key.box_rows}, [&](const MatrixView& matrix, const TensorBox& box) {
          ++encoded_;
          return Result<CUtensorMap>(map_of({matrix, box.rows}));
        });
    const CUtensorMap want = map_of(key);
    EXPECT_TRUE(map);
    EXPECT_EQ(std::memcmp(&*map, &want, sizeof want), 0) << "the map of another matrix";
    return encoded_ == before;
  }

 private:
  TensorMapCache cache_;
  int encoded_ = 0;
};

TEST(TensorMapCache, EncodesOnce) {
  CountingCache cache;
  EXPECT_FALSE(cache.hits(key_at(0x7000'0000)));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(cache.hits(key_at(0x7000'0000)));
}

TEST(TensorMapCache, NullMatrixIsNoEmptyEntry) {
  CountingCache cache;
  EXPECT_FALSE(cache.hits({{nullptr, 0, 0, 0, false}, 0}));
}

TEST(TensorMapCache, EveryFieldOfTheKeyMatters) {
  const Key key = key_at(0x7000'0000);
  std::vector<Key> others(6, key);
  others[0].matrix.data = reinterpret_cast<const void*>(0x7000'0010);
  others[1].matrix.rows = 17;
  others[2].matrix.columns = 4104;
  others[3].matrix.ld = 4104;
  others[4].matrix.bf16 = false;
  others[5].box_rows = 8;
  for (const Key& other : others) {
    CountingCache cache;
    EXPECT_FALSE(cache.hits(key));
    EXPECT_FALSE(cache.hits(other));
    EXPECT_TRUE(cache.hits(key));
    EXPECT_TRUE(cache.hits(other));
  }
}

TEST(TensorMapCache, ReplacesTheLeastRecentlyUsed) {
  constexpr int kEntries = TensorMapCache::kEntries;
  CountingCache cache;
  const auto key = [](int i) { return key_at(0x7000'0000 + i * 256); };
  for (int i = 0; i < kEntries; ++i) EXPECT_FALSE(cache.hits(key(i)));
  for (int i = 0; i < kEntries; ++i) EXPECT_TRUE(cache.hits(key(i))) << i;
  EXPECT_TRUE(cache.hits(key(0)));
  EXPECT_FALSE(cache.hits(key(kEntries)));  // in place of key(1)
  for (int i = 0; i <= kEntries; ++i)
    if (i != 1) {
      EXPECT_TRUE(cache.hits(key(i))) << i;
    }
  EXPECT_FALSE(cache.hits(key(1)));
}

TEST(TensorMapCache, GivesTheRightMapUnderAnyMix) {
  CountingCache cache;
  std::mt19937_64 random(1);
  int hits = 0, misses = 0;
  for (int i = 0; i < 200'000; ++i) {
    const uint64_t bits = random() & random();  // some matrices more often than others
    Key key = key_at(0x7000'0000 + (bits & 7) * 16);
    key.matrix.rows = 1 + static_cast<int64_t>(bits >> 3 & 3);
    key.matrix.columns = 64 << (bits >> 5 & 1);
    key.matrix.ld = 128 << (bits >> 6 & 1);
    key.matrix.bf16 = (bits >> 7 & 1) != 0;
    key.box_rows = 8 << (bits >> 8 & 1);
    ++(cache.hits(key) ? hits : misses);
  }
  EXPECT_GT(hits, 10'000);
  EXPECT_GT(misses, 10'000);
}

TEST(TensorMapCache, ForgetsErrors) {
  TensorMapCache cache;
  const Key key = key_at(0x7000'0000);
  const auto fails = [](const MatrixView&, const TensorBox&) {
    return Result<CUtensorMap>(cuda_error("no driver today"));
  };
  const auto works = [](const MatrixView& matrix, const TensorBox& box) {
    return Result<CUtensorMap>(map_of({matrix, box.rows}));
  };
  const Result<CUtensorMap> failed = cache.get(key.matrix, {key.box_rows}, fails);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().message, "no driver today");
  EXPECT_TRUE(cache.get(key.matrix, {key.box_rows}, works));
  EXPECT_TRUE(cache.get(key.matrix, {key.box_rows}, fails)) << "asked the encoder again";
}

}  // namespace
}  // namespace nybble::runtime
