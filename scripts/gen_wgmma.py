#!/usr/bin/env python3
"""Writes src/kernels/ptx/wgmma.cuh: one overload per wgmma shape that the kernels use. CI regenerates it and compares."""
import pathlib
import sys

# tile_m of the instances in src/kernels/instances: tokens are wgmma's N.
TOKENS = (16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 240, 256)

HEAD = """\
// wgmma with operand A in registers: PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions".
// Written by scripts/gen_wgmma.py; change it there.
#pragma once

#include "kernels/ptx/packed_math.cuh"

namespace nybble::ptx {

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending> __device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// Reads of an accumulator stay behind the wait before this.
__device__ __forceinline__ void keep_behind(float& accumulator) { asm volatile("" : "+f"(accumulator)::"memory"); }

// d[64 x tokens] (+)= a[64 x 16] x b[tokens x 16]^T. a: four registers of 16-bit pairs; b: a shared-memory descriptor
// of K-major rows; accumulate == 0 ignores what d holds.
"""


def overload(tokens: int) -> str:
    count = tokens // 2
    d = ", ".join(f"%{i}" for i in range(count))
    outs = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    lines = [f"template <class T>", f"__device__ __forceinline__ void wgmma(float (&d)[{count}], const uint32_t* a, uint64_t b, int accumulate) {{"]
    for branch, ty in (("if constexpr (is_bf16<T>)", "bf16"), ("else", "f16")):
        lines += [
            f"  {branch}",
            f'    asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{count + 5}, 0;\\n"',
            f'                 "wgmma.mma_async.sync.aligned.m64n{tokens}k16.f32.{ty}.{ty} "',
            f'                 "{{{d}}}, "',
            f'                 "{{%{count}, %{count + 1}, %{count + 2}, %{count + 3}}}, %{count + 4}, p, 1, 1, 0;\\n}}\\n"',
            f"                 : {outs}",
            f'                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));',
        ]
    lines.append("}")
    return "// clang-format off\n" + "\n".join(lines) + "\n// clang-format on\n"


def main() -> int:
    known = " || ".join(f"tokens == {t}" for t in TOKENS)
    text = HEAD + "\n" + "\n".join(overload(t) for t in TOKENS) + f"""
// Whether there is a wrapper for so many tokens.
// clang-format off
constexpr bool has_wgmma(int tokens) {{ return {known}; }}
// clang-format on

}}  // namespace nybble::ptx
"""
    path = pathlib.Path(__file__).resolve().parent.parent / "src/kernels/ptx/wgmma.cuh"
    if "--check" in sys.argv[1:]:
        if path.read_text() != text:
            print(f"{path} differs from what scripts/gen_wgmma.py writes; run it", file=sys.stderr)
            return 1
        return 0
    path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
