// What a sweeping kernel (sweep_sm90.cuh) is told. Host-only C++.
#pragma once

#include "kernels/epilogue_params.h"
#include "kernels/sweep_config.h"

namespace nybble::kernels {

// Where things lie in dynamic shared memory, by the number of tokens: few of them leave room for more stages. Computed
// once, on the host (SweepShape::smem).
struct SweepSmem {
  int stages;
  int act_stage;  // bytes: the tokens of a stage
  int act;        // offset of the ring of tokens
  int sums;       // offset of the warps' sums, fp32
  int bytes;
};

struct SweepParams {
  const uint8_t* weight;  // packed blob
  int64_t column_scales;  // offset in the blob, per column only
  int64_t column_zeros;   // per column with zero points only
  void* out;              // [m, n], of act's type or fp32
  int64_t ld_out;
  bool out_fp32;
  int m, n;
  int whole_chunks;        // of 64 input features that act has
  int n_blocks, k_blocks;  // of 64 output features, of 128 input features
  int blocks;              // of 64 x 128 in all: every CTA takes an equal share, in the order of memory
  int shares;              // CTAs that share them; CTAs past them repeat the last share's work
  SweepSmem smem;
  int trigger;         // blocks left to copy when the next launch may start
  uint8_t* workspace;  // sums and their tags, by share; null where no share ends within a row
  EpilogueParams epilogue;
};

}  // namespace nybble::kernels
