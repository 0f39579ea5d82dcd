// Dense -> canonical: round to nearest, range search, HQQ, GPTQ and AWQ. docs/quantizers.md says when to take which.
#pragma once

#include <span>
#include <string>
#include <vector>

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
// All quantizers below keep these two promises, and their results depend on no number of threads.
Result<QuantizedWeight> quantize_rtn(const DenseWeight& dense, const RtnOptions& options);

// The same on the current CUDA device, bit-equal.
Result<QuantizedWeight> quantize_rtn_cuda(const DenseWeight& dense, const RtnOptions& options);

// What the calibration text says of a layer's input x. A statistics file holds it (nybble/statistics.h).
struct LayerStatistics {
  std::string layer;
  int64_t k = 0;
  int64_t tokens = 0;              // that the means were taken over
  std::vector<float> hessian;      // [k, k]: mean of x x^T; empty where only the squares were collected
  std::vector<float> mean_square;  // [k]: mean of x^2, the Hessian's diagonal
};

// Sizes, finite numbers, no negative mean square, a symmetric Hessian whose diagonal mean_square is. That it is
// positive definite is not asked: quantize_gptq() copes with one that is not.
Result<void> validate(const LayerStatistics& statistics);

// The codes' grid, for all quantizers below.
struct GridOptions {
  int group_size = 128;   // kPerColumn or any multiple of 16; the last group may be partial
  bool symmetric = true;  // false: zero points
  DType scale_dtype = DType::kBf16;
  int num_threads = 0;  // 0: all cores
};

// Which ranges are tried for a group.
enum class RangeRule : uint8_t {
  kFull,        // absmax (symmetric) or min..max (asymmetric) and no other
  kShrink,      // the full range times 1, 0.99, ... 0.21
  kPercentile,  // those that leave out the 0, 1, 2, ... outermost weights (asymmetric: on each side), up to a tenth
};

// A range is judged by sum importance * |error|^exponent; of equals the widest wins.
struct RangeOptions {
  RangeRule rule = RangeRule::kShrink;
  double exponent = 2.4;  // 1 to 8
};

// Round to nearest in the range that loses least. With statistics an element's importance is the mean square of its
// input ("imatrix"), else 1. Errors as quantize_rtn().
Result<QuantizedWeight> quantize_range(const DenseWeight& dense, const GridOptions& grid, const RangeOptions& options,
                                       const LayerStatistics* statistics = nullptr);

// HQQ: half-quadratic quantization, Badri and Shaji 2023. Alternates a shrinkage of the errors, which lets outliers go,
// with least squares: of a float zero point at the full range's scale, as HQQ does, or of the scale with a whole zero
// point beside it.
struct HqqOptions {
  double lp_norm = 0.7;  // above 0, at most 1
  double beta = 10;      // for errors in steps of the grid
  double kappa = 1.01;   // beta's growth per iteration
  int iterations = 20;
  bool round_zeros = false;  // integers of 0 to 15, for formats without float zero points
};

// Asymmetric always: grid.symmetric must be false. ZeroKind::kFloat, or kInt with round_zeros. The sum |error|^lp_norm
// of a group, to 5 digits, is no more than that of round to nearest on the same kind of grid.
Result<QuantizedWeight> quantize_hqq(const DenseWeight& dense, const GridOptions& grid, const HqqOptions& options);

// The order in which GPTQ goes through the input features.
enum class ActOrder : uint8_t {
  kNone,        // as they stand
  kFull,        // the largest mean square first. Without static groups the result has a k_order
  kGroupAware,  // groups by their largest mean square, features within a group by theirs: no k_order
};

struct GptqOptions {
  ActOrder act_order = ActOrder::kNone;
  bool static_groups = false;  // scales from the weights as they are, before any correction: no k_order
  RangeOptions range = {.rule = RangeRule::kFull};
  bool weighted_range = false;  // judge ranges by mean squares
  double damping = 0.01;        // added to the Hessian's diagonal, as a part of its mean
  int max_retries = 7;          // times that damping doubles where the Hessian is not positive definite
};

struct GptqResult {
  QuantizedWeight weight;
  int64_t dead_columns = 0;  // inputs that were always zero; their weights become zero
  double damping = 0;        // the one that worked
  int damping_retries = 0;
  bool fell_back = false;             // to quantize_range() with the mean squares: GPTQ could not be done
  std::vector<std::string> warnings;  // of all of that, one sentence each
};

// GPTQ: Frantar et al. 2023. Each column's rounding error is made up for by the columns after it, so that the mean
// squared error of the layer's output is least. Needs the Hessian. Memory: the Hessian in double, k * k * 8 bytes, on
// top of the arguments and the result.
Result<GptqResult> quantize_gptq(const DenseWeight& dense, const GridOptions& grid, const GptqOptions& options,
                                 const LayerStatistics& statistics);

// The same on the current CUDA device, bit-equal. GPU memory: k * k * 12 bytes and at most 2 GiB for the rows, which
// are taken in slabs. kUnsupported where there is no Hopper GPU, kOutOfMemory where its memory is too small.
Result<GptqResult> quantize_gptq_cuda(const DenseWeight& dense, const GridOptions& grid, const GptqOptions& options,
                                      const LayerStatistics& statistics);

// AWQ: activation-aware scales, Lin et al. 2024. The weights' columns are multiplied by a scale before they are
// quantized and the input's features divided by it, so that features that matter are rounded more finely.
struct AwqOptions {
  int steps = 20;    // ratios 0, 1 / steps, ... (steps - 1) / steps
  bool duo = true;   // scale = x^ratio / w^(1 - ratio); false: x^ratio
  int64_t rows = 0;  // judge by this many rows of each layer, evenly spaced; 0: all
};

struct AwqScales {
  std::vector<float> scales;  // [k], positive; all 1 where no ratio is better
  double ratio = -1;          // -1: all 1
  double loss = 0;            // sum over the layers of tr(dW H dW^T) with these scales
  double unscaled_loss = 0;   // and without: round to nearest
};

// The best scales for layers that share one input (the same k, and `statistics` of that input), judged with round to
// nearest on `grid`. x is the root of the mean square, w the mean over rows of |weight| / (largest of its group).
// The loss is exact with a Hessian, else that of its diagonal.
Result<AwqScales> search_awq_scales(std::span<const DenseWeight* const> layers, const GridOptions& grid,
                                    const AwqOptions& options, const LayerStatistics& statistics);

// The same on the current CUDA device, bit-equal. GPU memory: the statistics, k * k * 4 bytes where they are a Hessian,
// and at most 2 GiB for the rows, which are taken in slabs. kUnsupported where there is no Hopper GPU, kOutOfMemory
// where its memory is too small.
Result<AwqScales> search_awq_scales_cuda(std::span<const DenseWeight* const> layers, const GridOptions& grid,
                                         const AwqOptions& options, const LayerStatistics& statistics);

// weight[n, k] * scales[k] in fp32, and the statistics of an input divided by the scales. A product that leaves the
// range of fp32 is an error.
Result<DenseWeight> scale_columns(const DenseWeight& dense, std::span<const float> scales, int num_threads);
Result<LayerStatistics> scale_input(const LayerStatistics& statistics, std::span<const float> scales);

// AWQ's other half. Round to nearest, each group in that one of `clip_steps` ranges (the full one times 1, 0.95, 0.9,
// ...; 1 to 20 of them, AWQ takes 10) whose error costs the output least: dw H dw^T with the group's own block of the
// Hessian, or its diagonal where there is no Hessian.
Result<QuantizedWeight> quantize_clipped(const DenseWeight& dense, const GridOptions& grid, int clip_steps,
                                         const LayerStatistics& statistics);

// The same on the current CUDA device, bit-equal; memory and errors as of search_awq_scales_cuda().
Result<QuantizedWeight> quantize_clipped_cuda(const DenseWeight& dense, const GridOptions& grid, int clip_steps,
                                              const LayerStatistics& statistics);

// tr(dW H dW^T) / tr(W H W^T) with dW = weight - dense: the layer's mean squared output error, relative. With mean
// squares alone, their diagonal is H. 0 where the output is always zero.
Result<double> relative_output_error(const DenseWeight& dense, const QuantizedWeight& weight,
                                     const LayerStatistics& statistics, int num_threads);

// The same on the current CUDA device, bit-equal; memory and errors as of search_awq_scales_cuda().
Result<double> relative_output_error_cuda(const DenseWeight& dense, const QuantizedWeight& weight,
                                          const LayerStatistics& statistics);

}  // namespace nybble
#pragma GCC visibility pop
