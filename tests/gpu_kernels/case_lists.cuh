// Which formats and shapes the kernel tests go through.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gpu_kernels/workbench.cuh"
#include "nybble/types.h"
#include "support/case_data.h"
#include "support/random.h"

namespace nybble::testing {

struct FormatCase {
  DType act;
  WeightFormat format;
  bool served_fast;  // formats that kernel families are built for; the others go to the general rows
};

inline std::vector<FormatCase> format_cases() {
  std::vector<FormatCase> cases;
  for (DType act : {DType::kBf16, DType::kFp16}) {
    const DType other = act == DType::kBf16 ? DType::kFp16 : DType::kBf16;
    const auto add = [&](int group, ZeroKind zero, DType scale, bool order, bool fast) {
      cases.push_back({act, {.scale_dtype = scale, .zero_kind = zero, .group_size = group, .k_order = order}, fast});
    };
    for (ZeroKind zero : {ZeroKind::kNone, ZeroKind::kInt})
      for (int group : {128, 64, 32, kPerColumn}) add(group, zero, act, false, true);
    for (int group : {16, 48, 256}) {
      add(group, ZeroKind::kNone, act, false, false);
      add(group, ZeroKind::kInt, act, false, false);
    }
    for (DType scale : {other, DType::kFp32})
      for (int group : {128, kPerColumn})
        add(group, group == 128 ? ZeroKind::kInt : ZeroKind::kNone, scale, false, false);
    for (ZeroKind zero : {ZeroKind::kFloat, ZeroKind::kOffset})
      for (int group : {128, 32, kPerColumn}) add(group, zero, group == 32 ? DType::kFp32 : act, false, false);
    add(128, ZeroKind::kNone, act, true, false);
    add(64, ZeroKind::kInt, act, true, false);
    add(kPerColumn, ZeroKind::kInt, act, true, false);
  }
  return cases;
}

struct Shape {
  int64_t n, k;
};

// Output features around multiples of 64 and of every tile_n, input features from one up to more than any ring of
// stages holds, with tails.
inline std::vector<Shape> edge_shapes() {
  if (reduced()) return {{65, 129}, {200, 1100}};
  return {{1, 1},     {8, 16},     {7, 17},     {64, 64},    {64, 128},   {65, 129},  {63, 127},   {128, 128},
          {72, 100},  {136, 192},  {129, 255},  {192, 256},  {200, 320},  {256, 384}, {257, 383},  {264, 512},
          {320, 640}, {127, 1000}, {384, 1024}, {512, 1152}, {500, 1536}, {513, 768}, {640, 2048}, {1000, 2240},
          {96, 3000}, {16, 4096},  {64, 4224},  {776, 1408}, {1032, 896}};
}

// Every residue of n mod 64 and of k mod 128 (both twice), at sizes that stay small.
inline std::vector<Shape> residue_shapes() {
  std::vector<Shape> shapes;
  for (int64_t i = 0; i < (reduced() ? 2 : 128); ++i)
    shapes.push_back({1 + i + 64 * (i % 3), 1 + (i * 37) % 128 + 128 * (i % 7)});
  return shapes;
}

// More tiles than SMs, so that a CTA walks over several, and sums long enough to be split; one tile that
// stream-K shares among more ranges than a warpgroup has threads, with as many input features as sums stay exact for.
struct LargeCase {
  Shape shape;
  std::vector<int64_t> m;
};
inline std::vector<LargeCase> large_cases() {
  if (reduced()) return {};
  return {{{8192, 1024}, {1, 300, 2049}},
          {{4096, 4096}, {1, 8, 16, 64, 513}},
          {{28672, 512}, {1, 4, 16, 128}},
          {{4096, 14336}, {1, 16, 33, 200}},
          {{64, 42900}, {12, 33}}};
}

inline std::vector<int64_t> edge_tokens(int tile_m) {
  std::vector<int64_t> tokens = {1,  2,  3,   7,   8,   9,   15,  16,  17,  31,  32,  33,  63,
                                 64, 65, 100, 127, 128, 129, 130, 200, 255, 256, 257, 300, 513};
  if (reduced()) return {1, 17, tile_m + 1};
  for (int64_t m : {tile_m - 1, tile_m, tile_m + 1, 2 * tile_m - 1, 2 * tile_m + 1})
    if (m >= 1 && m <= 520) tokens.push_back(m);
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  return tokens;
}
inline constexpr int64_t kMostEdgeTokens = 520;

}  // namespace nybble::testing
