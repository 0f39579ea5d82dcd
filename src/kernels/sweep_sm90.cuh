// out[m, n] = epilogue(act[m, k] x dequantize(weight)[n, k]^T) on Hopper for a few tokens: the CTAs sweep equal shares
// of the weight in the order of memory.
//
//   Operands   mma.m16n8k16 with the weight as A (16 output features a piece) and the tokens as B, eight at a time.
//   Numerics   kExactWeight: codes minus zero points are exact 16-bit numbers (parts/exact_codes.cuh), sums over a
//              group are fp32, scales multiply them in fp32; per column the scale multiplies a warp's whole sum.
//   Shares     The blocks of 64 x 128, n-major as they lie in memory, are dealt out in equal ranges, one a CTA. A range
//              crosses rows of blocks; a row that two ranges share is finished by the one that holds its beginning.
//              The others come to their part of it first, so theirs is there when it is wanted
//              (parts/partial_sums.cuh).
//   Ring       A stage is up to blocks_per_stage consecutive blocks of one row, in one bulk copy, and their tokens, in
//              one more. Few tokens leave room for more stages. One producer warp; row_warps math warps on each block.
//   Math       A warp's first half of a block is loaded while it multiplies the second half of the one before, and a
//              stage is released before its first product: a few warps a scheduler hide nothing by themselves
//              (docs/decisions/0010).
//   PDL        Weights never depend on the kernel before: they fill the ring before wait_for_predecessor().
//   Edges      Input features past k arrive as zeros (tensor map). Tokens past m repeat the last one, output features
//              past n are computed from the blob's padding; neither is stored.
#pragma once

#include <cuda.h>

#include "kernels/parts/epilogue.cuh"
#include "kernels/parts/exact_block.cuh"
#include "kernels/parts/partial_sums.cuh"
#include "kernels/ptx/bulk_copy.cuh"
#include "kernels/ptx/cluster.cuh"
#include "kernels/ptx/lane.cuh"
#include "kernels/ptx/mbarrier.cuh"
#include "kernels/ptx/shared.cuh"
#include "kernels/sweep_params.h"
#include "layout/blob.h"

namespace nybble::kernels {

// The fixed part of shared memory: behind it the ring of weights, then that of tokens.
struct SweepBarriers {
  static constexpr int most_stages = 8;
  uint64_t full[most_stages], empty[most_stages];
};

template <SweepConfig C> struct SweepShape {
  static constexpr SweepTile tile = C.tile;
  using Block = ExactBlock<C.format, tile.row_tiles(), tile.token_tiles()>;
  using Act = typename Block::Act;
  using Sums = typename Block::Sums;                    // of a warp
  static constexpr int slices = tile.blocks_per_stage;  // of k, among a CTA's warps
  static constexpr int math_warps = tile.math_warps(), math_threads = tile.math_threads();
  static constexpr int row_tiles = tile.row_tiles(), token_tiles = tile.token_tiles();
  static constexpr layout::BlockShape block = C.format.block();
  static constexpr int block_bytes = block.block_bytes(), piece_bytes = block.piece_bytes();
  static constexpr int weight_stage = tile.blocks_per_stage * block_bytes;
  static constexpr int handed_over = tile.handed_over();
  static constexpr int act_line = 128;  // 64 input features of a token
  static constexpr int weights_offset = (sizeof(SweepBarriers) + 127) / 128 * 128;
  static constexpr int sum_pitch = layout::kBlockN + 4;  // floats: a warp's sums lie in different banks

  static constexpr SweepSmem smem(int m) {
    SweepSmem map{.stages = SweepBarriers::most_stages, .act_stage = tile.blocks_per_stage * 2 * m * act_line};
    for (;; --map.stages) {
      const int weights_end = weights_offset + map.stages * weight_stage;
      map.act = (weights_end + 1023) / 1024 * 1024;
      map.sums = map.act + map.stages * map.act_stage;
      map.bytes = map.sums + slices * m * sum_pitch * 4;
      if (map.bytes <= smem_limit(tile.slots_per_sm)) return map;
    }
  }
};

// A place in a ring of stages and the parity of its barriers.
struct RingPlace {
  uint32_t slot = 0, phase = 0;
  __device__ __forceinline__ void advance(uint32_t stages) {
    ++slot;
    const bool wraps = slot == stages;
    slot = wraps ? 0 : slot, phase ^= wraps ? 1 : 0;
  }
};

// The walk through a CTA's share: rows of blocks, or parts of them, a stage at a time.
template <SweepConfig C> struct SweepWalk {
  static constexpr int blocks_per_stage = C.tile.blocks_per_stage;
  int block, end;  // in the order of memory
  int n_block, k;  // of `block`
  int k_blocks;

  __device__ static int begin_of(const SweepParams& p, int range) {
    return static_cast<int>(static_cast<int64_t>(p.blocks) * range / p.shares);
  }

  __device__ SweepWalk(const SweepParams& p, int range) : k_blocks(p.k_blocks) {
    block = begin_of(p, range), end = begin_of(p, range + 1);
    n_block = block / k_blocks, k = block % k_blocks;
  }
  __device__ bool done() const { return block >= end; }
  __device__ int left_in_part() const { return min(k_blocks - k, end - block); }
  __device__ int count() const { return min(blocks_per_stage, left_in_part()); }  // of this stage
  __device__ void advance(int blocks) {
    block += blocks, k += blocks;
    if (k == k_blocks) k = 0, ++n_block;
  }
};

// Shared memory, by what lies where.
template <SweepConfig C> struct SweepPlaces {
  using Shape = SweepShape<C>;
  uint32_t base, weights, acts;
  int act_stage;

  __device__ SweepPlaces(const SweepParams& p, const void* smem)
      : base(ptx::smem_address(smem)),
        weights(base + Shape::weights_offset),
        acts(base + p.smem.act),
        act_stage(p.smem.act_stage) {}
  __device__ uint32_t full(uint32_t slot) const { return base + offsetof(SweepBarriers, full) + 8 * slot; }
  __device__ uint32_t empty(uint32_t slot) const { return base + offsetof(SweepBarriers, empty) + 8 * slot; }
  __device__ uint32_t weight(uint32_t slot) const { return weights + slot * Shape::weight_stage; }
  __device__ uint32_t act(uint32_t slot) const { return acts + slot * act_stage; }
};

// The CTA's weights and tokens, in order. One thread.
template <SweepConfig C> struct SweepLoader {
  using Shape = SweepShape<C>;
  const SweepParams& p;
  const SweepPlaces<C>& places;
  int range;
  const CUtensorMap *act_map, *edge_map;

  __device__ __forceinline__ void run() const {
    const uint64_t policy = ptx::make_l2_policy<ptx::L2Policy::kEvictFirst>();
    SweepWalk<C> walk(p, range), ahead = walk;
    for (int s = 0; s < p.smem.stages && !ahead.done(); ++s, ahead.advance(ahead.count()))
      load_weight(ahead, s, policy);
    bool started = ahead.done();
    if (started) ptx::let_successor_launch();
    ptx::wait_for_predecessor();
    for (int s = 0; s < p.smem.stages && !walk.done(); ++s, walk.advance(walk.count())) load_act(walk, s);
    for (RingPlace at; !walk.done(); walk.advance(walk.count()), at.advance(p.smem.stages)) {
      ptx::barrier_wait(places.empty(at.slot), at.phase);
      load_weight(walk, at.slot, policy), load_act(walk, at.slot);
      if (!started && walk.end - walk.block <= p.trigger) {
        started = true;
        ptx::let_successor_launch();
      }
    }
  }

 private:
  __device__ __forceinline__ void load_weight(const SweepWalk<C>& at, uint32_t slot, uint64_t policy) const {
    const int bytes = at.count() * Shape::block_bytes;
    ptx::barrier_expect(places.full(slot), bytes + places.act_stage);
    ptx::bulk_load(places.weight(slot),
                   p.weight + layout::kHeaderBytes + static_cast<int64_t>(at.block) * Shape::block_bytes, bytes,
                   places.full(slot), policy);
  }

  // Of tokens the map of chunks holds whole ones only; where a stage reaches past them, the map of edges fills up with
  // zeros.
  __device__ __forceinline__ void load_act(const SweepWalk<C>& at, uint32_t slot) const {
    const uint32_t act = places.act(slot);
    if (2 * (at.k + at.count()) <= p.whole_chunks) {
      ptx::tensor_load_3d(act, act_map, places.full(slot), 0, 0, 2 * at.k);
    } else {
      for (int chunk = 0; chunk < 2 * C.tile.blocks_per_stage; ++chunk)
        ptx::tensor_load_2d(act + chunk * p.m * Shape::act_line, edge_map, places.full(slot), (2 * at.k + chunk) * 64,
                            0);
    }
  }
};

// A warp's sums over its blocks of one part of a row.
template <SweepConfig C> struct SweepMath {
  using Shape = SweepShape<C>;
  using Block = typename Shape::Block;
  static constexpr SweepTile tile = C.tile;
  static constexpr int row_tiles = Shape::row_tiles, token_tiles = Shape::token_tiles;

  const SweepPlaces<C>& places;
  uint32_t stages;
  uint32_t weight;               // in a stage: of this warp
  uint32_t act[2][token_tiles];  // of this lane's row for ldmatrix, by half of a block
  uint32_t lane;
  typename Block::LanePlace place;
  int in_stage, first_piece;
  RingPlace at;
  Block block;
  typename Shape::Sums sum;

  __device__ SweepMath(const SweepParams& p, const SweepPlaces<C>& places, int warp, uint32_t lane)
      : places(places),
        stages(p.smem.stages),
        lane(lane),
        place(lane),
        in_stage(warp / tile.row_warps),
        first_piece(warp % tile.row_warps * row_tiles) {
    weight = in_stage * Shape::block_bytes + first_piece * Shape::piece_bytes;
    // Lines of 64 input features by token, in the tensor map's 128-byte swizzle. Tokens past m repeat the last one.
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int n = 0; n < token_tiles; ++n) {
        const uint32_t token = min(n * 8 + static_cast<int>(lane % 8), p.m - 1), matrix = lane / 8;
        const uint32_t line = (in_stage * 2 + half) * p.m + token;
        act[half][n] = line * Shape::act_line + ((matrix ^ line % 8) << 4);
      }
  }

  // `left`: blocks of the part.
  __device__ __forceinline__ void accumulate(int left, float scale_factor) {
    const int part_stages = (left + tile.blocks_per_stage - 1) / tile.blocks_per_stage;
    const int own = (left - in_stage + tile.blocks_per_stage - 1) / tile.blocks_per_stage;  // with a block of this warp
    Block::clear(sum);
    // The first half of a block is loaded while the second half of the one before is multiplied.
    typename Block::Half first{}, second{};
    typename Shape::Sums part;
    ptx::barrier_wait_if(places.full(at.slot), at.phase, own > 0);
    Block::template load<0>(first, places.weight(at.slot) + weight, place, own > 0);
#pragma unroll 1
    for (int stage = 1; stage <= own; ++stage) {
      // Everything of the stage is in registers before its first product, so that it is soon filled again.
      typename Block::Tokens b[2][2];
      const uint32_t act_here = places.act(at.slot);
      Block::template load<1>(second, places.weight(at.slot) + weight, place);
      load_tokens(b[0], act_here, act[0]);
      load_tokens(b[1], act_here, act[1]);
      release();
      const auto loaded = [&](int half) {
        return [&b, half](int pair, typename Block::Tokens& tokens) {
#pragma unroll
          for (int n = 0; n < token_tiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) tokens[n][i] = b[half][pair][n][i];
        };
      };
      block.template multiply<0>(sum, part, first, scale_factor, loaded(0));
      const bool more = stage < own;
      ptx::barrier_wait_if(places.full(at.slot), at.phase, more);
      Block::template load<0>(first, places.weight(at.slot) + weight, place, more);
      block.template multiply<1>(sum, part, second, scale_factor, loaded(1));
    }
    if (own < part_stages) {
      ptx::barrier_wait(places.full(at.slot), at.phase);
      release();
    }
  }

 private:
  __device__ __forceinline__ static void load_tokens(typename Block::Tokens (&b)[2], uint32_t stage,
                                                     const uint32_t (&act)[token_tiles]) {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair)
#pragma unroll
      for (int n = 0; n < token_tiles; ++n) ptx::load_matrix_x4(b[pair][n], (stage + act[n]) ^ (pair * 64));
  }

  // This warp is done with the stage: goes on to the next one.
  __device__ __forceinline__ void release() {
    __syncwarp();
    ptx::barrier_arrive_if(places.empty(at.slot), lane == 0);
    at.advance(stages);
  }
};

// A row of blocks, or the CTA's part of it: added up over the blocks of a stage, handed over or stored.
template <SweepConfig C> struct SweepFinish {
  using Shape = SweepShape<C>;
  using Act = typename Shape::Act;
  static constexpr SweepTile tile = C.tile;
  static constexpr int threads = Shape::math_threads;

  const SweepParams& p;
  float* sums;  // [slices][m][sum_pitch]
  int range, warp, lane;
  float sum_factor;

  __device__ __forceinline__ void run(const typename Shape::Sums& sum, int n_block, bool is_first_part,
                                      bool is_last_part) const {
    ptx::named_barrier_sync(1, threads);  // the sums before these are read
    put(sum);
    ptx::named_barrier_sync(1, threads);
    if (!is_first_part)
      hand_over();
    else if (p.out_fp32)
      store<float>(n_block, !is_last_part);
    else
      store<Act>(n_block, !is_last_part);
  }

 private:
  __device__ __forceinline__ void put(const typename Shape::Sums& sum) const {
    const int row = warp % tile.row_warps * Shape::row_tiles * layout::kPieceN + lane / 4, token = lane % 4 * 2;
    float* to = sums + (warp / tile.row_warps * p.m + token) * Shape::sum_pitch + row;
#pragma unroll
    for (int t = 0; t < Shape::row_tiles; ++t)
#pragma unroll
      for (int n = 0; n < Shape::token_tiles; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (n * 8 + token + j % 2 < p.m)
            to[(n * 8 + j % 2) * Shape::sum_pitch + t * layout::kPieceN + j / 2 * 8] = sum[t][n][j];
  }

  __device__ __forceinline__ float2 total_at(int token, int row) const {
    float2 total = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int slice = 0; slice < Shape::slices; ++slice) {
      const float2 value = *reinterpret_cast<const float2*>(sums + (slice * p.m + token) * Shape::sum_pitch + row);
      total.x += value.x, total.y += value.y;
    }
    return total;
  }

  static constexpr int pairs = layout::kBlockN / 2;  // of output features: what a thread has at a time

  __device__ __forceinline__ uint8_t* place_of(int of_range, int item) const {
    return p.workspace + kTaggedSumsBytes * (of_range * Shape::handed_over + item);
  }

  __device__ __forceinline__ void hand_over() const {
    for (int item = static_cast<int>(threadIdx.x); item < p.m * pairs; item += threads)
      give_sums(place_of(range, item), total_at(item / pairs, item % pairs * 2));
  }

  // What the ranges behind this one have of its last row, in their order.
  __device__ __forceinline__ void add_others(float2& total, int item, int row_end) const {
    for (int other = range + 1; SweepWalk<C>::begin_of(p, other) < row_end; ++other) {
      const float2 part = take_sums(place_of(other, item));
      total.x += part.x, total.y += part.y;
    }
  }

  template <class Out> __device__ __forceinline__ void store(int n_block, bool shared) const {
    const FusedEpilogue<Act, Out> epilogue(p.epilogue);
    struct alignas(2 * sizeof(Out)) Pair {
      Out low, high;
    };
    for (int item = static_cast<int>(threadIdx.x); item < p.m * pairs; item += threads) {
      const int token = item / pairs, row = item % pairs * 2;
      float2 total = total_at(token, row);
      if (shared) add_others(total, item, (n_block + 1) * p.k_blocks);
      const int feature = n_block * layout::kBlockN + row;
      Out* to = static_cast<Out*>(p.out) + token * p.ld_out + feature;
      if (feature + 1 < p.n)
        *reinterpret_cast<Pair*>(to) = {round_to<Out>(epilogue.apply(total.x * sum_factor, token, feature)),
                                        round_to<Out>(epilogue.apply(total.y * sum_factor, token, feature + 1))};
      else if (feature < p.n)
        *to = round_to<Out>(epilogue.apply(total.x * sum_factor, token, feature));
    }
  }
};

template <SweepConfig C>
requires(why_invalid(C) == nullptr) __global__ void __launch_bounds__(C.threads_held(), C.tile.slots_per_sm)
    sweep_sm90(const __grid_constant__ CUtensorMap act_map, const __grid_constant__ CUtensorMap edge_map,
               const __grid_constant__ SweepParams p) {
  using Shape = SweepShape<C>;
  extern __shared__ __align__(1024) uint8_t smem[];
  const SweepPlaces<C> places(p, smem);
  const int warp = ptx::warp_index(), lane = ptx::lane_id();
  const int place = static_cast<int>(gridDim.x - 1 - blockIdx.x);  // ranges wait for CTAs that were dispatched before
  const bool phantom = place >= p.shares;                          // holds its SM's place and stores nothing
  const int range = phantom ? p.shares - 1 : place;
  if (warp == Shape::math_warps && lane == 0) {
    ptx::prefetch_tensor_map(&act_map);
    for (int s = 0; s < p.smem.stages; ++s) {
      ptx::barrier_init(places.full(s), 1);
      ptx::barrier_init(places.empty(s), Shape::math_warps);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  if (warp == Shape::math_warps) {
    if (lane == 0) SweepLoader<C>{p, places, range, &act_map, &edge_map}.run();
    return;
  }
  const ScaleFactors factors(p.weight, ExactCodes<typename Shape::Act>::kUnitExponent);
  const SweepFinish<C> finish{p, reinterpret_cast<float*>(smem + p.smem.sums), range, warp, lane, factors.of_sum};
  ptx::wait_for_predecessor();
  SweepMath<C> math(p, places, warp, lane);
  for (SweepWalk<C> walk(p, range); !walk.done();) {
    const int left = walk.left_in_part();
    if constexpr (C.format.groups == 0) {
      const ColumnScales<C.format, Shape::row_tiles, Shape::token_tiles> column(
          p.weight, p.column_scales, p.column_zeros, p.n_blocks * layout::kPiecesPerBlock,
          walk.n_block * layout::kPiecesPerBlock + math.first_piece, lane, math.block);
      math.accumulate(left, 1.0f);
      column.apply(math.sum);
    } else {
      math.accumulate(left, factors.of_scale);
    }
    const int n_block = walk.n_block;
    const bool is_first_part = walk.k == 0;
    walk.advance(left);
    if (!phantom) finish.run(math.sum, n_block, is_first_part, walk.k == 0);
  }
}

}  // namespace nybble::kernels
