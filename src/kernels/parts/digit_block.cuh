// Blocks of 128 input features times one or two tokens by mma.m16n8k32 of 8-bit integers: the columns of the mma that
// so few tokens leave empty take the digits of their activations.
//
//   Digits     A token's 128 activations in units of 2^-29 of the power of two above the largest of them, rounded to
//              nearest, are integers of four signed digits to the base 256, one in each of four columns. What is lost
//              is below 2^-30 of the largest: a bf16 is exact down to 2^-21 of it.
//   Codes      go in as they are, four in one LOP3: u for rows r, 16 u for rows r + 8. Sums begin at -z times the sum
//              of the digits, which a product with ones gives: all integer, all exact.
//   Sums       of a group are multiplied in fp32 by scale and unit, each digit's apart; join() adds up the digits.
//
// Half the instructions of exact_block.cuh, whose math, not memory, set the pace (docs/decisions/0011).
#pragma once

#include "kernels/gemm_config.h"
#include "kernels/parts/epilogue.cuh"
#include "kernels/parts/exact_block.cuh"
#include "kernels/ptx/mma.cuh"
#include "kernels/ptx/shared.cuh"

namespace nybble::kernels {

// What a lane turns into digits of a token's activations in a block: of step s = lane / 4 of sixteen features those at
// 2 t and 2 t + 1, and at 2 t + 8 and 2 t + 9 (t = lane % 4), as the codes of a fragment lie.
struct ActPairs {
  uint32_t low, high;
};

template <GemmFormat format, int row_tiles_of_warp, int tokens> struct DigitBlock {
  using Exact = ExactBlock<format, row_tiles_of_warp, 1>;
  using Act = typename Exact::Act;
  using Half = typename Exact::Half;
  using LanePlace = typename Exact::LanePlace;
  static constexpr int kUnitExponent = 0;  // codes are integers
  static constexpr int row_tiles = row_tiles_of_warp, token_tiles = 1;
  static constexpr int groups = format.groups;
  static constexpr int kDigits = 4;
  static constexpr int kSteps = layout::kBlockK / 16;
  static constexpr int kTokenWords = kDigits * 4 * kSteps;        // [digit][t][step]
  static constexpr int scratch_bytes = tokens * kTokenWords * 4;  // of a warp

  // Of each piece: rows r and r + 8 times the digits of this lane's two columns.
  using Sums = float[row_tiles][token_tiles][4];

  struct Zeros {
    uint32_t pair = 0x0808;  // zero points of rows r and r + 8, a byte each
    __device__ __forceinline__ void set_zeros(uint32_t zeros) { pair = zeros; }
  };
  Zeros codes[row_tiles];  // per column

  uint32_t digits[kSteps];  // operand B: of this lane's column
  float unit;               // of the most significant digit of this lane's token

  // Makes digits of a block's activations, of m tokens. `scratch`: shared memory of this warp; where it has room for
  // tokens that are not there, their columns hold whatever is there.
  __device__ __forceinline__ void set_acts(const ActPairs (&pairs)[tokens], int m, uint32_t scratch, uint32_t lane) {
    float units[tokens] = {};
    __syncwarp();  // what was there is read
#pragma unroll
    for (int token = 0; token < tokens; ++token)
      if (token < m)
        units[token] =
            store_digits(pairs[token], scratch + token * (kTokenWords * 4) + (lane % 4 * kSteps + lane / 4) * 4);
    __syncwarp();
    const uint32_t from = scratch + lane * (kSteps * 4);  // of column lane / 4
    const uint4 low = ptx::load_shared_128(from), high = ptx::load_shared_128(from + 16);
    digits[0] = low.x, digits[1] = low.y, digits[2] = low.z, digits[3] = low.w;
    digits[4] = high.x, digits[5] = high.y, digits[6] = high.z, digits[7] = high.w;
    unit = lane % 4 < 2 ? units[0] : units[tokens - 1];
  }

  // The integer sums of a group, from -z times the sum of its digits on.
  using Group = int[row_tiles][4];

  template <int half>
  __device__ __forceinline__ void multiply(Sums& sum, Group& group, const Half& data, float scale_factor) const {
    constexpr int steps_per_group = Exact::steps_per_group;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const int step = half * 4 + pair * 2, g = groups > 1 ? pair * 2 / steps_per_group : 0;
      Group start;
      if (step % steps_per_group == 0) begin_group<steps_per_group>(start, data, step, g);
#pragma unroll
      for (int t = 0; t < row_tiles; ++t) {
        const uint32_t first = pair == 0 ? data.words[t].x : data.words[t].z;
        const uint32_t second = pair == 0 ? data.words[t].y : data.words[t].w;
        ptx::mma_u8_s8(group[t], step % steps_per_group == 0 ? start[t] : group[t], first & 0x0F0F0F0Fu,
                       first & 0xF0F0F0F0u, second & 0x0F0F0F0Fu, second & 0xF0F0F0F0u, digits[step], digits[step + 1]);
      }
      if ((step + 2) % steps_per_group == 0) {
        constexpr float high_rows = 1.0f / 16;
        const float factor = ptx::is_bf16<Act> && groups > 0 ? scale_factor * unit : unit;
#pragma unroll
        for (int t = 0; t < row_tiles; ++t) {
          float low = factor, high = factor * high_rows;
          if constexpr (groups > 0)
            low *= ptx::low_float<Act>(data.scales[t][g]), high *= ptx::high_float<Act>(data.scales[t][g]);
          float(&to)[4] = sum[t][0];
          to[0] = fmaf(low, static_cast<float>(group[t][0]), to[0]);
          to[1] = fmaf(low, static_cast<float>(group[t][1]), to[1]);
          to[2] = fmaf(high, static_cast<float>(group[t][2]), to[2]);
          to[3] = fmaf(high, static_cast<float>(group[t][3]), to[3]);
        }
      }
    }
  }

  // Digits added up: of row r in lanes of even number, of row r + 8 in the others; token lane % 4 / 2.
  __device__ __forceinline__ static float join(const float (&sum)[4], uint32_t lane) {
    const float r = fmaf(sum[1], 0x1p-8f, sum[0]), r8 = fmaf(sum[3], 0x1p-8f, sum[2]);
    const bool odd = lane % 2 != 0;
    const float other = __shfl_xor_sync(~0u, odd ? r : r8, 1);
    return odd ? fmaf(r8, 0x1p-16f, other) : fmaf(other, 0x1p-16f, r);
  }

 private:
  template <int steps>
  __device__ __forceinline__ void begin_group(Group& group, const Half& data, int step, int g) const {
    constexpr uint32_t ones = 0x01010101u;
    int total[4] = {};
#pragma unroll
    for (int i = 0; i < steps; i += 2)
      ptx::mma_u8_s8(total, total, ones, ones, ones, ones, digits[step + i], digits[step + i + 1]);
#pragma unroll
    for (int t = 0; t < row_tiles; ++t) {
      const uint32_t zeros = format.zero_point && groups > 0 ? data.zeros[t][g] : codes[t].pair;
      const int low = format.zero_point ? static_cast<int>(zeros & 0xFF) : 8;
      const int high = format.zero_point ? static_cast<int>(zeros >> 8 & 0xFF) * 16 : 128;
      group[t][0] = -low * total[0], group[t][1] = -low * total[1];
      group[t][2] = -high * total[0], group[t][3] = -high * total[1];
    }
  }

  // One token's digits of this lane's four features, to `to` and the places of the other digits behind it; the unit of
  // the first digit, NaN where a feature is no finite number.
  __device__ __forceinline__ static float store_digits(const ActPairs& pairs, uint32_t to) {
    const float x[4] = {ptx::low_float<Act>(pairs.low), ptx::low_float<Act>(pairs.high),
                        ptx::high_float<Act>(pairs.low), ptx::high_float<Act>(pairs.high)};
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = max(largest, __float_as_uint(x[i]) & 0x7FFFFFFFu);
    const uint32_t exponent = max(__reduce_max_sync(~0u, largest) >> 23, 29u);  // below 2^(exponent - 126)
    const float to_units = __uint_as_float((283 - exponent) << 23);             // 2^(156 - exponent): below 2^30
    uint32_t v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      constexpr uint32_t halves = 0x00808080u;
      v[i] = (static_cast<uint32_t>(__float2int_rn(x[i] * to_units)) + halves) ^ halves;
    }
    const uint32_t low01 = __byte_perm(v[0], v[1], 0x5140), low23 = __byte_perm(v[2], v[3], 0x5140);
    const uint32_t high01 = __byte_perm(v[0], v[1], 0x7362), high23 = __byte_perm(v[2], v[3], 0x7362);
    constexpr int digit = 4 * kSteps * 4;
    ptx::store_shared_32(to, __byte_perm(high01, high23, 0x7632));
    ptx::store_shared_32(to + digit, __byte_perm(high01, high23, 0x5410));
    ptx::store_shared_32(to + 2 * digit, __byte_perm(low01, low23, 0x7632));
    ptx::store_shared_32(to + 3 * digit, __byte_perm(low01, low23, 0x5410));
    return exponent == 255 ? __uint_as_float(0x7FC00000u)
                           : __uint_as_float((exponent - 5) << 23);  // 2^(exponent - 132)
  }
};

}  // namespace nybble::kernels
