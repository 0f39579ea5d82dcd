// Loops that the compiler vectorizes once per instruction set. Without contraction into FMA (-ffp-contract=off) and
// with sums in a fixed order, which one runs does not show in the result.
#pragma once

#define NYBBLE_PER_ISA __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
