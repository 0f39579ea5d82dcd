// Blocks of 128 input features times a few tokens by mma.m16n8k16, the weight as A, Numerics::kExactWeight: codes minus
// zero points stay exact (exact_codes.cuh), sums over a group are fp32, scales multiply them in fp32; per column the
// scale multiplies the sum over all of a warp's blocks.
#pragma once

#include "kernels/gemm_config.h"
#include "kernels/parts/epilogue.cuh"
#include "kernels/parts/exact_codes.cuh"
#include "kernels/parts/scale_factors.cuh"
#include "kernels/ptx/mma.cuh"
#include "kernels/ptx/shared.cuh"

namespace nybble::kernels {

// One warp's part of a block.
template <GemmFormat format, int row_tiles, int token_tiles> struct ExactBlock {
  using Act = std::conditional_t<format.act == DType::kBf16, __nv_bfloat16, __half>;
  // Pieces of 16 output features x times 8 tokens, in the order of the mma's accumulators.
  using Sums = float[row_tiles][token_tiles][4];
  static constexpr layout::BlockShape block = format.block();
  static constexpr int piece_bytes = block.piece_bytes(), groups = format.groups;
  static constexpr int scales_offset = block.scale_offset(0, 0), zeros_offset = block.zero_offset(0, 0);
  static constexpr int steps_per_group = groups == 0 ? 8 : 8 / groups;
  static constexpr int groups_per_half = groups > 1 ? groups / 2 : 1;

  using Tokens = uint32_t[token_tiles][4];  // operand B of two k16 steps

  // What a lane holds of half a block: the codes of 64 input features, and the zero points and scales that come to use
  // there: those of its groups; of a group of 128, the zero point in half 0 and the scale in half 1.
  struct Half {
    uint4 words[row_tiles];
    uint32_t scales[row_tiles][groups_per_half], zeros[row_tiles][groups_per_half];
  };

  // Where a lane finds its part of a piece.
  struct LanePlace {
    uint32_t codes, scales, zeros;
    __device__ explicit LanePlace(uint32_t lane)
        : codes(lane * 16), scales(scales_offset + lane / 4 * 4), zeros(zeros_offset + lane / 4 * 2) {}
  };

  ExactCodes<Act> codes[row_tiles];

  __device__ __forceinline__ ExactBlock() {
#pragma unroll
    for (int t = 0; t < row_tiles; ++t) codes[t].set_symmetric();
  }

  __device__ __forceinline__ static void clear(Sums& sum) {
#pragma unroll
    for (int t = 0; t < row_tiles; ++t)
#pragma unroll
      for (int n = 0; n < token_tiles; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[t][n][j] = 0.0f;
  }

  // `weight`: shared address of the warp's first piece. Where `valid` is false, `data` stays as it was.
  template <int half>
  __device__ __forceinline__ static void load(Half& data, uint32_t weight, const LanePlace& place, bool valid = true) {
#pragma unroll
    for (int t = 0; t < row_tiles; ++t) {
      ptx::load_shared_128_if(data.words[t], weight + place.codes + (t * piece_bytes + half * layout::kHalfBytes),
                              valid);
#pragma unroll
      for (int g = 0; g < groups_per_half; ++g) {
        const int group = groups > 1 ? half * groups_per_half + g : 0;
        if (groups > 1 || (groups == 1 && half == 1))
          ptx::load_shared_32_if(data.scales[t][g],
                                 weight + place.scales + (t * piece_bytes + group * layout::kPieceN * 2), valid);
        if (format.zero_point && (groups > 1 || (groups == 1 && half == 0)))
          ptx::load_shared_16_if(data.zeros[t][g], weight + place.zeros + (t * piece_bytes + group * layout::kPieceN),
                                 valid);
      }
    }
  }

  // Half a block times its tokens: load_tokens(pair, b) gives operand B of two k16 steps. `part` holds the sums of a
  // group that goes on into half 1.
  template <int half, class LoadTokens>
  __device__ __forceinline__ void multiply(Sums& sum, Sums& part, const Half& data, float scale_factor,
                                           LoadTokens load_tokens) {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      Tokens b;
      load_tokens(pair, b);
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        const int in_half = pair * 2 + q, step = half * 4 + in_half;
        const int g = groups > 1 ? in_half / steps_per_group : 0;
#pragma unroll
        for (int t = 0; t < row_tiles; ++t) {
          if (format.zero_point && groups > 0 && step % steps_per_group == 0) codes[t].set_zeros(data.zeros[t][g]);
          const uint4& words = data.words[t];
          uint32_t a[4];
          codes[t](a, in_half == 0 ? words.x : in_half == 1 ? words.y : in_half == 2 ? words.z : words.w);
#pragma unroll
          for (int n = 0; n < token_tiles; ++n) {
            if constexpr (groups == 0)
              ptx::mma<Act>(sum[t][n], a[0], a[1], a[2], a[3], b[n][2 * q], b[n][2 * q + 1]);
            else if (step % steps_per_group == 0)
              ptx::mma_from<Act>(part[t][n], a[0], a[1], a[2], a[3], b[n][2 * q], b[n][2 * q + 1], 0.f, 0.f, 0.f, 0.f);
            else
              ptx::mma<Act>(part[t][n], a[0], a[1], a[2], a[3], b[n][2 * q], b[n][2 * q + 1]);
          }
        }
        if (groups > 0 && (step + 1) % steps_per_group == 0) {
#pragma unroll
          for (int t = 0; t < row_tiles; ++t) add_group(part[t], sum[t], data.scales[t][g], scale_factor);
        }
      }
    }
  }

 private:
  __device__ static void add_group(const float (&part)[token_tiles][4], float (&sum)[token_tiles][4], uint32_t scales,
                                   float factor) {
    const float2 scale = group_scales<Act>(scales, factor);
#pragma unroll
    for (int n = 0; n < token_tiles; ++n) {
      sum[n][0] = fmaf(scale.x, part[n][0], sum[n][0]), sum[n][1] = fmaf(scale.x, part[n][1], sum[n][1]);
      sum[n][2] = fmaf(scale.y, part[n][2], sum[n][2]), sum[n][3] = fmaf(scale.y, part[n][3], sum[n][3]);
    }
  }
};

// Per column: this lane's scales and zero points, two rows a piece, read from the sections behind the blocks. Pieces
// from `pieces` on, which lie past the blob, get the last one's.
template <GemmFormat format, int row_tiles, int token_tiles> struct ColumnScales {
  using Block = ExactBlock<format, row_tiles, token_tiles>;
  using Act = typename Block::Act;
  float low[row_tiles], high[row_tiles];

  __device__ ColumnScales(const uint8_t* blob, int64_t column_scales, int64_t column_zeros, int pieces, int first_piece,
                          int lane, Block& block) {
    const Act* scales = reinterpret_cast<const Act*>(blob + column_scales);
#pragma unroll
    for (int t = 0; t < row_tiles; ++t) {
      const int row = min(first_piece + t, pieces - 1) * layout::kPieceN + lane / 4;
      low[t] = to_float(scales[row]), high[t] = to_float(scales[row + 8]);
      if constexpr (format.zero_point) {
        const uint8_t* zeros = blob + column_zeros;
        block.codes[t].set_zeros(zeros[row] | zeros[row + 8] << 8);
      }
    }
  }

  __device__ void apply(typename Block::Sums& sum) const {
#pragma unroll
    for (int t = 0; t < row_tiles; ++t)
#pragma unroll
      for (int n = 0; n < token_tiles; ++n)
        sum[t][n][0] *= low[t], sum[t][n][1] *= low[t], sum[t][n][2] *= high[t], sum[t][n][3] *= high[t];
  }
};

}  // namespace nybble::kernels
