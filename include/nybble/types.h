// The words every room shares: element types, formats of 4-bit weights, a problem and its one-line text form.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "nybble/result.h"

#pragma GCC visibility push(default)
namespace nybble {

enum class DType : uint8_t { kBf16 = 0, kFp16 = 1, kFp32 = 2 };

const char* dtype_name(DType dtype);               // "bf16", "fp16", "fp32"
Result<DType> parse_dtype(std::string_view text);  // also "f16", "float16", "bfloat16", "f32", "float32"
constexpr size_t dtype_bytes(DType dtype) { return dtype == DType::kFp32 ? 4 : 2; }

// How a code u (0..15) becomes a weight w, given the scale s of its group.
enum class ZeroKind : uint8_t {
  kNone = 0,    // w = (u - 8) * s
  kInt = 1,     // w = (u - z) * s, z an integer 0..16
  kFloat = 2,   // w = (u - z) * s, z a float of the scale's type
  kOffset = 3,  // w = u * s + b,   b a float of the scale's type
  kTable = 4,   // w = table[u] * s, one table of 16 floats for the weight (NF4, MXFP4, NVFP4); has no packed form yet
};

const char* zero_kind_name(ZeroKind kind);  // "none", "int", "float", "offset", "table"
Result<ZeroKind> parse_zero_kind(std::string_view text);

// group_size of a weight that has one scale per output feature.
inline constexpr int kPerColumn = 0;

// Everything about a quantized weight except its shape and its numbers.
struct WeightFormat {
  DType scale_dtype = DType::kBf16;
  ZeroKind zero_kind = ZeroKind::kNone;
  int group_size = 128;  // input features per scale: kPerColumn or a positive number; the last group may be partial
  bool k_order = false;  // input features are stored in another order (GPTQ's act-order)
  // True when scales (times PackedHeader's power of two) keep the Hopper kernels' cheap dequantization exact. Set by
  // pack(); meaningless before it. layout/packed.h says what is demanded.
  bool scales_in_window = true;

  friend bool operator==(const WeightFormat&, const WeightFormat&) = default;
};

std::string to_string(const WeightFormat& format);  // "g128", "g64 zp", "col sfp16 offset order", "g16 table"

// Which of two sums a kernel computes; both accumulate exact products in fp32 or better.
enum class Numerics : uint8_t {
  kRoundedWeight,  // each weight is (u - z) * s rounded once to the activation's type
  kExactWeight,    // codes stay exact, scales are applied to fp32 sums (or to weights held in fp32)
};

// What happens to the fp32 sums before they are stored: out = alpha * sum + bias + residual.
struct Epilogue {
  bool bias = false;      // bias[n], of the activation's type
  bool residual = false;  // residual[m, n], of the output's type, with the output's leading dimension

  friend bool operator==(const Epilogue&, const Epilogue&) = default;
};

// A question put to make_plan: out[m, n] = epilogue(act[m, k] x weight[n, k]^T).
struct Problem {
  int64_t m = 0;  // tokens
  int64_t n = 0;  // output features
  int64_t k = 0;  // input features
  DType act_dtype = DType::kBf16;
  DType out_dtype = DType::kBf16;
  WeightFormat weight;
  int layout = 1;  // kLayoutVersion of the packed weight
  Epilogue epilogue;
  // Every row of act and out begins at a 16-byte boundary: aligned pointers and leading dimensions. False: any address
  // the element type allows; fewer kernels can do that.
  bool aligned = true;

  friend bool operator==(const Problem&, const Problem&) = default;
};

// One line, the same in logs, tests, bench, tables and error messages, and its inverse. Example:
// "m16 n4096 k4096 bf16 g128", "m1 n512 k300 fp16 out=fp32 g64 zp sbf16 bias".
std::string to_string(const Problem& problem);
Result<Problem> parse_problem(std::string_view text);

}  // namespace nybble
#pragma GCC visibility pop
