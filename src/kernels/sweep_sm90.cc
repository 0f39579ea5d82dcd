// The sweeping family's rows: validity, cost model, launch.
#include "kernels/sweep_sm90.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/family_rows.h"
#include "kernels/partial_sums.h"
#include "kernels/sweep_instance.h"
#include "kernels/validity.h"
#include "layout/blob.h"
#include "runtime/tensor_map.h"

namespace nybble::kernels {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of the weight and the CTAs that share them.
struct Shares {
  int64_t n_blocks, k_blocks, blocks;
  int shares, ctas;

  Shares(const Problem& problem, const Device& device)
      : n_blocks(ceil_div(problem.n, layout::kBlockN)),
        k_blocks(ceil_div(problem.k, layout::kBlockK)),
        blocks(n_blocks * k_blocks) {
    const int64_t sms = device.num_sms;
    // A whole row for each CTA where that leaves few without one: it saves handing sums over.
    const bool whole_rows = n_blocks <= sms && 10 * n_blocks >= 9 * sms;
    shares = static_cast<int>(whole_rows ? n_blocks : std::min(sms, blocks));
    ctas = whole_rows ? device.num_sms : shares;  // the others hold their SM's place (sweep_sm90.cuh)
  }

  bool split_rows() const { return blocks % shares != 0 || blocks / shares % k_blocks != 0; }
};

std::string why_not(const SweepInstance& instance, const Problem& problem, const Device& device) {
  const SweepTile& tile = instance.config.tile;
  if (std::string reason = why_not_hopper_format(instance.config.format, problem, device); !reason.empty())
    return reason;
  if (problem.out_dtype != problem.act_dtype && problem.out_dtype != DType::kFp32)
    return fmt::format("writes {} or fp32; out is {}", dtype_name(problem.act_dtype), dtype_name(problem.out_dtype));
  if (problem.m > tile.tile_m) return fmt::format("takes up to {} tokens; m is {}", tile.tile_m, problem.m);
  if (Shares(problem, device).blocks > INT32_MAX) return "counts blocks of 64 x 128 in 32 bits; the weight has more";
  if (const int bytes = instance.smem(static_cast<int>(problem.m)).bytes; bytes > device.max_smem_bytes)
    return fmt::format("needs {} bytes of shared memory a block; the device allows {}", bytes, device.max_smem_bytes);
  return "";
}

size_t workspace_bytes(const SweepInstance& instance, const Problem& problem, const Device& device) {
  const Shares shares(problem, device);
  return shares.split_rows() ? size_t{kTaggedSumsBytes} * shares.shares * instance.config.tile.handed_over() : 0;
}

// Modelled microseconds: the bytes at the speed that the ring allows, and what a launch costs besides. Fitted on seven
// shapes x m = 1, 2, 4, 8, bf16 in groups of 128, on an H200, 2026-11-25.
double estimate_us(const SweepInstance& instance, const Problem& problem, const Device& device) {
  constexpr double kSharedBytes = 4.5e6, kBytes = 4.34e6;  // a microsecond: beside the next launch's CTA, without it
  constexpr double kWholeRows = 1.4, kSplitRows = 2.5;     // from a launch to the next; rows that CTAs share cost more
  constexpr double kManyParts = 0.6;                       // more where no CTA has a row of its own
  constexpr double kFewStages = 1.1;                       // more for up to eight stages a CTA (2026-11-30)
  constexpr double kAlone = 5.0, kHidden = 3.4, kHidingBytes = 120e6;  // CTAs that start where none is left
  constexpr double kSharedTokens = 0.011, kTokens = 0.006;             // of the bytes' time, for each token
  const Shares shares(problem, device);
  const double bytes = static_cast<double>(shares.blocks) * instance.config.format.block().block_bytes();
  const double tokens = static_cast<double>(problem.m - 1);
  if (instance.config.tile.slots_per_sm == 1)
    return kAlone - kHidden * std::min(1.0, bytes / kHidingBytes) + bytes / kBytes * (1 + kTokens * tokens);
  const bool few_stages = shares.blocks <= int64_t{8} * instance.config.tile.blocks_per_stage * shares.shares;
  return (shares.split_rows() ? kSplitRows + (shares.n_blocks < shares.shares ? kManyParts : 0) : kWholeRows) +
         (few_stages ? kFewStages : 0) + bytes / kSharedBytes * (1 + kSharedTokens * tokens);
}

// Kernels that let the next launch start near their end leave a chain of different layers less to overlap than the
// streaming kernels, which do so at once: at m = 1 Llama-3-8B's layers take 1.15 ms with one that is 2 % faster among
// its own kind, 1.12 without. From m = 8 on they are faster in the chain, too (H200, 2026-11-30, docs/decisions/0010).
double chain_factor(const SweepInstance& instance, const Problem& problem) {
  return instance.config.tile.slots_per_sm > 1 && problem.m < 8 ? 1.05 : 1;
}

// Blocks left to copy when the next launch may start. Of CTAs of which two fit an SM five stages: 8192x8192 at m = 1 /
// 8 9.2 / 9.5 us, with four 9.5 / 9.8, with six 9.1 / 10.5 (H200, 2026-11-25; docs/decisions/0008).
int trigger(const SweepTile& tile) { return (tile.slots_per_sm > 1 ? 5 : 4) * tile.blocks_per_stage; }

Result<void> launch(const SweepInstance& instance, PreparedDevices& prepared, const Problem& problem,
                    const Device& device, const LaunchArgs& args, bool pdl) {
  const SweepTile& tile = instance.config.tile;
  const Shares shares(problem, device);
  const int chunks = static_cast<int>(problem.k / 64);
  const runtime::MatrixView act{args.act, problem.m, problem.k, args.ld_act ? args.ld_act : problem.k,
                                problem.act_dtype == DType::kBf16};
  Result<CUtensorMap> edge_map = runtime::tensor_map(act, {static_cast<int>(problem.m)});
  if (!edge_map) return edge_map.error();
  Result<CUtensorMap> act_map =
      chunks == 0 ? *edge_map  // not used
                  : runtime::tensor_map(act, {static_cast<int>(problem.m), 2 * tile.blocks_per_stage});
  if (!act_map) return act_map.error();
  const layout::BlobMap blob = layout::blob_map(problem.n, problem.k, problem.weight);
  SweepParams params;
  params.weight = static_cast<const uint8_t*>(args.weight);
  params.column_scales = blob.column_scales;
  params.column_zeros = blob.column_zeros;
  params.out = args.out;
  params.ld_out = args.ld_out ? args.ld_out : problem.n;
  params.out_fp32 = problem.out_dtype == DType::kFp32;
  params.m = static_cast<int>(problem.m);
  params.n = static_cast<int>(problem.n);
  params.whole_chunks = chunks;
  params.n_blocks = static_cast<int>(shares.n_blocks);
  params.k_blocks = static_cast<int>(shares.k_blocks);
  params.blocks = static_cast<int>(shares.blocks);
  params.shares = shares.shares;
  params.trigger = trigger(tile);
  params.smem = instance.smem(params.m);
  params.workspace = shares.split_rows() ? static_cast<uint8_t*>(args.workspace) : nullptr;
  params.epilogue = EpilogueParams::from(args, params.ld_out);
  void* pointers[] = {&*act_map, &*edge_map, &params};
  return launch_function(instance.function, prepared,
                         {.grid = dim3(static_cast<unsigned>(shares.ctas)),
                          .threads = tile.threads(),
                          .smem_bytes = params.smem.bytes,
                          .pdl = pdl,
                          .stream = args.stream},
                         pointers);
}

std::string name(const SweepInstance& instance) { return kernel_name(instance.config); }

Numerics numerics(const SweepInstance&) { return Numerics::kExactWeight; }

}  // namespace

const std::vector<KernelEntry>& sweep_sm90_kernels() {
  static const std::vector<KernelEntry> rows = rows_of<SweepInstance>(
      {sweep_instances_bf16(), sweep_instances_bf16_zp(), sweep_instances_fp16(), sweep_instances_fp16_zp()},
      {name, numerics, why_not, estimate_us, chain_factor, workspace_bytes, launch});
  return rows;
}

}  // namespace nybble::kernels
