// out[m, n] = epilogue(act[m, k] x dense[n, k]^T) for any m, n, k, leading dimensions and alignment: a plain
// tensor-core kernel whose virtue is that it takes everything.
//
//   Tile       128 tokens x 128 output features a CTA, 32 input features a stage; 8 warps of 64 x 32, mma.m16n8k16 with
//              the tokens as A.
//   Stages     Three, by cp.async; edges arrive as zeros (a copy of fewer bytes fills the rest). Activations whose rows
//              begin anywhere are loaded element by element instead.
//   Order      Neighbouring CTAs take neighbouring tokens: the dense weight, the larger matrix, is read once.
#pragma once

#include "kernels/dense_params.h"
#include "kernels/parts/epilogue.cuh"
#include "kernels/ptx/async_copy.cuh"
#include "kernels/ptx/mbarrier.cuh"
#include "kernels/ptx/mma.cuh"
#include "kernels/ptx/shared.cuh"

namespace nybble::kernels {

struct DenseTile {
  static constexpr int rows = kDenseTile, k = 32, stages = 3;
  static constexpr int pitch = k * 2 + 16;  // bytes: the eight rows that ldmatrix reads lie in different banks
  static constexpr int matrix_bytes = rows * pitch, stage_bytes = 2 * matrix_bytes;
  static constexpr int smem_bytes = stages * stage_bytes;
  static constexpr int chunks = rows * k / 8;  // of 16 bytes in one matrix
};

// One matrix of one stage: rows [first, first + 128) of a row-major matrix, input features [k0, k0 + 32).
template <class T, bool aligned>
__device__ __forceinline__ void load_tile(uint32_t smem, const T* matrix, int64_t ld, int64_t first, int64_t rows,
                                          int64_t k0, int64_t k) {
#pragma unroll
  for (int i = 0; i < DenseTile::chunks / kDenseGemmThreads; ++i) {
    const int chunk = i * kDenseGemmThreads + static_cast<int>(threadIdx.x), row = chunk / 4, column = chunk % 4 * 8;
    const uint32_t to = smem + row * DenseTile::pitch + column * 2;
    const int64_t left = first + row < rows ? min(max(k - k0 - column, int64_t{0}), int64_t{8}) : 0;
    const T* from = matrix + (left > 0 ? (first + row) * ld + k0 + column : 0);
    if constexpr (aligned) {
      ptx::async_copy_16(to, from, static_cast<uint32_t>(left) * 2);
    } else {
      alignas(16) T values[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) values[j] = j < left ? load_fresh(from + j) : T(0.0f);
      ptx::store_shared_128(to, *reinterpret_cast<const uint4*>(values));
    }
  }
}

template <class Act, class Out, bool aligned>
__global__ void __launch_bounds__(kDenseGemmThreads, 2) dense_gemm_sm90(const __grid_constant__ DenseGemmParams p) {
  using Tile = DenseTile;
  extern __shared__ __align__(128) uint8_t smem[];
  const uint32_t base = ptx::smem_address(smem);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_m = warp % 2 * 64, warp_n = warp / 2 * 32;
  const int64_t m_tiles = (p.m + Tile::rows - 1) / Tile::rows;
  const int64_t m0 = blockIdx.x % m_tiles * Tile::rows, n0 = blockIdx.x / m_tiles * Tile::rows;
  const Act* act = static_cast<const Act*>(p.act);
  const Act* dense = static_cast<const Act*>(p.dense);
  const int64_t k_tiles = (p.k + Tile::k - 1) / Tile::k;

  const auto load_stage = [&](int64_t k_tile) {
    const uint32_t stage = base + static_cast<uint32_t>(k_tile % Tile::stages) * Tile::stage_bytes;
    if (k_tile < k_tiles) {
      load_tile<Act, aligned>(stage, act, p.ld_act, m0, p.m, k_tile * Tile::k, p.k);
      load_tile<Act, true>(stage + Tile::matrix_bytes, dense, p.ld_dense, n0, p.n, k_tile * Tile::k, p.k);
    }
    ptx::async_copy_commit();  // also an empty one: the waits count groups
  };

  float sum[4][4][4] = {};  // 4 x 16 tokens, 4 x 8 output features
  for (int s = 0; s < Tile::stages - 1; ++s) load_stage(s);
  for (int64_t k_tile = 0; k_tile < k_tiles; ++k_tile) {
    ptx::async_copy_wait<Tile::stages - 2>();
    __syncthreads();
    load_stage(k_tile + Tile::stages - 1);
    const uint32_t stage = base + static_cast<uint32_t>(k_tile % Tile::stages) * Tile::stage_bytes;
#pragma unroll
    for (int step = 0; step < Tile::k / 16; ++step) {
      uint32_t a[4][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        ptx::load_matrix_x4(a[i], stage + (warp_m + i * 16 + lane % 16) * Tile::pitch + step * 32 + lane / 16 * 16);
#pragma unroll
      for (int j = 0; j < 2; ++j)  // two n tiles of 8: rows lane % 8 and 8 more, both halves of k
        ptx::load_matrix_x4(b[j], stage + Tile::matrix_bytes +
                                      (warp_n + j * 16 + lane / 16 * 8 + lane % 8) * Tile::pitch + step * 32 +
                                      lane / 8 % 2 * 16);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          ptx::mma<Act>(sum[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }

  const FusedEpilogue<Act, Out> epilogue(p.epilogue);
  Out* out = static_cast<Out*>(p.out);
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t m = m0 + warp_m + i * 16 + lane / 4 + e / 2 * 8, n = n0 + warp_n + j * 8 + lane % 4 * 2 + e % 2;
        if (m < p.m && n < p.n) out[m * p.ld_out + n] = round_to<Out>(epilogue.apply(sum[i][j][e], m, n));
      }
}

}  // namespace nybble::kernels
