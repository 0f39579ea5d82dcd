// Dense -> canonical.
#pragma once

#include "nybble/weight.h"

#pragma GCC visibility push(default)
namespace nybble {

enum class RangeSearch : uint8_t {
  kNone,          // absmax (symmetric) or min..max (asymmetric)
  kSquaredError,  // shrink the range step by step, keep the one with the least squared error
};

struct RtnOptions {
  int group_size = 128;   // kPerColumn or any multiple of 16; the last group may be partial
  bool symmetric = true;  // false: integer zero points
  RangeSearch range_search = RangeSearch::kNone;
  DType scale_dtype = DType::kBf16;
  int num_threads = 0;  // 0: all cores
};

// Round to nearest. `dense` holds finite numbers; a NaN or infinity is an error that names the element. Finite in,
// finite out: a group whose scale would overflow scale_dtype is an error, one of zeros gets a scale of zero.
Result<QuantizedWeight> quantize_rtn(const DenseWeight& dense, const RtnOptions& options);

// The same on the current CUDA device, bit-equal.
Result<QuantizedWeight> quantize_rtn_cuda(const DenseWeight& dense, const RtnOptions& options);

}  // namespace nybble
#pragma GCC visibility pop
