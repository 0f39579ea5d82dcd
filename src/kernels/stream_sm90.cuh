// out[m, n] = epilogue(act[m, k] x dequantize(weight)[n, k]^T) on Hopper for a few tokens: reads the weight once,
// at the speed of memory.
//
//   Operands   mma.m16n8k16 with the weight as A (16 output features a piece) and the tokens as B, eight at a time.
//   Numerics   kExactWeight: codes minus zero points are exact 16-bit numbers (parts/exact_codes.cuh), sums over a
//              group are fp32, scales multiply them in fp32; per column the scale multiplies a warp's whole sum.
//   Split      A CTA takes tile_n output features, its warps row_warps x k_warps of pieces and slices of k; the CTAs
//              of a cluster split k once more. CTAs walk over groups of tile_n features; with more CTAs than groups
//              some repeat another's work and store nothing: a CTA that leaves at once makes the scheduler put two of
//              the next kernel on one SM, and that lasts.
//   Weights    Every warp has its own ring of bulk copies, filled by its lane 0: no barrier of the CTA in the main
//              loop. Weights never depend on the kernel before, so the ring fills before wait_for_predecessor().
//              `throttle` copies at a time there: all at once would hold up the end of the predecessor.
//   Tokens     Resident: the CTA's slice of k of all tokens, copied right after the wait. Rows past m read a line of
//              zeros, columns past k are zeros.
//   Reduction  One step: every warp hands its sums to the CTA that stores the feature, which adds them in a fixed
//              order.
//   Edges      Pieces past the blob are not copied; features past n are computed from whatever is there and not
//              stored.
#pragma once

#include "kernels/parts/epilogue.cuh"
#include "kernels/parts/exact_block.cuh"
#include "kernels/ptx/async_copy.cuh"
#include "kernels/ptx/bulk_copy.cuh"
#include "kernels/ptx/cluster.cuh"
#include "kernels/ptx/lane.cuh"
#include "kernels/ptx/mbarrier.cuh"
#include "kernels/ptx/mma.cuh"
#include "kernels/ptx/shared.cuh"
#include "kernels/stream_params.h"
#include "layout/blob.h"

namespace nybble::kernels {

template <StreamConfig C> struct StreamShape {
  static constexpr StreamTile tile = C.tile;
  using Act = std::conditional_t<C.format.act == DType::kBf16, __nv_bfloat16, __half>;
  static constexpr layout::BlockShape block = C.format.block();
  static constexpr int groups = C.format.groups;
  static constexpr int tokens = tile.tile_m / 8;  // n tiles of the mma
  using Block = ExactBlock<C.format, tile.row_tiles, tokens>;
  static constexpr int barrier = tile.row_tiles * block.piece_bytes();  // a slot of a ring: pieces, then its barrier
  static constexpr int slot_bytes = barrier + 16;
  static constexpr int ring_bytes = tile.stages * slot_bytes;
  static constexpr int zero_line = tile.warps() * ring_bytes;
  static constexpr int zero_line_bytes = 2 * layout::kBlockK;
  static constexpr int sum_factor = zero_line + zero_line_bytes;  // ScaleFactors::of_sum, kept out of the registers
  static constexpr int fixed_bytes = sum_factor + 16;
  static constexpr int owned_rows = tile.tile_n() / tile.cluster;  // output features this CTA stores
  static constexpr int reduction_pitch = owned_rows + 4;           // floats

  // slice: k blocks of a CTA; buffers: 2 where a CTA walks over several groups.
  static constexpr StreamSmem smem(int m, int slice, int buffers) {
    StreamSmem map{};
    map.act_pitch = slice * layout::kBlockK * 2 + 16;
    map.act = fixed_bytes;
    map.reduction = map.act + m * map.act_pitch;
    map.bytes = map.reduction + buffers * tile.k_slices() * m * reduction_pitch * 4;
    return map;
  }
};

// What one warp is there for.
template <StreamConfig C> struct StreamPlace {
  int warp, lane, row_warp, k_warp, rank;
  int slice_begin;             // first k block of the CTA
  int k_begin, k_blocks;       // the warp's own
  int group_begin, group_end;  // of tile_n output features
  bool phantom;

  __device__ explicit StreamPlace(const StreamParams& p) {
    constexpr StreamTile tile = C.tile;
    warp = ptx::warp_index(), lane = threadIdx.x % 32;
    row_warp = warp % tile.row_warps, k_warp = warp / tile.row_warps;
    rank = static_cast<int>(blockIdx.x) % tile.cluster;
    const int cluster = static_cast<int>(blockIdx.x) / tile.cluster;
    slice_begin = p.k_blocks * rank / tile.cluster;
    const int slice = p.k_blocks * (rank + 1) / tile.cluster - slice_begin;
    k_begin = slice_begin + slice * k_warp / tile.k_warps;
    k_blocks = slice_begin + slice * (k_warp + 1) / tile.k_warps - k_begin;
    phantom = p.groups_each == 0 && cluster >= p.groups_left;
    const int like = phantom ? p.groups_left - 1 : cluster;
    group_begin = like * p.groups_each + min(like, p.groups_left);
    group_end = group_begin + p.groups_each + (like < p.groups_left ? 1 : 0);
  }
};

// The weights of one warp: the producer's side of its ring.
template <StreamConfig C> struct WeightSource {
  using Shape = StreamShape<C>;
  static constexpr int piece_bytes = Shape::block.piece_bytes(), block_bytes = Shape::block.block_bytes();
  static constexpr bool straddles = layout::kPiecesPerBlock % C.tile.row_tiles != 0;

  const uint8_t* source;
  int left;         // copies to issue in this group; 0: none in any
  int piece;        // first of the warp's pieces in the group that is being issued
  int bytes, rest;  // of a copy: in the row of blocks of `piece`, in the next row

  __device__ void start(const StreamParams& p, const StreamPlace<C>& place) {
    piece = (place.group_begin * C.tile.row_warps + place.row_warp) * C.tile.row_tiles;
    start_group(p, place);
  }

  __device__ void start_group(const StreamParams& p, const StreamPlace<C>& place) {
    const int in_block = piece % layout::kPiecesPerBlock, valid = max(min(C.tile.row_tiles, p.pieces - piece), 0);
    source = p.weight + layout::kHeaderBytes + in_block * piece_bytes +
             static_cast<int64_t>(piece / layout::kPiecesPerBlock * p.k_blocks + place.k_begin) * block_bytes;
    left = place.k_blocks;
    bytes = valid * piece_bytes, rest = 0;
    if constexpr (straddles) {
      rest = max(valid - (layout::kPiecesPerBlock - in_block), 0) * piece_bytes;
      bytes -= rest;
    }
  }

  __device__ void issue(const StreamParams& p, const StreamPlace<C>& place, uint32_t slot) {
    const uint32_t barrier = slot + Shape::barrier;
    const uint64_t policy = ptx::make_l2_policy<ptx::L2Policy::kEvictFirst>();
    ptx::barrier_expect(barrier, bytes + rest);
    if (bytes > 0) ptx::bulk_load(slot, source, bytes, barrier, policy);
    if constexpr (straddles)
      if (rest > 0)
        ptx::bulk_load(slot + bytes, source + bytes + static_cast<int64_t>(p.k_blocks - 1) * block_bytes, rest, barrier,
                       policy);
    source += block_bytes;
    if (--left == 0) {
      piece += C.tile.row_warps * C.tile.row_tiles;
      if (piece < place.group_end * C.tile.row_warps * C.tile.row_tiles) start_group(p, place);
    }
  }
};

// Copies the warp's share of the tokens' slice into shared memory: half a warp takes 128 input features of one token.
// The constructor computes the addresses of the first copies before the wait; copy() has their loads in flight at once
// and the rest, by cp.async, behind them: a layer takes half a microsecond longer where cp.async brings its first ones.
template <StreamConfig C> struct TokenLoader {
  using Shape = StreamShape<C>;
  using Act = typename Shape::Act;
  static constexpr int batch = C.tile.slots_per_sm * C.tile.threads() > 768 ? 4 : 8;  // copies by registers
  static constexpr int step = 2 * C.tile.row_warps;

  // The next copy: source and target stand on it.
  int left, block;
  const Act* source;
  uint32_t target;
  int blocks_inside;  // blocks of the slice where this lane's features are below k; zeros in the others
  int64_t source_wrap;
  uint32_t target_wrap;            // over the end of a token's slice to the next token's
  const Act* first_source[batch];  // null: zeros
  uint32_t first_target[batch];    // 0: no copy

  __device__ TokenLoader(const StreamParams& p, const StreamPlace<C>& place, uint32_t act_smem) {
    const int lane_feature = place.lane % 16 * 8;
    block = place.row_warp * 2 + place.lane / 16;
    left = (p.m * place.k_blocks - block + step - 1) / step;
    blocks_inside = (p.k - lane_feature + layout::kBlockK - 8) / layout::kBlockK - place.k_begin;
    source = static_cast<const Act*>(p.act) + (place.k_begin + block) * layout::kBlockK + lane_feature;
    target = act_smem + ((place.k_begin - place.slice_begin + block) * layout::kBlockK + lane_feature) * 2;
    source_wrap = p.ld_act - place.k_blocks * layout::kBlockK;
    target_wrap = p.smem.act_pitch - place.k_blocks * layout::kBlockK * 2;
    wrap(place);
#pragma unroll
    for (int i = 0; i < batch; ++i) {
      first_source[i] = left > 0 && block < blocks_inside ? source : nullptr;
      first_target[i] = left > 0 ? target : 0;
      advance(place);
    }
  }

  __device__ void copy(const StreamParams& p, const StreamPlace<C>& place, uint32_t act_smem) {
    uint4 values[batch];
#pragma unroll
    for (int i = 0; i < batch; ++i)
      values[i] = first_source[i] != nullptr ? load_fresh(reinterpret_cast<const uint4*>(first_source[i]))
                                             : make_uint4(0, 0, 0, 0);
#pragma unroll 1
    while (left > 0) {
      ptx::async_copy_16(target, block < blocks_inside ? source : p.act, block < blocks_inside ? 16 : 0);
      advance(place);
    }
#pragma unroll
    for (int i = 0; i < batch; ++i)
      if (first_target[i] != 0) ptx::store_shared_128(first_target[i], values[i]);
    ptx::async_copy_commit();
    ptx::async_copy_wait<0>();
    if (p.k % 8 != 0) copy_tail(p, place, act_smem);
  }

 private:
  __device__ void advance(const StreamPlace<C>& place) {
    --left, block += step, source += step * layout::kBlockK, target += step * layout::kBlockK * 2;
    wrap(place);
  }

  __device__ void wrap(const StreamPlace<C>& place) {
    while (left > 0 && block >= place.k_blocks) block -= place.k_blocks, source += source_wrap, target += target_wrap;
  }

  // The last k % 8 features: the lane that stored zeros for them stores them now.
  __device__ void copy_tail(const StreamParams& p, const StreamPlace<C>& place, uint32_t act_smem) {
    const int tail = p.k / 8 * 8, tail_block = tail / layout::kBlockK - place.k_begin;
    if (tail_block < 0 || tail_block >= place.k_blocks || tail % layout::kBlockK != place.lane % 16 * 8) return;
    for (int t = 0; t < p.m; ++t) {
      if ((t * place.k_blocks + tail_block) % step != place.row_warp * 2 + place.lane / 16) continue;
      const unsigned short* row = static_cast<const unsigned short*>(p.act) + t * p.ld_act;
      const uint32_t row_smem = act_smem + t * p.smem.act_pitch - place.slice_begin * (layout::kBlockK * 2);
      for (int feature = tail; feature < p.k; ++feature)
        ptx::store_shared_16(row_smem + feature * 2, __ldcg(row + feature));
    }
  }
};

// The consumer's side of a warp's ring, and its sums.
template <StreamConfig C> struct WeightConsumer {
  using Shape = StreamShape<C>;
  using Block = typename Shape::Block;
  static constexpr int tokens = Shape::tokens;

  uint32_t ring, slot;  // slot 0 and the current one
  uint32_t phase;
  uint32_t act[tokens];       // this lane's row for ldmatrix, at the current block
  uint32_t act_step[tokens];  // to the next block: 0 on the line of zeros
  typename Block::LanePlace lane_place;
  typename Block::Sums sum;
  Block weights;

  __device__ WeightConsumer(const StreamParams& p, const StreamPlace<C>& place, uint32_t smem, uint32_t ring_smem)
      : lane_place(place.lane) {
    ring = slot = ring_smem;
    phase = 0;
#pragma unroll
    for (int n = 0; n < tokens; ++n) {
      const int token = n * 8 + place.lane % 8;
      const bool inside = token < p.m;
      act_step[n] = inside ? 2 * layout::kBlockK : 0;
      act[n] =
          smem + place.lane / 8 * 16 +
          (inside ? p.smem.act + token * p.smem.act_pitch + (place.k_begin - place.slice_begin) * 2 * layout::kBlockK
                  : Shape::zero_line);
    }
  }

  // The sums over the warp's slice of k for one group of output features.
  __device__ void accumulate(const StreamParams& p, const StreamPlace<C>& place, WeightSource<C>& source,
                             float scale_factor) {
    Block::clear(sum);
#pragma unroll 1
    for (int block = place.k_blocks; block > 0; --block) {
      ptx::barrier_wait(slot + Shape::barrier, phase);
      // Each warp has a ring of its own and hides the others' waits: loading ahead, as the sweeping kernel does, makes
      // this one 2 to 5 % slower (H200, 2026-11-25).
      typename Block::Half half{};
      typename Block::Sums part;
      Block::template load<0>(half, slot, lane_place);
      weights.template multiply<0>(sum, part, half, scale_factor,
                                   [&](int pair, typename Block::Tokens& b) { load_tokens(b, pair * 64); });
      Block::template load<1>(half, slot, lane_place);
      weights.template multiply<1>(sum, part, half, scale_factor, [&](int pair, typename Block::Tokens& b) {
        if (pair == 0) release(p, place, source);
        load_tokens(b, 128 + pair * 64);
      });
#pragma unroll
      for (int n = 0; n < tokens; ++n) act[n] += act_step[n];
      slot += Shape::slot_bytes;
      if (slot == ring + Shape::ring_bytes) slot = ring, phase ^= 1;
    }
#pragma unroll
    for (int n = 0; n < tokens; ++n) act[n] -= act_step[n] * place.k_blocks;
  }

 private:
  __device__ __forceinline__ void load_tokens(typename Block::Tokens& b, int offset) const {
#pragma unroll
    for (int n = 0; n < tokens; ++n) ptx::load_matrix_x4(b[n], act[n] + offset);
  }

  // Everything of the slot is in registers: it may be filled again.
  __device__ void release(const StreamParams& p, const StreamPlace<C>& place, WeightSource<C>& source) {
    __syncwarp();
    if (place.lane == 0 && source.left > 0) source.issue(p, place, slot);
  }
};

// One group's sums of every slice of k: handed over, added in the order of slices, finished and stored.
template <StreamConfig C> struct Reduction {
  using Shape = StreamShape<C>;
  using Act = typename Shape::Act;
  static constexpr int rows = Shape::owned_rows, pitch = Shape::reduction_pitch, slices = C.tile.k_slices();
  static constexpr int tile_n = C.tile.tile_n(), threads = C.tile.threads();

  uint32_t buffer;  // of this group
  const float* values;

  // Groups alternate between two buffers: one may still be read while the next is written.
  __device__ Reduction(const StreamParams& p, const uint8_t* smem, int group_index) {
    const int offset = p.smem.reduction + (group_index & 1) * (slices * p.m * pitch * 4);
    buffer = ptx::smem_address(smem) + offset;
    values = reinterpret_cast<const float*>(smem + offset);
  }

  __device__ void put(const StreamParams& p, const StreamPlace<C>& place,
                      const typename Shape::Block::Sums& sum) const {
    const int slice = place.rank * C.tile.k_warps + place.k_warp, token = place.lane % 4 * 2;
#pragma unroll
    for (int t = 0; t < C.tile.row_tiles; ++t) {
      const int row = (place.row_warp * C.tile.row_tiles + t) * layout::kPieceN;  // a piece has one owner
      uint32_t address = buffer + ((slice * p.m + token) * pitch + row % rows + place.lane / 4) * 4;
      if constexpr (C.tile.cluster > 1) address = ptx::map_to_rank(address, row / rows);
#pragma unroll
      for (int n = 0; n < Shape::tokens; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (n * 8 + token + j % 2 < p.m) {
            const uint32_t to = address + ((n * 8 + j % 2) * pitch + j / 2 * 8) * 4;
            if constexpr (C.tile.cluster > 1)
              ptx::store_cluster_float(to, sum[t][n][j]);
            else
              ptx::store_shared_float(to, sum[t][n][j]);
          }
    }
  }

  template <class Out>
  __device__ void store(const StreamParams& p, const StreamPlace<C>& place, int group, float sum_factor) const {
    const FusedEpilogue<Act, Out> epilogue(p.epilogue);
    Out* out = static_cast<Out*>(p.out);
    const int first = group * tile_n + place.rank * rows;
    for (int item = static_cast<int>(threadIdx.x); item < p.m * (rows / 2); item += threads) {
      const int token = item / (rows / 2), row = item % (rows / 2) * 2, feature = first + row;
      float2 total = make_float2(0.0f, 0.0f);
#pragma unroll
      for (int slice = 0; slice < slices; ++slice) {
        const float2 value = *reinterpret_cast<const float2*>(values + (slice * p.m + token) * pitch + row);
        total.x += value.x, total.y += value.y;
      }
      struct alignas(2 * sizeof(Out)) Pair {
        Out low, high;
      };
      Out* to = out + token * p.ld_out + feature;
      if (feature + 1 < p.n)
        *reinterpret_cast<Pair*>(to) = {round_to<Out>(epilogue.apply(total.x * sum_factor, token, feature)),
                                        round_to<Out>(epilogue.apply(total.y * sum_factor, token, feature + 1))};
      else if (feature < p.n)
        *to = round_to<Out>(epilogue.apply(total.x * sum_factor, token, feature));
    }
  }
};

template <StreamConfig C>
requires(why_invalid(C) == nullptr) __global__ void __launch_bounds__(C.tile.threads(), C.tile.slots_per_sm)
    stream_sm90(const __grid_constant__ StreamParams p) {
  using Shape = StreamShape<C>;
  constexpr StreamTile tile = C.tile;
  extern __shared__ __align__(128) uint8_t smem[];
  const StreamPlace<C> place(p);
  const uint32_t smem_base = ptx::smem_address(smem), act_smem = smem_base + p.smem.act;
  const uint32_t ring = smem_base + place.warp * Shape::ring_bytes;

  // Before the wait: weights, addresses, everything that does not depend on the kernel before.
  WeightSource<C> source;
  source.start(p, place);
  const int in_ring = min(place.k_blocks * (place.group_end - place.group_begin), tile.stages);
  const int at_once = p.throttle > 0 ? min(p.throttle, in_ring) : in_ring;
  if (place.lane == 0) {
    for (int s = 0; s < tile.stages; ++s) ptx::barrier_init(ring + s * Shape::slot_bytes + Shape::barrier, 1);
    ptx::fence_barrier_init();
    for (int s = 0; s < at_once; ++s) source.issue(p, place, ring + s * Shape::slot_bytes);
  }
  if (threadIdx.x < Shape::zero_line_bytes / 4) ptx::store_shared_32(smem_base + Shape::zero_line + threadIdx.x * 4, 0);
  ptx::let_successor_launch();
  if constexpr (tile.cluster > 1) ptx::cluster_arrive_relaxed();
  __syncthreads();
  // All lanes wait: where only the one that issues does, the compiler may leave it diverged from the others up to the
  // end (4096 x 4096 at m = 1 then took 5.2 instead of 3.4 us on an H200, 2026-11-30; docs/decisions/0014).
  for (int s = at_once; s < in_ring; ++s) {
    ptx::barrier_wait(ring + (s - at_once) * Shape::slot_bytes + Shape::barrier, 0);
    if (place.lane == 0) source.issue(p, place, ring + s * Shape::slot_bytes);
    __syncwarp();
  }

  const ScaleFactors factors(p.weight, ExactCodes<typename Shape::Act>::kUnitExponent);
  WeightConsumer<C> consumer(p, place, smem_base, ring);
  TokenLoader<C> loader(p, place, act_smem);
  if (threadIdx.x == 0) ptx::store_shared_float(smem_base + Shape::sum_factor, factors.of_sum);

  ptx::wait_for_predecessor();
  loader.copy(p, place, act_smem);
  if constexpr (tile.row_warps == 1)
    __syncwarp();
  else
    ptx::named_barrier_sync(1 + place.k_warp, 32 * tile.row_warps);

  for (int group = place.group_begin; group < place.group_end; ++group) {
    if constexpr (Shape::groups == 0) {
      const ColumnScales<C.format, tile.row_tiles, Shape::tokens> column(
          p.weight, p.column_scales, p.column_zeros, p.pieces,
          (group * tile.row_warps + place.row_warp) * tile.row_tiles, place.lane, consumer.weights);
      consumer.accumulate(p, place, source, 1.0f);
      column.apply(consumer.sum);
    } else {
      consumer.accumulate(p, place, source, factors.of_scale);
    }
    const Reduction<C> reduction(p, smem, group - place.group_begin);
    if constexpr (tile.cluster > 1) {
      if (group == place.group_begin) ptx::cluster_wait();  // the other CTA has started
      reduction.put(p, place, consumer.sum);
      ptx::cluster_arrive();
      ptx::cluster_wait();
    } else {
      reduction.put(p, place, consumer.sum);
      __syncthreads();
    }
    if (place.phantom) continue;
    const float sum_factor = *reinterpret_cast<const float*>(smem + Shape::sum_factor);
    if (p.out_fp32)
      reduction.template store<float>(p, place, group, sum_factor);
    else
      reduction.template store<typename Shape::Act>(p, place, group, sum_factor);
  }
}

}  // namespace nybble::kernels
