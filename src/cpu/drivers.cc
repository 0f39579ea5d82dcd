#include "cpu/drivers.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "base/error.h"
#include "base/parallel.h"
#include "layout/blob.h"

namespace nybble::cpu {
namespace {

constexpr int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The caller's workspace may lie anywhere; what is kept in it begins at a cache line.
constexpr size_t kCacheLine = 64;
float* workspace_of(const LaunchArgs& args) {
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(args.workspace) + kCacheLine - 1) / kCacheLine *
                                  kCacheLine);
}

int64_t padded_k(const Problem& problem) { return div_up(problem.k, layout::kBlockK) * layout::kBlockK; }

// Elements between the rows of prepared act: an odd number of blocks, so that the same block of eight tokens never
// falls into the same sets of the first-level cache.
int64_t prepared_ld(const Problem& problem) { return padded_k(problem) | layout::kBlockK; }

// A launch's operands, with what the packed header says.
struct Operands {
  const Problem& problem;
  const LaunchArgs& args;
  layout::BlobMap map;
  float descale[2];
  float alpha;
  int64_t ld_act, ld_out;

  int64_t padded_k() const { return map.k_blocks * layout::kBlockK; }
  int64_t prepared_ld() const { return cpu::prepared_ld(problem); }
  const std::byte* blob() const { return static_cast<const std::byte*>(args.weight); }

  WeightRows weight_rows(int64_t n_block) const {
    const layout::BlockShape& block = map.block;
    const bool columns = map.column_scales >= 0, zeros = map.column_zeros >= 0;
    return {
        .blocks = blob() + map.block_offset(n_block, 0),
        .k_blocks = map.k_blocks,
        .block_bytes = block.block_bytes(),
        .piece_bytes = block.piece_bytes(),
        .groups = block.groups,
        .scale_dtype = problem.weight.scale_dtype,
        .zero_kind = problem.weight.zero_kind,
        .column_scales = columns ? blob() + map.column_scales + n_block * layout::kBlockN * block.scale_bytes : nullptr,
        .column_zeros = zeros ? blob() + map.column_zeros + n_block * layout::kBlockN * block.zero_bytes : nullptr,
        .descale = {descale[0], descale[1]}};
  }

  // Tokens [first, end) prepared, prepared_ld() apart, in `out`.
  void prepare_act(const IsaRoutines& isa, int64_t first, int64_t end, float* out, int num_threads) const {
    constexpr int64_t kChunk = 8192;  // a multiple of 64, some microseconds of work
    const int64_t chunks = div_up(padded_k(), kChunk);
    const auto* k_order = map.k_order < 0 ? nullptr : reinterpret_cast<const int32_t*>(blob() + map.k_order);
    base::parallel_for((end - first) * chunks, num_threads, [&](int64_t item) {
      const int64_t row = item / chunks, begin = item % chunks * kChunk;
      const auto* act = static_cast<const std::byte*>(args.act);
      isa.prepare_act({.dtype = problem.act_dtype,
                       .row = act + (first + row) * ld_act * static_cast<int64_t>(dtype_bytes(problem.act_dtype)),
                       .k = problem.k,
                       .k_order = k_order,
                       .begin = begin,
                       .end = std::min(begin + kChunk, padded_k()),
                       .out = out + row * prepared_ld() + begin});
    });
  }

  // Stores out[row, first_n .. + count) from its sums.
  void finish(const IsaRoutines& isa, int64_t row, int64_t first_n, int64_t count, const float* sums) const {
    const auto out_bytes = static_cast<int64_t>(dtype_bytes(problem.out_dtype));
    const auto act_bytes = static_cast<int64_t>(dtype_bytes(problem.act_dtype));
    const int64_t offset = (row * ld_out + first_n) * out_bytes;
    const auto at = [](const void* base, int64_t bytes) { return static_cast<const std::byte*>(base) + bytes; };
    isa.finish({.sums = sums,
                .count = count,
                .alpha = alpha,
                .bias = problem.epilogue.bias ? at(args.bias, first_n * act_bytes) : nullptr,
                .bias_dtype = problem.act_dtype,
                .residual = problem.epilogue.residual ? at(args.residual, offset) : nullptr,
                .out = static_cast<std::byte*>(args.out) + offset,
                .out_dtype = problem.out_dtype});
  }
};

Result<Operands> operands(const Problem& problem, const LaunchArgs& args) {
  const layout::PackedHeader& header = layout::header_of(args.weight);
  WeightFormat format = layout::format_of(header), wanted = problem.weight;
  format.scales_in_window = wanted.scales_in_window = true;  // no matter here: scales are used exactly
  if (header.layout_version != layout::kLayoutVersion || header.n != problem.n || header.k != problem.k ||
      format != wanted) {
    return invalid_argument(
        "the plan is for `{}`, but the packed weight is n{} k{} {} in layout {}; make the plan from "
        "problem_for(weight, ...)",
        to_string(problem), header.n, header.k, to_string(format), header.layout_version);
  }
  // 2^-shift in two factors, each exact and in fp32's normal range. Every product is exact: the scale as it was read is
  // a number of its type, and the first product lies between it and the stored scale.
  const int shift = layout::stored_scale_shift(header);
  return Operands{.problem = problem,
                  .args = args,
                  .map = layout::blob_map(header),
                  .descale = {std::ldexp(1.0f, -(shift / 2)), std::ldexp(1.0f, -(shift - shift / 2))},
                  .alpha = args.alpha_device != nullptr ? *args.alpha_device : args.alpha,
                  .ld_act = args.ld_act > 0 ? args.ld_act : problem.k,
                  .ld_out = args.ld_out > 0 ? args.ld_out : problem.n};
}

}  // namespace

size_t gemv_workspace_bytes(const Problem& problem) {
  return static_cast<size_t>(problem.m * prepared_ld(problem)) * sizeof(float) + kCacheLine;
}

Result<void> launch_gemv(const IsaRoutines& isa, const Problem& problem, const Device& device, const LaunchArgs& args) {
  if (problem.m == 0 || problem.n == 0) return {};
  const Result<Operands> checked = operands(problem, args);
  if (!checked) return checked.error();
  const Operands& op = *checked;
  float* act = workspace_of(args);
  op.prepare_act(isa, 0, problem.m, act, device.num_threads);

  // A task is 64 output features, or 16 where that would leave threads idle; either way each output is computed alike.
  const int64_t threads = device.num_threads > 0 ? device.num_threads : base::default_threads();
  const int pieces = op.map.n_blocks >= 4 * threads ? layout::kPiecesPerBlock : 1;
  const int64_t parts = layout::kPiecesPerBlock / pieces;
  const int64_t passes = div_up(problem.m, isa.max_tokens);
  base::parallel_for(op.map.n_blocks * parts, device.num_threads, [&](int64_t item) {
    const int64_t n_block = item / parts;
    const int first_piece = static_cast<int>(item % parts) * pieces;
    const int64_t first_n = n_block * layout::kBlockN + first_piece * layout::kPieceN;
    const int64_t count = std::min<int64_t>(pieces * layout::kPieceN, problem.n - first_n);
    if (count <= 0) return;
    for (int64_t pass = 0; pass < passes; ++pass) {  // as even as can be: 9 tokens are 5 and 4
      const int64_t first = problem.m * pass / passes, end = problem.m * (pass + 1) / passes;
      alignas(64) float sums[kMostTokens * layout::kBlockN];
      isa.gemv({.weight = op.weight_rows(n_block),
                .first_piece = first_piece,
                .end_piece = first_piece + pieces,
                .act = act + first * op.prepared_ld(),
                .ld_act = op.prepared_ld(),
                .tokens = static_cast<int>(end - first),
                .sums = sums});
      for (int64_t row = first; row < end; ++row) {
        op.finish(isa, row, first_n, count, sums + (row - first) * layout::kBlockN + first_piece * layout::kPieceN);
      }
    }
  });
  return {};
}

namespace {

// How launch_gemm cuts a problem. Depends on the problem alone, so that the number of threads does not change a bit.
struct GemmCut {
  int64_t rows;    // of act in one pass: prepared once, multiplied with every tile
  int64_t tile_m;  // rows of one task
  int64_t tile_n;  // output features of one task
  int64_t padded_k, prepared_ld;

  static constexpr int64_t kTileK = 512;
  static constexpr int64_t kTileLd = kTileK + 16;           // rows a cache line apart in the first-level cache's sets
  static constexpr int64_t kActBytes = int64_t{128} << 20;  // prepared act of one pass, where tile_m rows fit

  explicit GemmCut(const Problem& problem) : padded_k(cpu::padded_k(problem)), prepared_ld(cpu::prepared_ld(problem)) {
    tile_m = std::min(problem.m, kGemmRows);
    const int64_t fit = kActBytes / (prepared_ld * static_cast<int64_t>(sizeof(float)));
    rows = std::min(problem.m, std::max(tile_m, fit / kGemmRows * kGemmRows));
    tile_n = problem.n >= 4096 ? 256 : problem.n >= 1024 ? 128 : 64;
  }

  int64_t act_floats() const { return rows * prepared_ld; }
  int64_t weight_floats() const { return tile_n * kTileLd; }
  int64_t slot_floats() const { return weight_floats() + tile_m * tile_n; }
};

int64_t slots_of(const Device& device) { return device.num_threads > 0 ? device.num_threads : base::default_threads(); }

}  // namespace

size_t gemm_workspace_bytes(const Problem& problem, const Device& device) {
  const GemmCut cut(problem);
  return static_cast<size_t>(cut.act_floats() + slots_of(device) * cut.slot_floats()) * sizeof(float) + kCacheLine;
}

Result<void> launch_gemm(const IsaRoutines& isa, const Problem& problem, const Device& device, const LaunchArgs& args) {
  if (problem.m == 0 || problem.n == 0) return {};
  const Result<Operands> checked = operands(problem, args);
  if (!checked) return checked.error();
  const Operands& op = *checked;
  const GemmCut cut(problem);
  float* act = workspace_of(args);
  const int64_t slots = slots_of(device), n_tiles = div_up(problem.n, cut.tile_n);

  for (int64_t pass = 0; pass < problem.m; pass += cut.rows) {
    const int64_t pass_end = std::min(pass + cut.rows, problem.m);
    op.prepare_act(isa, pass, pass_end, act, device.num_threads);
    const int64_t m_tiles = div_up(pass_end - pass, cut.tile_m);
    std::atomic<int64_t> next{0};
    base::parallel_for(slots, device.num_threads, [&](int64_t slot) {  // a slot owns its tiles' scratch memory
      float* tile = act + cut.act_floats() + slot * cut.slot_floats();
      float* sums = tile + cut.weight_floats();
      for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < m_tiles * n_tiles;) {
        const int64_t first_n = item / m_tiles * cut.tile_n, first_m = pass + item % m_tiles * cut.tile_m;
        const int64_t tile_n = std::min(cut.tile_n, problem.n - first_n);
        const int64_t tile_m = std::min(cut.tile_m, pass_end - first_m);
        std::fill(sums, sums + tile_m * cut.tile_n, 0.0f);
        for (int64_t k = 0; k < cut.padded_k; k += GemmCut::kTileK) {
          const int64_t tile_k = std::min(GemmCut::kTileK, cut.padded_k - k);
          for (int64_t n = 0; n < tile_n; n += layout::kBlockN) {
            isa.dequantize({.weight = op.weight_rows((first_n + n) / layout::kBlockN),
                            .first_block = k / layout::kBlockK,
                            .end_block = (k + tile_k) / layout::kBlockK,
                            .out = tile + n * GemmCut::kTileLd,
                            .ld_out = GemmCut::kTileLd});
          }
          isa.multiply({.m = tile_m,
                        .n = tile_n,
                        .k = tile_k,
                        .act = act + (first_m - pass) * cut.prepared_ld + k,
                        .ld_act = cut.prepared_ld,
                        .weight = tile,
                        .ld_weight = GemmCut::kTileLd,
                        .sums = sums,
                        .ld_sums = cut.tile_n});
        }
        for (int64_t row = 0; row < tile_m; ++row) {
          op.finish(isa, first_m + row, first_n, tile_n, sums + row * cut.tile_n);
        }
      }
    });
  }
  return {};
}

}  // namespace nybble::cpu
