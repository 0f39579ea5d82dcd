// The lane's number, as a value that the compiler keeps: it reads threadIdx again, at 30 clocks, wherever it is used.
#pragma once

#include <cstdint>

namespace nybble::ptx {

__device__ __forceinline__ int lane_id() {
  uint32_t lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return static_cast<int>(lane);
}

}  // namespace nybble::ptx
