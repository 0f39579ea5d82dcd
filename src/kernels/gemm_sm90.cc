// The wgmma family's rows: validity, cost model, launch.
#include "kernels/gemm_sm90.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "kernels/family_rows.h"
#include "kernels/gemm_instance.h"
#include "kernels/gemm_params.h"
#include "kernels/partial_sums.h"
#include "kernels/validity.h"
#include "layout/blob.h"
#include "runtime/tensor_map.h"

namespace nybble::kernels {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One row of the registry: an instance and how a launch shares its tiles among the SMs.
struct GemmRow {
  GemmConfig config;
  const void* function;
  int smem_bytes;
  bool stream_k;  // all k steps of all tiles evenly, sums through the workspace; otherwise whole tiles
  bool half;      // a grid of one CTA per SM where two fit: the next launch has its weights when this one ends
};

std::string name(const GemmRow& row) {
  return kernel_name(row.config) + (row.stream_k ? "_sk" : "") + (row.half ? "_half" : "");
}

// The rows of every instance: whole tiles, and where the tile may, k steps of them or a grid of one CTA per SM.
std::vector<GemmRow> rows_from(std::initializer_list<std::span<const GemmInstance>> parts) {
  std::vector<GemmRow> rows;
  for (const std::span<const GemmInstance> part : parts)
    for (const GemmInstance& instance : part) {
      const GemmTile& tile = instance.config.tile;
      for (const bool stream_k : {false, true})
        for (const bool half : {false, true})
          if ((!half || tile.ctas_per_sm > 1) && (tile.stream_k() || (!stream_k && !half)))
            rows.push_back({instance.config, instance.function, instance.smem_bytes, stream_k, half});
    }
  return rows;
}

int64_t tile_count(const GemmTile& tile, const Problem& problem) {
  return ceil_div(problem.n, int64_t{tile.tile_n()} * tile.multicast) * ceil_div(problem.m, tile.tile_m);
}

// Clusters of a launch: one per tile where a tile's k is split, else as many as there is place for and work.
int64_t cluster_count(const GemmRow& row, const Problem& problem, const Device& device) {
  const GemmTile& tile = row.config.tile;
  const int64_t tiles = tile_count(tile, problem);
  if (tile.split_k > 1) {
    // Where two launches share the SMs, one CTA per SM, some of which only repeat others' work: CTAs that leave holes
    // make the scheduler put two of the next launch on one SM.
    const int64_t all = device.num_sms / tile.cluster();
    return tile.ctas_per_sm > 1 && tiles < all && 2 * tiles > all ? all : tiles;
  }
  const int64_t place = device.num_sms * (row.half ? 1 : tile.ctas_per_sm) / tile.multicast;
  if (!row.stream_k) return std::min(tiles, place);
  return std::min(tiles * ceil_div(problem.k, int64_t{layout::kBlockK} * tile.stages_per_barrier), place);
}

// Groups of k blocks left to copy when the next launch may start. Where every CTA finds room beside one of this
// launch's, its ring fills at once: too early, and it takes bandwidth from this launch and, where CTAs have ended at
// different times, they gather two by two on some SMs; too late, and the memory waits. On an H200, 2026-11-25, us at
// the start and with a fitting rest left: 8192x8192 m = 16 12.3 and 11.4, 4096x4096 m = 16 (t16x128, two parts of
// k) 10.1 and 6.5. A launch that takes more than one place of an SM leaves none anyway; stream-K, half grids and
// launches whose rings hold nearly everything are better off with a start at once (28672x4096 m = 16, half: 23.9
// and 30.8; 4096x4096 m = 16, t16x64: 5.3 and 5.8); docs/decisions/0008.
int trigger(const GemmRow& row, const Problem& problem, double ctas, double sms) {
  const GemmTile& tile = row.config.tile;
  if (row.stream_k || row.half || tile.ctas_per_sm == 1 || ctas > sms) return kTriggerAtStart;
  const int64_t groups = ceil_div(problem.k, int64_t{layout::kBlockK} * tile.stages_per_barrier * tile.split_k);
  const int ring = tile.stages / tile.stages_per_barrier;
  const auto left = static_cast<int>(std::clamp<int64_t>(groups / 4, 1, ring - 1));
  return groups <= ring + left ? kTriggerAtStart : left;
}

size_t workspace_bytes(const GemmRow& row, const Problem& problem, const Device& device) {
  if (!row.stream_k) return 0;
  const GemmTile& tile = row.config.tile;
  const auto ctas = static_cast<int>(cluster_count(row, problem, device) * tile.cluster());
  return PartialSumsMap(ctas, tile.row_warpgroups(), tile.tile_m, tile.tile_n()).bytes;
}

std::string why_not(const GemmRow& row, const Problem& problem, const Device& device) {
  const GemmTile& tile = row.config.tile;
  if (std::string reason = why_not_hopper_format(row.config.format, problem, device); !reason.empty()) return reason;
  if (const DType out = tile.fp32_out ? DType::kFp32 : problem.act_dtype; problem.out_dtype != out)
    return fmt::format("writes {}; out is {}", dtype_name(out), dtype_name(problem.out_dtype));
  if (!problem.weight.scales_in_window && !exact_weights(row.config))
    return "dequantizes with one rounding only where the scales span few enough powers of two; these span too many";
  if (row.smem_bytes > device.max_smem_bytes)
    return fmt::format("needs {} bytes of shared memory a block; the device allows {}", row.smem_bytes,
                       device.max_smem_bytes);
  const int64_t k_blocks = ceil_div(problem.k, layout::kBlockK);
  if (k_blocks < tile.split_k)
    return fmt::format("splits k over {} CTAs, at least {} input features; k is {}", tile.split_k,
                       (tile.split_k - 1) * layout::kBlockK + 1, problem.k);
  if (row.stream_k && tile_count(tile, problem) * k_blocks > INT32_MAX)
    return "shares fewer than 2^31 k steps of all tiles";
  if (tile_count(tile, problem) * tile.cluster() > INT32_MAX) return fmt::format("m x n is more than 2^31 tiles");
  return "";
}

// Modelled microseconds: what an SM computes or all bytes at the memory's speed, the longer of the two, and what a
// launch costs besides. A 64 x 128 block costs what its slowest unit needs: tensor cores, instruction slots, the
// latency of one block over the warpgroups that share it; less where SMs stand idle and leave their power to the
// others. Whole tiles come in waves, stream-K has none. Clusters fill an SM's slots before the next SM, so CTAs made to
// share an SM share it in a small grid too, but where the next launch starts late. Fitted on 24 shapes x m = 12 ..
// 1024, bf16 in groups of 128 (zero points: older figures), on several H200s, 2026-11-30: the row of the lowest
// estimate takes 1.2 % longer than the best one (geometric mean; 14 of 496 problems more than 10 %, most of them of
// less than 65 tokens); estimates of rows near the best are 3.5 % off (rms).
double estimate_us(const GemmRow& row, const Problem& problem, const Device& device) {
  constexpr double kStart = 2.033;       // from one CTA on an SM to the next one's first product
  constexpr double kOverlapped = 0.393;  // of it hidden where the next launch's CTA fits beside this one's
  constexpr double kTogether = 0.274;    // or where two CTAs of this launch share an SM
  constexpr double kClock = 1.633;       // cycles a nanosecond; tensor cores take four a token and block
  constexpr double kIdle = 0.337;        // of a block's time saved, for the part of the SMs that stand idle
  // Instruction slots of a block: wgmma's operand of 16-bit weights, two a token, the conversion of the codes.
  constexpr double kOperandSlots = 32.7, kTokenSlots = 2, kCodeSlots = 144.3, kOtherFormatSlots = 27.3;
  // Nanoseconds a block of one warpgroup, beside its products; more for each warpgroup that shares the SM.
  constexpr double kLatency = 119.6, kSharedLatency = 118.6;
  constexpr double kTokenBytes = 634;  // a nanosecond and SM: what loading tokens adds to a block
  constexpr double kFarApart = 0.0256;
  constexpr double kBytes = 4.09e6;  // a microsecond, all SMs, from memory
  // By 10^4 sums of a tile: storing it; sending it through the cluster and finishing it there; handing it over in
  // stream-K.
  constexpr double kStore = 0.734, kReduction = 0.217, kSendSums = 1.398, kFinishSums = 1.137;
  constexpr double kFixUp = 3.292, kFixUpSums = 0.473;
  const GemmTile& tile = row.config.tile;
  const double sms = device.num_sms, tokens = tile.tile_m, rows64 = tile.tile_n() / 64.0;
  const double tiles = static_cast<double>(tile_count(tile, problem)), cluster = tile.cluster();
  const double clusters = static_cast<double>(cluster_count(row, problem, device));
  const double k_blocks = static_cast<double>(ceil_div(problem.k, layout::kBlockK));
  const double block_bytes = row.config.format.block().block_bytes();
  const bool plain =
      exact_weights(row.config) || (row.config.format.act == DType::kBf16 && !row.config.format.zero_point);
  const bool split = tile.split_k > 1;

  // Clusters of three and four do not fill every GPC: 112 CTAs where one fits each of 132 SMs, 248 where two do.
  const auto clustered_place = [&](double ctas_per_sm) { return sms * (ctas_per_sm == 1 ? 112 : 248) / 132; };
  const bool one_each =
      row.half ||
      (clusters * cluster <= (cluster > 2 ? clustered_place(1) : sms) &&
       ((split && 2 * clusters * cluster > sms) || trigger(row, problem, clusters * cluster, sms) != kTriggerAtStart));
  const double slots = one_each ? 1 : tile.ctas_per_sm;
  const double place =
      split && cluster > 2 ? clustered_place(slots) : std::floor(sms * slots / tile.multicast) * tile.multicast;
  const double ctas = tiles * cluster, waves = std::ceil(ctas / place), last = ctas - (waves - 1) * place;
  const double last_slots = cluster > 1 || last > sms ? slots : 1;

  const double busy = row.stream_k ? 1 : ctas / (place * waves);

  const double shared_tokens = tokens * 256 / tile.multicast / rows64;  // bytes a block
  const auto block_ns = [&](double ctas_on_sm) {
    const double warpgroups = tile.warpgroups * ctas_on_sm;
    const double slot_count = kOperandSlots + kTokenSlots * tokens + kCodeSlots + (plain ? 0 : kOtherFormatSlots);
    const double slowest =
        std::max({4 * tokens / kClock, slot_count / kClock,
                  (kLatency + kSharedLatency * (warpgroups - 1) + 4 * tokens / kClock) / warpgroups});
    return (slowest + shared_tokens / kTokenBytes) * ctas_on_sm * (1 - kIdle * (1 - busy));
  };
  // Stream-K's ranges lie far apart, so CTAs at work at one time share less in L2, the more tiles a range has.
  const double blocks =
      row.stream_k
          ? tiles * k_blocks * rows64 / clusters * block_ns(slots) * (1 + kFarApart * std::min(tiles / clusters, 8.0))
          : std::ceil(k_blocks / tile.split_k) * rows64 * ((waves - 1) * block_ns(slots) + block_ns(last_slots));
  const double work = blocks * 1e-3;
  const double bytes =
      static_cast<double>(ceil_div(problem.n, 64)) * k_blocks * block_bytes +
      static_cast<double>(problem.m) *
          (2.0 * static_cast<double>(problem.k) + dtype_bytes(problem.out_dtype) * static_cast<double>(problem.n));
  const double memory = bytes / kBytes, sums = tokens * tile.tile_n() * 1e-4;
  const double parts = tile.split_k * tile.k_warpgroups;
  const double finish =
      split ? (kReduction + kSendSums * sums * (parts - 1) / tile.split_k + kFinishSums * sums / tile.split_k) * waves
      : row.stream_k ? kFixUp + kFixUpSums * sums * (clusters / tiles + 1)
                     : kStore * sums * waves;
  const double grid = one_each ? std::min(ctas, sms) : row.stream_k ? clusters * cluster : std::min(ctas, place);
  return kStart - (2 * grid <= sms * tile.ctas_per_sm ? kOverlapped : 0) -
         (tile.ctas_per_sm > 1 && clusters * cluster > sms ? kTogether : 0) + finish + std::max(work, memory);
}

Result<void> launch(const GemmRow& row, PreparedDevices& prepared, const Problem& problem, const Device& device,
                    const LaunchArgs& args, bool pdl) {
  const GemmTile& tile = row.config.tile;
  const int64_t ld_act = args.ld_act ? args.ld_act : problem.k, ld_out = args.ld_out ? args.ld_out : problem.n;
  const bool bf16 = problem.act_dtype == DType::kBf16;
  // Rows of a box that lie outside the tensor map cost time from nine of them on (docs/decisions/0015): where there are
  // fewer tokens than a tile has rows it has as many, rounded up to the swizzle's eight, and the last m tile ends at m.
  const auto act_rows = static_cast<int>(std::min<int64_t>(ceil_div(problem.m, 8) * 8, tile.tile_m));
  const bool act_whole = problem.k % 64 == 0;
  Result<CUtensorMap> act_map =
      runtime::tensor_map({args.act, problem.m, problem.k, ld_act, bf16},
                          {act_rows, act_whole ? 2 * tile.stages_per_barrier / tile.multicast : 0});
  if (!act_map) return act_map.error();

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
  params.last_token0 = std::max(static_cast<int>(problem.m) - tile.tile_m, 0);
  params.act_whole = act_whole;
  params.act_half_bytes = act_rows * 64 * 2;
  params.raster = std::min(8, params.n_tiles);
  params.out = args.out;
  params.ld_out = ld_out;
  params.epilogue = EpilogueParams::from(args, ld_out);

  params.workspace = row.stream_k ? static_cast<uint8_t*>(args.workspace) : nullptr;
  const int64_t clusters = cluster_count(row, problem, device);
  params.trigger =
      trigger(row, problem, static_cast<double>(clusters * tile.cluster()), static_cast<double>(device.num_sms));
  params.partial_sums = static_cast<int64_t>(
      PartialSumsMap(static_cast<int>(clusters * tile.cluster()), tile.row_warpgroups(), tile.tile_m, tile.tile_n())
          .partials);
  void* pointers[] = {&*act_map, &params};
  return launch_function(row.function, prepared,
                         {.grid = dim3(static_cast<unsigned>(clusters * tile.cluster())),
                          .threads = tile.threads(),
                          .smem_bytes = row.smem_bytes,
                          .cluster = tile.cluster(),
                          .pdl = pdl,
                          .stream = args.stream},
                         pointers);
}

Numerics numerics(const GemmRow& row) {
  return exact_weights(row.config) ? Numerics::kExactWeight : Numerics::kRoundedWeight;
}

}  // namespace

const std::vector<KernelEntry>& gemm_sm90_kernels() {
  static const std::vector<GemmRow> all =
      rows_from({gemm_instances_bf16(), gemm_instances_bf16_zp(), gemm_instances_fp16(), gemm_instances_fp16_zp()});
  static const std::vector<KernelEntry> rows =
      rows_of<GemmRow>({all}, {name, numerics, why_not, estimate_us, nullptr, workspace_bytes, launch});
  return rows;
}

}  // namespace nybble::kernels
