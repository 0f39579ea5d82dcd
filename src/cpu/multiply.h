// The dense product, by Eigen. Included by the instruction-set files only.
//
// Eigen's templates have external linkage: two files compiled for different instruction sets would offer the linker two
// bodies under one name. So each file gives Eigen's namespace a name of its own, through NYBBLE_CPU_EIGEN, before
// anything includes Eigen. Eigen takes its panels (up to some MB a thread) from the heap; running out of memory there
// ends the process.
#pragma once

#if !defined(NYBBLE_CPU_EIGEN) || defined(EIGEN_CORE_H)
#error "include cpu/multiply.h first, with NYBBLE_CPU_EIGEN defined to a namespace of this file's own"
#endif

#define Eigen NYBBLE_CPU_EIGEN
#include <Eigen/Core>

#include "cpu/isa.h"

namespace nybble::cpu {
namespace {

inline void multiply(const MultiplyTask& task) {
  using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using ColumnMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor>;
  using Stride = Eigen::OuterStride<>;
  const Eigen::Map<const RowMajor, 0, Stride> act(task.act, task.m, task.k, Stride(task.ld_act));
  const Eigen::Map<const ColumnMajor, 0, Stride> weight(task.weight, task.k, task.n, Stride(task.ld_weight));
  Eigen::Map<RowMajor, 0, Stride> sums(task.sums, task.m, task.n, Stride(task.ld_sums));
  sums.noalias() += act * weight;
}

}  // namespace
}  // namespace nybble::cpu
