// out[m, n] = epilogue(act[m, k] x dequantize(weight)[n, k]^T) on Hopper, for every m from a few tokens up.
//
//   Operands   Only wgmma's A may come from registers, so the weight is A: wgmma's M is our n (64 output features a
//              block), wgmma's N our tokens. Said here once; everywhere else the names are act, weight and out.
//   Numerics   Groups: kRoundedWeight (parts/dequant.cuh). Per column: kExactWeight, the scale multiplies the fp32
//              sum.
//   Roles      One producer thread fills a ring of stages (128 input features each); every math warpgroup dequantizes
//              row_blocks x 64 output features into registers and multiplies them with all tokens of the tile.
//   Ring       full[s]: 1 arrival + bytes; empty[s]: one arrival per math warpgroup of every CTA that shares the
//              tokens. stages_per_barrier stages share a barrier, and a row block's weights of such a group are one
//              bulk copy.
//   Cluster    multicast = 2: two CTAs with neighbouring output features load half of the tokens' columns each, for
//              both. split_k > 1: the CTAs of a tile split k and sum through distributed shared memory in the order of
//              ranks.
//   Edges      Tokens past m and input features past k arrive as zeros (tensor map). Output features past n are
//              computed from the last block again and not stored.
//   PDL        Weights never depend on the kernel before: they fill the ring before wait_for_predecessor().
//   Origin     Measured designs and what was tried and lost: docs/kernel.md, docs/decisions.
#pragma once

#include <cuda.h>

#include "kernels/gemm_params.h"
#include "kernels/parts/dequant.cuh"
#include "kernels/parts/epilogue.cuh"
#include "kernels/ptx/bulk_copy.cuh"
#include "kernels/ptx/cluster.cuh"
#include "kernels/ptx/mbarrier.cuh"
#include "kernels/ptx/shared.cuh"
#include "kernels/ptx/wgmma.cuh"

namespace nybble::kernels {

inline constexpr int kOutChunkBytes = kOutChunkTokens * layout::kBlockN * 2;

template <GemmConfig C> struct GemmShape {
  static constexpr GemmTile tile = C.tile;
  static constexpr int block_bytes = C.format.block().block_bytes();
  static constexpr int act_bytes = tile.tile_m * layout::kBlockK * 2;  // one stage: two halves of 64 input features
  static constexpr int row_blocks = tile.warpgroups * tile.row_blocks;
  static constexpr int weight_bytes = row_blocks * block_bytes;  // one stage
  static constexpr int barriers = tile.stages / tile.stages_per_barrier;
  static constexpr int ring_bytes = tile.stages * (act_bytes + weight_bytes) + 16 * barriers;
  static constexpr int out_left = smem_limit(tile) - (ring_bytes + 1023) / 1024 * 1024;
  static constexpr int cluster = tile.cluster();
  static constexpr int math_registers = kernels::math_registers(tile),
                       producer_registers = kernels::producer_registers(tile);
  static constexpr int out_chunks = out_left >= tile.warpgroups * 4 * kOutChunkBytes ? 4 : 2;  // staging per warpgroup
};

template <GemmConfig C> struct alignas(1024) GemmStorage {  // why_invalid() and make_gemm_instance() see that it fits
  using Shape = GemmShape<C>;
  uint8_t act[C.tile.stages][Shape::act_bytes];
  uint8_t weight[Shape::barriers][Shape::row_blocks][C.tile.stages_per_barrier][Shape::block_bytes];
  uint64_t full[Shape::barriers];
  uint64_t empty[Shape::barriers];
  alignas(1024) uint8_t out[C.tile.warpgroups][Shape::out_chunks][kOutChunkBytes];
};

// The tiles of one cluster, in order. Without split_k: cluster, cluster + clusters, ...; with it: one.
struct TileWalk {
  const GemmParams& p;
  int tile, step;

  __device__ bool next(int& n_tile, int& m_tile) {
    if (tile >= p.n_tiles * p.m_tiles) return false;
    const int band = p.raster * p.m_tiles, band_index = tile / band, rest = tile - band_index * band;
    const int width = min(p.raster, p.n_tiles - band_index * p.raster);
    m_tile = rest / width;
    n_tile = band_index * p.raster + rest - m_tile * width;
    tile += step;
    return true;
  }
};

// Where a CTA stands in its cluster.
template <GemmConfig C> struct ClusterPlace {
  static constexpr int size = GemmShape<C>::cluster;
  int share, k_part;  // which of the CTAs that share tokens; which part of k

  __device__ ClusterPlace() {
    const int rank = static_cast<int>(blockIdx.x % size);
    share = rank % C.tile.multicast;
    k_part = rank / C.tile.multicast;
  }
  __device__ TileWalk walk(const GemmParams& p) const {
    return {p, static_cast<int>(blockIdx.x / size), static_cast<int>(gridDim.x / size)};
  }
  __device__ int k_begin(const GemmParams& p) const { return k_part * p.k_blocks / C.tile.split_k; }
  __device__ int k_end(const GemmParams& p) const { return (k_part + 1) * p.k_blocks / C.tile.split_k; }
};

template <GemmConfig C> struct GemmProducer {
  using Shape = GemmShape<C>;
  static constexpr GemmTile tile = C.tile;
  static constexpr int group = tile.stages_per_barrier;

  const CUtensorMap* act_map;
  const GemmParams& p;
  GemmStorage<C>& smem;
  ClusterPlace<C> place;
  uint64_t policy;

  __device__ void load_weight(int n_tile, int k, int slot, int count) {
    const uint32_t full = ptx::smem_address(&smem.full[slot]);
    ptx::barrier_expect(full, count * (Shape::act_bytes + Shape::weight_bytes));
    const int first = (n_tile * tile.multicast + place.share) * Shape::row_blocks;
#pragma unroll
    for (int j = 0; j < Shape::row_blocks; ++j) {
      const int64_t block = static_cast<int64_t>(min(first + j, p.n_blocks - 1)) * p.k_blocks + k;
      ptx::bulk_load(ptx::smem_address(smem.weight[slot][j]),
                     p.weight + layout::kHeaderBytes + block * Shape::block_bytes, count * Shape::block_bytes, full,
                     policy);
    }
  }

  __device__ void load_act(int m_tile, int k, int slot, int count) {
    const uint32_t full = ptx::smem_address(&smem.full[slot]);
#pragma unroll 1
    for (int u = 0; u < count; ++u) {
      const uint32_t stage = ptx::smem_address(smem.act[slot * group + u]);
      if constexpr (tile.multicast == 1) {
        for (int half = 0; half < 2; ++half)
          ptx::tensor_load_2d(stage + half * (Shape::act_bytes / 2), act_map, full, (k + u) * 128 + half * 64,
                              m_tile * tile.tile_m);
      } else {
        const int half = place.share;
        ptx::tensor_load_2d_multicast(stage + half * (Shape::act_bytes / 2), act_map, full, (k + u) * 128 + half * 64,
                                      m_tile * tile.tile_m, static_cast<uint16_t>(3u << (place.k_part * 2)));
      }
    }
  }

  // One thread runs this.
  __device__ void run() {
    policy = p.m_tiles == 1 ? ptx::make_l2_policy<ptx::L2Policy::kEvictFirst>()
                            : ptx::make_l2_policy<ptx::L2Policy::kEvictNormal>();
    TileWalk walk = place.walk(p);
    const int k_begin = place.k_begin(p), k_end = place.k_end(p);
    int slot = 0, n_tile, m_tile;
    uint32_t parity = 1;  // a fresh ring is empty
    bool first = true;
    while (walk.next(n_tile, m_tile)) {
      int k = k_begin;
      if (first) {
        first = false;
#pragma unroll 1
        for (int i = 0; i < Shape::barriers && k_begin + i * group < k_end; ++i)
          load_weight(n_tile, k_begin + i * group, i, min(group, k_end - k_begin - i * group));
        ptx::wait_for_predecessor();
#pragma unroll 1
        for (; slot < Shape::barriers && k < k_end; ++slot, k += group)
          load_act(m_tile, k, slot, min(group, k_end - k));
        if (slot == Shape::barriers) slot = 0, parity = 0;
      }
#pragma unroll 1
      for (; k < k_end; k += group) {
        ptx::barrier_wait(ptx::smem_address(&smem.empty[slot]), parity);
        const int count = min(group, k_end - k);
        load_weight(n_tile, k, slot, count);
        load_act(m_tile, k, slot, count);
        if (++slot == Shape::barriers) slot = 0, parity ^= 1;
      }
    }
  }
};

template <GemmConfig C, class T> struct GemmConsumer {
  using Shape = GemmShape<C>;
  static constexpr GemmTile tile = C.tile;
  static constexpr int group = tile.stages_per_barrier, batch = tile.batch, blocks = tile.row_blocks;
  static constexpr int scale_groups = C.format.groups;
  static constexpr layout::BlockShape block = C.format.block();
  static constexpr int acc_count = tile.tile_m / 2;
  using Sums = float[blocks][acc_count];

  const CUtensorMap* out_map;
  const GemmParams& p;
  GemmStorage<C>& smem;
  ClusterPlace<C> place;
  int warpgroup, warp, lane, tid;  // warp and tid inside the warpgroup
  int slot = 0;
  uint32_t parity = 0;
  uint32_t remote_empty = 0;

  // Lets go of a group of stages, here and where its tokens came from.
  __device__ __forceinline__ void release(int which, bool condition) {
    if constexpr (tile.multicast > 1)
      ptx::barrier_arrive_cluster_if(remote_empty + 8 * which, condition && tid < tile.multicast);
    else
      ptx::barrier_arrive_if(remote_empty + 8 * which, condition && tid == 0);
  }

  __device__ __forceinline__ void mainloop(Sums& sums, int n_tile, int k_begin, int k_end) {
    const uint32_t weight_base =
        ptx::smem_address(smem.weight) + warpgroup * blocks * group * Shape::block_bytes + warp * block.piece_bytes();
    // Shared-memory matrix descriptor (PTX ISA, "Matrix Descriptor Format"): 128-byte swizzle, 1024 bytes between
    // groups of 8 rows.
    const uint32_t descriptor_high = (1024u >> 4) | (1u << 30);
    const uint32_t descriptor_low = ((ptx::smem_address(smem.act) & 0x3FFFF) >> 4) | (1u << 16);
    Dequant<T, C.format.zero_point, scale_groups == 0> dequant[blocks];
    if constexpr (scale_groups == 0) {
#pragma unroll
      for (int b = 0; b < blocks; ++b) dequant[b].load(0, column_zero_points(n_tile, b));
    }
    uint32_t a[2][batch * 4];
#pragma unroll 1
    for (int k = k_begin; k < k_end; k += group) {
      // The stage's descriptor in a uniform register: without the reduction ptxas puts two R2UR before every wgmma, and
      // they wait for each other (28672 x 4096, m = 64 on an H200: 32.4 -> 28.8 us, 2026-11-23, prototype).
      const uint32_t stage_low = __reduce_max_sync(~0u, descriptor_low + slot * (group * Shape::act_bytes >> 4));
      const uint32_t weight = weight_base + slot * (group * Shape::weight_bytes);
      const int previous = slot ? slot - 1 : Shape::barriers - 1;
      ptx::barrier_wait(ptx::smem_address(&smem.full[slot]), parity);
#pragma unroll
      for (int u = 0; u < group; ++u) {
        if (u > 0 && k + u >= k_end) break;
        uint4 codes[blocks][2];
        const uint32_t act_low = stage_low + u * (Shape::act_bytes >> 4);
#pragma unroll
        for (int b = 0; b < blocks; ++b) {
          const uint32_t piece = weight + (b * group + u) * Shape::block_bytes;
          codes[b][0] = ptx::load_shared_128(piece + lane * 16);
          if constexpr (blocks == 1) codes[b][1] = ptx::load_shared_128(piece + layout::kHalfBytes + lane * 16);
          if constexpr (scale_groups > 0) load_scales(dequant[b], piece, 0);
        }
        int batch_index = 0;
#pragma unroll
        for (int step = 0; step < 8; step += batch) {
          if (step == 4) {
#pragma unroll
            for (int b = 0; b < blocks; ++b) {
              const uint32_t piece = weight + (b * group + u) * Shape::block_bytes;
              if constexpr (blocks > 1) codes[b][1] = ptx::load_shared_128(piece + layout::kHalfBytes + lane * 16);
              if constexpr (scale_groups == 2) load_scales(dequant[b], piece, 1);
            }
          }
#pragma unroll
          for (int b = 0; b < blocks; ++b, ++batch_index) {
            uint32_t* fragment = a[batch_index % 2];
#pragma unroll
            for (int j = 0; j < batch; ++j) {
              const int s = step + j;
              dequant[b](fragment + 4 * j, (&codes[b][s / 4].x)[s % 4]);
            }
            ptx::wgmma_fence();
#pragma unroll
            for (int j = 0; j < batch; ++j) {
              const int s = step + j;
              const uint32_t low = act_low + (s / 4) * (Shape::act_bytes / 2 >> 4) + (s % 4) * 2;
              ptx::wgmma<T>(sums[b], fragment + 4 * j, descriptor(low, descriptor_high),
                            s == 0 && u == 0 ? (k != k_begin) : 1);
            }
            ptx::wgmma_commit();
            ptx::wgmma_wait<1>();
            if (u == 0 && batch_index == 0) release(previous, k != k_begin);
          }
        }
      }
      if (++slot == Shape::barriers) slot = 0, parity ^= 1;
    }
    ptx::wgmma_wait<0>();
    if (k_begin < k_end) release(slot ? slot - 1 : Shape::barriers - 1, true);
  }

  // Sums become outputs: 16 tokens x 64 output features at a time through a swizzled staging buffer and a tensor store,
  // which clips at m and n.
  __device__ __forceinline__ void store(const Sums& sums, int n_tile, int m_tile) {
    constexpr int chunks = Shape::out_chunks;
    const FusedEpilogue<T, T> epilogue(p.epilogue);
    const uint32_t staging = ptx::smem_address(smem.out[warpgroup]);
    const int token = (lane & 7) + (lane >> 4) * 8, half = (lane >> 3) & 1;
    const uint32_t offset = token * 128 + (((warp * 2 + half) ^ (token & 7)) << 4);
    if (tid == 0) ptx::bulk_wait_read<0>();
    sync();
#pragma unroll
    for (int b = 0; b < blocks; ++b) {
      const int feature0 = first_feature(n_tile, b), feature = feature0 + warp * 16 + lane / 4;  // and feature + 8
      const SumFactor factor[2] = {sum_factor(feature), sum_factor(feature + 8)};
      const float bias[2] = {feature < p.n ? epilogue.bias_at(feature) : 0.f,
                             feature + 8 < p.n ? epilogue.bias_at(feature + 8) : 0.f};
#pragma unroll
      for (int c = 0; c < tile.tile_m / kOutChunkTokens; ++c) {
        const int index = b * (tile.tile_m / kOutChunkTokens) + c, token0 = m_tile * tile.tile_m + c * kOutChunkTokens;
        const uint32_t chunk = staging + (index % chunks) * kOutChunkBytes;
        float d[8];
#pragma unroll
        for (int i = 0; i < 8; ++i)
          d[i] = epilogue.scale(descale(sums[b][c * 8 + i], factor[i % 4 / 2]), bias[i % 4 / 2]);
        if (epilogue.residual != nullptr) {
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            const int m = token0 + i / 4 * 8 + lane % 4 * 2 + i % 2, n = feature + i % 4 / 2 * 8;
            if (m < p.m && n < p.n) d[i] = epilogue.add_residual(d[i], m, n);
          }
        }
        ptx::store_matrix_x4_transposed(chunk + offset, ptx::pack2<T>(d[0], d[1]), ptx::pack2<T>(d[2], d[3]),
                                        ptx::pack2<T>(d[4], d[5]), ptx::pack2<T>(d[6], d[7]));
        ptx::fence_async_shared();
        if (tid == 0) ptx::bulk_wait_read<chunks - 2>();  // the next chunk's buffer is free
        sync();
        if (tid == 0) {
          if (token0 < p.m && feature0 < p.n_whole) ptx::tensor_store_2d(out_map, chunk, feature0, token0);
          ptx::bulk_commit();  // also when nothing was stored: bulk_wait_read counts groups
        }
        if (p.n_whole < p.n && feature0 + layout::kBlockN > p.n_whole && feature0 < p.n)
          store_tail(chunk, feature0, token0);
      }
    }
  }

  // The last n % 8 output features: tensor stores write whole 16 bytes, also past the tensor's end inside them.
  __device__ __forceinline__ void store_tail(uint32_t chunk, int feature0, int token0) {
    const int count = p.n - p.n_whole, token = tid / 8, j = tid % 8;
    if (j >= count || token0 + token >= p.m) return;
    const int column = p.n_whole - feature0;  // a multiple of 8
    const uint32_t value = ptx::load_shared_16(chunk + token * 128 + (((column / 8) ^ (token & 7)) << 4) + j * 2);
    static_cast<uint16_t*>(p.out)[(token0 + token) * p.ld_out + p.n_whole + j] = static_cast<uint16_t>(value);
  }

  // split_k: every CTA leaves its sums in its own shared memory as blocks of 64 output features x 8 tokens; CTA k_part
  // adds up its share of the blocks, in the order of the CTAs, and keeps them in sums' first registers as `mine`.
  __device__ __forceinline__ void reduce_and_store(Sums& sums, int n_tile, int m_tile) {
    constexpr int per_warpgroup = blocks * tile.tile_m / 8, all = tile.warpgroups * per_warpgroup;
    constexpr int share = all / tile.split_k, mine = (share + tile.warpgroups - 1) / tile.warpgroups;
    static_assert(mine * 1024 <= Shape::out_chunks * kOutChunkBytes &&
                  all * 2048 <= Shape::ring_bytes - 16 * Shape::barriers);
    const FusedEpilogue<T, T> epilogue(p.epilogue);
    ptx::named_barrier_sync(15, tile.warpgroups * 128);  // the ring is read to its end
    const uint32_t area = ptx::smem_address(&smem) + tid * 16;
#pragma unroll
    for (int i = 0; i < per_warpgroup; ++i) {
      const float* d = &sums[i / (tile.tile_m / 8)][i % (tile.tile_m / 8) * 4];
      ptx::store_shared_float4(area + (warpgroup * per_warpgroup + i) * 2048, d[0], d[1], d[2], d[3]);
    }
    ptx::cluster_arrive();
    ptx::cluster_wait();
    const uint32_t staging = ptx::smem_address(smem.out[warpgroup]);
#pragma unroll
    for (int i = 0; i < mine; ++i) {
      const int index = i * tile.warpgroups + warpgroup;  // of my share
      if (share % tile.warpgroups != 0 && index >= share) break;
      const int id = place.k_part * share + index, source = id / per_warpgroup, rest = id % per_warpgroup;
      const int b = rest / (tile.tile_m / 8), token0 = m_tile * tile.tile_m + rest % (tile.tile_m / 8) * 8;
      const int feature0 = feature_of(n_tile, source, b);
      float d[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (int c = 0; c < tile.split_k; ++c) {
        const float4 part =
            ptx::load_cluster_float4(ptx::map_to_rank(area, c * tile.multicast + place.share) + id * 2048);
        d[0] += part.x, d[1] += part.y, d[2] += part.z, d[3] += part.w;
      }
      const int n0 = feature0 + warp * 16 + lane / 4;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int feature = n0 + j / 2 * 8, token = token0 + lane % 4 * 2 + j % 2;
        if (token < p.m && feature < p.n) d[j] = epilogue.apply(descale(d[j], sum_factor(feature)), token, feature);
      }
      const int token = lane & 7, half = (lane >> 3) & 1;
      ptx::store_matrix_x2_transposed(staging + i * 1024 + token * 128 + (((warp * 2 + half) ^ token) << 4),
                                      ptx::pack2<T>(d[0], d[1]), ptx::pack2<T>(d[2], d[3]));
    }
    sync();
#pragma unroll
    for (int e0 = 0; e0 < mine * 64; e0 += 128) {
      const int e = e0 + tid, i = e / 64, token = e % 64 / 8, column = e % 8, index = i * tile.warpgroups + warpgroup;
      if (e >= mine * 64 || index >= share) continue;
      const int id = place.k_part * share + index, source = id / per_warpgroup, rest = id % per_warpgroup;
      const int m = m_tile * tile.tile_m + rest % (tile.tile_m / 8) * 8 + token;
      const int n = feature_of(n_tile, source, rest / (tile.tile_m / 8)) + column * 8;
      if (m >= p.m || n >= p.n) continue;
      const uint4 v = ptx::load_shared_128(staging + i * 1024 + token * 128 + ((column ^ token) << 4));
      T* out = static_cast<T*>(p.out) + m * p.ld_out + n;
      if (n + 8 <= p.n) {
        *reinterpret_cast<uint4*>(out) = v;
      } else {
        const T* elements = reinterpret_cast<const T*>(&v);
        for (int j = 0; j < p.n - n; ++j) out[j] = elements[j];
      }
    }
  }

  __device__ void run() {
    remote_empty = ptx::smem_address(smem.empty);
    if constexpr (tile.multicast > 1)
      remote_empty = ptx::map_to_rank(remote_empty, place.k_part * tile.multicast + (tid < tile.multicast ? tid : 0));
    TileWalk walk = place.walk(p);
    ptx::wait_for_predecessor();  // alpha, bias, residual and out belong to the stream's order
    int n_tile, m_tile;
    while (walk.next(n_tile, m_tile)) {
      Sums sums;
      mainloop(sums, n_tile, place.k_begin(p), place.k_end(p));
      if constexpr (tile.split_k > 1) {
        reduce_and_store(sums, n_tile, m_tile);
      } else {
        store(sums, n_tile, m_tile);
      }
    }
    if (tid == 0) ptx::bulk_wait_all();
  }

 private:
  __device__ __forceinline__ void sync() { ptx::named_barrier_sync(1 + warpgroup, 128); }
  __device__ __forceinline__ int feature_of(int n_tile, int source_warpgroup, int b) const {
    return (((n_tile * tile.multicast + place.share) * tile.warpgroups + source_warpgroup) * blocks + b) *
           layout::kBlockN;
  }
  __device__ __forceinline__ int first_feature(int n_tile, int b) const { return feature_of(n_tile, warpgroup, b); }

  __device__ __forceinline__ static uint64_t descriptor(uint32_t low, uint32_t high) {
    uint64_t d;
    asm("mov.b64 %0, {%1, %2};" : "=l"(d) : "r"(low), "r"(high));
    return d;
  }

  template <class D> __device__ __forceinline__ void load_scales(D& dequant, uint32_t piece, int scale_group) {
    const uint32_t slot_of_row = lane / 4 * 2;
    const uint32_t scales =
        ptx::load_shared_32(piece + layout::kPieceCodeBytes + (scale_group * layout::kPieceN + slot_of_row) * 2);
    uint32_t zeros = 0;
    if constexpr (C.format.zero_point)
      zeros = ptx::load_shared_16(piece + layout::kPieceCodeBytes + scale_groups * layout::kPieceN * 2 +
                                  scale_group * layout::kPieceN + slot_of_row);
    dequant.load(scales, zeros);
  }

  // Zero points of rows r and r + 8 in the low two bytes; past n the blob is padded.
  __device__ __forceinline__ uint32_t column_zero_points(int n_tile, int b) const {
    if constexpr (!C.format.zero_point) return 0;
    const int n0 = min(first_feature(n_tile, b), (p.n_blocks - 1) * layout::kBlockN) + warp * 16 + lane / 4;
    const uint8_t* zeros = p.weight + p.column_zeros;
    return zeros[n0] | static_cast<uint32_t>(zeros[n0 + 8]) << 8;
  }

  // What a sum of the mainloop is multiplied by, in two steps where one number could overflow.
  struct SumFactor {
    float first, second;
  };

  // A sum of zero stays +0 whatever the factor's sign: the scale belongs to the products.
  __device__ __forceinline__ static float descale(float sum, SumFactor factor) {
    const float scaled = __fmaf_rn(sum, factor.first, 0.f);
    if constexpr (scale_groups == 0 && ptx::is_bf16<T>) return __fmul_rn(scaled, factor.second);
    return scaled;
  }

  __device__ __forceinline__ SumFactor sum_factor(int feature) const {
    if constexpr (scale_groups == 0) {
      if (feature >= p.n) return {0.f, 0.f};
      const float scale = to_float(reinterpret_cast<const T*>(p.weight + p.column_scales)[feature]);
      constexpr float unit = 1.0f / Dequant<T, C.format.zero_point, true>::kWeightUnit;
      return fabsf(scale) < 1.0f ? SumFactor{scale * unit, 1.0f} : SumFactor{scale, unit};
    } else {
      const int exponent = reinterpret_cast<const layout::PackedHeader*>(p.weight)->scale_exponent;
      return {__uint_as_float(static_cast<uint32_t>(127 + exponent) << 23), 1.0f};
    }
  }
};

template <GemmConfig C>
requires(why_invalid(C) == nullptr) __global__ void __launch_bounds__(C.tile.threads(), C.tile.ctas_per_sm)
    gemm_sm90(const __grid_constant__ CUtensorMap act_map, const __grid_constant__ CUtensorMap out_map,
              const __grid_constant__ GemmParams params) {
  using T = std::conditional_t<C.format.act == DType::kBf16, __nv_bfloat16, __half>;
  using Shape = GemmShape<C>;
  extern __shared__ __align__(1024) uint8_t dynamic_smem[];
  auto& smem = *reinterpret_cast<GemmStorage<C>*>(dynamic_smem);
  if (ptx::smem_address(&smem) % 1024 != 0) __trap();
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), warpgroup = warp / 4, lane = threadIdx.x % 32;
  const bool producer = warpgroup == C.tile.warpgroups;
  if (producer && warp % 4 == 0 && lane == 0) {
    for (int i = 0; i < Shape::barriers; ++i) {
      ptx::barrier_init(ptx::smem_address(&smem.full[i]), 1);
      ptx::barrier_init(ptx::smem_address(&smem.empty[i]), C.tile.warpgroups * C.tile.multicast);
    }
    ptx::fence_barrier_init();
  }
  ptx::let_successor_launch();
  if constexpr (Shape::cluster > 1) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  } else {
    __syncthreads();
  }
  if (producer) {
    ptx::registers_decrease<Shape::producer_registers>();
    if (warp % 4 == 0 && lane == 0) GemmProducer<C>{&act_map, params, smem, {}, 0}.run();
    __syncwarp();
    if constexpr (C.tile.split_k > 1) {
      ptx::cluster_arrive();
      ptx::cluster_wait();
    }
  } else {
    ptx::registers_increase<Shape::math_registers>();
    GemmConsumer<C, T>{&out_map, params, smem, {}, warpgroup, warp % 4, lane, static_cast<int>(threadIdx.x % 128)}
        .run();
    __syncwarp();
  }
  if constexpr (Shape::cluster > 1) {  // no CTA leaves while another may still read or signal its shared memory
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
}

}  // namespace nybble::kernels
