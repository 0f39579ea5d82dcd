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

// What one copy moves: `rows` rows of 64 columns or, where `chunks` is not 0, `chunks` times that, one behind the
// other; the columns behind the last whole 64 then lie outside.
struct TensorBox {
  int rows;
  int chunks = 0;

  friend bool operator==(const TensorBox&, const TensorBox&) = default;
};

// 128-byte swizzle; reads outside the matrix give zeros. Coordinates are (column, row) or (0, row, column / 64).
// What launches call: every thread remembers the maps it used last. A map is a function of these arguments alone, also
// when its address is freed and allocated again, on whichever device.
Result<CUtensorMap> tensor_map(const MatrixView& matrix, const TensorBox& box);

// The same map from the driver.
Result<CUtensorMap> encode_tensor_map(const MatrixView& matrix, const TensorBox& box);

}  // namespace nybble::runtime
