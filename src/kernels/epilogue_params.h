// What the epilogue of a GPU kernel (parts/epilogue.cuh) is told. Host-only C++.
#pragma once

#include <cstdint>

#include "nybble/launch.h"

namespace nybble::kernels {

// The part of LaunchArgs that the epilogue reads, as a kernel parameter.
struct EpilogueParams {
  const void* bias = nullptr;           // [n], the activation's type; null: none
  const void* residual = nullptr;       // [m, n], the output's type; null: none
  int64_t ld_residual = 0;              // the output's leading dimension
  const float* alpha_device = nullptr;  // null: alpha
  float alpha = 1.0f;

  static EpilogueParams from(const LaunchArgs& args, int64_t ld_out) {
    return {args.bias, args.residual, ld_out, args.alpha_device, args.alpha};
  }
};

}  // namespace nybble::kernels
