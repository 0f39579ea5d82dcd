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

// The rows of every instance: split_k has a schedule of its own; the others share tiles or k steps.
std::vector<GemmRow> rows_from(std::initializer_list<std::span<const GemmInstance>> parts) {
  std::vector<GemmRow> rows;
  for (const std::span<const GemmInstance> part : parts)
    for (const GemmInstance& instance : part) {
      const GemmTile& tile = instance.config.tile;
      for (const bool stream_k : {false, true})
        for (const bool half : {false, true})
          if ((!half || tile.ctas_per_sm > 1) && (tile.split_k == 1 || (!stream_k && !half)))
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

size_t workspace_bytes(const GemmRow& row, const Problem& problem, const Device& device) {
  if (!row.stream_k) return 0;
  const GemmTile& tile = row.config.tile;
  const auto ctas = static_cast<int>(cluster_count(row, problem, device) * tile.cluster());
  return PartialSumsMap(ctas, tile.row_warpgroups(), tile.tile_m, tile.tile_n()).bytes;
}

std::string why_not(const GemmRow& row, const Problem& problem, const Device& device) {
  const GemmTile& tile = row.config.tile;
  if (std::string reason = why_not_hopper_format(row.config.format, problem, device); !reason.empty()) return reason;
  if (problem.out_dtype != problem.act_dtype)
    return fmt::format("writes {}; out is {}", dtype_name(problem.act_dtype), dtype_name(problem.out_dtype));
  if (!problem.weight.scales_in_window && row.config.format.groups > 0)
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

// Modelled microseconds: what the busiest SM computes and all bytes at the bandwidth that a layer reaches; the longer
// of the two, a part of the other and the launch's fixed costs. A 64 x 128 block costs what its slowest unit needs:
// tensor cores, instruction slots, the latency of one block over the warpgroups that share it, L2. The last wave is
// counted by itself: fewer CTAs draw less from L2 and fewer of them reduce on one SM. Clusters fill an SM's slots
// before the next SM, so CTAs made to share an SM share it in a small grid too. Fitted on nine shapes x m = 8 .. 8192,
// bf16 in groups of 128, and three shapes with zero points, tiles of fewer tokens than m among them, on an H200,
// 2026-11-25: the tile of the lowest estimate took 0.2 % longer than the best one (geometric mean; at most 8.8 %);
// with two of the nine shapes left out of the fit, 1.0 % on these two (at most 8.8 %). Estimates of tiles near the best
// are 6 % off (rms).
double estimate_us(const GemmRow& row, const Problem& problem, const Device& device) {
  constexpr double kStart = 1.48;      // release by the predecessor, first stages, last store
  constexpr double kReduction = 4.03;  // over a cluster, every slot of the SM taken
  constexpr double kTensor = 1.63;     // cycles a nanosecond, four a token
  // Slots a block: wgmma's operand of 16-bit weights, two a token, the conversion of the codes; slots a nanosecond.
  constexpr double kOperandSlots = 32, kTokenSlots = 2, kCodeSlots = 152, kOtherFormatSlots = 59.2, kSlots = 1.79;
  constexpr double kLatency = 243, kTokenLatency = 2.33;  // nanoseconds a block, and more for each token
  constexpr double kL2Bytes = 37.9;                       // a nanosecond and SM, when all SMs read
  constexpr double kBytes = 4.3e6;                        // a microsecond, all SMs, from memory
  constexpr double kNotHidden = 0.0671;
  constexpr double kStore = 4.48e-3;  // a token and 64 output features of a whole tile
  const GemmTile& tile = row.config.tile;
  const double sms = device.num_sms, slots = row.half ? 1 : tile.ctas_per_sm, tokens = tile.tile_m;
  const double block_bytes = row.config.format.block().block_bytes();
  const double k_blocks = static_cast<double>(ceil_div(problem.k, layout::kBlockK));
  const double rows64 = tile.tile_n() / 64.0;
  const bool plain = row.config.format.act == DType::kBf16 && !row.config.format.zero_point;

  const double ctas = static_cast<double>(tile_count(tile, problem)) * tile.cluster();
  // Clusters of four do not fill every GPC with one CTA per SM: 112 of 132 SMs.
  const double wave_ctas = tile.split_k > 1 ? (tile.cluster() > 2 && slots == 1 ? sms * 112 / 132 : sms) * slots
                                            : std::floor(sms * slots / tile.multicast) * tile.multicast;
  const double waves = std::ceil(ctas / wave_ctas), last_ctas = ctas - (waves - 1) * wave_ctas;

  const double block_ns =
      std::max({4 * tokens / kTensor,
                (kOperandSlots + kTokenSlots * tokens + kCodeSlots + (plain ? 0 : kOtherFormatSlots)) / kSlots,
                (kLatency + kTokenLatency * tokens) / (tile.warpgroups * slots)});
  const double l2_ns = (tokens * 256.0 / tile.multicast / rows64 + block_bytes) / kL2Bytes;
  const auto wave_ns = [&](double wave) { return std::max(block_ns, l2_ns * std::min(1.0, wave / (sms * slots))); };
  const double blocks = std::ceil(k_blocks / tile.split_k) * rows64 * slots;
  const double work = blocks * ((waves - 1) * wave_ns(wave_ctas) + wave_ns(last_ctas)) * 1e-3;

  const double bytes = static_cast<double>(ceil_div(problem.n, 64)) * k_blocks * block_bytes +
                       2.0 * static_cast<double>(problem.m) * static_cast<double>(problem.k + problem.n);
  const double memory = bytes / kBytes;
  if (row.stream_k) {
    const double clusters = static_cast<double>(cluster_count(row, problem, device));
    const double share = static_cast<double>(tile_count(tile, problem)) * k_blocks * rows64 * slots / clusters;
    const double even = share * std::max(block_ns, l2_ns) * 1e-3;
    return kStart + 1.5 + 0.00005 * tokens * tile.tile_n() + std::max(even, memory) +
           kNotHidden * std::min(even, memory);
  }
  const double last_share = std::clamp(last_ctas / (sms * slots), 1 / slots, 1.0);
  const double finish = tile.split_k > 1 ? kReduction * (waves - 1 + last_share) : kStore * waves * tokens * rows64;
  return kStart + finish + std::max(work, memory) + kNotHidden * std::min(work, memory);
}

Result<void> launch(const GemmRow& row, PreparedDevices& prepared, const Problem& problem, const Device& device,
                    const LaunchArgs& args, bool pdl) {
  const GemmTile& tile = row.config.tile;
  const int64_t ld_act = args.ld_act ? args.ld_act : problem.k, ld_out = args.ld_out ? args.ld_out : problem.n;
  const bool bf16 = problem.act_dtype == DType::kBf16;
  Result<CUtensorMap> act_map = runtime::tensor_map({args.act, problem.m, problem.k, ld_act, bf16}, tile.tile_m);
  if (!act_map) return act_map.error();
  const int64_t n_whole = problem.n / 8 * 8;
  const runtime::MatrixView out{args.out, problem.m, std::max<int64_t>(n_whole, 8), ld_out, bf16};  // n < 8: not used
  Result<CUtensorMap> out_map = tile.split_k > 1 ? *act_map : runtime::tensor_map(out, kOutChunkTokens);
  if (!out_map) return out_map.error();

  const layout::BlobMap blob = layout::blob_map(problem.n, problem.k, problem.weight);
  GemmParams params;
  params.weight = static_cast<const uint8_t*>(args.weight);
  params.column_scales = blob.column_scales;
  params.column_zeros = blob.column_zeros;
  params.m = static_cast<int>(problem.m);
  params.n = static_cast<int>(problem.n);
  params.n_whole = static_cast<int>(n_whole);
  params.n_blocks = static_cast<int>(blob.n_blocks);
  params.k_blocks = static_cast<int>(blob.k_blocks);
  params.n_tiles = static_cast<int>(ceil_div(problem.n, int64_t{tile.tile_n()} * tile.multicast));
  params.m_tiles = static_cast<int>(ceil_div(problem.m, tile.tile_m));
  params.raster = std::min(8, params.n_tiles);
  params.out = args.out;
  params.ld_out = ld_out;
  params.epilogue = EpilogueParams::from(args, ld_out);

  params.workspace = row.stream_k ? static_cast<uint8_t*>(args.workspace) : nullptr;
  const int64_t clusters = cluster_count(row, problem, device);
  params.partial_sums = static_cast<int64_t>(
      PartialSumsMap(static_cast<int>(clusters * tile.cluster()), tile.row_warpgroups(), tile.tile_m, tile.tile_n())
          .partials);
  void* pointers[] = {&*act_map, &*out_map, &params};
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
  return row.config.format.groups == 0 ? Numerics::kExactWeight : Numerics::kRoundedWeight;
}

}  // namespace

const std::vector<KernelEntry>& gemm_sm90_kernels() {
  static const std::vector<GemmRow> all =
      rows_from({gemm_instances_bf16(), gemm_instances_bf16_zp(), gemm_instances_fp16(), gemm_instances_fp16_zp()});
  static const std::vector<KernelEntry> rows =
      rows_of<GemmRow>({all}, {name, numerics, why_not, estimate_us, workspace_bytes, launch});
  return rows;
}

}  // namespace nybble::kernels
