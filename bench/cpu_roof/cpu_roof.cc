// How near the CPU rows come to their two roofs: packed bytes a second beside memcpy's, and GFLOP/s beside Eigen's
// sgemm on as many threads. Every row of cpu_kernels() that this CPU can run, one line a problem.
//   cpu_roof [--threads N] ["m1 n4096 k4096 bf16 g128" ...]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "base/parallel.h"
#include "bench/dense_cpu.h"
#include "cpu/kernels.h"
#include "nybble/pack.h"

namespace nybble {
namespace {

constexpr size_t kCopyBytes = size_t{512} << 20;  // what memcpy copies and what gemv rotates through

template <class T> auto value_or_exit(Result<T> result) {
  if (!result) {
    std::fprintf(stderr, "cpu_roof: %s\n", result.error().message.c_str());
    std::exit(1);
  }
  return std::move(result).value();
}

// Seconds of the fastest of several runs, after one that warms up.
double best_seconds(const std::function<void()>& run) {
  run();
  double best = 1e30;
  for (int i = 0; i < 7; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

// GB copied a second, one slice a thread: long copies bypass the caches and are the fastest.
double memcpy_gb_s(int num_threads) {
  const size_t threads = num_threads > 0 ? num_threads : base::default_threads(), share = kCopyBytes / threads;
  std::vector<std::byte> from(kCopyBytes, std::byte{1}), to(kCopyBytes, std::byte{2});
  return static_cast<double>(share * threads) * 1e-9 / best_seconds([&] {
           base::parallel_for(threads, num_threads,
                              [&](int64_t i) { std::memcpy(&to[i * share], &from[i * share], share); });
         });
}

QuantizedWeight random_weight(const Problem& problem) {
  std::mt19937 random(1);
  const WeightFormat& format = problem.weight;
  QuantizedWeight weight{
      .name = "bench", .n = problem.n, .k = problem.k, .group_size = format.group_size, .zero_kind = format.zero_kind};
  weight.codes.resize(problem.n * problem.k);
  for (auto& code : weight.codes) code = random() % 16;
  std::vector<float> scales(problem.n * weight.groups());
  for (float& scale : scales) scale = 0.01f + 0.02f * static_cast<float>(random() % 1000) / 1000;
  weight.scales = FloatArray::from_floats(format.scale_dtype, scales);
  if (format.zero_kind == ZeroKind::kInt) {
    weight.int_zeros.resize(scales.size());
    for (auto& zero : weight.int_zeros) zero = random() % 16;
  } else if (format.zero_kind != ZeroKind::kNone) {
    weight.float_zeros = FloatArray::from_floats(format.scale_dtype, scales);
  }
  if (format.k_order) {
    weight.k_order.resize(problem.k);
    std::iota(weight.k_order.begin(), weight.k_order.end(), 0);
    std::shuffle(weight.k_order.begin(), weight.k_order.end(), random);
  }
  return weight;
}

// Seconds of one launch, rotating through copies of the weight.
double launch_seconds(const KernelEntry& row, const Problem& problem, const Device& device,
                      const std::vector<std::shared_ptr<std::byte[]>>& copies) {
  const FloatArray act = FloatArray::from_floats(problem.act_dtype, std::vector<float>(problem.m * problem.k, 1.0f));
  std::vector<float> out(problem.m * problem.n);
  const size_t workspace_bytes = row.workspace_bytes(problem, device);
  const std::shared_ptr<std::byte[]> workspace = allocate_packed(workspace_bytes);
  const double seconds = best_seconds([&] {
    for (const auto& copy : copies) {
      const LaunchArgs args{.act = act.bytes.data(),
                            .weight = copy.get(),
                            .out = out.data(),
                            .workspace = workspace.get(),
                            .workspace_bytes = workspace_bytes};
      value_or_exit(row.launch(problem, device, args, false));
    }
  });
  return seconds / static_cast<double>(copies.size());
}

double eigen_seconds(const Problem& problem, const Device& device) {
  std::vector<float> act(problem.m * problem.k, 1.0f), weight(problem.n * problem.k, 1.0f), out(problem.m * problem.n);
  return best_seconds([&] {
    bench::dense_gemm(problem.m, problem.n, problem.k, act.data(), weight.data(), out.data(), device.num_threads);
  });
}

void measure(Problem problem, const Device& device) {
  const PackedWeight packed = value_or_exit(pack(random_weight(problem)));
  problem.weight = packed.format();
  const size_t bytes = packed.size_bytes();
  std::vector<std::shared_ptr<std::byte[]>> copies(problem.m <= 16 ? (kCopyBytes + bytes - 1) / bytes : 1);
  for (auto& copy : copies) std::memcpy((copy = allocate_packed(bytes)).get(), packed.data(), bytes);

  const double gflop = 2e-9 * static_cast<double>(problem.m * problem.n) * static_cast<double>(problem.k);
  const double copy_gb_s = memcpy_gb_s(device.num_threads);
  std::printf("%s: memcpy %.2f GB/s", to_string(problem).c_str(), copy_gb_s);
  double eigen_gflop_s = 0;
  if (problem.m >= 64 && bench::has_dense_gemm()) {
    eigen_gflop_s = gflop / eigen_seconds(problem, device);
    std::printf(", Eigen %.1f GFLOP/s", eigen_gflop_s);
  }
  std::printf("\n");
  for (const KernelEntry& row : cpu::cpu_kernels()) {
    if (const std::string reason = row.why_not(problem, device); !reason.empty()) {
      std::printf("  %-16s %s\n", row.name.c_str(), reason.c_str());
      continue;
    }
    const double seconds = launch_seconds(row, problem, device, copies),
                 gb_s = static_cast<double>(bytes) * 1e-9 / seconds;
    std::printf("  %-16s %8.0f us (model %8.0f) %6.2f GB/s packed = %.2f memcpy %6.1f GFLOP/s", row.name.c_str(),
                seconds * 1e6, row.estimate_us(problem, device), gb_s, gb_s / copy_gb_s, gflop / seconds);
    if (eigen_gflop_s > 0) std::printf(" = %.2f Eigen", gflop / seconds / eigen_gflop_s);
    std::printf("\n");
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace nybble

int main(int argc, char** argv) {
  using namespace nybble;
  Device device{.kind = DeviceKind::kCpu, .name = "cpu"};
  std::vector<std::string> problems(argv + 1, argv + argc);
  if (problems.size() >= 2 && problems[0] == "--threads") {
    device.num_threads = std::atoi(problems[1].c_str());
    problems.erase(problems.begin(), problems.begin() + 2);
  }
  if (problems.empty()) {
    problems = {"m1 n4096 k4096 bf16 g128",    "m1 n28672 k4096 bf16 g128",  "m1 n8192 k28672 bf16 g128",
                "m1 n8192 k8192 bf16 g64 zp",  "m1 n8192 k8192 bf16 g32 zp", "m1 n8192 k8192 bf16 g16 offset",
                "m1 n8192 k8192 bf16 col fzp", "m2 n8192 k8192 bf16 g128",   "m4 n8192 k8192 bf16 g128",
                "m8 n8192 k8192 bf16 g128",    "m16 n8192 k8192 bf16 g128",  "m64 n4096 k4096 bf16 g128",
                "m256 n4096 k4096 bf16 g128",  "m1024 n4096 k4096 bf16 g128"};
  }
  for (const std::string& text : problems) measure(value_or_exit(parse_problem(text)), device);
}
