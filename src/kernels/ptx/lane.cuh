// Where a thread stands in its CTA.
#pragma once

#include <cstdint>

namespace nybble::ptx {

// The warp's number, broadcast by a lane: so the compiler knows that what follows from it is the same for the whole
// warp, and keeps addresses of barriers and copies in uniform registers (docs/decisions/0014).
__device__ __forceinline__ int warp_index() { return __shfl_sync(~0u, threadIdx.x / 32, 0); }

// The lane's number, as a value that the compiler keeps: it reads threadIdx again, at 30 clocks, wherever it is used.
__device__ __forceinline__ int lane_id() {
  uint32_t lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return static_cast<int>(lane);
}

// A value that the compiler keeps in its register instead of computing it again, from the thread's number, wherever it
// is used.
__device__ __forceinline__ uint32_t keep(uint32_t value) {
  asm volatile("mov.u32 %0, %0;" : "+r"(value));
  return value;
}

}  // namespace nybble::ptx
