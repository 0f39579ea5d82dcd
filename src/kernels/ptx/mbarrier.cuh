// mbarrier: PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier". Addresses are 32-bit shared.
#pragma once

#include <cstdint>

namespace nybble::ptx {

__device__ __forceinline__ uint32_t smem_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialized barriers visible to the async proxy and to the cluster.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// One arrival, and bytes more that asynchronous copies will complete.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Predicated forms: a branch around an arrival would split the warp inside a wgmma sequence.
__device__ __forceinline__ void barrier_arrive_if(uint32_t barrier, bool condition) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %1, 0;\n@p mbarrier.arrive.shared::cta.b64 _, [%0];\n}" ::"r"(barrier),
               "r"(static_cast<int>(condition))
               : "memory");
}
// On a barrier of any CTA of the cluster. Without a scope: what it hands over is a buffer that was read to its end, and
// a release at cluster scope costs a fence of the whole GPU, microseconds a tile.
__device__ __forceinline__ void barrier_arrive_cluster_if(uint32_t barrier, bool condition) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %1, 0;\n@p mbarrier.arrive.shared::cluster.b64 _, [%0];\n}" ::"r"(barrier),
      "r"(static_cast<int>(condition))
      : "memory");
}

// Waits until the phase of the given parity has completed.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\nWAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra "
      "WAIT;\nDONE:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Whether it has.
__device__ __forceinline__ bool barrier_test(uint32_t barrier, uint32_t parity) {
  uint32_t completed;
  asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(completed)
               : "r"(barrier), "r"(parity)
               : "memory");
  return completed != 0;
}

// barrier_wait() where the condition holds.
__device__ __forceinline__ void barrier_wait_if(uint32_t barrier, uint32_t parity, bool condition) {
  asm volatile(
      "{\n.reg .pred p, q;\nsetp.ne.b32 q, %2, 0;\nsetp.eq.b32 p, %2, 0;\nWAIT: @q "
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra WAIT;\nDONE:\n}" ::"r"(barrier),
      "r"(parity), "r"(static_cast<int>(condition))
      : "memory");
}

}  // namespace nybble::ptx
