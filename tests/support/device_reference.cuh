// The meaning of a problem on the GPU, in plain kernels over the canonical weight with double sums, and the kernels
// that fill and judge buffers. Knows nothing of packing. src/reference judges it on small cases (tests/gpu_kernels).
#pragma once

#include <cuda_runtime.h>

#include "support/case_data.h"
#include "support/device_memory.h"
#include "support/judge.h"
#include "support/numbers.h"

namespace nybble::testing {

// A canonical weight in device memory.
struct WeightView {
  const uint8_t* codes;
  const void* scales;
  const uint8_t* int_zeros;
  const void* float_zeros;
  const int32_t* group_of;  // [k]: the group of an input feature
  int64_t n, k, groups;
  DType scale_dtype;
  ZeroKind zero_kind;

  NYBBLE_HD double value(int64_t row, int64_t column) const {
    const int64_t group = row * groups + group_of[column];
    const double u = codes[row * k + column], scale = load_value(scales, scale_dtype, group);
    switch (zero_kind) {
      case ZeroKind::kNone:
        return (u - 8) * scale;
      case ZeroKind::kInt:
        return (u - int_zeros[group]) * scale;
      case ZeroKind::kFloat:
        return (u - load_value(float_zeros, scale_dtype, group)) * scale;
      case ZeroKind::kOffset:
        return u * scale + load_value(float_zeros, scale_dtype, group);
      case ZeroKind::kTable:  // never packed, so no kernel's weight
        break;
    }
    return 0;
  }
  NYBBLE_HD double value(int64_t row, int64_t column, Numerics numerics, DType act_dtype) const {
    const double exact = value(row, column);
    return numerics == Numerics::kRoundedWeight ? widen(narrow(exact, act_dtype), act_dtype) : exact;
  }
};

namespace device {

[[maybe_unused]] static __global__ void dequantize(WeightView weight, Numerics numerics, DType act_dtype,
                                                   double* values) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < weight.n * weight.k;
       i += int64_t{gridDim.x} * blockDim.x)
    values[i] = weight.value(i / weight.k, i % weight.k, numerics, act_dtype);
}

// sum[m, n] and magnitude[m, n] (the sum of absolute products). One block of 256 threads makes 64 x 64 outputs.
template <bool kMagnitude>
__global__ void __launch_bounds__(256) multiply(const void* act, DType act_dtype, int64_t ld_act, const double* weight,
                                                int64_t m, int64_t n, int64_t k, double* sum, double* magnitude) {
  constexpr int kTile = 64, kStep = 16;
  __shared__ double a[kStep][kTile + 1], w[kStep][kTile + 1];
  const int64_t m0 = int64_t{blockIdx.y} * kTile, n0 = int64_t{blockIdx.x} * kTile;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  double sums[4][4] = {}, magnitudes[4][4] = {};
  for (int64_t k0 = 0; k0 < k; k0 += kStep) {
    for (int i = threadIdx.x; i < kTile * kStep; i += 256) {
      const int row = i / kStep, column = i % kStep;
      const bool inside = k0 + column < k;
      a[column][row] = inside && m0 + row < m ? load_value(act, act_dtype, (m0 + row) * ld_act + k0 + column) : 0;
      w[column][row] = inside && n0 + row < n ? weight[(n0 + row) * k + k0 + column] : 0;
    }
    __syncthreads();
    for (int s = 0; s < kStep; ++s)
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) {
          const double product = a[s][ty + 16 * i] * w[s][tx + 16 * j];
          sums[i][j] += product;
          if constexpr (kMagnitude) magnitudes[i][j] += fabs(product);
        }
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      const int64_t row = m0 + ty + 16 * i, column = n0 + tx + 16 * j;
      if (row >= m || column >= n) continue;
      sum[row * n + column] = sums[i][j];
      if constexpr (kMagnitude) magnitude[row * n + column] = magnitudes[i][j];
    }
}

// Activation rows count from the end of the pool: the last row is row 0 of the stream, so that a case that ends at the
// pool's end has the same numbers in a pool of any height. Between k and ld stands NaN.
[[maybe_unused]] static __global__ void fill_act(void* act, DType dtype, int64_t rows, int64_t k, int64_t ld,
                                                 uint64_t seed, Data data) {
  const RandomStream stream(seed, kAct);
  const int64_t count = (rows - 1) * ld + k;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = i / ld, column = i % ld;
    store_bits(act, dtype, i, column < k ? act_bits(stream, rows - 1 - row, column, k, dtype, data) : 0xFFFF);
  }
}

// rows x columns numbers with NaN between columns and ld: a bias (one row) or a residual.
[[maybe_unused]] static __global__ void fill_addend(void* values, DType dtype, int64_t rows, int64_t columns,
                                                    int64_t ld, uint64_t seed, Purpose purpose, Data data) {
  const RandomStream stream(seed, purpose);
  const int64_t count = (rows - 1) * ld + columns;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = i / ld, column = i % ld;
    store_bits(values, dtype, i, column < columns ? addend_bits(stream, row * columns + column, dtype, data) : ~0u);
  }
}

}  // namespace device

// What judging an output found. Counts are over its elements and its guards.
struct Verdict {
  unsigned long long wrong;         // elements that break the rule
  unsigned long long worst;         // float bits of the worst elements's badness, and below them its ~index
  unsigned long long unwritten;     // of the wrong ones: still poison
  unsigned long long gap_writes;    // elements between n and ld_out that changed
  unsigned long long guard_writes;  // bytes of the red zones that changed
  unsigned long long rounded;       // elements equal to the correctly rounded result
  unsigned int closest;             // float bits of the largest share of the allowance that an element used
};

// What an output is compared with.
struct Expectation {
  const double* sum;        // [rows, n] of the pool, row 0 being the case's first
  const double* magnitude;  // the same, or null: exact data, equality is demanded
  const void* bias;
  const void* residual;
  double alpha;
  DType act_dtype, out_dtype;
  int64_t m, n, k, ld_out;

  // The exact result and the sum of the absolute values of everything added.
  NYBBLE_HD double exact(int64_t row, int64_t column, double* absolute) const {
    double result = alpha * sum[row * n + column];
    double total = magnitude == nullptr ? 0 : fabs(alpha) * magnitude[row * n + column];
    if (bias != nullptr) {
      const double addend = load_value(bias, act_dtype, column);
      result += addend, total += fabs(addend);
    }
    if (residual != nullptr) {
      const double addend = load_value(residual, out_dtype, row * ld_out + column);
      result += addend, total += fabs(addend);
    }
    *absolute = total;
    return result;
  }
};

namespace device {

[[maybe_unused]] static __global__ void judge_output(Expectation expected, const void* out,
                                                     const unsigned char* red_before, const unsigned char* red_after,
                                                     Verdict* verdict) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x, first = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  const int64_t count = expected.m == 0 ? 0 : (expected.m - 1) * expected.ld_out + expected.n;
  const uint32_t poison = expected.out_dtype == DType::kFp32 ? 0xFFFFFFFFu : 0xFFFFu;
  unsigned long long rounded = 0;
  float closest = 0;
  for (int64_t i = first; i < count; i += stride) {
    const int64_t row = i / expected.ld_out, column = i % expected.ld_out;
    const uint32_t got = load_bits(out, expected.out_dtype, i);
    if (column >= expected.n) {
      if (got != poison) atomicAdd(&verdict->gap_writes, 1ull);
      continue;
    }
    double absolute;
    const double exact = expected.exact(row, column, &absolute);
    const Judgement result = judge(got, exact, absolute, expected.magnitude == nullptr, expected.k, expected.out_dtype);
    rounded += result.rounded;
    closest = fmaxf(closest, static_cast<float>(result.used));
    if (result.badness > 0) {
      atomicAdd(&verdict->wrong, 1ull);
      if (got == poison) atomicAdd(&verdict->unwritten, 1ull);
      const unsigned int index = ~static_cast<unsigned int>(row * expected.n + column);
      atomicMax(&verdict->worst,
                static_cast<unsigned long long>(__float_as_uint(static_cast<float>(result.badness))) << 32 | index);
    }
  }
  for (int64_t i = first; i < static_cast<int64_t>(kRedZoneBytes); i += stride)
    if (red_before[i] != kRedZoneByte || red_after[i] != kRedZoneByte) atomicAdd(&verdict->guard_writes, 1ull);
  for (int lane = 16; lane > 0; lane /= 2) {
    rounded += __shfl_down_sync(~0u, rounded, lane);
    closest = fmaxf(closest, __shfl_down_sync(~0u, closest, lane));
  }
  if (threadIdx.x % 32 == 0) {
    if (rounded > 0) atomicAdd(&verdict->rounded, rounded);
    atomicMax(&verdict->closest, __float_as_uint(closest));
  }
}

// Counts the bytes in which two buffers differ.
[[maybe_unused]] static __global__ void count_differences(const unsigned char* a, const unsigned char* b, int64_t count,
                                                          unsigned long long* differences) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x)
    if (a[i] != b[i]) atomicAdd(differences, 1ull);
}

// Counts the bytes that are not `byte`.
[[maybe_unused]] static __global__ void count_other_bytes(const unsigned char* a, int64_t count, unsigned char byte,
                                                          unsigned long long* others) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x)
    if (a[i] != byte) atomicAdd(others, 1ull);
}

}  // namespace device

inline int grid_for(int64_t count) {
  return static_cast<int>(count < 1 ? 1 : count > 256 * 1024 ? 1024 : (count + 255) / 256);
}

}  // namespace nybble::testing
