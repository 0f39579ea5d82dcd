// The wgmma family's rows: validity, cost model, launch.
#include "kernels/gemm_sm90.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "base/error.h"
#include "kernels/gemm_instance.h"
#include "kernels/gemm_params.h"
#include "kernels/kernel_launch.h"
#include "kernels/validity.h"
#include "layout/blob.h"
#include "runtime/tensor_map.h"

namespace nybble::kernels {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t tile_count(const GemmTile& tile, const Problem& problem) {
  return ceil_div(problem.n, int64_t{tile.tile_n()} * tile.multicast) * ceil_div(problem.m, tile.tile_m);
}

std::string why_not(const GemmInstance& instance, const Problem& problem, const Device& device) {
  const GemmTile& tile = instance.config.tile;
  if (std::string reason = why_not_hopper_format(instance.config.format, problem, device); !reason.empty()) return reason;
  if (problem.out_dtype != problem.act_dtype)
    return fmt::format("writes {}; out is {}", dtype_name(problem.act_dtype), dtype_name(problem.out_dtype));
  if (!problem.weight.scales_in_window && instance.config.format.groups > 0)
    return "dequantizes with one rounding only where the scales span few enough powers of two; these span too many";
  if (instance.smem_bytes > device.max_smem_bytes)
    return fmt::format("needs {} bytes of shared memory a block; the device allows {}", instance.smem_bytes, device.max_smem_bytes);
  const int64_t k_blocks = ceil_div(problem.k, layout::kBlockK);
  if (k_blocks < tile.split_k)
    return fmt::format("splits k over {} CTAs, at least {} input features; k is {}", tile.split_k,
                       (tile.split_k - 1) * layout::kBlockK + 1, problem.k);
  if (tile_count(tile, problem) * tile.cluster() > INT32_MAX) return fmt::format("m x n is more than 2^31 tiles");
  return "";
}

// Modelled microseconds: fixed cost + the busiest SM's blocks x time per 64 x 128 block, or all bytes at the bandwidth the
// load path reaches, + epilogues. Constants fitted on seven shapes x 11 m on an H200, 2026-11-23, with a prototype of this
// kernel (1.8 % above its best tile in the geometric mean); a block costs what its slowest unit needs: tensor core,
// instruction slots (2 slots and a token each for wgmma's operand, `instructions` for the rest), latency, L2.
double estimate_us(const GemmInstance& instance, const Problem& problem, const Device& device) {
  const GemmTile& tile = instance.config.tile;
  const double sms = device.num_sms, slots = tile.ctas_per_sm, tokens = tile.tile_m;
  const double block_bytes = instance.config.format.block().block_bytes();
  const double k_blocks = static_cast<double>(ceil_div(problem.k, layout::kBlockK));
  const double tiles = static_cast<double>(tile_count(tile, problem)), rows64 = tile.tile_n() / 64.0;
  const bool plain = instance.config.format.act == DType::kBf16 && !instance.config.format.zero_point;
  const double instructions = 73.24 - (tile.row_blocks > 1 ? 8 : 0) + (plain ? 0 : 32);

  const double clusters = std::floor(sms * slots / tile.multicast);
  const double ctas = tile.split_k > 1 ? tiles * tile.cluster() : std::min(clusters, tiles) * tile.multicast;
  // Clusters of four do not fill every GPC: 112 of 132 SMs.
  const double waves = std::ceil(ctas / ((tile.cluster() > 2 ? sms * 112 / 132 : sms) * slots));
  const double steps = tile.split_k > 1 ? std::ceil(k_blocks / tile.split_k) * waves : std::ceil(tiles / clusters) * k_blocks;
  const double per_sm = tile.split_k > 1 ? std::min(slots, std::max(1.0, ctas / sms)) : std::min(slots, std::ceil(ctas / sms));
  const double block_ns = std::max({4 * tokens / 1.558, (32 + 2 * tokens + instructions) / 1.724,
                                    (452.8 + 5.312 * tokens) / (tile.warpgroups * per_sm) / 1.724,
                                    (tokens * 256.0 / tile.multicast / rows64 + block_bytes) / 36.47});
  const double bytes = static_cast<double>(ceil_div(problem.n, 64)) * k_blocks * block_bytes +
                       2.0 * static_cast<double>(problem.m) * static_cast<double>(problem.k + problem.n);
  double us = std::max(steps * rows64 * per_sm * block_ns * 1e-3, bytes / 3.672e6);
  us += (tile.split_k > 1 ? waves : std::ceil(tiles / clusters)) * tile.tile_n() * tokens / 1024 * 0.0726 * per_sm;
  if (tile.split_k > 1) us += waves * (slots > 1 ? 1.643 : 0.1829);
  const bool overlaps = tile.split_k > 1 ? slots > 1 && waves <= 1 : per_sm * 2 <= slots;
  return us + (overlaps ? 1.748 : 2.143);
}

Result<void> launch(const GemmInstance& instance, PreparedDevices& prepared, const Problem& problem, const Device& device,
                    const LaunchArgs& args, bool pdl) {
  const GemmTile& tile = instance.config.tile;
  const int64_t ld_act = args.ld_act ? args.ld_act : problem.k, ld_out = args.ld_out ? args.ld_out : problem.n;
  const bool bf16 = problem.act_dtype == DType::kBf16;
  Result<CUtensorMap> act_map = runtime::encode_tensor_map({args.act, problem.m, problem.k, ld_act, bf16}, tile.tile_m);
  if (!act_map) return act_map.error();
  Result<CUtensorMap> out_map =  // split_k stores without one
      tile.split_k > 1 ? *act_map : runtime::encode_tensor_map({args.out, problem.m, problem.n, ld_out, bf16}, kOutChunkTokens);
  if (!out_map) return out_map.error();

  const layout::BlobMap blob = layout::blob_map(problem.n, problem.k, problem.weight);
  GemmParams params;
  params.weight = static_cast<const uint8_t*>(args.weight);
  params.column_scales = blob.column_scales;
  params.column_zeros = blob.column_zeros;
  params.m = static_cast<int>(problem.m);
  params.n = static_cast<int>(problem.n);
  params.n_blocks = static_cast<int>(blob.n_blocks);
  params.k_blocks = static_cast<int>(blob.k_blocks);
  params.n_tiles = static_cast<int>(ceil_div(problem.n, int64_t{tile.tile_n()} * tile.multicast));
  params.m_tiles = static_cast<int>(ceil_div(problem.m, tile.tile_m));
  params.raster = std::min(8, params.n_tiles);
  params.out = args.out;
  params.ld_out = ld_out;
  params.epilogue = EpilogueParams::from(args, ld_out);

  const int tiles = params.n_tiles * params.m_tiles;
  const int clusters = tile.split_k > 1 ? tiles : std::min(tiles, device.num_sms * tile.ctas_per_sm / tile.multicast);
  void* pointers[] = {&*act_map, &*out_map, &params};
  return launch_function(instance.function, prepared,
                         {.grid = dim3(static_cast<unsigned>(clusters * tile.cluster())),
                          .threads = tile.threads(),
                          .smem_bytes = instance.smem_bytes,
                          .cluster = tile.cluster(),
                          .pdl = pdl,
                          .stream = args.stream},
                         pointers);
}

KernelEntry entry_of(const GemmInstance& instance) {
  auto prepared = std::make_shared<PreparedDevices>();
  KernelEntry entry;
  entry.name = kernel_name(instance.config);
  entry.device = DeviceKind::kCuda;
  entry.numerics = instance.config.format.groups == 0 ? Numerics::kExactWeight : Numerics::kRoundedWeight;
  entry.why_not = [&instance](const Problem& p, const Device& d) { return why_not(instance, p, d); };
  entry.estimate_us = [&instance](const Problem& p, const Device& d) { return estimate_us(instance, p, d); };
  entry.workspace_bytes = [](const Problem&, const Device&) { return size_t{0}; };
  entry.launch = [&instance, prepared](const Problem& p, const Device& d, const LaunchArgs& args, bool pdl) {
    return launch(instance, *prepared, p, d, args, pdl);
  };
  return entry;
}

}  // namespace

const std::vector<KernelEntry>& gemm_sm90_kernels() {
  static const std::vector<KernelEntry> entries = [] {
    std::vector<KernelEntry> list;
    for (std::span<const GemmInstance> part :
         {gemm_instances_bf16(), gemm_instances_bf16_zp(), gemm_instances_fp16(), gemm_instances_fp16_zp()})
      for (const GemmInstance& instance : part) list.push_back(entry_of(instance));
    return list;
  }();
  return entries;
}

}  // namespace nybble::kernels
