// out[m, n] = epilogue(act[m, k] x dequantize(weight)[n, k]^T) on Hopper, for every m from a few tokens up.
//
//   Operands   Only wgmma's A may come from registers, so the weight is A: wgmma's M is our n (64 output features a
//              block), wgmma's N our tokens. Said here once; everywhere else the names are act, weight and out.
//   Numerics   Groups: kRoundedWeight (parts/dequant.cuh), or where exact_weights() says so kExactWeight
//              (parts/exact_codes.cuh): sums of a group are scaled in fp32. Per column: kExactWeight, the scale
//              multiplies the fp32 sum.
//   Roles      The producers, one thread a warp, fill a ring of stages (128 input features each): a thread issues a
//              copy in about 150 ns, so weights have up to three of them, and tokens one of their own. Every math
//              warpgroup dequantizes row_blocks x 64 output features into registers and multiplies them with all tokens
//              of the tile; k_warpgroups of them do so for the same features, each with its own stages.
//   Ring       full[s]: one arrival per producer + bytes; empty[s]: one arrival per math warpgroup that reads it in
//              every CTA that shares the tokens. stages_per_barrier stages share a barrier; a row block's weights of
//              such a group are one bulk copy, its tokens are another.
//   Cluster    multicast = 2: two CTAs with neighbouring output features load half of the tokens' columns each, for
//              both; with shared_block the last row block of the first is the first of the second, each with half of
//              the tokens. split_k > 1: the CTAs of a tile split k; each finishes some of its sums and sends the others
//              to the shared memory of the CTA that finishes them, which adds them in the order of k.
//   Stream-K   With a workspace the clusters share all k steps of all tiles evenly: each takes a range of them, in
//              order. What a range holds of a tile that another range begins goes there as partial sums
//              (parts/partial_sums.cuh).
//   Phantoms   With split_k clusters past the tiles repeat the last tile and store nothing: where two launches share
//              the SMs a CTA that leaves at once makes the scheduler put two of the next launch on one SM, and that
//              lasts.
//   Edges      The last m tile ends at m and stores only what the tile before it does not. Where a tile has more rows
//              than there are tokens, only the next multiple of eight is copied: halves of 64 input features lie
//              act_half_bytes apart, rows past that hold anything, and so do their sums, which are not stored. Input
//              features past k arrive as zeros (tensor map). Output features past n are computed from the last block
//              again and not stored.
//   PDL        Weights never depend on the kernel before: they fill the ring before it has ended, a few groups at a
//              time, so that the first tokens do not wait for a ring of them. The next launch may start at once, or,
//              where its CTAs find room beside this one's, near the end (gemm_sm90.cc).
//   Barriers   Those of the cluster order nothing but the lives of shared memories: relaxed, for a release waits for
//              all stores to reach memory (docs/decisions/0002).
//   Origin     Measured designs and what was tried and lost: docs/kernel.md, docs/decisions.
#pragma once

#include <cuda.h>

#include "kernels/gemm_params.h"
#include "kernels/parts/dequant.cuh"
#include "kernels/parts/epilogue.cuh"
#include "kernels/parts/exact_codes.cuh"
#include "kernels/parts/partial_sums.cuh"
#include "kernels/parts/scale_factors.cuh"
#include "kernels/parts/sum_scale.cuh"
#include "kernels/ptx/bulk_copy.cuh"
#include "kernels/ptx/cluster.cuh"
#include "kernels/ptx/lane.cuh"
#include "kernels/ptx/mbarrier.cuh"
#include "kernels/ptx/shared.cuh"
#include "kernels/ptx/wgmma.cuh"

namespace nybble::kernels {

inline constexpr int kOutChunkBytes = kOutChunkTokens * layout::kBlockN * 2;

template <GemmConfig C> struct GemmShape {
  static constexpr GemmTile tile = C.tile;
  static constexpr int block_bytes = C.format.block().block_bytes();
  static constexpr int act_bytes = tile.tile_m * layout::kBlockK * 2;  // one stage: two halves of 64 input features
  static constexpr int row_warpgroups = tile.row_warpgroups(), row_blocks = row_warpgroups * tile.row_blocks;
  static constexpr int weight_bytes = row_blocks * block_bytes;  // one stage
  static constexpr int barriers = tile.stages / tile.stages_per_barrier;
  // Producer warps for weights, each with as many row blocks; the next one is for tokens.
  static constexpr int weight_producers = row_blocks % 3 == 0 ? 3 : row_blocks % 2 == 0 ? 2 : 1;
  static constexpr int producers = weight_producers + 1;
  // float4 of the k warpgroups but the first, where no cluster adds them up
  static constexpr int k_sums = tile.split_k > 1 ? 0 : (tile.k_warpgroups - 1) * row_blocks* tile.tile_m * 16;
  static constexpr int ring_bytes =
      tile.stages * (act_bytes + weight_bytes) + (16 + 8 * weight_producers) * barriers + 24 + k_sums * 16;
  static constexpr int out_left = smem_limit(tile.ctas_per_sm) - (ring_bytes + 127) / 128 * 128;
  static constexpr int cluster = tile.cluster();
  static constexpr bool stream_k = tile.stream_k();
  // Two CTAs of a pair have one row block in common: by so many a CTA begins earlier than if none had.
  __device__ static int shared_before(int n_tile, int share) { return tile.shared_block ? n_tile + share : 0; }
  // Before tokens are asked for, at most so many groups of weights after one that has not landed: 17 KB, or one.
  static constexpr int group_bytes = weight_bytes * tile.stages_per_barrier;
  static constexpr int groups_ahead = 17 * 1024 / group_bytes > 1 ? 17 * 1024 / group_bytes : 1;
  // split_k: a warpgroup's sums are units of 64 output features x 8 tokens. The parts of k (the CTAs, their k
  // warpgroups) finish so many of them each: part f those from first_unit(f) on.
  static constexpr int units = tile.row_blocks * tile.tile_m / 8, parts = tile.split_k * tile.k_warpgroups;
  static constexpr int most_units = (units + parts - 1) / parts;
  __host__ __device__ static constexpr int first_unit(int part) { return (part * units + parts - 1) / parts; }
  // Where a part sends one of the units that another finishes, in the shared memory of the CTA that does.
  __device__ static int unit_offset(int row_warpgroup, int finisher, int part, int slot) {
    return (((row_warpgroup * tile.k_warpgroups + finisher % tile.k_warpgroups) * parts + part) * most_units + slot) *
           unit_bytes;
  }
  // What all others send to a CTA.
  __device__ static uint32_t sums_bytes(int k_part) {
    const int finished = first_unit((k_part + 1) * tile.k_warpgroups) - first_unit(k_part * tile.k_warpgroups);
    return finished * row_warpgroups * (parts - 1) * unit_bytes;
  }
  static constexpr int unit_bytes = 64 * 8 * 4;
  static constexpr int math_registers = kernels::math_registers(tile),
                       producer_registers = kernels::producer_registers(tile);
  // Staging per warpgroup; split_k stages in the ring.
  static constexpr int out_chunks = tile.split_k > 1 ? 1 : out_left >= tile.warpgroups * 4 * kOutChunkBytes ? 4 : 2;
};

template <GemmConfig C> struct alignas(1024) GemmStorage {  // why_invalid() and make_gemm_instance() see that it fits
  using Shape = GemmShape<C>;
  uint8_t act[C.tile.stages][Shape::act_bytes];
  uint8_t weight[Shape::barriers][Shape::row_blocks][C.tile.stages_per_barrier][Shape::block_bytes];
  uint64_t full[Shape::barriers];
  uint64_t empty[Shape::barriers];
  uint64_t landed[Shape::weight_producers][Shape::barriers];  // weights of the first round: GemmProducer::prefill()
  uint64_t act_asked;                                         // the first tokens are under way
  float sum_unit;                                             // SumScale::read_unit(), or ScaleFactors::of_sum
  float scale_factor;                                         // ScaleFactors::of_scale
  uint64_t sums_full;                                         // split_k: what the CTAs of the tile send here
  alignas(16) float4 k_sums[Shape::k_sums > 0 ? Shape::k_sums : 1];
  alignas(128) uint8_t out[C.tile.split_k > 1 ? 1 : C.tile.warpgroups][Shape::out_chunks][kOutChunkBytes];
};

// Consecutive k blocks of one tile.
struct Segment {
  int n_tile, m_tile;
  int k_begin, k_end;
};

// What one cluster computes, in order. Without stream-K: tile after tile, or its part of k of them; with it: a range of
// the k steps of all tiles.
template <GemmConfig C> struct Walk {
  static constexpr int cluster = GemmShape<C>::cluster, group = C.tile.stages_per_barrier, split_k = C.tile.split_k;
  const GemmParams& p;
  int next_unit, end;  // tiles, or with stream-K groups of k blocks of all tiles

  __device__ explicit Walk(const GemmParams& params) : p(params) {
    const int clusters = static_cast<int>(gridDim.x / cluster), index = static_cast<int>(blockIdx.x / cluster);
    end = p.n_tiles * p.m_tiles;
    next_unit = split_k > 1 ? min(index, end - 1) : index;
    if (stream_k()) {
      const int range = clusters - 1 - index;  // a range waits for those after it: they must be dispatched before it
      next_unit = begin_of(p, range, clusters), end = begin_of(p, range + 1, clusters);
    }
  }

  __device__ static int groups(const GemmParams& p) { return (p.k_blocks + group - 1) / group; }
  __device__ static int begin_of(const GemmParams& p, int range, int ranges) {
    return static_cast<int>(static_cast<int64_t>(p.n_tiles) * p.m_tiles * groups(p) * range / ranges);
  }
  __device__ bool stream_k() const { return GemmShape<C>::stream_k && p.workspace != nullptr; }
  __device__ bool done() const { return next_unit >= end; }  // what next() gave is the last

  __device__ bool next(Segment& segment, int k_part) {
    if (done()) return false;
    int tile = next_unit;
    if (stream_k()) {
      tile = next_unit / groups(p);
      const int done = next_unit - tile * groups(p), count = min(end - next_unit, groups(p) - done);
      segment.k_begin = done * group, segment.k_end = min((done + count) * group, p.k_blocks);
      next_unit += count;
    } else {
      segment.k_begin = k_part * p.k_blocks / split_k, segment.k_end = (k_part + 1) * p.k_blocks / split_k;
      next_unit += static_cast<int>(gridDim.x / cluster);
    }
    const int band = p.raster * p.m_tiles, band_index = tile / band, rest = tile - band_index * band;
    const int width = min(p.raster, p.n_tiles - band_index * p.raster);
    segment.m_tile = rest / width;
    segment.n_tile = band_index * p.raster + rest - segment.m_tile * width;
    return true;
  }
};

// The last m tile overlaps the one before; what it has of that one's tokens it does not store.
template <GemmConfig C> __device__ __forceinline__ int first_token(const GemmParams& p, int m_tile) {
  return min(m_tile * C.tile.tile_m, p.last_token0);
}

// Where a CTA stands in its cluster.
template <GemmConfig C> struct ClusterPlace {
  static constexpr int size = GemmShape<C>::cluster;
  int share, k_part;  // which of the CTAs that share tokens; which part of k

  __device__ ClusterPlace() {
    const int rank = static_cast<int>(blockIdx.x % size);
    share = rank % C.tile.multicast;
    k_part = rank / C.tile.multicast;
  }
};

// One warp; its first lane issues.
template <GemmConfig C> struct GemmProducer {
  using Shape = GemmShape<C>;
  static constexpr GemmTile tile = C.tile;
  static constexpr int group = tile.stages_per_barrier, row_blocks = Shape::row_blocks / Shape::weight_producers;

  const CUtensorMap* act_map;
  const GemmParams& p;
  GemmStorage<C>& smem;
  ClusterPlace<C> place;
  int index;  // among the producers
  uint64_t policy;
  Walk<C> walk;
  Segment segment;
  bool more;

  __device__ GemmProducer(const CUtensorMap* map, const GemmParams& params, GemmStorage<C>& storage, int producer)
      : act_map(map), p(params), smem(storage), index(producer), walk(params) {
    policy = p.m_tiles == 1 ? ptx::make_l2_policy<ptx::L2Policy::kEvictFirst>()
                            : ptx::make_l2_policy<ptx::L2Policy::kEvictNormal>();
    more = walk.next(segment, place.k_part);
  }

  __device__ bool has_act() const { return index == Shape::weight_producers; }

  // Of a group, to the slot; `barrier` tells when they are there.
  __device__ void load_weight(int k, int slot, uint64_t& barrier) {
    const int count = min(group, segment.k_end - k);
    const uint32_t there = ptx::smem_address(&barrier);
    ptx::barrier_expect(there, count * row_blocks * Shape::block_bytes);
#pragma unroll
    for (int i = 0; i < row_blocks; ++i)
      ptx::bulk_load(ptx::smem_address(smem.weight[slot][index * row_blocks + i]), block_at(segment.n_tile, i, k),
                     count * Shape::block_bytes, there, policy);
  }

  // Of the producer's rows of blocks the i-th; past n the last one again.
  __device__ const uint8_t* block_at(int n_tile, int i, int k) const {
    const int row = (n_tile * tile.multicast + place.share) * Shape::row_blocks + index * row_blocks + i -
                    Shape::shared_before(n_tile, place.share);
    const int64_t block = static_cast<int64_t>(min(row, p.n_blocks - 1)) * p.k_blocks + k;
    return p.weight + layout::kHeaderBytes + block * Shape::block_bytes;
  }

  // All of a group, also where the segment ends inside it: one copy, or one for every half of a stage.
  __device__ void load_act(int k, int slot) {
    const uint32_t full = ptx::smem_address(&smem.full[slot]);
    const int token0 = first_token<C>(p, segment.m_tile);
    constexpr int halves = 2 * group / tile.multicast;
    const int half0 = place.share * halves;
    const uint32_t to = ptx::smem_address(smem.act[slot * group]) + half0 * p.act_half_bytes;
    const auto mask = static_cast<uint16_t>(3u << (place.k_part * 2));
    ptx::barrier_expect(full, 2 * group * p.act_half_bytes);
    if (p.act_whole) {
      if constexpr (tile.multicast == 1)
        ptx::tensor_load_3d(to, act_map, full, 0, token0, k * 2 + half0);
      else
        ptx::tensor_load_3d_multicast(to, act_map, full, 0, token0, k * 2 + half0, mask);
      return;
    }
#pragma unroll 1
    for (int i = 0; i < halves; ++i)
      if constexpr (tile.multicast == 1)
        ptx::tensor_load_2d(to + i * p.act_half_bytes, act_map, full, (k * 2 + half0 + i) * 64, token0);
      else
        ptx::tensor_load_2d_multicast(to + i * p.act_half_bytes, act_map, full, (k * 2 + half0 + i) * 64, token0, mask);
  }

  // What may be read before the kernel before has ended. Copies of an SM are served in their order, so tokens would
  // wait for a ring of weights where the kernel before ends soon after this CTA's start: until the first tokens are
  // asked for, only a few groups of weights are under way (docs/decisions/0017). What is needed to know that a group
  // has landed goes to smem.landed first, and from there to smem.full. Where the ring holds nearly all of a segment,
  // the rest goes to L2: 4096 x 4096 at m = 16 in two parts of k 4.2 instead of 4.6 us; where it holds less, the copies
  // are in the way of the kernel before (H200, 2026-11-30, docs/decisions/0014).
  __device__ void prefill() {
    if (!more || has_act()) return;
    constexpr int ahead = Shape::groups_ahead;
    int k = segment.k_begin, slot = 0, landed = 1, deferred = 1;  // slots landed to deferred - 1 are to be passed on
    const auto pass_on = [&] {
      ptx::barrier_wait(ptx::smem_address(&smem.landed[index][landed]), 0);
      ptx::barrier_arrive_if(ptx::smem_address(&smem.full[landed++]), true);
    };
    bool act_asked = false;
#pragma unroll 1
    for (; slot < Shape::barriers && k < segment.k_end; ++slot, k += group) {
      while (!act_asked && landed <= slot - ahead) {
        pass_on();
        act_asked = ptx::barrier_test(ptx::smem_address(&smem.act_asked), 0);
      }
      const bool defer = !act_asked && slot > 0 && slot + ahead < Shape::barriers;
      load_weight(k, slot, defer ? smem.landed[index][slot] : smem.full[slot]);
      if (defer) deferred = slot + 1;
    }
#pragma unroll 1
    while (landed < deferred) pass_on();
    if (const int rest = segment.k_end - k; rest > 0 && 3 * rest <= Shape::barriers * group)
      for (int i = 0; i < row_blocks; ++i)
        ptx::bulk_prefetch_to_l2(block_at(segment.n_tile, i, k), rest * Shape::block_bytes);
  }

  // After prefill(), and after the other CTAs that get tokens from here have started.
  __device__ void run() {
    int slot = 0;
    uint32_t parity = 1;  // a fresh ring is empty
    int k = segment.k_begin;
    bool triggered = p.trigger == kTriggerAtStart || !has_act();
    const auto trigger = [&](int groups_left) {
      if (triggered || !walk.done() || segment.k_end - k > groups_left * group) return;
      ptx::let_successor_launch();
      triggered = true;
    };
    trigger(Shape::barriers);  // the ring holds all there is
    ptx::wait_for_predecessor();
#pragma unroll 1
    for (; more && slot < Shape::barriers && k < segment.k_end; ++slot, k += group)
      if (has_act()) {
        load_act(k, slot);
        if (slot == 0) ptx::barrier_arrive_if(ptx::smem_address(&smem.act_asked), true);
      }
    if (slot == Shape::barriers) slot = 0, parity = 0;
    while (more) {
#pragma unroll 1
      for (; k < segment.k_end; k += group) {
        ptx::barrier_wait(ptx::smem_address(&smem.empty[slot]), parity);
        if (has_act())
          load_act(k, slot);
        else
          load_weight(k, slot, smem.full[slot]);
        trigger(p.trigger);
        if (++slot == Shape::barriers) slot = 0, parity ^= 1;
      }
      more = walk.next(segment, place.k_part);
      k = segment.k_begin;
    }
  }
};

template <GemmConfig C, class T> struct GemmConsumer {
  using Shape = GemmShape<C>;
  static constexpr GemmTile tile = C.tile;
  static constexpr int group = tile.stages_per_barrier, blocks = tile.row_blocks;
  static constexpr int row_warpgroups = Shape::row_warpgroups, k_warpgroups = tile.k_warpgroups;
  static constexpr int scale_groups = C.format.groups;
  static constexpr layout::BlockShape block = C.format.block();
  static constexpr int acc_count = tile.tile_m / 2;
  static constexpr int half_tokens = tile.tile_m / 2;  // of a shared row block, in each CTA
  template <int tokens = tile.tile_m> using Sums = float[blocks][tokens / 2];
  using Scale = SumScale<T, scale_groups, C.format.zero_point>;
  using Epilogue = FusedEpilogue<T, std::conditional_t<tile.fp32_out, float, T>>;
  // Sums of a group have accumulators of their own, and multiply its scales.
  static constexpr bool scaled_sums = scale_groups > 0 && exact_weights(C);
  static constexpr int batch = scaled_sums && tile.tile_m == 32 && Shape::math_registers <= 104 ? 2 : tile.batch;
  static constexpr int steps_per_group = scale_groups > 0 ? 8 / scale_groups : 8;
  static_assert(!scaled_sums || steps_per_group % batch == 0, "a wgmma group belongs to one group of scales");
  using Codes = std::conditional_t<scaled_sums, ExactCodes<T>, Dequant<T, C.format.zero_point, scale_groups == 0>>;

  const GemmParams& p;
  GemmStorage<C>& smem;
  ClusterPlace<C> place;
  int warpgroup, warp, lane, tid;  // warp and tid inside the warpgroup
  int row_warpgroup = k_warpgroups == 1 ? warpgroup : warpgroup % row_warpgroups;
  int k_warpgroup = k_warpgroups == 1 ? 0 : warpgroup / row_warpgroups;
  int slot = k_warpgroup;
  int ahead = k_warpgroup;  // groups of a segment before this warpgroup's first
  uint32_t parity = 0;
  uint32_t remote_empty = 0;

  // Lets go of a group of stages, here and where its tokens came from.
  __device__ __forceinline__ void release(int which, bool condition) {
    if constexpr (tile.multicast > 1)
      ptx::barrier_arrive_cluster_if(remote_empty + 8 * which, condition && tid < tile.multicast);
    else
      ptx::barrier_arrive_if(remote_empty + 8 * which, condition && tid == 0);
  }

  // For so many tokens of the tile, from token_offset on.
  template <int tokens>
  __device__ __forceinline__ void mainloop(Sums<tokens>& sums, int token_offset, int n_tile, int k_begin, int k_end) {
    const uint32_t weight_base = ptx::smem_address(smem.weight) + row_warpgroup * blocks * group * Shape::block_bytes +
                                 warp * block.piece_bytes();
    // Shared-memory matrix descriptor (PTX ISA, "Matrix Descriptor Format"): 128-byte swizzle, 1024 bytes between
    // groups of 8 rows.
    constexpr uint32_t descriptor_high = (1024u >> 4) | (1u << 30);
    const uint32_t descriptor_low = (((ptx::smem_address(smem.act) + token_offset * 128) & 0x3FFFF) >> 4) | (1u << 16);
    const auto act_half_units = static_cast<uint64_t>(p.act_half_bytes >> 4);
    const uint32_t lane_codes = ptx::keep(lane * 16), lane_scales = ptx::keep(lane / 4 * 4);
    Codes dequant[blocks];
    if constexpr (scale_groups == 0) {
#pragma unroll
      for (int b = 0; b < blocks; ++b) dequant[b].load(0, column_zero_points(n_tile, b));
    }
    GroupSums<tokens> group_sums[blocks];
    const float scale_factor = scaled_sums && ptx::is_bf16<T> ? smem.scale_factor : 1.f;
    if constexpr (scaled_sums) {
#pragma unroll
      for (int b = 0; b < blocks; ++b) {
        group_sums[b].clear();
#pragma unroll
        for (float& sum : sums[b]) sum = 0.f;
        if constexpr (!C.format.zero_point) dequant[b].set_symmetric();
      }
    }
    uint32_t a[2][batch * 4];
    const int first = k_warpgroups > 1 ? k_begin + ahead * group : k_begin;
    int k = first, previous = slot;
#pragma unroll 1
    for (; k < k_end; k += group * k_warpgroups) {
      // The stage's descriptor in a uniform register: without the reduction ptxas puts two R2UR before every wgmma of
      // some formats, and they wait for each other (28672 x 4096, m = 64 on an H200: 32.4 -> 28.8 us, 2026-11-23,
      // prototype). What a wgmma adds to it is a constant, and the sum has 64 bits: then it costs one instruction, and
      // two more where only the low word is added to and the high one put beside it.
      uint64_t act_half =
          descriptor(__reduce_max_sync(~0u, descriptor_low + slot * (group * Shape::act_bytes >> 4)), descriptor_high);
      const uint32_t weight = weight_base + slot * (group * Shape::weight_bytes);
      ptx::barrier_wait(ptx::smem_address(&smem.full[slot]), parity);
#pragma unroll
      for (int u = 0; u < group; ++u) {
        if (u > 0 && k + u >= k_end) break;
        if (u > 0) act_half += act_half_units;
        uint4 codes[blocks][2];
        uint32_t scales[blocks];
#pragma unroll
        for (int b = 0; b < blocks; ++b) {
          const uint32_t piece = weight + (b * group + u) * Shape::block_bytes;
          codes[b][0] = ptx::load_shared_128(piece + lane_codes);
          if constexpr (blocks == 1) codes[b][1] = ptx::load_shared_128(piece + layout::kHalfBytes + lane_codes);
        }
        int batch_index = 0;
#pragma unroll
        for (int step = 0; step < 8; step += batch) {
          if (step == 4) {
            act_half += act_half_units;
#pragma unroll
            for (int b = 0; b < blocks; ++b) {
              const uint32_t piece = weight + (b * group + u) * Shape::block_bytes;
              if constexpr (blocks > 1) codes[b][1] = ptx::load_shared_128(piece + layout::kHalfBytes + lane_codes);
            }
          }
#pragma unroll
          for (int b = 0; b < blocks; ++b, ++batch_index) {
            uint32_t* fragment = a[batch_index % 2];
#pragma unroll
            for (int j = 0; j < batch; ++j) {
              const int s = step + j;
              if constexpr (scale_groups > 0)
                if (s % steps_per_group == 0)
                  scales[b] = load_scales(dequant[b], weight + (b * group + u) * Shape::block_bytes, lane_scales,
                                          s / steps_per_group);
              dequant[b](fragment + 4 * j, (&codes[b][s / 4].x)[s % 4]);
            }
            if constexpr (scaled_sums)
              if (step % steps_per_group == 0) {
                if (b == 0) add_group_sums<tokens>(sums, group_sums);
                group_sums[b].scale = group_scales<T>(scales[b], scale_factor);
              }
            ptx::wgmma_fence();
#pragma unroll
            for (int j = 0; j < batch; ++j) {
              const int s = step + j;
              const uint64_t act = act_half + s % 4 * 2;
              if constexpr (scaled_sums)
                ptx::wgmma<T>(group_sums[b].sums, fragment + 4 * j, act, s % steps_per_group != 0);
              else
                ptx::wgmma<T>(sums[b], fragment + 4 * j, act, s == 0 && u == 0 ? (k != first) : 1);
            }
            ptx::wgmma_commit();
            ptx::wgmma_wait<1>();
            if (u == 0 && batch_index == 0) release(previous, k != first);
          }
        }
      }
      previous = slot;
      slot += k_warpgroups;
      if (slot >= Shape::barriers) slot -= Shape::barriers, parity ^= 1;
    }
    ptx::wgmma_wait<0>();
    if constexpr (scaled_sums) add_group_sums<tokens>(sums, group_sums);
    if (first < k_end) {
      release(previous, true);
    } else if constexpr (k_warpgroups > 1) {
#pragma unroll
      for (int i = 0; i < blocks * tokens / 2; ++i) sums[i / (tokens / 2)][i % (tokens / 2)] = 0.f;
    }
    if constexpr (k_warpgroups > 1) ahead = (k - k_begin) / group - (k_end - k_begin + group - 1) / group;
  }

  // The first k warpgroup adds the sums of the others to its own; the others get their area back when it has read them.
  __device__ __forceinline__ void reduce_k_warpgroups(Sums<>& sums, bool first_segment) {
    constexpr int all = blocks * acc_count / 4, threads = k_warpgroups * 128;
    float4* area = smem.k_sums + row_warpgroup * (all * 128) + tid;
    if (k_warpgroup > 0) {
      if (!first_segment) ptx::named_barrier_sync(5 + row_warpgroup, threads);
      area += (k_warpgroup - 1) * (row_warpgroups * all * 128);
#pragma unroll
      for (int i = 0; i < all; ++i) {
        const float* d = &sums[i / (acc_count / 4)][i % (acc_count / 4) * 4];
        area[i * 128] = make_float4(d[0], d[1], d[2], d[3]);
      }
      ptx::named_barrier_arrive(9 + row_warpgroup, threads);
    } else {
      ptx::named_barrier_sync(9 + row_warpgroup, threads);
#pragma unroll
      for (int other = 1; other < k_warpgroups; ++other, area += row_warpgroups * all * 128)
#pragma unroll
        for (int i = 0; i < all; ++i) {
          float* d = &sums[i / (acc_count / 4)][i % (acc_count / 4) * 4];
          const float4 part = area[i * 128];
          d[0] += part.x, d[1] += part.y, d[2] += part.z, d[3] += part.w;
        }
      ptx::named_barrier_arrive(5 + row_warpgroup, threads);
    }
  }

  template <int tokens>
  __device__ __forceinline__ void store(const Sums<tokens>& sums, int token_offset, int n_tile, int m_tile) {
    if constexpr (tile.fp32_out)
      store_fp32<tokens>(sums, token_offset, n_tile, m_tile);
    else
      store_staged<tokens>(sums, token_offset, n_tile, m_tile);
  }

  // Sums become outputs through swizzled staging buffers of 16 tokens x 64 output features, as many at a time as there
  // are. Threads store them: tensor stores take longer to issue, one thread 150 ns each, and a launch that waits for
  // the end of this one waits longer (docs/decisions/0013).
  template <int tokens>
  __device__ __forceinline__ void store_staged(const Sums<tokens>& sums, int token_offset, int n_tile, int m_tile) {
    constexpr int chunks = tokens / kOutChunkTokens, buffers = Shape::out_chunks;
    const int tile_token0 = first_token<C>(p, m_tile) + token_offset, own_token0 = m_tile * tile.tile_m;
    const Epilogue epilogue(p.epilogue);
    const uint32_t staging = ptx::smem_address(smem.out[warpgroup]);
    const int token = (lane & 7) + (lane >> 4) * 8, half = (lane >> 3) & 1;
    const uint32_t offset = token * 128 + (((warp * 2 + half) ^ (token & 7)) << 4);
#pragma unroll
    for (int b = 0; b < blocks; ++b) {
      const int feature0 = first_feature(n_tile, b), feature = feature0 + warp * 16 + lane / 4;  // and feature + 8
      const RowPair rows(*this, epilogue, feature);
#pragma unroll
      for (int c0 = 0; c0 < chunks; c0 += buffers) {
        sync();  // the buffers are free
#pragma unroll
        for (int c = c0; c < chunks && c < c0 + buffers; ++c) {
          const int token0 = tile_token0 + c * kOutChunkTokens;
          float d[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) d[i] = rows.finish(epilogue, sums[b][c * 8 + i], i % 4 / 2);
          if (epilogue.residual != nullptr) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
              const int m = token0 + i / 4 * 8 + lane % 4 * 2 + i % 2, n = feature + i % 4 / 2 * 8;
              if (m >= own_token0 && m < p.m && n < p.n) d[i] = epilogue.add_residual(d[i], m, n);
            }
          }
          ptx::store_matrix_x4_transposed(staging + (c - c0) * kOutChunkBytes + offset, ptx::pack2<T>(d[0], d[1]),
                                          ptx::pack2<T>(d[2], d[3]), ptx::pack2<T>(d[4], d[5]),
                                          ptx::pack2<T>(d[6], d[7]));
        }
        sync();
        const int row = tid / 8, column = tid % 8;
        uint4 staged[buffers];
#pragma unroll
        for (int i = 0; i < buffers && c0 + i < chunks; ++i)
          staged[i] = ptx::load_shared_128(staging + i * kOutChunkBytes + row * 128 + ((column ^ (row & 7)) << 4));
#pragma unroll
        for (int i = 0; i < buffers && c0 + i < chunks; ++i) {
          const int m = tile_token0 + (c0 + i) * kOutChunkTokens + row;
          if (m >= own_token0) store_eight(staged[i], m, feature0 + column * 8);
        }
      }
    }
  }

  template <int tokens>
  __device__ __forceinline__ void store_fp32(const Sums<tokens>& sums, int token_offset, int n_tile, int m_tile) const {
    const int token0 = first_token<C>(p, m_tile) + token_offset;
    const Epilogue epilogue(p.epilogue);
#pragma unroll
    for (int b = 0; b < blocks; ++b) {
      const int feature = first_feature(n_tile, b) + warp * 16 + lane / 4;  // and feature + 8
      const RowPair rows(*this, epilogue, feature);
#pragma unroll
      for (int i = 0; i < tokens / 2; i += 4)
        store_fp32_unit(epilogue, rows, &sums[b][i], feature, token0 + i * 2, m_tile * tile.tile_m);
    }
  }

  // Stores eight output features of a token from n on, those that are there.
  __device__ __forceinline__ void store_eight(const uint4& values, int m, int n) const {
    if (m >= p.m || n >= p.n) return;
    T* out = static_cast<T*>(p.out) + m * p.ld_out + n;
    if (n + 8 <= p.n) {
      *reinterpret_cast<uint4*>(out) = values;
      return;
    }
#pragma unroll
    for (int j = 0; j < 8; ++j)
      if (n + j < p.n) reinterpret_cast<uint16_t*>(out)[j] = static_cast<uint16_t>((&values.x)[j / 2] >> j % 2 * 16);
  }

  // split_k: every warpgroup sends the units that another part of k finishes into that one's ring, which no one reads
  // any more, keeps its own, and adds to them what the others send, in the order of k.
  __device__ __forceinline__ void reduce_and_store(Sums<>& sums, int n_tile, int m_tile) {
    constexpr int units = Shape::units, parts = Shape::parts, most = Shape::most_units, block_units = tile.tile_m / 8;
    constexpr int sums_end = tile.warpgroups * parts * most * Shape::unit_bytes;  // behind it, outputs to be stored
    static_assert(sums_end + tile.warpgroups * most * 1024 <= tile.stages * (Shape::act_bytes + Shape::weight_bytes));
    const Epilogue epilogue(p.epilogue);
    const uint32_t area = ptx::smem_address(&smem) + tid * 16, sums_full = ptx::smem_address(&smem.sums_full);
    ptx::cluster_arrive_relaxed();  // of all CTAs, the rings are read to their end
    ptx::cluster_wait();
    const int part = place.k_part * k_warpgroups + k_warpgroup;
    float own[most][4];
#pragma unroll
    for (int i = 0; i < units; ++i) {
      const float* d = &sums[i / block_units][i % block_units * 4];
      const int finisher = i * parts / units, slot = i - Shape::first_unit(finisher);
      if (finisher == part) {
#pragma unroll
        for (int j = 0; j < 4; ++j) own[slot][j] = d[j];
      } else {
        const int rank = finisher / k_warpgroups * tile.multicast + place.share;
        ptx::store_async_float4(ptx::map_to_rank(area + Shape::unit_offset(row_warpgroup, finisher, part, slot), rank),
                                ptx::map_to_rank(sums_full, rank), d[0], d[1], d[2], d[3]);
      }
    }
    const int first = Shape::first_unit(part), count = Shape::first_unit(part + 1) - first;
    ptx::barrier_wait(sums_full, 0);
    if (static_cast<int>(blockIdx.x / Shape::cluster) >= p.n_tiles * p.m_tiles) return;  // a phantom
    const int tile_token0 = first_token<C>(p, m_tile), own_token0 = m_tile * tile.tile_m;
    const uint32_t staging = ptx::smem_address(&smem) + sums_end + warpgroup * (most * 1024);
#pragma unroll
    for (int slot = 0; slot < most; ++slot) {
      if (units % parts != 0 && slot >= count) break;
      const int b = (first + slot) / block_units, token0 = tile_token0 + (first + slot) % block_units * 8;
      const int feature = first_feature(n_tile, b) + warp * 16 + lane / 4;  // and feature + 8
      float d[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (int other = 0; other < parts; ++other) {
        float4 add = make_float4(own[slot][0], own[slot][1], own[slot][2], own[slot][3]);
        if (other != part) add = ptx::load_shared_float4(area + Shape::unit_offset(row_warpgroup, part, other, slot));
        d[0] += add.x, d[1] += add.y, d[2] += add.z, d[3] += add.w;
      }
      const RowPair rows(*this, epilogue, feature);
      if constexpr (tile.fp32_out) {
        store_fp32_unit(epilogue, rows, d, feature, token0, own_token0);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) d[j] = rows.finish(epilogue, d[j], j / 2);
        if (epilogue.residual != nullptr) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int m = token0 + lane % 4 * 2 + j % 2, n = feature + j / 2 * 8;
            if (m >= own_token0 && m < p.m && n < p.n) d[j] = epilogue.add_residual(d[j], m, n);
          }
        }
        const int token = lane & 7, half = (lane >> 3) & 1;
        ptx::store_matrix_x2_transposed(staging + slot * 1024 + token * 128 + (((warp * 2 + half) ^ token) << 4),
                                        ptx::pack2<T>(d[0], d[1]), ptx::pack2<T>(d[2], d[3]));
      }
    }
    if constexpr (!tile.fp32_out) {
      sync();
#pragma unroll
      for (int e0 = 0; e0 < most * 64; e0 += 128) {
        const int e = e0 + tid, slot = e / 64, token = e % 64 / 8, column = e % 8;
        if (slot >= count) continue;
        const int b = (first + slot) / block_units;
        const int m = tile_token0 + (first + slot) % block_units * 8 + token, n = first_feature(n_tile, b) + column * 8;
        if (m >= own_token0)
          store_eight(ptx::load_shared_128(staging + slot * 1024 + token * 128 + ((column ^ token) << 4)), m, n);
      }
    }
  }

  // A range that begins inside a tile leaves its part of the tile to the range before it.
  __device__ __forceinline__ void give(const Sums<>& sums) const {
    float4* to = partial_sums(static_cast<int>(blockIdx.x));
#pragma unroll
    for (int i = 0; i < blocks * acc_count / 4; ++i) {
      const float* d = &sums[i / (acc_count / 4)][i % (acc_count / 4) * 4];
      __stcg(to + i * 128, make_float4(d[0], d[1], d[2], d[3]));
    }
    sync();
    if (tid == 0) publish_sums(flag(static_cast<int>(blockIdx.x)));
  }

  // Many loads at a time, as many as there are registers for: each batch waits for L2 once.
  __device__ __forceinline__ static void add_partial_sums(Sums<>& sums, const float4* from) {
    constexpr int all = blocks * acc_count / 4, spare = (Shape::math_registers - blocks * acc_count - 48) / 4;
    constexpr int batch = spare >= 16 ? 16 : spare >= 8 ? 8 : 4;
#pragma unroll
    for (int i = 0; i < all; i += batch) {
      float4 part[batch];
#pragma unroll
      for (int j = 0; j < batch && i + j < all; ++j) part[j] = ptx::load_l2_float4(from + (i + j) * 128);
#pragma unroll
      for (int j = 0; j < batch && i + j < all; ++j) {
        float* d = &sums[(i + j) / (acc_count / 4)][(i + j) % (acc_count / 4) * 4];
        d[0] += part[j].x, d[1] += part[j].y, d[2] += part[j].z, d[3] += part[j].w;
      }
    }
  }

  // Adds what the ranges after this one hold of the tile whose first k blocks, up to k_end, are in sums, in their
  // order. All of them are awaited side by side: 5120 x 32768 at m = 16 27.8 -> 26.8 us, where ranges share a tile by
  // three and more (H200, 2026-11-30).
  __device__ __forceinline__ void take(Sums<>& sums, int k_end) const {
    const int clusters = static_cast<int>(gridDim.x / Shape::cluster), cta = static_cast<int>(blockIdx.x);
    const int range = clusters - 1 - cta / Shape::cluster;
    int others = 0;
    for (int left = Walk<C>::groups(p) - k_end / group; left > 0; ++others)
      left -= Walk<C>::begin_of(p, range + others + 2, clusters) - Walk<C>::begin_of(p, range + others + 1, clusters);
    for (int other = tid; other < others; other += 128) await_sums(flag(cta - (other + 1) * Shape::cluster));
    sync();
#pragma unroll 1
    for (int other = 1; other <= others; ++other) add_partial_sums(sums, partial_sums(cta - other * Shape::cluster));
  }

  __device__ void run() {
    remote_empty = ptx::smem_address(smem.empty);
    if constexpr (tile.multicast > 1)
      remote_empty = ptx::map_to_rank(remote_empty, place.k_part * tile.multicast + (tid < tile.multicast ? tid : 0));
    if (warpgroup == 0 && tid == 0) {
      if constexpr (scaled_sums) {
        const ScaleFactors factors(p.weight, ExactCodes<T>::kUnitExponent);
        smem.sum_unit = factors.of_sum, smem.scale_factor = factors.of_scale;
      } else {
        smem.sum_unit = Scale::read_unit(p.weight);
      }
    }
    ptx::named_barrier_sync(15, tile.warpgroups * 128);
    if constexpr (Shape::cluster > 1) ptx::cluster_wait();  // the other CTAs have started
    Walk<C> walk(p);
    ptx::wait_for_predecessor();  // alpha, bias, residual, out and the workspace belong to the stream's order
    Segment segment;
    bool more = walk.next(segment, place.k_part);
    if constexpr (tile.shared_block)
      if (row_warpgroup == (place.share == 0 ? row_warpgroups - 1 : 0)) {
        const int token_offset = place.share * half_tokens;  // 8 rows of tokens are one swizzle atom
        for (; more; more = walk.next(segment, 0)) {
          Sums<half_tokens> sums;
          mainloop<half_tokens>(sums, token_offset, segment.n_tile, segment.k_begin, segment.k_end);
          store<half_tokens>(sums, token_offset, segment.n_tile, segment.m_tile);
        }
        return;
      }
    bool first_segment = true;
    while (more) {
      Sums<> sums;
      mainloop<tile.tile_m>(sums, 0, segment.n_tile, segment.k_begin, segment.k_end);
      if constexpr (k_warpgroups > 1 && tile.split_k == 1) reduce_k_warpgroups(sums, first_segment);
      first_segment = false;
      if constexpr (tile.split_k > 1) {
        reduce_and_store(sums, segment.n_tile, segment.m_tile);
      } else if (k_warpgroups > 1 && k_warpgroup > 0) {  // the first has the sums of all
      } else if (Shape::stream_k && segment.k_begin > 0) {
        give(sums);
      } else {
        if (Shape::stream_k && segment.k_end < p.k_blocks) take(sums, segment.k_end);
        store<tile.tile_m>(sums, 0, segment.n_tile, segment.m_tile);
      }
      more = walk.next(segment, place.k_part);
    }
  }

 private:
  __device__ __forceinline__ void sync() const { ptx::named_barrier_sync(1 + warpgroup, 128); }
  __device__ __forceinline__ uint64_t* flag(int cta) const {
    return reinterpret_cast<uint64_t*>(p.workspace) + cta * row_warpgroups + row_warpgroup;
  }
  // Of this thread: a warpgroup's partial sums are its registers, four at a time.
  __device__ __forceinline__ float4* partial_sums(int cta) const {
    return reinterpret_cast<float4*>(p.workspace + p.partial_sums) +
           static_cast<int64_t>(cta * row_warpgroups + row_warpgroup) * (blocks * acc_count / 4 * 128) + tid;
  }
  __device__ __forceinline__ int first_feature(int n_tile, int b) const {
    const int row = ((n_tile * tile.multicast + place.share) * row_warpgroups + row_warpgroup) * blocks + b;
    return (row - Shape::shared_before(n_tile, place.share)) * layout::kBlockN;
  }

  __device__ __forceinline__ static uint64_t descriptor(uint32_t low, uint32_t high) {
    uint64_t d;
    asm("mov.b64 %0, {%1, %2};" : "=l"(d) : "r"(low), "r"(high));
    return d;
  }

  template <int tokens> struct GroupSums {  // of a row block
    float sums[tokens / 2];
    float2 scale;  // of rows r and r + 8

    __device__ __forceinline__ void clear() {
#pragma unroll
      for (float& sum : sums) sum = 0.f;
      scale = make_float2(0.f, 0.f);
    }
  };

  // Waits for the products of a group, whose sums then go to those of all groups.
  template <int tokens>
  __device__ __forceinline__ static void add_group_sums(Sums<tokens>& sums, GroupSums<tokens> (&group_sums)[blocks]) {
    ptx::wgmma_wait<0>();
#pragma unroll
    for (int b = 0; b < blocks; ++b)
#pragma unroll
      for (int i = 0; i < tokens / 2; ++i) {
        ptx::keep_behind(group_sums[b].sums[i]);
        const float scale = i % 4 < 2 ? group_sums[b].scale.x : group_sums[b].scale.y;
        sums[b][i] = fmaf(scale, group_sums[b].sums[i], sums[b][i]);
      }
  }

  // Of a group, to `dequant`; returns the scales of the lane's two rows. lane_scales: where they lie among those of the
  // group, in bytes.
  template <class D>
  __device__ __forceinline__ static uint32_t load_scales(D& dequant, uint32_t piece, uint32_t lane_scales,
                                                         int scale_group) {
    const uint32_t scales =
        ptx::load_shared_32(piece + layout::kPieceCodeBytes + scale_group * layout::kPieceN * 2 + lane_scales);
    uint32_t zeros = 0;
    if constexpr (C.format.zero_point)
      zeros = ptx::load_shared_16(piece + layout::kPieceCodeBytes + scale_groups * layout::kPieceN * 2 +
                                  scale_group * layout::kPieceN + lane_scales / 2);
    if constexpr (!scaled_sums)
      dequant.load(scales, zeros);
    else if constexpr (C.format.zero_point)
      dequant.set_zeros(zeros);
    return scales;
  }

  // Zero points of rows r and r + 8 in the low two bytes; past n the blob is padded.
  __device__ __forceinline__ uint32_t column_zero_points(int n_tile, int b) const {
    if constexpr (!C.format.zero_point) return 0;
    const int n0 = min(first_feature(n_tile, b), (p.n_blocks - 1) * layout::kBlockN) + warp * 16 + lane / 4;
    const uint8_t* zeros = p.weight + p.column_zeros;
    return zeros[n0] | static_cast<uint32_t>(zeros[n0 + 8]) << 8;
  }

  // What turns sums of output features `feature` and `feature + 8` into outputs.
  struct RowPair {
    Scale scale[2];
    float bias[2];

    __device__ __forceinline__ RowPair(const GemmConsumer& c, const Epilogue& epilogue, int feature)
        : scale{scale_of(c, feature), scale_of(c, feature + 8)},
          bias{feature < c.p.n ? epilogue.bias_at(feature) : 0.f,
               feature + 8 < c.p.n ? epilogue.bias_at(feature + 8) : 0.f} {}
    __device__ __forceinline__ float finish(const Epilogue& epilogue, float sum, int row) const {
      return epilogue.scale(scale[row].apply(sum), bias[row]);
    }

   private:
    __device__ __forceinline__ static Scale scale_of(const GemmConsumer& c, int feature) {
      return Scale(c.smem.sum_unit, c.p.weight, c.p.column_scales, feature, c.p.n);
    }
  };

  // Eight tokens' sums of a warp's 16 output features, from the registers: each store is 32 whole bytes of four tokens.
  __device__ __forceinline__ void store_fp32_unit(const Epilogue& epilogue, const RowPair& rows, const float* sums,
                                                  int feature, int token0, int own_token0) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int m = token0 + lane % 4 * 2 + j % 2, n = feature + j / 2 * 8;
      if (m >= own_token0 && m < p.m && n < p.n)
        static_cast<float*>(p.out)[m * p.ld_out + n] =
            epilogue.add_residual(rows.finish(epilogue, sums[j], j / 2), m, n);
    }
  }
};

template <GemmConfig C>
requires(why_invalid(C) == nullptr) __global__ void __launch_bounds__(C.tile.threads(), C.tile.ctas_per_sm)
    gemm_sm90(const __grid_constant__ CUtensorMap act_map, const __grid_constant__ GemmParams params) {
  using T = std::conditional_t<C.format.act == DType::kBf16, __nv_bfloat16, __half>;
  using Shape = GemmShape<C>;
  extern __shared__ __align__(1024) uint8_t dynamic_smem[];
  auto& smem = *reinterpret_cast<GemmStorage<C>*>(dynamic_smem);
  if (ptx::smem_address(&smem) % 1024 != 0) __trap();
  const int warp = ptx::warp_index(), warpgroup = warp / 4, lane = threadIdx.x % 32;
  const bool producer = warpgroup == C.tile.warpgroups;
  if (producer && warp % 4 == 0 && lane == 0) {
    for (int i = 0; i < Shape::barriers; ++i) {
      ptx::barrier_init(ptx::smem_address(&smem.full[i]), Shape::producers);
      for (auto& landed : smem.landed) ptx::barrier_init(ptx::smem_address(&landed[i]), 1);
      ptx::barrier_init(ptx::smem_address(&smem.empty[i]), Shape::row_warpgroups * C.tile.multicast);
    }
    ptx::barrier_init(ptx::smem_address(&smem.act_asked), 1);
    if constexpr (C.tile.split_k > 1) {
      ptx::barrier_init(ptx::smem_address(&smem.sums_full), 1);
      ptx::barrier_expect(ptx::smem_address(&smem.sums_full), Shape::sums_bytes(ClusterPlace<C>().k_part));
    }
    ptx::fence_barrier_init();
    ptx::prefetch_tensor_map(&act_map);
  }
  if (params.trigger == kTriggerAtStart) ptx::let_successor_launch();
  __syncthreads();
  if constexpr (Shape::cluster > 1) ptx::cluster_arrive_relaxed();
  if (producer) {
    ptx::registers_decrease<Shape::producer_registers>();
    const bool issues = warp % 4 < Shape::producers && lane == 0;
    GemmProducer<C> ring(&act_map, params, smem, warp % 4);
    if (issues) ring.prefill();
    __syncwarp();
    if constexpr (Shape::cluster > 1) ptx::cluster_wait();
    if (issues) ring.run();
    __syncwarp();
    if constexpr (C.tile.split_k > 1) {
      ptx::cluster_arrive_relaxed();
      ptx::cluster_wait();
    }
  } else {
    ptx::registers_increase<Shape::math_registers>();
    GemmConsumer<C, T>{params, smem, {}, warpgroup, warp % 4, lane, static_cast<int>(threadIdx.x % 128)}.run();
    __syncwarp();
  }
  // No CTA leaves while another may still signal its shared memory; with split_k each has waited for all it is sent.
  if constexpr (Shape::cluster > 1 && C.tile.split_k == 1) {
    ptx::cluster_arrive_relaxed();
    ptx::cluster_wait();
  }
}

}  // namespace nybble::kernels
