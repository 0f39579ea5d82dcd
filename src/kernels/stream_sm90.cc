// The streaming family's rows: validity, cost model, launch.
#include "kernels/stream_sm90.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/family_rows.h"
#include "kernels/stream_instance.h"
#include "kernels/validity.h"
#include "layout/blob.h"

namespace nybble::kernels {
namespace {

constexpr int kReservedSmem = 1024;  // the system's share of every CTA's shared memory

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// How an instance covers a problem on a device.
struct Split {
  int k_blocks;
  int groups;  // of tile_n output features
  int clusters;
  int buffers;  // of the reduction
  StreamSmem smem;
};

Split split_of(const StreamInstance& instance, const Problem& problem, const Device& device) {
  const StreamTile& tile = instance.config.tile;
  Split split;
  split.k_blocks = ceil_div(problem.k, layout::kBlockK);
  split.groups = ceil_div(problem.n, tile.tile_n());
  // All SMs or, where most CTAs would only repeat others' work, as many as there are groups.
  const int all = std::max(device.num_sms * tile.ctas_per_sm / tile.cluster, 1);
  split.clusters = 2 * split.groups > all ? all : split.groups;
  split.buffers = split.groups > split.clusters ? 2 : 1;
  split.smem = instance.smem(static_cast<int>(std::min<int64_t>(problem.m, tile.tile_m)),
                             ceil_div(split.k_blocks, tile.cluster), split.buffers);
  return split;
}

std::string why_not(const StreamInstance& instance, const Problem& problem, const Device& device) {
  const StreamTile& tile = instance.config.tile;
  if (std::string reason = why_not_hopper_format(instance.config.format, problem, device); !reason.empty())
    return reason;
  if (problem.out_dtype != problem.act_dtype && problem.out_dtype != DType::kFp32)
    return fmt::format("writes {} or fp32; out is {}", dtype_name(problem.act_dtype), dtype_name(problem.out_dtype));
  if (problem.m > tile.tile_m) return fmt::format("takes up to {} tokens; m is {}", tile.tile_m, problem.m);
  const int most_k = device.max_smem_bytes / 2;
  const int bytes = problem.k <= most_k ? split_of(instance, problem, device).smem.bytes : INT32_MAX;
  if (bytes > device.max_smem_bytes)
    return fmt::format(
        "keeps {} tokens of {} input features in shared memory beside its weights, more than the {} bytes a block may "
        "have",
        problem.m, problem.k, device.max_smem_bytes);
  return "";
}

// Modelled microseconds: what an SM does between its predecessor's end and its own, and the part of the bytes' time
// that it does not hide; at least the bytes at the bandwidth of memory. Fitted on the family's tiles, 16 shapes
// x m = 1, 2, 4, 6, 8, bf16 in groups of 128, on an H200, 2026-11-30: the tile of the lowest estimate took 1.3 % longer
// than the best one (geometric mean; at most 12 %), estimates of tiles near the best are 7 % off (rms).
double estimate_us(const StreamInstance& instance, const Problem& problem, const Device& device) {
  constexpr double kStart = 1.445;                          // release by the predecessor, first tokens, last reduction
  constexpr double kEmptyRing = 0.579;                      // more where a CTA cannot start beside its predecessor
  constexpr double kTokenBytes = 54.3e3;                    // a microsecond and SM, tokens into shared memory
  constexpr double kStep = 0.0897, kStepPerPiece = 0.0342;  // a warp's pieces of one block of input features
  constexpr double kPiece = 0.0527;                         // the same where all warps of a sub-core want it
  constexpr double kRefill = 0.0682;                        // more for a block that the ring had no room for
  constexpr double kGroup = 0.251, kClusterGroup = 0.507;   // reduction and store of a group of output features
  constexpr double kBytesBeside = 8.18e6;                   // a microsecond, of the bytes' time that is left to see
  constexpr double kBoundary = 0.494, kBytes = 4.6e6;       // of a layer that memory limits
  const StreamTile& tile = instance.config.tile;
  const Split split = split_of(instance, problem, device);
  const int fitting = (device.max_smem_bytes + kReservedSmem) / (split.smem.bytes + kReservedSmem);
  const int resident = std::min(tile.slots_per_sm, fitting), active = std::min(tile.ctas_per_sm, resident);
  const int rounds = ceil_div(split.clusters * tile.cluster, device.num_sms * active);
  const int slice = ceil_div(split.k_blocks, tile.cluster), steps = ceil_div(slice, tile.k_warps);
  // Several CTAs per SM: one that ends early leaves its place to the next kernel.
  const double groups = tile.ctas_per_sm > 1 ? static_cast<double>(split.groups) / split.clusters
                                             : ceil_div(split.groups, split.clusters);
  const double step =
      std::max(kStep + kStepPerPiece * tile.row_tiles, kPiece * tile.row_tiles * tile.warps() * active / 4);
  const double group_us = steps * step + kGroup + (tile.cluster > 1 ? kClusterGroup : 0);
  const double token_bytes = 2.0 * layout::kBlockK * static_cast<double>(problem.m) * slice * active;
  const double refills = std::max(groups * steps - tile.stages, 0.0);
  const double work = kStart + rounds * ((resident > active ? 0 : kEmptyRing) + token_bytes / kTokenBytes +
                                         groups * group_us + refills * kRefill);
  const double bytes = static_cast<double>(ceil_div(problem.n, layout::kBlockN)) * split.k_blocks *
                       instance.config.format.block().block_bytes();
  return std::max(work + bytes / kBytesBeside, kBoundary + bytes / kBytes);
}

Result<void> launch(const StreamInstance& instance, PreparedDevices& prepared, const Problem& problem,
                    const Device& device, const LaunchArgs& args, bool pdl) {
  const StreamTile& tile = instance.config.tile;
  const Split split = split_of(instance, problem, device);
  const layout::BlobMap blob = layout::blob_map(problem.n, problem.k, problem.weight);
  StreamParams params;
  params.weight = static_cast<const uint8_t*>(args.weight);
  params.column_scales = blob.column_scales;
  params.column_zeros = blob.column_zeros;
  params.act = args.act;
  params.ld_act = args.ld_act ? args.ld_act : problem.k;
  params.out = args.out;
  params.ld_out = args.ld_out ? args.ld_out : problem.n;
  params.out_fp32 = problem.out_dtype == DType::kFp32;
  params.m = static_cast<int>(problem.m);
  params.n = static_cast<int>(problem.n);
  params.k = static_cast<int>(problem.k);
  params.k_blocks = split.k_blocks;
  params.pieces = static_cast<int>(blob.n_blocks) * layout::kPiecesPerBlock;
  params.groups_each = split.groups / split.clusters;
  params.groups_left = split.groups % split.clusters;
  // A ring that holds much of the layer would hold up the predecessor's end if it filled all at once.
  params.throttle = pdl && blob.total_bytes < (40 << 20) ? 1 : 0;
  params.smem = split.smem;
  params.epilogue = EpilogueParams::from(args, params.ld_out);
  return launch_kernel(instance.function, prepared,
                       {.grid = dim3(static_cast<unsigned>(split.clusters * tile.cluster)),
                        .threads = tile.threads(),
                        .smem_bytes = split.smem.bytes,
                        .cluster = tile.cluster,
                        .pdl = pdl,
                        .stream = args.stream},
                       params);
}

std::string name(const StreamInstance& instance) { return kernel_name(instance.config); }

Numerics numerics(const StreamInstance&) { return Numerics::kExactWeight; }

}  // namespace

const std::vector<KernelEntry>& stream_sm90_kernels() {
  static const std::vector<KernelEntry> rows = rows_of<StreamInstance>(
      {stream_instances_bf16(), stream_instances_bf16_zp(), stream_instances_fp16(), stream_instances_fp16_zp()},
      {name, numerics, why_not, estimate_us, nullptr, nullptr, launch});
  return rows;
}

}  // namespace nybble::kernels
