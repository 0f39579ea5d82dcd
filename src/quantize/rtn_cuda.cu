// Round to nearest on the GPU: one warp per group, over the arithmetic of quantize/rtn.h.
#include "nybble/quantize.h"
#include "quantize/on_gpu.cuh"
#include "quantize/prepare.h"
#include "quantize/rtn.h"

namespace nybble {
namespace {

using namespace rtn;
using quantize::ctas_for;
using quantize::DeviceFloats;
using quantize::DeviceScales;
using quantize::kAllLanes;
using quantize::kWarpSize;
using quantize::lower;
using runtime::DeviceBuffer;

constexpr int kWarpsPerCta = 8;
constexpr int kStepsPerLane = (kShrinkSteps + kWarpSize - 1) / kWarpSize;

struct Params {
  DeviceFloats values;  // [n, k]
  int64_t n, k, group_size, groups;
  bool symmetric, search;
  uint8_t* codes;       // [n, k]
  DeviceScales scales;  // [n, groups]
  Faults* faults;
};

// Each lane carries some of the candidates over all elements, in their order.
__device__ GroupScale search(const Params& p, int64_t first, int64_t count, Range range, int lane) {
  float scale[kStepsPerLane], low[kStepsPerLane], high[kStepsPerLane];
  double error[kStepsPerLane] = {};
  for (int j = 0; j < kStepsPerLane; ++j) {
    const GroupScale group = scale_of(range, shrink_factor(lane + j * kWarpSize), p.symmetric, p.scales.dtype);
    scale[j] = group.scale;
    low[j] = static_cast<float>(-group.zero);
    high[j] = static_cast<float>(15 - group.zero);
  }
  for (int64_t i = 0; i < count; ++i) {
    const float weight = p.values[first + i];
    for (int j = 0; j < kStepsPerLane; ++j) error[j] += squared_error(weight, scale[j], low[j], high[j]);
  }
  double least = 0;
  int best = -1;
  for (int j = 0; j < kStepsPerLane; ++j) {
    const int step = lane + j * kWarpSize;
    const double in_weights = in_weight_units(error[j], scale[j]);
    if (step < kShrinkSteps && (best < 0 || in_weights < least)) best = step, least = in_weights;
  }
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    const double other = __shfl_xor_sync(kAllLanes, least, distance);
    const int other_step = __shfl_xor_sync(kAllLanes, best, distance);
    if (other < least || (other == least && other_step < best)) best = other_step, least = other;
  }
  return scale_of(range, shrink_factor(best), p.symmetric, p.scales.dtype);
}

__device__ void quantize_group(const Params& p, int64_t index, int lane) {
  const int64_t n = index / p.groups, begin = index % p.groups * p.group_size;
  const int64_t first = n * p.k + begin, count = p.k - begin < p.group_size ? p.k - begin : p.group_size;
  int32_t min = 0, max = 0;
  int64_t bad = kNoFault;
  for (int64_t i = lane; i < count; i += kWarpSize) {
    const float weight = p.values[first + i];
    if (!(fabsf(weight) <= FLT_MAX) && bad == kNoFault) bad = first + i;
    const int32_t key = key_of(weight);
    min = key < min ? key : min;
    max = key > max ? key : max;
  }
  if (bad != kNoFault) lower(p.faults->element, bad);
  if (__any_sync(kAllLanes, bad != kNoFault)) return;
  const Range range{value_of_key(__reduce_min_sync(kAllLanes, min)), value_of_key(__reduce_max_sync(kAllLanes, max))};

  GroupScale group;
  group.zero = p.symmetric ? 8 : 0;
  const bool all_zero = range.min == 0 && range.max == 0;
  if (!all_zero) {
    group = scale_of(range, 1.0f, p.symmetric, p.scales.dtype);
    if (group.overflows) {
      if (lane == 0) lower(p.faults->group, index);
      return;
    }
    if (p.search) group = search(p, first, count, range, lane);
  }
  const float low = static_cast<float>(-group.zero), high = static_cast<float>(15 - group.zero);
  for (int64_t i = lane; i < count; i += kWarpSize) {
    float level = all_zero ? 0.0f : level_of(p.values[first + i], group.scale, low, high);
    if (may_overflow(group.scale)) level = finite_level(level, group.scale);
    p.codes[first + i] = static_cast<uint8_t>(static_cast<int>(level) + group.zero);
  }
  if (lane == 0) p.scales.store(index, group);
}

__global__ void __launch_bounds__(kWarpSize* kWarpsPerCta) quantize_groups(const __grid_constant__ Params p) {
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  const int64_t warps = int64_t{gridDim.x} * kWarpsPerCta;
  for (int64_t index = int64_t{blockIdx.x} * kWarpsPerCta + threadIdx.x / kWarpSize; index < p.n * p.groups;
       index += warps)
    quantize_group(p, index, lane);
}

}  // namespace

Result<QuantizedWeight> quantize_rtn_cuda(const DenseWeight& dense, const RtnOptions& options) {
  Result<QuantizedWeight> prepared = prepare(dense, options);
  if (!prepared) return prepared.error();
  QuantizedWeight weight = std::move(prepared).value();
  const int64_t groups = weight.n * weight.groups();
  if (weight.codes.empty()) return weight;

  const Result<DeviceBuffer> values = DeviceBuffer::allocate(dense.values.bytes.size());
  if (!values) return values.error();
  const Result<DeviceBuffer> codes = DeviceBuffer::allocate(weight.codes.size());
  if (!codes) return codes.error();
  const Result<DeviceBuffer> scales = DeviceBuffer::allocate(weight.scales.bytes.size());
  if (!scales) return scales.error();
  const Result<DeviceBuffer> zeros = DeviceBuffer::allocate(weight.int_zeros.size());
  if (!zeros) return zeros.error();
  const Result<DeviceBuffer> device_faults = DeviceBuffer::allocate(sizeof(Faults));
  if (!device_faults) return device_faults.error();
  Faults faults;
  NYBBLE_CUDA(cudaMemcpy(device_faults->data(), &faults, sizeof faults, cudaMemcpyHostToDevice));
  NYBBLE_CUDA(cudaMemcpy(values->data(), dense.values.bytes.data(), dense.values.bytes.size(), cudaMemcpyHostToDevice));

  const Params params{.values = {values->data(), dense.values.dtype},
                      .n = weight.n,
                      .k = weight.k,
                      .group_size = options.group_size == kPerColumn ? weight.k : options.group_size,
                      .groups = weight.groups(),
                      .symmetric = options.symmetric,
                      .search = options.range_search == RangeSearch::kSquaredError,
                      .codes = codes->as<uint8_t>(),
                      .scales = {scales->data(), options.scale_dtype, zeros->as<uint8_t>()},
                      .faults = device_faults->as<Faults>()};
  quantize_groups<<<ctas_for(groups, kWarpsPerCta), kWarpSize * kWarpsPerCta>>>(params);
  NYBBLE_CUDA(cudaGetLastError());
  NYBBLE_CUDA(cudaMemcpy(&faults, device_faults->data(), sizeof faults, cudaMemcpyDeviceToHost));
  if (Result<void> fine = report(dense, options, faults); !fine) return fine.error();
  NYBBLE_CUDA(cudaMemcpy(weight.codes.data(), codes->data(), weight.codes.size(), cudaMemcpyDeviceToHost));
  NYBBLE_CUDA(
      cudaMemcpy(weight.scales.bytes.data(), scales->data(), weight.scales.bytes.size(), cudaMemcpyDeviceToHost));
  if (!weight.int_zeros.empty())
    NYBBLE_CUDA(cudaMemcpy(weight.int_zeros.data(), zeros->data(), weight.int_zeros.size(), cudaMemcpyDeviceToHost));
  return weight;
}

}  // namespace nybble
