#include "quantize/linear_algebra.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/parallel.h"
#include "quantize/per_isa.h"

namespace nybble::quantize {
namespace {

// A piece of b of this size stays in a core's second-level cache while all rows pass over it.
constexpr int64_t kColumnsPerPiece = 256, kInnerPerPiece = 128;

// Four rows of b at a time, so that a sum is loaded and stored once for four products.
NYBBLE_PER_ISA void add_rows(const double* a, const double* b, int64_t ld_b, double* out, int64_t inner,
                             int64_t columns) {
  int64_t i = 0;
  for (; i + 4 <= inner; i += 4) {
    const double a0 = a[i], a1 = a[i + 1], a2 = a[i + 2], a3 = a[i + 3];
    const double *b0 = b + i * ld_b, *b1 = b0 + ld_b, *b2 = b1 + ld_b, *b3 = b2 + ld_b;
    for (int64_t j = 0; j < columns; ++j) out[j] = out[j] + a0 * b0[j] + a1 * b1[j] + a2 * b2[j] + a3 * b3[j];
  }
  for (; i < inner; ++i)
    for (int64_t j = 0; j < columns; ++j) out[j] += a[i] * b[i * ld_b + j];
}
NYBBLE_PER_ISA void add_rows(const double* a, const float* b, int64_t ld_b, double* out, int64_t inner,
                             int64_t columns) {
  int64_t i = 0;
  for (; i + 4 <= inner; i += 4) {
    const double a0 = a[i], a1 = a[i + 1], a2 = a[i + 2], a3 = a[i + 3];
    const float *b0 = b + i * ld_b, *b1 = b0 + ld_b, *b2 = b1 + ld_b, *b3 = b2 + ld_b;
    for (int64_t j = 0; j < columns; ++j) out[j] = out[j] + a0 * b0[j] + a1 * b1[j] + a2 * b2[j] + a3 * b3[j];
  }
  for (; i < inner; ++i)
    for (int64_t j = 0; j < columns; ++j) out[j] += a[i] * b[i * ld_b + j];
}

// A tile of out stays in registers while a piece of b passes: each element sums in the order that add_rows() has.
constexpr int64_t kTileRows = 4, kTileColumns = 16;
using Eight = double __attribute__((vector_size(64)));

inline void load(const double* from, Eight& to) { std::memcpy(&to, from, sizeof(to)); }
inline void load(const float* from, Eight& to) {
  for (int i = 0; i < 8; ++i) to[i] = from[i];
}

template <class T>
[[gnu::always_inline]] inline void sum_tile(const double* a, int64_t ld_a, const T* b, int64_t ld_b, double* out,
                                            int64_t ld_out, int64_t inner) {
  Eight sums[kTileRows][2];
  for (int r = 0; r < kTileRows; ++r) std::memcpy(sums[r], out + r * ld_out, sizeof(sums[r]));
  for (int64_t i = 0; i < inner; ++i) {
    Eight row[2];
    for (int c = 0; c < 2; ++c) load(b + i * ld_b + c * 8, row[c]);
    for (int r = 0; r < kTileRows; ++r)
      for (int c = 0; c < 2; ++c) sums[r][c] += a[r * ld_a + i] * row[c];
  }
  for (int r = 0; r < kTileRows; ++r) std::memcpy(out + r * ld_out, sums[r], sizeof(sums[r]));
}
NYBBLE_PER_ISA void add_tile(const double* a, int64_t ld_a, const double* b, int64_t ld_b, double* out, int64_t ld_out,
                             int64_t inner) {
  sum_tile(a, ld_a, b, ld_b, out, ld_out, inner);
}
NYBBLE_PER_ISA void add_tile(const double* a, int64_t ld_a, const float* b, int64_t ld_b, double* out, int64_t ld_out,
                             int64_t inner) {
  sum_tile(a, ld_a, b, ld_b, out, ld_out, inner);
}

template <class T>
void multiply_piece(const double* a, int64_t ld_a, const T* b, int64_t ld_b, double* out, int64_t ld_out, int64_t rows,
                    int64_t inner, int64_t columns) {
  const int64_t tiled_rows = rows - rows % kTileRows, tiled_columns = columns - columns % kTileColumns;
  for (int64_t j = 0; j < tiled_columns; j += kTileColumns)
    for (int64_t r = 0; r < tiled_rows; r += kTileRows)
      add_tile(a + r * ld_a, ld_a, b + j, ld_b, out + r * ld_out + j, ld_out, inner);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t j = r < tiled_rows ? tiled_columns : 0;
    add_rows(a + r * ld_a, b + j, ld_b, out + r * ld_out + j, inner, columns - j);
  }
}

template <class T>
void multiply_pieces(const double* a, int64_t ld_a, const T* b, int64_t ld_b, double* out, int64_t ld_out, int64_t rows,
                     int64_t inner, int64_t columns) {
  for (int64_t j = 0; j < columns; j += kColumnsPerPiece)
    for (int64_t i = 0; i < inner; i += kInnerPerPiece)
      multiply_piece(a + i, ld_a, b + i * ld_b + j, ld_b, out + j, ld_out, rows, std::min(kInnerPerPiece, inner - i),
                     std::min(kColumnsPerPiece, columns - j));
}

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Block = Eigen::Map<Matrix, Eigen::Unaligned, Eigen::OuterStride<>>;

// The lower Cholesky factor in place, block by block: the diagonal block, the panel below it, and what is right of
// both.
bool factor_lower(std::span<double> matrix, int64_t k, int num_threads) {
  constexpr int64_t kRowsPerItem = 32;
  std::vector<double> transposed;  // the panel's negative, [block, rows]
  for (int64_t begin = 0; begin < k; begin += kFactorBlock) {
    const int64_t end = std::min(k, begin + kFactorBlock), size = end - begin, rows = k - end;
    double* diagonal = matrix.data() + begin * k + begin;
    if (!factor_block(diagonal, k, size)) return false;
    const auto lower = [&](int64_t i, int64_t j) { return diagonal[i * k + j]; };
    transposed.resize(static_cast<size_t>(size * rows));
    const int64_t items = (rows + kRowsPerItem - 1) / kRowsPerItem;
    base::parallel_for(items, num_threads, [&](int64_t item) {
      const int64_t first = end + item * kRowsPerItem, count = std::min(kRowsPerItem, k - first);
      for (int64_t r = first; r < first + count; ++r) {
        double* row = matrix.data() + r * k + begin;
        for (int64_t j = 0; j < size; ++j) {
          double x = row[j];
          for (int64_t i = 0; i < j; ++i) x -= row[i] * lower(j, i);
          row[j] = x / lower(j, j);
          transposed[j * rows + (r - end)] = -row[j];
        }
      }
    });
    base::parallel_for(items, num_threads, [&](int64_t item) {
      const int64_t first = end + item * kRowsPerItem, count = std::min(kRowsPerItem, k - first);
      multiply_add(matrix.data() + first * k + begin, k, transposed.data(), rows, matrix.data() + first * k + end, k,
                   count, size, first + count - end);
    });
  }
  return true;
}

}  // namespace

void multiply_add(const double* a, int64_t ld_a, const double* b, int64_t ld_b, double* out, int64_t ld_out,
                  int64_t rows, int64_t inner, int64_t columns) {
  multiply_pieces(a, ld_a, b, ld_b, out, ld_out, rows, inner, columns);
}
void multiply_add(const double* a, int64_t ld_a, const float* b, int64_t ld_b, double* out, int64_t ld_out,
                  int64_t rows, int64_t inner, int64_t columns) {
  multiply_pieces(a, ld_a, b, ld_b, out, ld_out, rows, inner, columns);
}

bool factor_block(double* block, int64_t ld, int64_t size) {
  Block diagonal(block, size, size, Eigen::OuterStride<>(ld));
  const Eigen::LLT<Matrix> factor(diagonal);
  if (factor.info() != Eigen::Success) return false;
  const Matrix lower = factor.matrixL();
  if (!lower.allFinite()) return false;
  diagonal = lower;
  return true;
}

// Read backwards in both directions the lower factor of the matrix read backwards is the upper one.
bool factor_upper(std::span<double> matrix, int64_t k, int num_threads) {
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j < i; ++j) matrix[j * k + i] = matrix[i * k + j];
  std::reverse(matrix.begin(), matrix.end());
  const bool positive = factor_lower(matrix, k, num_threads);
  std::reverse(matrix.begin(), matrix.end());
  return positive;
}

}  // namespace nybble::quantize
