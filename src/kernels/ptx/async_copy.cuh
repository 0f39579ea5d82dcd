// Asynchronous copies by threads: PTX ISA, "cp.async".
#pragma once

#include <cstdint>

namespace nybble::ptx {

// 16 bytes of shared memory, the first `bytes` of them from gmem, zeros behind. Both addresses are multiples of 16.
__device__ __forceinline__ void async_copy_16(uint32_t smem, const void* gmem, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem), "l"(gmem), "r"(bytes) : "memory");
}
__device__ __forceinline__ void async_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `pending` of this thread's groups are under way.
template <int pending> __device__ __forceinline__ void async_copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

}  // namespace nybble::ptx
