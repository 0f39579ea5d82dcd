// Built without contraction into FMA. cuBLAS and cuSOLVER would give other last bits
// (docs/decisions/0009-gptq-on-the-gpu.md).
#include "quantize/linear_algebra_cuda.h"

#include <vector>

#include "quantize/linear_algebra.h"
#include "runtime/cuda_call.h"

namespace nybble::quantize {
namespace {

// A CTA makes a tile of kTile x kTile sums, a thread 8 x 4 of them: rows next to each other, columns in two pairs, so
// that its 16-byte reads of shared memory meet no bank twice.
constexpr int kTile = 64, kInnerPerStep = 16, kThreads = 128;
constexpr int kRowsPerThread = 8, kColumnsPerThread = 4, kThreadsPerRow = kTile / kColumnsPerThread;
constexpr int kPadded = kTile + 2;

// kLower: b is a's own rows, negated, and only tiles that reach the diagonal or lie below it are made: out -= a a^T.
template <class T, bool kLower>
__global__ void __launch_bounds__(kThreads)
    multiply_add_tiles(const double* a, int64_t ld_a, const T* b, int64_t ld_b, double* out, int64_t ld_out,
                       int64_t rows, int64_t inner, int64_t columns) {
  __shared__ __align__(16) double a_part[kInnerPerStep][kPadded], b_part[kInnerPerStep][kPadded];
  const int64_t first_row = int64_t{blockIdx.y} * kTile, first_column = int64_t{blockIdx.x} * kTile;
  if (kLower && first_column > first_row) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread / kThreadsPerRow * kRowsPerThread, pair = thread % kThreadsPerRow * 2;
  const auto column = [&](int c) { return pair + (c & 1) + (c >> 1) * (kTile / 2); };

  double sum[kRowsPerThread][kColumnsPerThread];
  for (int r = 0; r < kRowsPerThread; ++r)
    for (int c = 0; c < kColumnsPerThread; ++c) {
      const int64_t n = first_row + row + r, j = first_column + column(c);
      sum[r][c] = n < rows && j < columns ? out[n * ld_out + j] : 0.0;
    }
  for (int64_t i0 = 0; i0 < inner; i0 += kInnerPerStep) {
    const int count = static_cast<int>(inner - i0 < kInnerPerStep ? inner - i0 : kInnerPerStep);
    for (int at = thread; at < kTile * kInnerPerStep; at += kThreads) {
      const int r = at / kInnerPerStep, i = at % kInnerPerStep;
      const int64_t n = first_row + r;
      a_part[i][r] = n < rows && i < count ? a[n * ld_a + i0 + i] : 0.0;
      if (kLower) {
        const int64_t j = first_column + r;
        b_part[i][r] = j < columns && i < count ? -static_cast<double>(b[j * ld_b + i0 + i]) : 0.0;
      }
    }
    if (!kLower)
      for (int at = thread; at < kTile * kInnerPerStep; at += kThreads) {
        const int i = at / kTile, c = at % kTile;
        const int64_t j = first_column + c;
        b_part[i][c] = j < columns && i < count ? static_cast<double>(b[(i0 + i) * ld_b + j]) : 0.0;
      }
    __syncthreads();
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      double x[kRowsPerThread], y[kColumnsPerThread];
#pragma unroll
      for (int r = 0; r < kRowsPerThread; r += 2) {
        const double2 two = *reinterpret_cast<const double2*>(&a_part[i][row + r]);
        x[r] = two.x, x[r + 1] = two.y;
      }
#pragma unroll
      for (int c = 0; c < kColumnsPerThread; c += 2) {
        const double2 two = *reinterpret_cast<const double2*>(&b_part[i][column(c)]);
        y[c] = two.x, y[c + 1] = two.y;
      }
#pragma unroll
      for (int r = 0; r < kRowsPerThread; ++r)
#pragma unroll
        for (int c = 0; c < kColumnsPerThread; ++c) sum[r][c] = sum[r][c] + x[r] * y[c];
    }
    __syncthreads();
  }
  for (int r = 0; r < kRowsPerThread; ++r)
    for (int c = 0; c < kColumnsPerThread; ++c) {
      const int64_t n = first_row + row + r, j = first_column + column(c);
      if (n < rows && j < columns) out[n * ld_out + j] = sum[r][c];
    }
}

template <bool kLower, class T>
Result<void> enqueue_multiply_add(const double* a, int64_t ld_a, const T* b, int64_t ld_b, double* out, int64_t ld_out,
                                  int64_t rows, int64_t inner, int64_t columns) {
  if (rows == 0 || columns == 0) return {};
  constexpr int64_t kMaxTilesAtOnce = 32768;  // of rows: a grid's height has 16 bits
  for (int64_t first = 0; first < rows; first += kMaxTilesAtOnce * kTile) {
    const int64_t count = rows - first < kMaxTilesAtOnce * kTile ? rows - first : kMaxTilesAtOnce * kTile;
    const dim3 grid(static_cast<unsigned>((columns + kTile - 1) / kTile),
                    static_cast<unsigned>((count + kTile - 1) / kTile));
    multiply_add_tiles<T, kLower>
        <<<grid, kThreads>>>(a + first * ld_a, ld_a, b, ld_b, out + first * ld_out, ld_out, count, inner, columns);
    NYBBLE_CUDA(cudaGetLastError());
  }
  return {};
}

// The rows below a factored diagonal block of kFactorBlock columns: each is solved for by itself, a thread a row.
constexpr int kPanelThreads = 64;
__global__ void __launch_bounds__(kPanelThreads) solve_panel(double* diagonal, int64_t ld, int64_t rows) {
  __shared__ __align__(16) double transposed[kFactorBlock][kFactorBlock];
  for (int at = static_cast<int>(threadIdx.x); at < kFactorBlock * kFactorBlock; at += kPanelThreads) {
    const int i = at % kFactorBlock, j = at / kFactorBlock;
    transposed[i][j] = diagonal[j * ld + i];
  }
  __syncthreads();
  const int64_t r = int64_t{blockIdx.x} * kPanelThreads + threadIdx.x;
  if (r >= rows) return;
  double* row = diagonal + (kFactorBlock + r) * ld;
  double x[kFactorBlock];
#pragma unroll
  for (int j = 0; j < kFactorBlock; ++j) x[j] = row[j];
#pragma unroll
  for (int i = 0; i < kFactorBlock; ++i) {
    x[i] = x[i] / transposed[i][i];
#pragma unroll
    for (int j = i + 1; j < kFactorBlock; ++j) x[j] = x[j] - x[i] * transposed[i][j];
  }
#pragma unroll
  for (int j = 0; j < kFactorBlock; ++j) row[j] = x[j];
}

}  // namespace

Result<void> multiply_add_cuda(const double* a, int64_t ld_a, const double* b, int64_t ld_b, double* out,
                               int64_t ld_out, int64_t rows, int64_t inner, int64_t columns) {
  return enqueue_multiply_add<false>(a, ld_a, b, ld_b, out, ld_out, rows, inner, columns);
}
Result<void> multiply_add_cuda(const double* a, int64_t ld_a, const float* b, int64_t ld_b, double* out, int64_t ld_out,
                               int64_t rows, int64_t inner, int64_t columns) {
  return enqueue_multiply_add<false>(a, ld_a, b, ld_b, out, ld_out, rows, inner, columns);
}

Result<bool> factor_lower_cuda(double* matrix, int64_t k) {
  std::vector<double> block(kFactorBlock * kFactorBlock);
  for (int64_t begin = 0; begin < k; begin += kFactorBlock) {
    const int64_t size = k - begin < kFactorBlock ? k - begin : kFactorBlock, rows = k - begin - size;
    const size_t width = size * sizeof(double);
    double* diagonal = matrix + begin * k + begin;
    NYBBLE_CUDA(cudaMemcpy2D(block.data(), width, diagonal, k * sizeof(double), width, size, cudaMemcpyDeviceToHost));
    if (!factor_block(block.data(), size, size)) return false;
    NYBBLE_CUDA(cudaMemcpy2D(diagonal, k * sizeof(double), block.data(), width, width, size, cudaMemcpyHostToDevice));
    if (rows == 0) break;
    solve_panel<<<static_cast<unsigned>((rows + kPanelThreads - 1) / kPanelThreads), kPanelThreads>>>(diagonal, k,
                                                                                                      rows);
    NYBBLE_CUDA(cudaGetLastError());
    const double* panel = diagonal + size * k;
    if (Result<void> fine =
            enqueue_multiply_add<true>(panel, k, panel, k, diagonal + size * k + size, k, rows, size, rows);
        !fine)
      return fine.error();
  }
  return true;
}

}  // namespace nybble::quantize
