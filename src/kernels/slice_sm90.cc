// The sliced-k family's rows: validity, cost model, launch.
#include "kernels/slice_sm90.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "kernels/family_rows.h"
#include "kernels/slice_instance.h"
#include "kernels/validity.h"
#include "layout/blob.h"
#include "runtime/tensor_map.h"

namespace nybble::kernels {
namespace {

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// Of all SMs, or as many as there are blocks.
int cluster_count(const SliceTile& tile, const Problem& problem, const Device& device) {
  const int n_blocks = ceil_div(problem.n, layout::kBlockN), all = std::max(device.num_sms / tile.cluster, 1);
  return std::min(n_blocks, all);
}

std::string why_not(const SliceInstance& instance, const Problem& problem, const Device& device) {
  const SliceTile& tile = instance.config.tile;
  if (std::string reason = why_not_hopper_format(instance.config.format, problem, device); !reason.empty())
    return reason;
  if (problem.out_dtype != problem.act_dtype && problem.out_dtype != DType::kFp32)
    return fmt::format("writes {} or fp32; out is {}", dtype_name(problem.act_dtype), dtype_name(problem.out_dtype));
  if (problem.m > tile.tile_m) return fmt::format("takes up to {} tokens; m is {}", tile.tile_m, problem.m);
  if (!problem.weight.scales_in_window && instance.config.format.groups > 0)
    return "dequantizes with one rounding only where the scales span few enough powers of two; these span too many";
  if (instance.smem_bytes > device.max_smem_bytes)
    return fmt::format("needs {} bytes of shared memory a block; the device allows {}", instance.smem_bytes,
                       device.max_smem_bytes);
  return "";
}

// Modelled microseconds: what the busiest SM computes and the weight's bytes at the memory's speed, the longer of the
// two, and what a launch costs besides. Fitted with the wgmma family's (gemm_sm90.cc says on what, and how well).
double estimate_us(const SliceInstance& instance, const Problem& problem, const Device& device) {
  constexpr double kStart = 2.0;                           // launch, first tokens, last reduction
  constexpr double kBlock = 0.1072, kTokenBlock = 0.0021;  // a block of 64 x 128, and more for each token
  constexpr double kClusterReduction = 1.553;              // of 64 output features
  constexpr double kBoundary = 1.969, kBytes = 4.4e6;      // of a layer that memory limits
  const SliceTile& tile = instance.config.tile;
  const double clusters = cluster_count(tile, problem, device), n_blocks = ceil_div(problem.n, layout::kBlockN);
  const double k_blocks = ceil_div(problem.k, layout::kBlockK), rounds = std::ceil(n_blocks / clusters);
  const double work = rounds * k_blocks / tile.cluster * (kBlock + kTokenBlock * tile.tile_m) +
                      (tile.cluster > 1 ? rounds * kClusterReduction : 0);
  const double memory = kBoundary + n_blocks * k_blocks * instance.config.format.block().block_bytes() / kBytes;
  return kStart + std::max(work, memory);
}

Result<void> launch(const SliceInstance& instance, PreparedDevices& prepared, const Problem& problem,
                    const Device& device, const LaunchArgs& args, bool pdl) {
  const SliceTile& tile = instance.config.tile;
  const int clusters = cluster_count(tile, problem, device);
  const bool bf16 = problem.act_dtype == DType::kBf16;
  Result<CUtensorMap> act_map =
      runtime::tensor_map({args.act, problem.m, problem.k, args.ld_act ? args.ld_act : problem.k, bf16}, {tile.tile_m});
  if (!act_map) return act_map.error();
  const layout::BlobMap blob = layout::blob_map(problem.n, problem.k, problem.weight);
  SliceParams params;
  params.weight = static_cast<const uint8_t*>(args.weight);
  params.column_scales = blob.column_scales;
  params.column_zeros = blob.column_zeros;
  params.out = args.out;
  params.ld_out = args.ld_out ? args.ld_out : problem.n;
  params.out_fp32 = problem.out_dtype == DType::kFp32;
  params.m = static_cast<int>(problem.m);
  params.n = static_cast<int>(problem.n);
  params.n_blocks = static_cast<int>(blob.n_blocks);
  params.k_blocks = static_cast<int>(blob.k_blocks);
  params.blocks_each = params.n_blocks / clusters;
  params.blocks_left = params.n_blocks % clusters;
  params.epilogue = EpilogueParams::from(args, params.ld_out);
  void* pointers[] = {&*act_map, &params};
  return launch_function(instance.function, prepared,
                         {.grid = dim3(static_cast<unsigned>(clusters * tile.cluster)),
                          .threads = tile.threads(),
                          .smem_bytes = instance.smem_bytes,
                          .cluster = tile.cluster,
                          .pdl = pdl,
                          .stream = args.stream},
                         pointers);
}

std::string name(const SliceInstance& instance) { return kernel_name(instance.config); }

Numerics numerics(const SliceInstance& instance) {
  return instance.config.format.groups == 0 ? Numerics::kExactWeight : Numerics::kRoundedWeight;
}

}  // namespace

const std::vector<KernelEntry>& slice_sm90_kernels() {
  static const std::vector<KernelEntry> rows = rows_of<SliceInstance>(
      {slice_instances_bf16(), slice_instances_bf16_zp(), slice_instances_fp16(), slice_instances_fp16_zp()},
      {name, numerics, why_not, estimate_us, nullptr, nullptr, launch});
  return rows;
}

}  // namespace nybble::kernels
