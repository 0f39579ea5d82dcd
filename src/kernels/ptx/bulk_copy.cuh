// Asynchronous bulk copies, with and without a tensor map: PTX ISA, "cp.async.bulk", "cp.async.bulk.prefetch",
// "cp.async.bulk.tensor".
#pragma once

#include <cuda.h>

#include <cstdint>

namespace nybble::ptx {

enum class L2Policy { kEvictNormal, kEvictFirst };

template <L2Policy policy> __device__ __forceinline__ uint64_t make_l2_policy() {
  uint64_t handle;
  if constexpr (policy == L2Policy::kEvictFirst)
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(handle));
  else
    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(handle));
  return handle;
}

// bytes, source and destination are multiples of 16; completes `bytes` on the barrier.
__device__ __forceinline__ void bulk_load(uint32_t smem, const void* gmem, uint32_t bytes, uint32_t barrier,
                                          uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(smem),
      "l"(gmem), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

// bytes and source are multiples of 16; nothing tells when they are there.
__device__ __forceinline__ void bulk_prefetch_to_l2(const void* gmem, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(gmem), "r"(bytes) : "memory");
}

// Brings the map to where copies read it: their first use otherwise waits for memory.
__device__ __forceinline__ void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ __forceinline__ void tensor_load_2d(uint32_t smem, const CUtensorMap* map, uint32_t barrier, int c0,
                                               int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          smem),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1)
      : "memory");
}

__device__ __forceinline__ void tensor_load_3d(uint32_t smem, const CUtensorMap* map, uint32_t barrier, int c0, int c1,
                                               int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
          "r"(smem),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}

// Writes the box to the same place of every CTA whose bit is set in cta_mask and completes it on the barrier there.
__device__ __forceinline__ void tensor_load_2d_multicast(uint32_t smem, const CUtensorMap* map, uint32_t barrier,
                                                         int c0, int c1, uint16_t cta_mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, "
      "%4}], [%2], %5;" ::"r"(smem),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "h"(cta_mask)
      : "memory");
}

__device__ __forceinline__ void tensor_load_3d_multicast(uint32_t smem, const CUtensorMap* map, uint32_t barrier,
                                                         int c0, int c1, int c2, uint16_t cta_mask) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, "
      "%4, %5}], [%2], %6;" ::"r"(smem),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "h"(cta_mask)
      : "memory");
}

}  // namespace nybble::ptx
