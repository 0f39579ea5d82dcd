// What a streaming kernel (stream_sm90.cuh) is told. Host-only C++.
#pragma once

#include "kernels/epilogue_params.h"
#include "kernels/stream_config.h"

namespace nybble::kernels {

// Where things lie in dynamic shared memory, behind the rings. Computed once, on the host.
struct StreamSmem {
  int act;        // [m][act_pitch]: the CTA's slice of k
  int act_pitch;  // bytes, 16 more than the slice: the eight rows that ldmatrix reads lie in different banks
  int reduction;  // fp32 [1 or 2][k_slices][m][StreamShape::reduction_pitch]
  int bytes;
};

struct StreamParams {
  const uint8_t* weight;  // packed blob
  int64_t column_scales;  // offset in the blob, per column only
  int64_t column_zeros;   // per column with zero points only
  const void* act;        // [m, k]
  int64_t ld_act;
  void* out;  // [m, n], of act's type or fp32
  int64_t ld_out;
  bool out_fp32;
  int m, n, k;
  int k_blocks;     // of 128 input features
  int pieces;       // of 16 output features in the blob
  int groups_each;  // groups of tile_n output features that every cluster takes,
  int groups_left;  // and clusters that take one more
  int throttle;     // copies in flight per warp before the wait; 0: the whole ring
  StreamSmem smem;
  EpilogueParams epilogue;
};

}  // namespace nybble::kernels
