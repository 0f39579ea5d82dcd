// The seam between the drivers (plain C++, any x86-64) and the files compiled for one instruction set. Only raw
// pointers and plain structs cross it: a standard template instantiated behind the seam could become the copy that the
// linker keeps for everybody, and crash a machine without that instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "nybble/types.h"

namespace nybble::cpu {

// Prepared act: fp32, k padded with zeros to whole blocks of the layout, and every 64 input features in the order in
// which the packed codes meet them (decode.h).
struct ActTask {
  DType dtype;
  const void* row;         // one token's act
  int64_t k;               // its elements; none is read past them
  const int32_t* k_order;  // null: the identity
  int64_t begin, end;      // positions to prepare, multiples of 64
  float* out;              // position begin of the prepared token
};

// 64 output features of a packed weight.
struct WeightRows {
  const std::byte* blocks;  // k_blocks blocks, contiguous
  int64_t k_blocks;
  int block_bytes, piece_bytes;
  int groups;  // per block and row; 0: per column
  DType scale_dtype;
  ZeroKind zero_kind;
  const std::byte* column_scales;  // of the 64 features, per column only
  const std::byte* column_zeros;
  float descale[2];  // scale = stored * descale[0] * descale[1], both powers of two
};

inline constexpr int kMostTokens = 8;  // of any instruction set in one GemvTask

struct GemvTask {
  WeightRows weight;
  int first_piece, end_piece;  // of the 64 features, in units of 16
  const float* act;            // prepared, `tokens` rows
  int64_t ld_act;
  int tokens;   // 1 .. IsaRoutines::max_tokens
  float* sums;  // [tokens, 64]; the columns of the pieces asked for are written
};

struct TileTask {
  WeightRows weight;
  int64_t first_block, end_block;  // along k
  float* out;                      // [64, (end_block - first_block) * 128], k in the order of prepared act
  int64_t ld_out;
};

// sums[m, n] += act[m, k] x weight[n, k]^T, all dense fp32.
struct MultiplyTask {
  int64_t m, n, k;
  const float* act;
  int64_t ld_act;
  const float* weight;
  int64_t ld_weight;
  float* sums;
  int64_t ld_sums;
};

// out = round(alpha * sum + bias + residual), each step rounded to fp32. Null: absent.
struct FinishTask {
  const float* sums;
  int64_t count;
  float alpha;
  const void* bias;
  DType bias_dtype;
  const void* residual;
  void* out;
  DType out_dtype;
};

struct IsaRoutines {
  int max_tokens;
  void (*prepare_act)(const ActTask&);
  void (*gemv)(const GemvTask&);
  void (*dequantize)(const TileTask&);
  void (*multiply)(const MultiplyTask&);
  void (*finish)(const FinishTask&);
};

extern const IsaRoutines kAvx2Routines;
extern const IsaRoutines kAvx512Routines;

// The best of these that this CPU can run; null: none.
const IsaRoutines* best_routines();

}  // namespace nybble::cpu
