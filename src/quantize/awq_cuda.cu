// AWQ on the GPU: awq.h says by which formula. A warp rounds a group, a tiled product multiplies the errors by the
// Hessian, a warp adds up a loss. Built without contraction into FMA.
#include <limits>

#include "base/error.h"
#include "quantize/awq.h"
#include "quantize/group_fit.cuh"
#include "quantize/linear_algebra_cuda.h"
#include "quantize/on_gpu.cuh"

namespace nybble {

using namespace quantize;
using runtime::DeviceBuffer;

namespace {

constexpr int kWarpsPerCta = 8;
constexpr int kThreads = kWarpsPerCta * kWarpSize;

// The item that a warp begins with, and how many there are between it and its next.
__device__ int64_t first_item() { return int64_t{blockIdx.x} * kWarpsPerCta + threadIdx.x / kWarpSize; }
__device__ int64_t items_at_once() { return int64_t{gridDim.x} * kWarpsPerCta; }
__device__ int lane_of_warp() { return static_cast<int>(threadIdx.x % kWarpSize); }

// Rows of k elements in groups.
struct Groups {
  int64_t k, size, count;

  __device__ int64_t begin(int64_t group) const { return group * size; }
  __device__ int64_t size_of(int64_t group) const { return k - begin(group) < size ? k - begin(group) : size; }
};

// ---- Losses.

// losses[row, group]: what the errors[rows, groups.k] of a group of a row cost, added up in their order: each times its
// product with the Hessian, or where `products` is null its square times the mean square of its input, of which there
// are k.
__global__ void __launch_bounds__(kThreads)
    add_up(const double* errors, const double* products, const float* mean_square, int64_t k, int64_t rows,
           Groups groups, double* losses) {
  const int lane = lane_of_warp();
  for (int64_t item = first_item(); item < rows * groups.count; item += items_at_once()) {
    const int64_t begin = groups.begin(item % groups.count), size = groups.size_of(item % groups.count);
    const int64_t first = item / groups.count * groups.k + begin;
    const auto part = [&](int64_t i) {
      if (i >= size) return 0.0;  // adds nothing: no sum that began with +0 is -0
      const double error = errors[first + i];
      return products != nullptr ? error * products[first + i] : error * error * mean_square[(begin + i) % k];
    };
    double loss = 0, next = part(lane);
    for (int64_t i = 0; i < size; i += kWarpSize) {
      const double current = next;
      next = part(i + kWarpSize + lane);  // on its way while the sums before it are made
#pragma unroll
      for (int from = 0; from < kWarpSize; ++from) loss = loss + __shfl_sync(kAllLanes, current, from);
    }
    if (lane == 0) losses[item] = loss;
  }
}

// ---- Scales.

struct ScaledParams {
  DeviceFloats values;  // [rows, k]
  int64_t rows, tiles, candidates;
  Groups groups;
  GroupGrid grid;
  const float* scales;  // [candidates, k]
  double* errors;       // [tiles, candidates, kRowsPerItem, k]; rows that a tile lacks have errors of zero
  int* overflows;       // [tiles, candidates]: set where the scale of a group overflows its type
};

// The errors of round to nearest on columns multiplied by each candidate's scales, in the units of the unscaled input.
__global__ void __launch_bounds__(kThreads) round_scaled(const __grid_constant__ ScaledParams p) {
  const int lane = lane_of_warp();
  const int64_t k = p.groups.k, items = p.tiles * p.candidates * kRowsPerItem * p.groups.count;
  for (int64_t item = first_item(); item < items; item += items_at_once()) {
    const int64_t begin = p.groups.begin(item % p.groups.count), size = p.groups.size_of(item % p.groups.count);
    const int64_t row_of_errors = item / p.groups.count, of_tile = row_of_errors / kRowsPerItem;
    const int64_t row = of_tile / p.candidates * kRowsPerItem + row_of_errors % kRowsPerItem;
    double* errors = p.errors + row_of_errors * k + begin;
    if (row >= p.rows) {
      for (int64_t i = lane; i < size; i += kWarpSize) errors[i] = 0;
      continue;
    }
    const float* scales = p.scales + of_tile % p.candidates * k + begin;
    const auto weight = [&](int64_t i) { return p.values[row * k + begin + i]; };
    const auto scaled = [&](int64_t i) { return rtn::multiply(weight(i), scales[i]); };
    const rtn::GroupScale scale = scale_for(range_by_warp(size, lane, scaled), 1.0f, p.grid);
    if (scale.overflows && lane == 0) p.overflows[of_tile] = 1;
    for (int64_t i = lane; i < size; i += kWarpSize) errors[i] = rounded(scaled(i), scale) / scales[i] - weight(i);
  }
}

// ---- Ranges.

struct ClippedParams {
  DeviceFloats values;  // [rows, k]
  int64_t rows, first_row;
  int steps;
  Groups groups;
  GroupGrid grid;
  double* errors;           // [rows, steps, k]
  const double* losses;     // [rows, steps, groups]
  uint8_t* codes;           // [rows, k]
  DeviceScales scales;      // [rows, groups]
  int64_t* first_overflow;  // the least index among all scales of a group whose scale overflows its type
};

// The errors of each group in each range.
__global__ void __launch_bounds__(kThreads) round_in_ranges(const __grid_constant__ ClippedParams p) {
  const int lane = lane_of_warp();
  const int64_t k = p.groups.k;
  for (int64_t item = first_item(); item < p.rows * p.steps * p.groups.count; item += items_at_once()) {
    const int64_t begin = p.groups.begin(item % p.groups.count), size = p.groups.size_of(item % p.groups.count);
    const int64_t row_of_errors = item / p.groups.count, row = row_of_errors / p.steps;
    const int step = static_cast<int>(row_of_errors % p.steps);
    const auto weight = [&](int64_t i) { return p.values[row * k + begin + i]; };
    const rtn::GroupScale scale = scale_for(range_by_warp(size, lane, weight), clip_factor(step), p.grid);
    double* errors = p.errors + row_of_errors * k + begin;
    for (int64_t i = lane; i < size; i += kWarpSize) errors[i] = rounded(weight(i), scale) - weight(i);
  }
}

// Takes the range of the least loss for each group.
__global__ void __launch_bounds__(kThreads) take_ranges(const __grid_constant__ ClippedParams p) {
  const int lane = lane_of_warp();
  const int64_t k = p.groups.k;
  for (int64_t item = first_item(); item < p.rows * p.groups.count; item += items_at_once()) {
    const int64_t row = item / p.groups.count, group = item % p.groups.count;
    const int64_t begin = p.groups.begin(group), size = p.groups.size_of(group);
    const auto weight = [&](int64_t i) { return p.values[row * k + begin + i]; };
    const rtn::Range range = range_by_warp(size, lane, weight);
    if (scale_for(range, clip_factor(0), p.grid).overflows) {
      if (lane == 0) lower(*p.first_overflow, p.first_row * p.groups.count + item);
      continue;
    }
    int best = 0;
    double least = 0;
    for (int step = 0; step < p.steps; ++step) {
      const double loss = p.losses[(row * p.steps + step) * p.groups.count + group];
      if (step == 0 || loss < least) best = step, least = loss;
    }
    const rtn::GroupScale scale = scale_for(range, clip_factor(best), p.grid);
    for (int64_t i = lane; i < size; i += kWarpSize) p.codes[row * k + begin + i] = code_for(weight(i), scale);
    if (lane == 0) p.scales.store(item, scale);
  }
}

// ---- Output errors.

// errors[2, tiles * kRowsPerItem, k]: values[rows, k] - dense, and dense; zeros in rows that there are not.
__global__ void __launch_bounds__(kThreads)
    subtract(const float* values, DeviceFloats dense, int64_t rows, int64_t k, int64_t tiles, double* errors) {
  const int64_t all = tiles * kRowsPerItem * k, threads = int64_t{gridDim.x} * kThreads;
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < all; at += threads) {
    const double whole = at < rows * k ? dense[at] : 0.0f;
    errors[at] = at < rows * k ? values[at] - whole : 0.0;
    errors[all + at] = whole;
  }
}

// ---- The host's part.

class AwqOnGpu final : public AwqBackend {
 public:
  AwqOnGpu(const GridOptions& grid, const LayerStatistics& statistics)
      : grid_(grid), group_grid_{grid.symmetric, grid.scale_dtype}, statistics_(statistics) {}

  Result<std::vector<double>> scaled_losses(const DenseWeight& layer, const std::vector<int64_t>& rows,
                                            const std::vector<std::vector<float>>& candidates) override {
    const int64_t k = layer.k, count = static_cast<int64_t>(candidates.size());
    const int64_t judged = static_cast<int64_t>(rows.size()), tiles = tiles_of(judged);
    const int64_t tile_bytes = kRowsPerItem * k * static_cast<int64_t>(dtype_bytes(layer.values.dtype));
    const int64_t loss_bytes = kRowsPerItem * k * error_bytes() + static_cast<int64_t>(sizeof(double) + sizeof(int));
    // As many candidates as fit beside a tile, then as many tiles as fit with those.
    const int64_t most_candidates = std::clamp<int64_t>((kSlabBytes - tile_bytes) / loss_bytes, 1, count);
    const int64_t most_tiles =
        std::clamp<int64_t>(kSlabBytes / (tile_bytes + most_candidates * loss_bytes), 1, std::max<int64_t>(1, tiles));
    const int64_t most_losses = most_tiles * most_candidates;
    std::vector<float> all_scales;
    for (const std::vector<float>& scales : candidates)
      all_scales.insert(all_scales.end(), scales.begin(), scales.end());
    if (Result<void> ready = begin(layer.name); !ready) return ready.error();
    for (const Result<void>& done :
         {copy_to(column_scales_, all_scales), values_.reserve(most_tiles * tile_bytes),
          reserve_errors(most_losses * kRowsPerItem, k), losses_.reserve(most_losses * sizeof(double)),
          overflows_.reserve(most_losses * sizeof(int))})
      if (!done) return done.error();

    std::vector<double> losses(tiles * count), part(most_losses);
    std::vector<int> overflows(most_losses);
    ScaledParams params{.values = {values_.data(), layer.values.dtype},
                        .groups = groups_of(k),
                        .grid = group_grid_,
                        .errors = errors_.as<double>(),
                        .overflows = overflows_.as<int>()};
    for (int64_t tile = 0; tile < tiles; tile += most_tiles) {
      params.tiles = std::min(most_tiles, tiles - tile);
      params.rows = std::min(judged - tile * kRowsPerItem, params.tiles * kRowsPerItem);
      if (Result<void> done = upload(layer, std::span(rows).subspan(tile * kRowsPerItem, params.rows)); !done)
        return done.error();
      for (int64_t candidate = 0; candidate < count; candidate += most_candidates) {
        params.candidates = std::min(most_candidates, count - candidate);
        params.scales = column_scales_.as<float>() + candidate * k;
        const int64_t items = params.tiles * params.candidates, error_rows = items * kRowsPerItem;
        NYBBLE_CUDA(cudaMemset(params.overflows, 0, items * sizeof(int)));
        round_scaled<<<ctas_for(error_rows * params.groups.count, kWarpsPerCta), kThreads>>>(params);
        NYBBLE_CUDA(cudaGetLastError());
        for (const Result<void>& done : {multiply(error_rows, k, 0, k), find_losses(items, k, tile_as_group(k))})
          if (!done) return done.error();
        NYBBLE_CUDA(cudaMemcpy(part.data(), losses_.data(), items * sizeof(double), cudaMemcpyDeviceToHost));
        NYBBLE_CUDA(cudaMemcpy(overflows.data(), overflows_.data(), items * sizeof(int), cudaMemcpyDeviceToHost));
        for (int64_t item = 0; item < items; ++item)
          losses[(tile + item / params.candidates) * count + candidate + item % params.candidates] =
              overflows[item] != 0 ? std::numeric_limits<double>::infinity() : part[item];
      }
    }
    return losses;
  }

  Result<void> round_clipped(const DenseWeight& dense, int steps, QuantizedWeight& weight) override {
    const int64_t k = weight.k, groups = weight.groups();
    const int64_t value_bytes = k * static_cast<int64_t>(dtype_bytes(dense.values.dtype));
    const int64_t scale_bytes = groups * static_cast<int64_t>(dtype_bytes(weight.scales.dtype));
    const int64_t row_bytes = value_bytes +
                              steps * (k * error_bytes() + groups * static_cast<int64_t>(sizeof(double))) + k +
                              scale_bytes + groups;
    const int64_t slab_rows = std::clamp<int64_t>(kSlabBytes / row_bytes, 1, weight.n);
    int64_t first_overflow = rtn::kNoFault;
    if (Result<void> ready = begin(dense.name); !ready) return ready;
    for (const Result<void>& done :
         {values_.reserve(slab_rows * value_bytes), reserve_errors(slab_rows * steps, k),
          losses_.reserve(slab_rows * steps * groups * sizeof(double)), codes_.reserve(slab_rows * k),
          scales_.reserve(slab_rows * scale_bytes), zeros_.reserve(slab_rows * groups),
          copy_to(first_overflow_, std::vector<int64_t>{first_overflow})})
      if (!done) return done.error();
    ClippedParams params{.values = {values_.data(), dense.values.dtype},
                         .steps = steps,
                         .groups = groups_of(k),
                         .grid = group_grid_,
                         .errors = errors_.as<double>(),
                         .losses = losses_.as<double>(),
                         .codes = codes_.as<uint8_t>(),
                         .scales = {scales_.data(), weight.scales.dtype, zeros_.as<uint8_t>()},
                         .first_overflow = first_overflow_.as<int64_t>()};
    for (int64_t row = 0; row < weight.n; row += slab_rows) {
      const int64_t rows = std::min(slab_rows, weight.n - row), error_rows = rows * steps;
      params.first_row = row;
      params.rows = rows;
      if (Result<void> done = upload(dense, row, rows, 0); !done) return done;
      round_in_ranges<<<ctas_for(error_rows * groups, kWarpsPerCta), kThreads>>>(params);
      NYBBLE_CUDA(cudaGetLastError());
      for (int64_t group = 0; group < groups; ++group) {
        const GroupSpan span = group_span(group, grid_.group_size, k);
        if (Result<void> done = multiply(error_rows, k, span.begin, span.size()); !done) return done;
      }
      if (Result<void> done = find_losses(error_rows, k, params.groups); !done) return done;
      take_ranges<<<ctas_for(rows * groups, kWarpsPerCta), kThreads>>>(params);
      NYBBLE_CUDA(cudaGetLastError());
      NYBBLE_CUDA(cudaMemcpy(&first_overflow, params.first_overflow, sizeof(int64_t), cudaMemcpyDeviceToHost));
      if (first_overflow != rtn::kNoFault) return scale_overflow(dense, grid_, first_overflow);
      NYBBLE_CUDA(cudaMemcpy(weight.codes.data() + row * k, codes_.data(), rows * k, cudaMemcpyDeviceToHost));
      NYBBLE_CUDA(cudaMemcpy(weight.scales.bytes.data() + row * scale_bytes, scales_.data(), rows * scale_bytes,
                             cudaMemcpyDeviceToHost));
      if (!weight.int_zeros.empty())
        NYBBLE_CUDA(
            cudaMemcpy(weight.int_zeros.data() + row * groups, zeros_.data(), rows * groups, cudaMemcpyDeviceToHost));
    }
    return {};
  }

  Result<std::vector<TileErrors>> output_errors(const DenseWeight& dense, const std::vector<float>& values) override {
    const int64_t k = dense.k, tiles = tiles_of(dense.n);
    std::vector<TileErrors> errors(tiles);
    if (tiles == 0 || k == 0) return errors;
    const int64_t value_bytes = static_cast<int64_t>(dtype_bytes(dense.values.dtype));
    const int64_t tile_bytes =
        kRowsPerItem * k * (value_bytes + static_cast<int64_t>(sizeof(float)) + 2 * error_bytes()) +
        static_cast<int64_t>(2 * sizeof(double));
    const int64_t most_tiles = std::clamp<int64_t>(kSlabBytes / tile_bytes, 1, tiles);
    const int64_t most_rows = most_tiles * kRowsPerItem;
    if (Result<void> ready = begin(dense.name); !ready) return ready.error();
    for (const Result<void>& done :
         {values_.reserve(most_rows * k * value_bytes), quantized_.reserve(most_rows * k * sizeof(float)),
          reserve_errors(2 * most_rows, k), losses_.reserve(2 * most_tiles * sizeof(double))})
      if (!done) return done.error();
    std::vector<double> losses(2 * most_tiles);
    for (int64_t tile = 0; tile < tiles; tile += most_tiles) {
      const int64_t count = std::min(most_tiles, tiles - tile), first = tile * kRowsPerItem;
      const int64_t rows = std::min(count * kRowsPerItem, dense.n - first);
      if (Result<void> done = upload(dense, first, rows, 0); !done) return done.error();
      NYBBLE_CUDA(
          cudaMemcpy(quantized_.data(), values.data() + first * k, rows * k * sizeof(float), cudaMemcpyHostToDevice));
      subtract<<<ctas_for((count * kRowsPerItem * k + kWarpSize - 1) / kWarpSize, kWarpsPerCta), kThreads>>>(
          quantized_.as<float>(), {values_.data(), dense.values.dtype}, rows, k, count, errors_.as<double>());
      NYBBLE_CUDA(cudaGetLastError());
      for (const Result<void>& done :
           {multiply(2 * count * kRowsPerItem, k, 0, k), find_losses(2 * count, k, tile_as_group(k))})
        if (!done) return done.error();
      NYBBLE_CUDA(cudaMemcpy(losses.data(), losses_.data(), 2 * count * sizeof(double), cudaMemcpyDeviceToHost));
      for (int64_t i = 0; i < count; ++i) errors[tile + i] = {losses[i], losses[count + i]};
    }
    return errors;
  }

 private:
  Groups groups_of(int64_t k) const {
    const int64_t size = grid_.group_size == kPerColumn ? k : grid_.group_size;
    return {k, size, (k + size - 1) / size};
  }
  // A tile's rows lie one after another: as the one group of a row they are added up in their order.
  static Groups tile_as_group(int64_t k) { return {kRowsPerItem * k, kRowsPerItem * k, 1}; }

  // An error and, where there is a Hessian, its product.
  int64_t error_bytes() const { return static_cast<int64_t>(sizeof(double)) * (statistics_.hessian.empty() ? 1 : 2); }
  Result<void> reserve_errors(int64_t rows, int64_t k) {
    const size_t bytes = rows * k * sizeof(double);
    if (Result<void> done = errors_.reserve(bytes); !done) return done;
    return statistics_.hessian.empty() ? Result<void>() : products_.reserve(bytes);
  }

  // Looks for the GPU and takes the statistics there, once.
  Result<void> begin(const std::string& weight) {
    if (mean_square_.size_bytes() > 0) return {};
    if (Result<void> fine = check_gpu(weight); !fine) return fine;
    if (Result<void> done = copy_to(hessian_, statistics_.hessian); !done) return done;
    return copy_to(mean_square_, statistics_.mean_square);
  }

  // Rows of a weight to values_[at, k].
  Result<void> upload(const DenseWeight& dense, int64_t first, int64_t rows, int64_t at) {
    const int64_t row_bytes = dense.k * static_cast<int64_t>(dtype_bytes(dense.values.dtype));
    NYBBLE_CUDA(cudaMemcpy(values_.as<std::byte>() + at * row_bytes, dense.values.bytes.data() + first * row_bytes,
                           rows * row_bytes, cudaMemcpyHostToDevice));
    return {};
  }
  // Those listed, in rising order, to values_[0, k] and after; neighbours in one go.
  Result<void> upload(const DenseWeight& dense, std::span<const int64_t> rows) {
    const int64_t count = static_cast<int64_t>(rows.size());
    for (int64_t at = 0, end = 0; at < count; at = end) {
      for (end = at + 1; end < count && rows[end] == rows[end - 1] + 1;) ++end;
      if (Result<void> done = upload(dense, rows[at], end - at, at); !done) return done;
    }
    return {};
  }

  // products[rows, k], columns `begin` to begin + size, = errors times the Hessian's block of these columns.
  Result<void> multiply(int64_t rows, int64_t k, int64_t begin, int64_t size) {
    if (statistics_.hessian.empty()) return {};
    double* products = products_.as<double>() + begin;
    NYBBLE_CUDA(cudaMemset2D(products, k * sizeof(double), 0, size * sizeof(double), rows));
    return multiply_add_cuda(errors_.as<double>() + begin, k, hessian_.as<float>() + begin * k + begin, k, products, k,
                             rows, size, size);
  }

  Result<void> find_losses(int64_t rows, int64_t k, Groups groups) {
    add_up<<<ctas_for(rows * groups.count, kWarpsPerCta), kThreads>>>(
        errors_.as<double>(), statistics_.hessian.empty() ? nullptr : products_.as<double>(), mean_square_.as<float>(),
        k, rows, groups, losses_.as<double>());
    NYBBLE_CUDA(cudaGetLastError());
    return {};
  }

  const GridOptions& grid_;
  GroupGrid group_grid_;
  const LayerStatistics& statistics_;
  DeviceBuffer hessian_, mean_square_;
  DeviceBuffer values_, quantized_, column_scales_, errors_, products_, losses_;
  DeviceBuffer codes_, scales_, zeros_, overflows_, first_overflow_;
};

template <class T>
Result<T> with_memory_named(Result<T> result, const std::string& weight, const LayerStatistics& statistics) {
  if (result || result.error().code != ErrorCode::kOutOfMemory) return result;
  const int64_t hessian_bytes = static_cast<int64_t>(statistics.hessian.size() * sizeof(float));
  return out_of_memory("weight '{}': AWQ with {} inputs takes up to {} MB of GPU memory: {}; the CPU takes it, too",
                       weight, statistics.k, (hessian_bytes + kSlabBytes) / 1'000'000, result.error().message);
}

}  // namespace

Result<AwqScales> search_awq_scales_cuda(std::span<const DenseWeight* const> layers, const GridOptions& grid,
                                         const AwqOptions& options, const LayerStatistics& statistics) {
  AwqOnGpu backend(grid, statistics);
  return with_memory_named(run_awq_search(layers, grid, options, statistics, backend),
                           layers.empty() ? std::string() : layers.front()->name, statistics);
}

Result<QuantizedWeight> quantize_clipped_cuda(const DenseWeight& dense, const GridOptions& grid, int clip_steps,
                                              const LayerStatistics& statistics) {
  AwqOnGpu backend(grid, statistics);
  return with_memory_named(run_clipping(dense, grid, clip_steps, statistics, backend), dense.name, statistics);
}

Result<double> relative_output_error_cuda(const DenseWeight& dense, const QuantizedWeight& weight,
                                          const LayerStatistics& statistics) {
  const GridOptions grid;
  AwqOnGpu backend(grid, statistics);
  return with_memory_named(run_output_error(dense, weight, statistics, backend), dense.name, statistics);
}

}  // namespace nybble
