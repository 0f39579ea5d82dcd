// out[m, n] = epilogue(act[m, k] x dequantize(weight)[n, k]^T) on Hopper for up to 32 tokens: weights and tokens stream
// through shared memory, every warp on its own.
//
//   Operands   mma.m16n8k16 with the weight as A (16 output features a piece) and the tokens as B, eight at a time.
//   Numerics   Groups: kRoundedWeight (parts/dequant.cuh). Per column: kExactWeight.
//   Slices     A CTA works on a block of 64 output features and all tokens. The blocks of 128 input features go round
//              among its warps, so together they read the weight in the order of memory. The CTAs of a cluster split k
//              once more. CTAs walk over blocks of features.
//   Ring       Every warp has a ring of its own, filled by its lane 0: a stage is a block of weights and its tokens, on
//              one barrier. No barrier of the CTA in the main loop.
//   PDL        Weights never depend on the kernel before: they fill the ring before wait_for_predecessor().
//   Reduction  Every warp hands its sums to the CTA that stores them, in fragment order, as units of 16 features x 8
//              tokens; a warp adds up a unit in the order of the slices.
//   Edges      Tokens past m and input features past k arrive as zeros (tensor map). Output features past n are
//              computed from the blob's padding and not stored.
#pragma once

#include <cuda.h>

#include "kernels/parts/dequant.cuh"
#include "kernels/parts/epilogue.cuh"
#include "kernels/parts/sum_scale.cuh"
#include "kernels/ptx/bulk_copy.cuh"
#include "kernels/ptx/cluster.cuh"
#include "kernels/ptx/lane.cuh"
#include "kernels/ptx/mbarrier.cuh"
#include "kernels/ptx/mma.cuh"
#include "kernels/ptx/shared.cuh"
#include "kernels/slice_params.h"

namespace nybble::kernels {

template <SliceConfig C> struct SliceShape {
  static constexpr SliceTile tile = C.tile;
  using Act = std::conditional_t<C.format.act == DType::kBf16, __nv_bfloat16, __half>;
  using Weights = Dequant<Act, C.format.zero_point, C.format.groups == 0>;
  using Scale = SumScale<Act, C.format.groups, C.format.zero_point>;
  using Sums = float[layout::kPiecesPerBlock][tile.token_tiles()][4];
  static constexpr int pieces = layout::kPiecesPerBlock;
  static constexpr layout::BlockShape block = C.format.block();
  static constexpr int block_bytes = block.block_bytes(), piece_bytes = block.piece_bytes();
  static constexpr int half_bytes = tile.tile_m * 128;  // tokens of 64 input features
  static constexpr int act_bytes = 2 * half_bytes;      // of a block of 128
  static constexpr int slices = tile.warps * tile.cluster;
  static constexpr int units = tile.units(), owned_units = units / tile.cluster;  // the latter finished by one CTA
};

template <SliceConfig C> struct alignas(1024) SliceStorage {
  using Shape = SliceShape<C>;
  uint8_t act[C.tile.warps][C.tile.stages][Shape::act_bytes];
  uint8_t weight[C.tile.warps][C.tile.stages][Shape::block_bytes];
  float4 sums[Shape::owned_units][Shape::slices][32];
  uint64_t full[C.tile.warps][C.tile.stages];
  uint64_t sums_full;  // cluster: 1 arrival + bytes
};

// What one warp is there for.
template <SliceConfig C> struct SlicePlace {
  int warp, lane, rank;
  int k_begin, k_blocks;           // of the CTA
  int n_block_begin, n_block_end;  // of 64 output features

  __device__ explicit SlicePlace(const SliceParams& p) {
    constexpr SliceTile tile = C.tile;
    warp = ptx::warp_index(), lane = threadIdx.x % 32;
    rank = static_cast<int>(blockIdx.x) % tile.cluster;
    const int cluster = static_cast<int>(blockIdx.x) / tile.cluster;
    k_begin = p.k_blocks * rank / tile.cluster, k_blocks = p.k_blocks * (rank + 1) / tile.cluster - k_begin;
    n_block_begin = cluster * p.blocks_each + min(cluster, p.blocks_left);
    n_block_end = n_block_begin + p.blocks_each + (cluster < p.blocks_left ? 1 : 0);
  }
};

// The copies of one warp, in order; one thread runs this.
template <SliceConfig C> struct SliceSource {
  using Shape = SliceShape<C>;
  static constexpr SliceTile tile = C.tile;

  const SliceParams& p;
  const SlicePlace<C>& place;
  const CUtensorMap* act_map;
  int n_block, block;  // the next one; the latter counted from k_begin
  uint64_t policy;

  __device__ SliceSource(const SliceParams& params, const SlicePlace<C>& where, const CUtensorMap* map)
      : p(params), place(where), act_map(map), n_block(where.n_block_begin), block(where.warp) {
    policy = ptx::make_l2_policy<ptx::L2Policy::kEvictFirst>();
    settle();
  }
  __device__ bool done() const { return n_block >= place.n_block_end; }
  __device__ void advance() {
    block += tile.warps;
    settle();
  }

  // Announces the tokens' bytes as well.
  __device__ void load_weight(uint32_t weight, uint32_t full) const {
    ptx::barrier_expect(full, Shape::act_bytes + Shape::block_bytes);
    ptx::bulk_load(weight,
                   p.weight + layout::kHeaderBytes +
                       (static_cast<int64_t>(n_block) * p.k_blocks + place.k_begin + block) * Shape::block_bytes,
                   Shape::block_bytes, full, policy);
  }

  __device__ void load_act(uint32_t act, uint32_t full) const {
    for (int half = 0; half < 2; ++half)
      ptx::tensor_load_2d(act + half * Shape::half_bytes, act_map, full,
                          (place.k_begin + block) * layout::kBlockK + half * 64, 0);
  }

 private:
  __device__ void settle() {
    while (block >= place.k_blocks && n_block < place.n_block_end) block -= place.k_blocks, ++n_block;
  }
};

template <SliceConfig C> struct SliceConsumer {
  using Shape = SliceShape<C>;
  using Act = typename Shape::Act;
  using Weights = typename Shape::Weights;
  static constexpr int pieces = Shape::pieces, tokens = C.tile.token_tiles(), groups = C.format.groups;

  typename Shape::Sums sum;
  Weights weights[pieces];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int t = 0; t < pieces; ++t)
#pragma unroll
      for (int n = 0; n < tokens; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[t][n][j] = 0.0f;
  }

  // Per column: zero points of rows r and r + 8 of every piece.
  __device__ __forceinline__ void load_column(const SliceParams& p, int n_block, int lane) {
#pragma unroll
    for (int t = 0; t < pieces; ++t) {
      uint32_t zeros = 0;
      if constexpr (C.format.zero_point) {
        const uint8_t* column = p.weight + p.column_zeros + n_block * layout::kBlockN + t * layout::kPieceN + lane / 4;
        zeros = column[0] | static_cast<uint32_t>(column[8]) << 8;
      }
      weights[t].load(0, zeros);
    }
  }

  // One block of 128 input features. `loaded` is called when all of it is in registers.
  template <class Loaded>
  __device__ __forceinline__ void multiply(uint32_t act, uint32_t weight, int lane, Loaded loaded) {
    const uint32_t row = lane % 8, matrix = lane / 8;
    const uint32_t act_lane = act + row * 128 + ((matrix ^ row) << 4);  // the tensor map's 128-byte swizzle
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint4 words[pieces];
#pragma unroll
      for (int t = 0; t < pieces; ++t)
        words[t] = ptx::load_shared_128(weight + t * Shape::piece_bytes + half * layout::kHalfBytes + lane * 16);
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        uint32_t b[tokens][4];
#pragma unroll
        for (int n = 0; n < tokens; ++n)
          ptx::load_matrix_x4(b[n], (act_lane ^ (pair * 64)) + half * Shape::half_bytes + n * 1024);
        const int quarter = half * 2 + pair;
        if constexpr (groups > 0)
          if (quarter % (4 / groups) == 0) load_scales(weight, lane, quarter / (4 / groups));
        if (quarter == 3) loaded();
#pragma unroll
        for (int q = 0; q < 2; ++q)
#pragma unroll
          for (int t = 0; t < pieces; ++t) {
            uint32_t a[4];
            weights[t](a, (&words[t].x)[pair * 2 + q]);
#pragma unroll
            for (int n = 0; n < tokens; ++n)
              ptx::mma<Act>(sum[t][n], a[0], a[1], a[2], a[3], b[n][2 * q], b[n][2 * q + 1]);
          }
      }
    }
  }

 private:
  __device__ __forceinline__ void load_scales(uint32_t weight, int lane, int group) {
    constexpr layout::BlockShape block = Shape::block;
#pragma unroll
    for (int t = 0; t < pieces; ++t) {
      const uint32_t piece = weight + t * Shape::piece_bytes;
      const uint32_t scales = ptx::load_shared_32(piece + block.scale_offset(0, group) + lane / 4 * 4);
      uint32_t zeros = 0;
      if constexpr (C.format.zero_point)
        zeros = ptx::load_shared_16(piece + block.zero_offset(0, group) + lane / 4 * 2);
      weights[t].load(scales, zeros);
    }
  }
};

// The sums of every slice: handed over, added in the order of slices, finished and stored.
template <SliceConfig C> struct SliceReduction {
  using Shape = SliceShape<C>;
  using Act = typename Shape::Act;
  using Sums = typename Shape::Sums;
  static constexpr SliceTile tile = C.tile;

  const SliceParams& p;
  const SlicePlace<C>& place;
  SliceStorage<C>& smem;
  float sum_unit;  // SumScale::read_unit()
  uint32_t round = 0;

  __device__ __forceinline__ void run(const Sums& sum, int n_block) {
    if constexpr (tile.cluster > 1) {
      const uint32_t sums_full = ptx::smem_address(&smem.sums_full);
      if (round > 0) ptx::cluster_arrive_relaxed();
      ptx::cluster_wait();  // the other CTA has started; later: the sums before these are read
      if (threadIdx.x == 0) ptx::barrier_expect(sums_full, Shape::owned_units * Shape::slices * 512);
      put(sum);
      ptx::barrier_wait(sums_full, round & 1);
    } else {
      if (round > 0) __syncthreads();
      put(sum);
      __syncthreads();
    }
    ++round;
    if (p.out_fp32)
      add_and_store<float>(n_block);
    else
      add_and_store<Act>(n_block);
  }

 private:
  // Unit u: token tile u / pieces, piece u % pieces.
  __device__ __forceinline__ void put(const Sums& sum) const {
    const int slice = place.rank * tile.warps + place.warp;
    const uint32_t area = ptx::smem_address(&smem.sums[0][slice][place.lane]);
#pragma unroll
    for (int u = 0; u < Shape::units; ++u) {
      const float(&d)[4] = sum[u % Shape::pieces][u / Shape::pieces];
      const uint32_t address = area + u % Shape::owned_units * (Shape::slices * 512);
      const uint32_t rank = u / Shape::owned_units;
      if constexpr (tile.cluster > 1)
        ptx::store_async_float4(ptx::map_to_rank(address, rank),
                                ptx::map_to_rank(ptx::smem_address(&smem.sums_full), rank), d[0], d[1], d[2], d[3]);
      else
        ptx::store_shared_float4(address, d[0], d[1], d[2], d[3]);
    }
  }

  template <class Out> __device__ __forceinline__ void add_and_store(int n_block) const {
    const FusedEpilogue<Act, Out> epilogue(p.epilogue);
    const int lane = place.lane;
#pragma unroll 1
    for (int u = place.warp; u < Shape::owned_units; u += tile.warps) {
      const int unit = place.rank * Shape::owned_units + u;
      const int first_token = unit / Shape::pieces * 8;
      if (first_token >= p.m) break;  // units are in the order of tokens
      const int feature0 = n_block * layout::kBlockN + unit % Shape::pieces * layout::kPieceN + lane / 4;
      const int token0 = first_token + lane % 4 * 2;
      float d[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (int slice = 0; slice < Shape::slices; ++slice) {
        const float4 part = smem.sums[u][slice][lane];
        d[0] += part.x, d[1] += part.y, d[2] += part.z, d[3] += part.w;
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int feature = feature0 + 8 * j;
        const typename Shape::Scale scale(sum_unit, p.weight, p.column_scales, feature, p.n);
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (token0 + i < p.m && feature < p.n)
            d[2 * j + i] = epilogue.apply(scale.apply(d[2 * j + i]), token0 + i, feature);
      }
      if constexpr (std::is_same_v<Out, float>) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (token0 + i % 2 < p.m && feature0 + i / 2 * 8 < p.n)
            static_cast<float*>(p.out)[(token0 + i % 2) * p.ld_out + feature0 + i / 2 * 8] = d[i];
      } else {
        store_transposed(d, first_token + lane / 4, feature0 - lane / 4 + lane % 4 * 2);
      }
    }
  }

  // Lanes hold two tokens of features r and r + 8; they store two features (and the two 8 further on) of one token.
  __device__ __forceinline__ void store_transposed(const float (&d)[4], int token, int feature) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const uint32_t pair = ptx::transpose_matrix(ptx::pack2<Act>(d[2 * j], d[2 * j + 1]));
      if (token >= p.m || feature + 8 * j >= p.n) continue;
      Act* out = static_cast<Act*>(p.out) + token * p.ld_out + feature + 8 * j;
      if (feature + 8 * j + 1 < p.n)
        *reinterpret_cast<uint32_t*>(out) = pair;
      else
        *reinterpret_cast<uint16_t*>(out) = static_cast<uint16_t>(pair);
    }
  }
};

template <SliceConfig C>
requires(why_invalid(C) == nullptr) __global__ void __launch_bounds__(C.tile.threads(), 1)
    slice_sm90(const __grid_constant__ CUtensorMap act_map, const __grid_constant__ SliceParams p) {
  using Shape = SliceShape<C>;
  constexpr SliceTile tile = C.tile;
  extern __shared__ __align__(1024) uint8_t dynamic_smem[];
  auto& smem = *reinterpret_cast<SliceStorage<C>*>(dynamic_smem);
  if (ptx::smem_address(&smem) % 1024 != 0) __trap();
  const SlicePlace<C> place(p);
  const uint32_t full = ptx::smem_address(smem.full[place.warp]);
  const uint32_t act = ptx::smem_address(smem.act[place.warp]), weight = ptx::smem_address(smem.weight[place.warp]);

  // Before the wait: weights, and everything that does not depend on the kernel before.
  SliceSource<C> source(p, place, &act_map);
  const float sum_unit = Shape::Scale::read_unit(p.weight);
  ptx::let_successor_launch();
  if constexpr (tile.cluster > 1) {
    if (threadIdx.x == 0) {
      ptx::barrier_init(ptx::smem_address(&smem.sums_full), 1);
      ptx::fence_barrier_init();
    }
    __syncthreads();
    ptx::cluster_arrive_relaxed();
  }
  if (place.lane == 0) {
    ptx::prefetch_tensor_map(&act_map);
    for (int s = 0; s < tile.stages; ++s) ptx::barrier_init(full + 8 * s, 1);
    ptx::fence_barrier_init();
    SliceSource<C> ahead = source;
    for (int s = 0; s < tile.stages && !ahead.done(); ++s, ahead.advance())
      ahead.load_weight(weight + s * Shape::block_bytes, full + 8 * s);
    ptx::wait_for_predecessor();
    for (int s = 0; s < tile.stages && !source.done(); ++s, source.advance())
      source.load_act(act + s * Shape::act_bytes, full + 8 * s);
  }
  __syncwarp();
  ptx::wait_for_predecessor();

  SliceConsumer<C> consumer;
  SliceReduction<C> reduction{p, place, smem, sum_unit};
  int slot = 0, block = place.warp;
  uint32_t phase = 0;
  for (int n_block = place.n_block_begin; n_block < place.n_block_end; ++n_block) {
    if constexpr (C.format.groups == 0) consumer.load_column(p, n_block, place.lane);
    consumer.clear();
#pragma unroll 1
    for (; block < place.k_blocks; block += tile.warps) {
      const uint32_t act_slot = act + slot * Shape::act_bytes, weight_slot = weight + slot * Shape::block_bytes;
      ptx::barrier_wait(full + 8 * slot, phase);
      consumer.multiply(act_slot, weight_slot, place.lane, [&] {
        __syncwarp();  // the stage is in registers: it may be filled again
        if (place.lane != 0 || source.done()) return;
        source.load_weight(weight_slot, full + 8 * slot);
        source.load_act(act_slot, full + 8 * slot);
        source.advance();
      });
      if (++slot == tile.stages) slot = 0, phase ^= 1;
    }
    block -= place.k_blocks;
    reduction.run(consumer.sum, n_block);
  }
}

}  // namespace nybble::kernels
