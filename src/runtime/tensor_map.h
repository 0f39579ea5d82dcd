// Tensor maps for two-dimensional row-major matrices of 16-bit elements. The driver's encoder is looked up at run time,
// so a binary starts where no driver is.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "nybble/result.h"

namespace nybble::runtime {

struct MatrixView {
  const void* data;  // 16-byte aligned
  int64_t rows, columns;
  int64_t ld;  // elements between rows, a multiple of 8
  bool bf16;   // else fp16

  friend bool operator==(const MatrixView&, const MatrixView&) = default;
};

// Boxes of box_rows x 64 columns, 128-byte swizzle; reads outside the matrix give zeros, writes outside are dropped.
// What launches call: every thread remembers the maps it used last. A map is a function of these arguments alone, also
// when its address is freed and allocated again, on whichever device.
Result<CUtensorMap> tensor_map(const MatrixView& matrix, int box_rows);

// The same map from the driver.
Result<CUtensorMap> encode_tensor_map(const MatrixView& matrix, int box_rows);

}  // namespace nybble::runtime
