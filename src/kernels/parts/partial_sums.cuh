// Partial sums through the workspace: CTAs that share a tile hand their sums to the one that finishes it, which adds
// them in the order of k. Deterministic, no atomics, and the workspace may arrive with any content.
//
//   Flags      A CTA's warpgroup publishes a 64-bit tag when its partial sums are written, or at once if it has none.
//   Tags are
//              a hash of the launch's epoch and the flag's place, so what an earlier launch, or anyone else, left there
//              passes for a tag with probability 2^-64.
//   Epoch      The first word of the workspace, whatever it holds. Every warpgroup reads it before it publishes; one
//              warp of the last CTA waits for all tags and then moves the epoch on, so the next launch finds another.
//   Order      A CTA waits only for CTAs that were dispatched before it, so it never waits for one that cannot start.
#pragma once

#include <cstdint>

#include "kernels/partial_sums.h"

namespace nybble::kernels {

struct PartialSums {
  uint8_t* workspace;
  uint64_t epoch;

  // After wait_for_predecessor(): the launch before may have moved the epoch.
  __device__ __forceinline__ void read_epoch() {
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(epoch) : "l"(workspace) : "memory");
  }
  __device__ __forceinline__ void move_epoch() {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(workspace), "l"(epoch + 1) : "memory");
  }

  // Publishes what this thread wrote, and what others of its warpgroup wrote before a barrier with it.
  __device__ __forceinline__ void publish(int flag) {
    asm volatile("fence.acq_rel.gpu;\nst.relaxed.gpu.global.u64 [%0], %1;" ::"l"(address(flag)), "l"(tag(flag))
                 : "memory");
  }
  __device__ __forceinline__ void await(int flag) {
    const uint64_t expected = tag(flag);
    uint64_t seen;
    do {
      asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(seen) : "l"(address(flag)) : "memory");
    } while (seen != expected);
  }
  // Of all CTAs of the grid, by a warp: for those that publish nothing but that they have read the epoch.
  __device__ __forceinline__ void await_all(int flags, int lane) {
    for (bool seen = false; !seen;) {
      seen = true;
      for (int flag = lane; flag < flags; flag += 32) {
        uint64_t value;
        asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(address(flag)) : "memory");
        seen = seen && value == tag(flag);
      }
    }
    __syncwarp();
  }

  // Two sums and their tag in one access: whoever sees the tag has the sums, without a flag and without a fence.
  __device__ __forceinline__ void give(uint8_t* to, int flag, float2 sums) {
    const uint64_t both = __float_as_uint(sums.x) | static_cast<uint64_t>(__float_as_uint(sums.y)) << 32;
    asm volatile("{\n.reg .b128 v;\nmov.b128 v, {%1, %2};\nst.relaxed.gpu.global.b128 [%0], v;\n}" ::"l"(to), "l"(both),
                 "l"(tag(flag))
                 : "memory");
  }
  __device__ __forceinline__ float2 take(const uint8_t* from, int flag) {
    const uint64_t expected = tag(flag);
    uint64_t both, seen;
    do {
      asm volatile("{\n.reg .b128 v;\nld.relaxed.gpu.global.b128 v, [%2];\nmov.b128 {%0, %1}, v;\n}"
                   : "=l"(both), "=l"(seen)
                   : "l"(from)
                   : "memory");
    } while (seen != expected);
    return make_float2(__uint_as_float(static_cast<uint32_t>(both)),
                       __uint_as_float(static_cast<uint32_t>(both >> 32)));
  }

 private:
  __device__ __forceinline__ uint64_t* address(int flag) const {
    return reinterpret_cast<uint64_t*>(workspace + PartialSumsMap::flags) + flag;
  }
  // The finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014): a
  // bijection, so two epochs never share a tag of one flag.
  __device__ __forceinline__ uint64_t tag(int flag) const {
    uint64_t x = epoch + static_cast<uint64_t>(flag + 1) * 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
  }
};

}  // namespace nybble::kernels
