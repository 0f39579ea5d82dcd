// What a sliced-k kernel (slice_sm90.cuh) is told. Host-only C++.
#pragma once

#include "kernels/epilogue_params.h"
#include "kernels/slice_config.h"

namespace nybble::kernels {

struct SliceParams {
  const uint8_t* weight;  // packed blob
  int64_t column_scales;  // offset in the blob, per column only
  int64_t column_zeros;   // per column with zero points only
  void* out;              // [m, n], of act's type or fp32
  int64_t ld_out;
  bool out_fp32;
  int m, n;
  int n_blocks, k_blocks;  // of 64 output features, of 128 input features
  int blocks_each;         // n blocks that every cluster takes,
  int blocks_left;         // and clusters that take one more
  EpilogueParams epilogue;
};

}  // namespace nybble::kernels
