// Partial sums through the workspace: CTAs that share a tile hand their sums to the one that finishes it, which adds
// them in the order of k. Deterministic, no atomics, and the workspace may arrive with any content.
//
//   Tag        64 bits that say that sums are there. Each has one CTA that waits for it and takes it down when it has
//              seen it, so no launch leaves one behind, and whatever else lies in the workspace, parts of an earlier
//              launch's included, passes for one with probability 2^-64 (docs/decisions/0019).
//   Order      A CTA waits only for CTAs that were dispatched before it, so it never waits for one that cannot start.
//
// All after wait_for_predecessor(): the launch before may use the same workspace to its end.
#pragma once

#include <cstdint>

#include "kernels/partial_sums.h"

namespace nybble::kernels {

// As numbers two NaNs that no arithmetic makes: nothing that kernels write for other ends looks like it.
inline constexpr uint64_t kSumsThere = 0x7FB1'2A5C'FFD3'94E7;

// Publishes what this thread wrote, and what others of its warpgroup wrote before a barrier with it.
__device__ __forceinline__ void publish_sums(uint64_t* flag) {
  asm volatile("fence.acq_rel.gpu;\nst.relaxed.gpu.global.u64 [%0], %1;" ::"l"(flag), "l"(kSumsThere) : "memory");
}

// By one thread; those that meet it at a barrier afterwards may read what was published.
__device__ __forceinline__ void await_sums(uint64_t* flag) {
  uint64_t seen;
  do {
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(seen) : "l"(flag) : "memory");
  } while (seen != kSumsThere);
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(flag), "l"(uint64_t{0}) : "memory");
}

// Two sums and their tag in one access of kTaggedSumsBytes: whoever sees the tag has the sums, without a flag and
// without a fence.
__device__ __forceinline__ void give_sums(uint8_t* to, float2 sums) {
  const uint64_t both = __float_as_uint(sums.x) | static_cast<uint64_t>(__float_as_uint(sums.y)) << 32;
  asm volatile("{\n.reg .b128 v;\nmov.b128 v, {%1, %2};\nst.relaxed.gpu.global.b128 [%0], v;\n}" ::"l"(to), "l"(both),
               "l"(kSumsThere)
               : "memory");
}
__device__ __forceinline__ float2 take_sums(uint8_t* from) {
  uint64_t both, seen;
  do {
    asm volatile("{\n.reg .b128 v;\nld.relaxed.gpu.global.b128 v, [%2];\nmov.b128 {%0, %1}, v;\n}"
                 : "=l"(both), "=l"(seen)
                 : "l"(from)
                 : "memory");
  } while (seen != kSumsThere);
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(from + 8), "l"(uint64_t{0}) : "memory");
  return make_float2(__uint_as_float(static_cast<uint32_t>(both)), __uint_as_float(static_cast<uint32_t>(both >> 32)));
}

}  // namespace nybble::kernels
