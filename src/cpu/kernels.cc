// What the CPU rows can do, what they cost and what scratch memory they need.
#include "cpu/kernels.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/parallel.h"
#include "cpu/drivers.h"
#include "layout/blob.h"

namespace nybble::cpu {
namespace {

// One instruction set, and what its cost model takes one core to need: nanoseconds per packed byte for decoding it into
// registers and for one token's products, for writing it to a dense tile, and the dense product's GFLOP/s, of which m
// tokens reach the part m / (m + half_speed_m). Measured on one core of a Xeon with AVX-512 (2 FMA units, 3 GHz).
struct Isa {
  const char* name;
  const char* words;      // for people
  const char* cpu_flags;  // what /proc/cpuinfo calls it
  bool (*available)();
  const IsaRoutines* routines;
  double decode_ns, token_ns, tile_ns, dense_gflop_s, half_speed_m;
};

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

constexpr Isa kIsas[] = {
    {"avx512", "AVX-512", "avx512f avx512bw avx512vl avx512dq fma f16c", has_avx512, &kAvx512Routines, 0.037, 0.030,
     0.14, 148, 10},
    {"avx2", "AVX2", "avx2 fma f16c", has_avx2, &kAvx2Routines, 0.090, 0.050, 0.14, 98, 9},
};

// All cores together do not read packed bytes from memory faster than this, in GB/s; the guess is a low one.
constexpr double kMemoryGbS = 20;

// Of the CPU: what no row of this room can do.
std::string why_not_here(const Isa& isa, const Problem& problem, const Device& device) {
  if (device.kind != DeviceKind::kCpu) return "runs on the CPU; plan for Device::cpu()";
  if (problem.layout != layout::kLayoutVersion)
    return fmt::format("reads layout {}, the weight has layout {}; pack it again", layout::kLayoutVersion,
                       problem.layout);
  if (problem.weight.zero_kind == ZeroKind::kTable) return layout::kWhyNoTable;
  if (!isa.available())
    return fmt::format("needs a CPU with {} ({}), which this one lacks; the reference kernel runs anywhere", isa.words,
                       isa.cpu_flags);
  if (const int group_size = problem.weight.group_size; !layout::packable_group_size(group_size, problem.k))
    return fmt::format("groups of {} have no packed form; quantize in groups that are a multiple of 16, or per column",
                       group_size);
  return {};
}

double threads_of(const Device& device) {
  return device.num_threads > 0 ? device.num_threads : base::default_threads();
}

double packed_bytes_of(const Problem& problem) {
  return static_cast<double>(layout::blob_map(problem.n, problem.k, problem.weight).total_bytes);
}

KernelEntry gemv_entry(const Isa& isa) {
  return {
      .name = fmt::format("cpu_{}_gemv", isa.name),
      .device = DeviceKind::kCpu,
      .numerics = Numerics::kExactWeight,
      .why_not = [&isa](const Problem& problem, const Device& device) -> std::string {
        if (std::string reason = why_not_here(isa, problem, device); !reason.empty()) return reason;
        if (problem.m > kMaxGemvTokens)
          return fmt::format("takes at most {} tokens, m is {}; cpu_{}_gemm takes any", kMaxGemvTokens, problem.m,
                             isa.name);
        return {};
      },
      .estimate_us =
          [&isa](const Problem& problem, const Device& device) {
            const double m = static_cast<double>(problem.m), passes = std::ceil(m / isa.routines->max_tokens);
            const double compute_ns = (passes * isa.decode_ns + m * isa.token_ns) / threads_of(device);
            return 1e-3 * packed_bytes_of(problem) * std::max(compute_ns, 1 / kMemoryGbS);
          },
      .workspace_bytes = [](const Problem& problem, const Device&) { return gemv_workspace_bytes(problem); },
      .launch = [&isa](const Problem& problem, const Device& device, const LaunchArgs& args,
                       bool) { return launch_gemv(*isa.routines, problem, device, args); },
  };
}

KernelEntry gemm_entry(const Isa& isa) {
  return {
      .name = fmt::format("cpu_{}_gemm", isa.name),
      .device = DeviceKind::kCpu,
      .numerics = Numerics::kExactWeight,
      .why_not = [&isa](const Problem& problem, const Device& device) { return why_not_here(isa, problem, device); },
      .estimate_us =
          [&isa](const Problem& problem, const Device& device) {
            const double m = static_cast<double>(problem.m), passes = std::ceil(m / kGemmRows);
            const double tile_ns =
                packed_bytes_of(problem) * std::max(passes * isa.tile_ns / threads_of(device), 1 / kMemoryGbS);
            const double dense_ns = 2 * (m + isa.half_speed_m) * static_cast<double>(problem.n * problem.k) /
                                    (isa.dense_gflop_s * threads_of(device));
            return 1e-3 * (tile_ns + dense_ns);
          },
      .workspace_bytes = [](const Problem& problem,
                            const Device& device) { return gemm_workspace_bytes(problem, device); },
      .launch = [&isa](const Problem& problem, const Device& device, const LaunchArgs& args,
                       bool) { return launch_gemm(*isa.routines, problem, device, args); },
  };
}

}  // namespace

const IsaRoutines* best_routines() {
  for (const Isa& isa : kIsas)
    if (isa.available()) return isa.routines;
  return nullptr;
}

std::span<const KernelEntry> cpu_kernels() {
  static const std::vector<KernelEntry> entries = [] {
    std::vector<KernelEntry> rows;
    for (const Isa& isa : kIsas) {
      rows.push_back(gemv_entry(isa));
      rows.push_back(gemm_entry(isa));
    }
    return rows;
  }();
  return entries;
}

}  // namespace nybble::cpu
