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
//              one more. One producer warp; row_warps math warps on each block of a stage.
//   PDL        Weights never depend on the kernel before: they fill the ring before wait_for_predecessor().
//   Edges      Tokens past m and input features past k arrive as zeros (tensor map). Output features past n are
//              computed from the blob's padding and not stored.
#pragma once

#include <cuda.h>

#include "kernels/parts/epilogue.cuh"
#include "kernels/parts/exact_block.cuh"
#include "kernels/parts/partial_sums.cuh"
#include "kernels/ptx/bulk_copy.cuh"
#include "kernels/ptx/cluster.cuh"
#include "kernels/ptx/mbarrier.cuh"
#include "kernels/ptx/shared.cuh"
#include "kernels/sweep_params.h"
#include "layout/blob.h"

namespace nybble::kernels {

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
  static constexpr int half_bytes = tile.tile_m * 128;  // tokens of 64 input features
  static constexpr int act_bytes = 2 * half_bytes;      // of a block of 128
  static constexpr int act_stage = tile.blocks_per_stage * act_bytes;
  static constexpr int weight_stage = tile.blocks_per_stage * block_bytes;
  static constexpr int pitch = layout::kBlockN + 4;  // floats: a warp's sums lie in different banks
};

template <SweepConfig C> struct alignas(1024) SweepStorage {
  using Shape = SweepShape<C>;
  uint8_t act[C.tile.stages][Shape::act_stage];
  uint8_t weight[C.tile.stages][Shape::weight_stage];
  float sums[Shape::slices][C.tile.tile_m][Shape::pitch];
  uint64_t full[C.tile.stages], empty[C.tile.stages];
  uint64_t epoch_full;
  uint64_t epoch;  // of the launch (parts/partial_sums.cuh)
};

// The walk through a CTA's share, a stage at a time.
template <SweepConfig C> struct SweepWalk {
  static constexpr int blocks_per_stage = C.tile.blocks_per_stage;
  int block, end;  // in the order of memory
  int n_block, k;  // of `block`
  int count;       // blocks of this stage
  int k_blocks;

  __device__ static int begin_of(const SweepParams& p, int range) {
    return static_cast<int>(static_cast<int64_t>(p.blocks) * range / p.shares);
  }

  __device__ SweepWalk(const SweepParams& p, int range) : k_blocks(p.k_blocks) {
    block = begin_of(p, range), end = begin_of(p, range + 1);
    n_block = block / k_blocks, k = block % k_blocks;
    settle();
  }
  __device__ bool done() const { return block >= end; }
  __device__ bool ends_row() const { return k + count == k_blocks || block + count == end; }
  __device__ void advance() {
    block += count, k += count;
    if (k == k_blocks) k = 0, ++n_block;
    settle();
  }

 private:
  __device__ void settle() { count = min(min(blocks_per_stage - k % blocks_per_stage, k_blocks - k), end - block); }
};

// The CTA's weights and tokens, in order. One thread. Of tokens the map of chunks holds whole ones only; where a stage
// reaches past them, the map of edges fills up with zeros.
template <SweepConfig C>
__device__ __forceinline__ void load_stages(const SweepParams& p, SweepStorage<C>& smem, int range,
                                            const CUtensorMap* act_map, const CUtensorMap* edge_map) {
  using Shape = SweepShape<C>;
  const uint32_t full = ptx::smem_address(smem.full), empty = ptx::smem_address(smem.empty);
  const uint64_t policy = ptx::make_l2_policy<ptx::L2Policy::kEvictFirst>();
  const auto load_weight = [&](const SweepWalk<C>& at, int slot) {
    ptx::barrier_expect(full + 8 * slot, at.count * Shape::block_bytes + Shape::act_stage);
    ptx::bulk_load(ptx::smem_address(smem.weight[slot]),
                   p.weight + layout::kHeaderBytes + static_cast<int64_t>(at.block) * Shape::block_bytes,
                   at.count * Shape::block_bytes, full + 8 * slot, policy);
  };
  const auto load_act = [&](const SweepWalk<C>& at, int slot) {
    const uint32_t act = ptx::smem_address(smem.act[slot]);
    if (2 * (at.k + at.count) <= p.whole_chunks) {
      ptx::tensor_load_3d(act, act_map, full + 8 * slot, 0, 0, 2 * at.k);
    } else {
      for (int chunk = 0; chunk < 2 * C.tile.blocks_per_stage; ++chunk)
        ptx::tensor_load_2d(act + chunk * Shape::half_bytes, edge_map, full + 8 * slot, (2 * at.k + chunk) * 64, 0);
    }
  };
  SweepWalk<C> walk(p, range), ahead = walk;
  for (int s = 0; s < C.tile.stages && !ahead.done(); ++s, ahead.advance()) load_weight(ahead, s);
  if (ahead.done()) ptx::let_successor_launch();
  ptx::wait_for_predecessor();
  int slot = 0;
  for (; slot < C.tile.stages && !walk.done(); ++slot, walk.advance()) load_act(walk, slot);
  uint32_t phase = 0;
  bool triggered = false;
  for (slot = 0; !walk.done(); walk.advance()) {
    ptx::barrier_wait(empty + 8 * slot, phase);
    load_weight(walk, slot), load_act(walk, slot);
    if (!triggered && walk.end - walk.block <= p.trigger) {
      ptx::let_successor_launch();
      triggered = true;
    }
    if (++slot == C.tile.stages) slot = 0, phase ^= 1;
  }
}

// What the CTAs tell each other besides sums: that they have read the launch's epoch. The first range's CTA then moves
// it on for the next launch. One warp.
template <SweepConfig C>
__device__ __forceinline__ void keep_epoch(const SweepParams& p, SweepStorage<C>& smem, int range, int lane) {
  ptx::wait_for_predecessor();
  PartialSums partials{p.workspace, 0};
  partials.read_epoch();
  if (lane == 0) {
    smem.epoch = partials.epoch;
    ptx::barrier_arrive_if(ptx::smem_address(&smem.epoch_full), true);
    partials.publish(range);
  }
  if (range != 0) return;
  partials.await_all(p.shares, lane);
  if (lane == 0) partials.move_epoch();
}

// A row of blocks, or the CTA's part of it: added up over the blocks of a stage, handed over or stored.
template <SweepConfig C> struct SweepFinish {
  using Shape = SweepShape<C>;
  using Act = typename Shape::Act;
  static constexpr SweepTile tile = C.tile;
  static constexpr int threads = Shape::math_threads;

  const SweepParams& p;
  SweepStorage<C>& smem;
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
    float* to = &smem.sums[warp / tile.row_warps][token][row];
#pragma unroll
    for (int t = 0; t < Shape::row_tiles; ++t)
#pragma unroll
      for (int n = 0; n < Shape::token_tiles; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) to[(n * 8 + j % 2) * Shape::pitch + t * layout::kPieceN + j / 2 * 8] = sum[t][n][j];
  }

  __device__ __forceinline__ float2 total_at(int token, int row) const {
    float2 total = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int slice = 0; slice < Shape::slices; ++slice) {
      const float2 value = *reinterpret_cast<const float2*>(&smem.sums[slice][token][row]);
      total.x += value.x, total.y += value.y;
    }
    return total;
  }

  static constexpr int pairs = layout::kBlockN / 2;  // of output features: what a thread has at a time

  __device__ __forceinline__ PartialSums partial_sums() const {
    ptx::barrier_wait(ptx::smem_address(&smem.epoch_full), 0);
    return {p.workspace, smem.epoch};
  }
  __device__ __forceinline__ uint8_t* place_of(int of_range, int item) const {
    return p.workspace + p.partial_sums + 16 * (of_range * (tile.tile_m * pairs) + item);
  }

  __device__ __forceinline__ void hand_over() const {
    PartialSums partials = partial_sums();
    for (int item = static_cast<int>(threadIdx.x); item < p.m * pairs; item += threads)
      partials.give(place_of(range, item), range, total_at(item / pairs, item % pairs * 2));
  }

  // What the ranges behind this one have of its last row, in their order.
  __device__ __forceinline__ void add_others(PartialSums& partials, float2& total, int item, int row_end) const {
    for (int other = range + 1; SweepWalk<C>::begin_of(p, other) < row_end; ++other) {
      const float2 part = partials.take(place_of(other, item), other);
      total.x += part.x, total.y += part.y;
    }
  }

  template <class Out> __device__ __forceinline__ void store(int n_block, bool shared) const {
    const FusedEpilogue<Act, Out> epilogue(p.epilogue);
    PartialSums partials{};
    if (shared) partials = partial_sums();
    struct alignas(2 * sizeof(Out)) Pair {
      Out low, high;
    };
    for (int item = static_cast<int>(threadIdx.x); item < p.m * pairs; item += threads) {
      const int token = item / pairs, row = item % pairs * 2;
      float2 total = total_at(token, row);
      if (shared) add_others(partials, total, item, (n_block + 1) * p.k_blocks);
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

// All that this warp needs of a stage is in registers: it may be filled again.
__device__ __forceinline__ void release(uint32_t empty, int lane) {
  __syncwarp();
  ptx::barrier_arrive_if(empty, lane == 0);
}

template <SweepConfig C>
requires(why_invalid(C) == nullptr) __global__ void __launch_bounds__(C.tile.threads(), C.tile.slots_per_sm)
    sweep_sm90(const __grid_constant__ CUtensorMap act_map, const __grid_constant__ CUtensorMap edge_map,
               const __grid_constant__ SweepParams p) {
  using Shape = SweepShape<C>;
  constexpr SweepTile tile = C.tile;
  extern __shared__ __align__(1024) uint8_t dynamic_smem[];
  auto& smem = *reinterpret_cast<SweepStorage<C>*>(dynamic_smem);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int place = static_cast<int>(gridDim.x - 1 - blockIdx.x);  // ranges wait for CTAs that were dispatched before
  const bool phantom = place >= p.shares;                          // holds its SM's place and stores nothing
  const int range = phantom ? p.shares - 1 : place;
  const uint32_t full = ptx::smem_address(smem.full), empty = ptx::smem_address(smem.empty);
  if (warp == Shape::math_warps && lane == 0) {
    ptx::prefetch_tensor_map(&act_map);
    for (int s = 0; s < tile.stages; ++s)
      ptx::barrier_init(full + 8 * s, 1), ptx::barrier_init(empty + 8 * s, Shape::math_warps);
    ptx::barrier_init(ptx::smem_address(&smem.epoch_full), 1);
    ptx::fence_barrier_init();
  }
  __syncthreads();
  if (warp == Shape::math_warps) {
    if (lane == 0) load_stages<C>(p, smem, range, &act_map, &edge_map);
    return;
  }
  if (warp > Shape::math_warps) {
    if (p.workspace != nullptr && !phantom) keep_epoch<C>(p, smem, range, lane);
    return;
  }

  const ScaleFactors factors(p.weight, ExactCodes<typename Shape::Act>::kUnitExponent);
  const SweepFinish<C> finish{p, smem, range, warp, lane, factors.of_sum};
  const int in_stage = warp / tile.row_warps, first_piece = warp % tile.row_warps * Shape::row_tiles;
  const uint32_t row = lane % 8, matrix = lane / 8;
  const uint32_t act = ptx::smem_address(smem.act) + in_stage * Shape::act_bytes + row * 128 +
                       ((matrix ^ row) << 4);  // this lane's row for ldmatrix, in the tensor map's 128-byte swizzle
  const uint32_t weight =
      ptx::smem_address(smem.weight) + in_stage * Shape::block_bytes + first_piece * Shape::piece_bytes;
  ptx::wait_for_predecessor();
  typename Shape::Block block;
  typename Shape::Sums sum;
  int slot = 0;
  uint32_t phase = 0;
  for (SweepWalk<C> walk(p, range); !walk.done();) {
    const int n_block = walk.n_block;
    const bool is_first_part = walk.k == 0;
    Shape::Block::clear(sum);
    const auto sum_row = [&] {
#pragma unroll 1
      for (bool more = true; more; walk.advance()) {
        ptx::barrier_wait(full + 8 * slot, phase);
        const auto load_tokens = [&](int half, int pair, uint32_t(&b)[Shape::token_tiles][4]) {
#pragma unroll
          for (int n = 0; n < Shape::token_tiles; ++n)
            ptx::load_matrix_x4(b[n],
                                ((act + slot * Shape::act_stage) ^ (pair * 64)) + half * Shape::half_bytes + n * 1024);
          if (half == 1 && pair == 1) release(empty + 8 * slot, lane);
        };
        if (in_stage < walk.count)
          block.multiply(sum, weight + slot * Shape::weight_stage, lane, factors.of_scale, load_tokens);
        else
          release(empty + 8 * slot, lane);
        if (++slot == tile.stages) slot = 0, phase ^= 1;
        more = !walk.ends_row();
      }
    };
    if constexpr (C.format.groups == 0) {
      const ColumnScales<C.format, Shape::row_tiles, Shape::token_tiles> column(
          p.weight, p.column_scales, p.column_zeros, p.n_blocks * layout::kPiecesPerBlock,
          n_block * layout::kPiecesPerBlock + first_piece, lane, block);
      sum_row();
      column.apply(sum);
    } else {
      sum_row();
    }
    if (!phantom) finish.run(sum, n_block, is_first_part, walk.k == 0);
  }
}

}  // namespace nybble::kernels
