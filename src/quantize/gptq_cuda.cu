// GPTQ on the GPU: gptq.h says by which formula. A warp takes a row through a block of columns, whose part of I + U
// lies in shared memory; a matrix product takes the errors of a block to the columns after it. Built without
// contraction into FMA.
#include <algorithm>

#include "quantize/gptq.h"
#include "quantize/group_fit.cuh"
#include "quantize/linear_algebra_cuda.h"
#include "quantize/on_gpu.cuh"

namespace nybble {

using namespace quantize;
using runtime::DeviceBuffer;

namespace {

constexpr int kBlock = static_cast<int>(kGptqBlock);
constexpr int kWarpsPerCta = 16;
constexpr int kThreads = kWarpsPerCta * kWarpSize;

// ---- The Hessian. The factor wanted is the upper one, I + U: read backwards in both directions it is the lower one.

// matrix[a, b] for b <= a: the element of the reordered Hessian at k - 1 - a and k - 1 - b, `added` to its diagonal.
__global__ void __launch_bounds__(1024)
    read_backwards(const float* hessian, const float* mean_square, const int32_t* feature, int64_t k, double added,
                   double* matrix) {
  const int64_t a = int64_t{blockIdx.y} * 32 + threadIdx.y, b = int64_t{blockIdx.x} * 32 + threadIdx.x;
  if (a >= k || b > a) return;
  const int64_t row = feature[k - 1 - a], column = feature[k - 1 - b];
  // One of the two that should be equal: the same one, whatever the order.
  double value = hessian[(row > column ? row : column) * k + (row > column ? column : row)];
  if (a == b) value = (mean_square[row] == 0 ? 1.0 : value) + added;
  matrix[a * k + b] = value;
}

// What lies below the diagonal, read backwards and divided by its column's diagonal element, to above the diagonal.
__global__ void __launch_bounds__(1024) to_unit_upper(double* matrix, int64_t k) {
  const int64_t i = int64_t{blockIdx.y} * 32 + threadIdx.y, j = int64_t{blockIdx.x} * 32 + threadIdx.x;
  if (j >= k || j <= i) return;
  const int64_t a = k - 1 - i, b = k - 1 - j;
  matrix[i * k + j] = matrix[a * k + b] / matrix[b * k + b];
}

// ---- The rows.

struct Params {
  int64_t rows, k, groups;   // of the slab
  const double* unit_upper;  // [k, k]
  const int32_t* feature;    // [k], by position
  const int32_t* group;      // [k], by position
  const int32_t* fit_size;   // [k]: columns of the group whose scale is found at this position within a block, else 0
  const float* mean_square;  // [k], by feature
  const float* importance;   // [k], by position; null: all 1
  FitOptions fit;
  DeviceFloats values;  // [rows, k], by feature
  float* natural;       // [rows, k], by feature, zero where the input is dead; static groups only
  float* weights;       // [rows, k], by position
  double* corrections;  // [rows, k], by position
  double* errors;       // [rows, kBlock]
  float* scales;        // [rows, groups]
  DeviceScales stored;  // [rows, groups]: the same as they are stored, and the zeros
  uint8_t* codes;       // [rows, k], by feature
  int* failed;          // set where the corrections leave the range of numbers
};

__device__ void store_scale(const Params& p, int64_t index, const rtn::GroupScale& scale) {
  p.scales[index] = scale.scale;
  p.stored.store(index, scale);
}

__global__ void __launch_bounds__(kThreads) read_rows(const __grid_constant__ Params p) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < p.rows * p.k; at += threads) {
    const int64_t row = at / p.k, position = at % p.k, feature = p.feature[position];
    p.weights[at] = p.mean_square[feature] == 0 ? 0.0f : p.values[row * p.k + feature];
    if (p.natural != nullptr) p.natural[at] = p.mean_square[position] == 0 ? 0.0f : p.values[at];
    p.corrections[at] = 0;
  }
}

// The scales of `count` groups of every row, a warp each, from weights[rows, columns]; the last group may be smaller.
__global__ void __launch_bounds__(kThreads)
    fit_groups(const __grid_constant__ Params p, const float* weights, int64_t columns, const float* importance,
               int64_t group_size, int64_t first_group, int64_t count) {
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  const int64_t warps = int64_t{gridDim.x} * kWarpsPerCta;
  for (int64_t item = int64_t{blockIdx.x} * kWarpsPerCta + threadIdx.x / kWarpSize; item < p.rows * count;
       item += warps) {
    const int64_t row = item / count, begin = item % count * group_size;
    const int64_t size = columns - begin < group_size ? columns - begin : group_size;
    const rtn::GroupScale scale = fit_group_by_warp(
        weights + row * columns + begin, importance == nullptr ? nullptr : importance + begin, size, p.fit, lane);
    if (lane != 0) continue;
    store_scale(p, row * p.groups + first_group + item % count, scale);
    if (scale.overflows) *p.failed = 1;
  }
}

// What a CTA has in shared memory: its block of I + U, and for each warp its row's part of the block.
struct WarpRow {
  double corrections[kBlock], pushed[kBlock];
  float weights[kBlock], part[kBlock], scales[kBlock];
  int zeros[kBlock];
};
struct Shared {
  double unit_upper[kBlock][kBlock];
  WarpRow rows[kWarpsPerCta];
};

// Columns first to first + size of I + U; zeros around them.
__device__ void load_unit_upper(const Params& p, Shared& shared, int64_t first, int size) {
  for (int at = static_cast<int>(threadIdx.x); at < kBlock * kBlock; at += kThreads) {
    const int i = at / kBlock, j = at % kBlock;
    shared.unit_upper[i][j] = i < j && j < size ? p.unit_upper[(first + i) * p.k + first + j] : 0.0;
  }
  __syncthreads();
}

// sums[j] += error * U[i, j] for i < j < end.
__device__ void push(const Shared& shared, double error, int i, int end, double* sums, int lane) {
  if (error != 0)
    for (int j = i / kWarpSize * kWarpSize + lane; j < end; j += kWarpSize)
      if (j > i) sums[j] = sums[j] + error * shared.unit_upper[i][j];
  __syncwarp();
}

// Corrections of columns whose errors are minus those corrections: columns that are not rounded.
__device__ void substitute(const Shared& shared, double* pushed, int begin, int end, int lane) {
  for (int i = begin; i < end; ++i) push(shared, -pushed[i], i, end, pushed, lane);
}

// A group that is as large as several blocks: one block of its columns. pushed[rows, columns] are the corrections,
// part[rows, columns] gets the weights with them, errors what goes to the columns after the block.
__global__ void __launch_bounds__(kThreads)
    substitute_block(const __grid_constant__ Params p, int64_t first, int size, double* pushed, float* part,
                     int64_t columns, int64_t offset) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
  load_unit_upper(p, shared, first, size);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t row = int64_t{blockIdx.x} * kWarpsPerCta + warp;
  if (row >= p.rows) return;
  double* own = shared.rows[warp].pushed;
  for (int i = lane; i < size; i += kWarpSize) own[i] = pushed[row * columns + offset + i];
  __syncwarp();
  substitute(shared, own, 0, size, lane);
  for (int i = lane; i < size; i += kWarpSize) {
    const double updated = p.weights[row * p.k + first + i] + own[i];
    if (!(fabs(updated) <= FLT_MAX)) *p.failed = 1;
    part[row * columns + offset + i] = static_cast<float>(updated);
    p.errors[row * kBlock + i] = -own[i];
  }
}

// The scale of a group that lies within the block, from its columns as they would be if they were not rounded.
__device__ void fit_on_the_way(const Params& p, const Shared& shared, WarpRow& own, int64_t row, int64_t first,
                               int begin, int size, int lane) {
  const int end = begin + size;
  for (int i = begin + lane; i < end; i += kWarpSize) own.pushed[i] = own.corrections[i];
  __syncwarp();
  substitute(shared, own.pushed, begin, end, lane);
  for (int i = begin + lane; i < end; i += kWarpSize) {
    const double updated = own.weights[i] + own.pushed[i];
    if (!(fabs(updated) <= FLT_MAX)) *p.failed = 1;
    own.part[i] = static_cast<float>(updated);
  }
  __syncwarp();
  const rtn::GroupScale scale = fit_group_by_warp(
      own.part + begin, p.importance == nullptr ? nullptr : p.importance + first + begin, size, p.fit, lane);
  for (int i = begin + lane; i < end; i += kWarpSize) {
    own.scales[i] = scale.scale;
    own.zeros[i] = scale.zero;
  }
  if (lane == 0) {
    store_scale(p, row * p.groups + p.group[first + begin], scale);
    if (scale.overflows) *p.failed = 1;
  }
  __syncwarp();
}

// Rounds the columns first to first + size, in their order.
__global__ void __launch_bounds__(kThreads) round_block(const __grid_constant__ Params p, int64_t first, int size) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
  load_unit_upper(p, shared, first, size);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t row = int64_t{blockIdx.x} * kWarpsPerCta + warp;
  if (row >= p.rows) return;
  WarpRow& own = shared.rows[warp];
  for (int i = lane; i < size; i += kWarpSize) {
    const int64_t scale = row * p.groups + p.group[first + i];
    own.weights[i] = p.weights[row * p.k + first + i];
    own.corrections[i] = p.corrections[row * p.k + first + i];
    own.scales[i] = p.scales[scale];
    own.zeros[i] = p.stored.zeros[scale];
  }
  __syncwarp();
  for (int i = 0; i < size; ++i) {
    if (const int columns = p.fit_size[first + i]; columns != 0)
      fit_on_the_way(p, shared, own, row, first, i, columns, lane);
    const double updated = own.weights[i] + own.corrections[i];
    const double level = nearest_level(updated, own.scales[i], own.zeros[i]);
    const double error = own.weights[i] - level * own.scales[i];
    if (lane == 0) {
      if (!isfinite(updated)) *p.failed = 1;
      p.codes[row * p.k + p.feature[first + i]] = static_cast<uint8_t>(static_cast<int>(level) + own.zeros[i]);
      p.errors[row * kBlock + i] = error;
    }
    push(shared, error, i, size, own.corrections, lane);
  }
}

// ---- The host's part.

dim3 tiles_of(int64_t k) {
  const unsigned tiles = static_cast<unsigned>((k + 31) / 32);
  return dim3(tiles, tiles);
}

class GptqOnGpu final : public GptqBackend {
 public:
  explicit GptqOnGpu(const GptqJob& job) : job_(job) {}

  Result<bool> factor(const GptqOrder& order, double added) override {
    const int64_t k = job_.dense.k;
    if (matrix_.size_bytes() == 0) {
      if (Result<void> fine = check_gpu(job_.dense.name); !fine) return fine.error();
      for (const Result<void>& done :
           {copy_to(hessian_, job_.statistics.hessian), copy_to(mean_square_, job_.statistics.mean_square),
            copy_to(feature_, order.feature), matrix_.reserve(k * k * sizeof(double))})
        if (!done) return done.error();
    }
    read_backwards<<<tiles_of(k), dim3(32, 32)>>>(hessian_.as<float>(), mean_square_.as<float>(),
                                                  feature_.as<int32_t>(), k, added, matrix_.as<double>());
    NYBBLE_CUDA(cudaGetLastError());
    const Result<bool> positive = factor_lower_cuda(matrix_.as<double>(), k);
    if (!positive || !*positive) return positive;
    to_unit_upper<<<tiles_of(k), dim3(32, 32)>>>(matrix_.as<double>(), k);
    NYBBLE_CUDA(cudaGetLastError());
    hessian_ = DeviceBuffer();
    return true;
  }

  Result<bool> round_rows(const GptqOrder& order, QuantizedWeight& weight) override {
    if (Result<void> ready = prepare(order, weight); !ready) return ready.error();
    for (int64_t begin = 0; begin < weight.n; begin += slab_rows_) {
      const int64_t rows = std::min(slab_rows_, weight.n - begin);
      if (Result<void> done = round_slab(order, begin, rows, weight); !done) return done.error();
      int failed = 0;
      NYBBLE_CUDA(cudaMemcpy(&failed, params_.failed, sizeof failed, cudaMemcpyDeviceToHost));
      if (failed != 0) return false;
    }
    return true;
  }

 private:
  // Room for a slab, and what all slabs share.
  Result<void> prepare(const GptqOrder& order, const QuantizedWeight& weight) {
    const int64_t k = weight.k, groups = weight.groups();
    const GptqOptions& options = job_.options;
    std::vector<int32_t> group(order.group.begin(), order.group.end()), fit_size(k, 0);
    int64_t longest = 0;  // of the groups that are larger than a block
    for (const GptqSegment& segment : order.segments) {
      const int64_t size = segment.end - segment.begin;
      if (size <= kGptqBlock)
        fit_size[segment.begin] = static_cast<int32_t>(size);
      else
        longest = std::max(longest, size);
    }
    std::vector<float> importance;
    if (options.weighted_range)
      for (const int32_t feature : order.feature) importance.push_back(job_.statistics.mean_square[feature]);

    const bool fixed = order.segments.empty();
    const int64_t scale_bytes = dtype_bytes(weight.scales.dtype), value_bytes = dtype_bytes(job_.dense.values.dtype);
    const int64_t row_bytes = k * (value_bytes + sizeof(float) + sizeof(double) + 1) + kBlock * sizeof(double) +
                              groups * (sizeof(float) + 1 + scale_bytes) + (fixed ? k * sizeof(float) : 0) +
                              longest * (sizeof(double) + sizeof(float));
    slab_rows_ = std::min(weight.n, std::max<int64_t>(1, kSlabBytes / row_bytes / kWarpsPerCta) * kWarpsPerCta);
    const int64_t rows = slab_rows_;
    for (const Result<void>& done :
         {copy_to(group_, group), copy_to(fit_size_, fit_size), copy_to(importance_, importance),
          values_.reserve(rows * k * value_bytes), weights_.reserve(rows * k * sizeof(float)),
          corrections_.reserve(rows * k * sizeof(double)), errors_.reserve(rows * kBlock * sizeof(double)),
          codes_.reserve(rows * k), scales_.reserve(rows * groups * sizeof(float)), zeros_.reserve(rows * groups),
          scale_bits_.reserve(rows * groups * scale_bytes), part_.reserve(rows * (fixed ? k : longest) * sizeof(float)),
          pushed_.reserve(rows * longest * sizeof(double)), failed_.reserve(sizeof(int))})
      if (!done) return done.error();
    params_ = {.k = k,
               .groups = groups,
               .unit_upper = matrix_.as<double>(),
               .feature = feature_.as<int32_t>(),
               .group = group_.as<int32_t>(),
               .fit_size = fit_size_.as<int32_t>(),
               .mean_square = mean_square_.as<float>(),
               .importance = options.weighted_range ? importance_.as<float>() : nullptr,
               .fit = {.grid = {job_.grid.symmetric, job_.grid.scale_dtype},
                       .rule = options.range.rule,
                       .exponent = options.range.exponent},
               .values = {values_.data(), job_.dense.values.dtype},
               .natural = fixed ? part_.as<float>() : nullptr,
               .weights = weights_.as<float>(),
               .corrections = corrections_.as<double>(),
               .errors = errors_.as<double>(),
               .scales = scales_.as<float>(),
               .stored = {scale_bits_.data(), job_.grid.scale_dtype, zeros_.as<uint8_t>()},
               .codes = codes_.as<uint8_t>(),
               .failed = failed_.as<int>()};
    NYBBLE_CUDA(cudaMemset(params_.failed, 0, sizeof(int)));
    for (const auto kernel :
         {reinterpret_cast<const void*>(&round_block), reinterpret_cast<const void*>(&substitute_block)})
      NYBBLE_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)));
    return {};
  }

  Result<void> round_slab(const GptqOrder& order, int64_t begin, int64_t rows, QuantizedWeight& weight) {
    const int64_t k = weight.k, groups = weight.groups();
    const FloatArray& values = job_.dense.values;
    const int64_t row_bytes = k * dtype_bytes(values.dtype);
    params_.rows = rows;
    NYBBLE_CUDA(
        cudaMemcpy(values_.data(), values.bytes.data() + begin * row_bytes, rows * row_bytes, cudaMemcpyHostToDevice));
    NYBBLE_CUDA(cudaMemset(params_.scales, 0, rows * groups * sizeof(float)));
    NYBBLE_CUDA(cudaMemset(params_.stored.zeros, 0, rows * groups));
    read_rows<<<ctas_for((rows * k + kWarpSize - 1) / kWarpSize, kWarpsPerCta), kThreads>>>(params_);
    NYBBLE_CUDA(cudaGetLastError());
    if (order.segments.empty()) {
      const int64_t group_size = job_.grid.group_size == kPerColumn ? k : job_.grid.group_size;
      fit_groups<<<ctas_for(rows * groups, kWarpsPerCta), kThreads>>>(
          params_, params_.natural, k, job_.options.weighted_range ? params_.mean_square : nullptr, group_size, 0,
          groups);
      NYBBLE_CUDA(cudaGetLastError());
    }
    auto segment = order.segments.begin();
    int64_t first = 0;
    for (const int64_t last : order.blocks) {
      while (segment != order.segments.end() && segment->begin < first) ++segment;
      if (segment != order.segments.end() && segment->begin == first && segment->end - first > kGptqBlock)
        if (Result<void> done = fit_long_segment(order, *segment); !done) return done.error();
      const int size = static_cast<int>(last - first);
      round_block<<<ctas_for(rows, kWarpsPerCta), kThreads, sizeof(Shared)>>>(params_, first, size);
      NYBBLE_CUDA(cudaGetLastError());
      if (Result<void> done = multiply_add_cuda(params_.errors, kBlock, params_.unit_upper + first * k + last, k,
                                                params_.corrections + last, k, rows, size, k - last);
          !done)
        return done.error();
      first = last;
    }
    const int64_t scale_bytes = dtype_bytes(weight.scales.dtype);
    NYBBLE_CUDA(cudaMemcpy(weight.codes.data() + begin * k, codes_.data(), rows * k, cudaMemcpyDeviceToHost));
    NYBBLE_CUDA(cudaMemcpy(weight.scales.bytes.data() + begin * groups * scale_bytes, scale_bits_.data(),
                           rows * groups * scale_bytes, cudaMemcpyDeviceToHost));
    if (!weight.int_zeros.empty())
      NYBBLE_CUDA(
          cudaMemcpy(weight.int_zeros.data() + begin * groups, zeros_.data(), rows * groups, cudaMemcpyDeviceToHost));
    return {};
  }

  // The scale of a group that is as large as several blocks, which its first column begins.
  Result<void> fit_long_segment(const GptqOrder& order, const GptqSegment& segment) {
    const int64_t k = params_.k, rows = params_.rows, columns = segment.end - segment.begin;
    const size_t width = columns * sizeof(double);
    NYBBLE_CUDA(cudaMemcpy2D(pushed_.data(), width, params_.corrections + segment.begin, k * sizeof(double), width,
                             rows, cudaMemcpyDeviceToDevice));
    int64_t first = segment.begin;
    for (auto block = std::upper_bound(order.blocks.begin(), order.blocks.end(), first); first < segment.end; ++block) {
      const int64_t last = *block, offset = first - segment.begin;
      const int size = static_cast<int>(last - first);
      substitute_block<<<ctas_for(rows, kWarpsPerCta), kThreads, sizeof(Shared)>>>(
          params_, first, size, pushed_.as<double>(), part_.as<float>(), columns, offset);
      NYBBLE_CUDA(cudaGetLastError());
      if (Result<void> done =
              multiply_add_cuda(params_.errors, kBlock, params_.unit_upper + first * k + last, k,
                                pushed_.as<double>() + offset + size, columns, rows, size, segment.end - last);
          !done)
        return done.error();
      first = last;
    }
    fit_groups<<<ctas_for(rows, kWarpsPerCta), kThreads>>>(
        params_, part_.as<float>(), columns,
        params_.importance == nullptr ? nullptr : params_.importance + segment.begin, columns, segment.group, 1);
    NYBBLE_CUDA(cudaGetLastError());
    return {};
  }

  const GptqJob& job_;
  int64_t slab_rows_ = 0;
  Params params_ = {};
  DeviceBuffer hessian_, mean_square_, feature_, matrix_;  // matrix_: I + U above the diagonal
  DeviceBuffer group_, fit_size_, importance_;
  DeviceBuffer values_, weights_, corrections_, errors_, codes_, scales_, zeros_, scale_bits_, part_, pushed_, failed_;
};

}  // namespace

Result<GptqResult> quantize_gptq_cuda(const DenseWeight& dense, const GridOptions& grid, const GptqOptions& options,
                                      const LayerStatistics& statistics) {
  const GptqJob job{dense, grid, options, statistics};
  GptqOnGpu backend(job);
  Result<GptqResult> result = run_gptq(job, backend);
  if (!result && result.error().code == ErrorCode::kOutOfMemory)
    return out_of_memory("weight '{}': GPTQ of {} x {} takes up to {} MB of GPU memory: {}; the CPU takes it, too",
                         dense.name, dense.n, dense.k, (12 * dense.k * dense.k + kSlabBytes) / 1'000'000,
                         result.error().message);
  return result;
}

}  // namespace nybble
