// nybble doctor: what is here, and what will run on it.
#include <cuda_runtime_api.h>

#include <optional>

#include "base/parallel.h"
#include "bench/bench.h"
#include "bench/build_info.h"
#include "bench/cublas.h"
#include "cli/options.h"
#include "cli/verbs.h"
#include "nybble/gemm.h"
#include "runtime/machine.h"

namespace nybble::cli {
namespace {

constexpr char kExample[] =
    "Example:\n"
    "  nybble doctor\n"
    "A machine without a GPU is no fault: the exit code is 0, and the text says what runs on the CPU.";

// What people run first: decoding and prefill of one layer.
constexpr const char* kProblems[] = {"m1 n4096 k4096 bf16 g128", "m16 n4096 k4096 bf16 g128",
                                     "m1024 n4096 k4096 bf16 g128", "m16 n4096 k4096 fp16 g64 zp",
                                     "m16 n4096 k4096 bf16 col"};

std::string cuda_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

std::string cpu_features() {
  std::vector<std::string> found;
  if (__builtin_cpu_supports("avx2")) found.push_back("AVX2");
  if (__builtin_cpu_supports("fma")) found.push_back("FMA");
  if (__builtin_cpu_supports("f16c")) found.push_back("F16C");
  if (__builtin_cpu_supports("avx512f")) found.push_back("AVX-512F");
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) found.push_back("AVX-512BW/VL");
  return found.empty() ? "no AVX2" : fmt::format("{}", fmt::join(found, ", "));
}

// One line and one JSON object for each usual problem.
void explain_device(const Device& device, const std::optional<TuningTable>& given, std::string& text, Json& json) {
  PlanOptions options;
  if (given && given->made_for(device)) options.table = given;
  json = Json::array();
  for (const char* problem : kProblems) {
    const Result<Plan> plan = make_plan(*parse_problem(problem), device, options);
    text += fmt::format("  {:<28} {}\n", problem, plan ? plan->kernel() : plan.error().message);
    json.push_back({{"problem", problem},
                    {"kernel", plan ? Json(plan->kernel()) : Json(nullptr)},
                    {"error", plan ? Json(nullptr) : Json(plan.error().message)}});
  }
}

// What a table can be used for here.
std::string table_text(const TuningTable& table, const char* name, Json& json) {
  const std::vector<std::string> unknown = table.unknown_kernels();
  json = {{"device", table.device()}, {"problems", table.num_problems()}, {"unknown_kernels", unknown}};
  if (table.empty()) return fmt::format("{} holds no measurements: the cost model chooses alone.\n", name);
  std::string text = fmt::format("{} holds {} problems measured on {}.\n", name, table.num_problems(), table.device());
  if (!unknown.empty())
    text += fmt::format("{} of its kernels are not in this library, so their times are ignored: tune anew.\n",
                        unknown.size());
  return text;
}

int run(const TableOption& table_option, const Output& output) {
  Json document = {{"ok", true}, {"version", bench::kVersion}, {"commit", bench::kCommit}};
  std::string text = fmt::format("nybble {} ({})\n", bench::kVersion, bench::kCommit);

  text += fmt::format("\nbuilt with    CUDA {} compiler, CUDA {} runtime (linked in), for sm_{}a\n", bench::kToolkit,
                      cuda_text(CUDART_VERSION), kHopperSm);
  document["toolkit"] = {{"compiler", bench::kToolkit}, {"runtime", cuda_text(CUDART_VERSION)}};

  const std::optional<std::string> release = runtime::driver_release();
  int driver = 0;
  const bool has_driver = cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0;
  text += fmt::format(
      "driver        {}\n",
      has_driver ? fmt::format("{}, supports up to CUDA {}", release.value_or("release unknown"), cuda_text(driver))
                 : "none");
  document["driver"] = {{"release", release ? Json(*release) : Json(nullptr)},
                        {"cuda", has_driver ? Json(cuda_text(driver)) : Json(nullptr)}};

  const Result<Device> gpu = Device::cuda();
  std::string advice;
  if (!gpu) {
    text += fmt::format("GPU           none: {}\n", gpu.error().message);
    document["gpu"] = nullptr;
    document["gpu_error"] = gpu.error().message;
    advice =
        "No GPU can be used, so everything runs on the CPU: quantize, inspect, verify, demo and the library itself.\n";
    if (has_driver && driver < CUDART_VERSION - CUDART_VERSION % 1000)
      advice +=
          fmt::format("The driver is too old for CUDA {}; install one that supports it.\n", cuda_text(CUDART_VERSION));
  } else {
    text += fmt::format("GPU           {}, compute capability {}.{}, {} SMs, {} KiB of shared memory a block\n",
                        gpu->name, gpu->sm / 10, gpu->sm % 10, gpu->num_sms, gpu->max_smem_bytes / 1024);
    document["gpu"] = {
        {"name", gpu->name}, {"sm", gpu->sm}, {"num_sms", gpu->num_sms}, {"max_smem_bytes", gpu->max_smem_bytes}};
    advice = gpu->sm == kHopperSm ? "The Hopper kernels run here.\n"
                                  : fmt::format(
                                        "The GPU kernels are built for compute capability {}.{} (Hopper) only; on this "
                                        "GPU nothing of nybble runs. Use the CPU: --device cpu.\n",
                                        kHopperSm / 10, kHopperSm % 10);
  }
  const Result<std::unique_ptr<bench::Cublas>> cublas =
      gpu ? bench::Cublas::open("") : Result<std::unique_ptr<bench::Cublas>>(gpu.error());
  if (gpu) {
    text += fmt::format("cuBLAS        {}\n",
                        cublas ? (*cublas)->version() + " (only the bench compares with it)" : cublas.error().message);
    document["cublas"] = cublas ? Json((*cublas)->version()) : Json(nullptr);
  }
  text +=
      fmt::format("CPU           {}, {} threads, {}\n", runtime::cpu_model(), base::default_threads(), cpu_features());
  document["cpu"] = {
      {"name", runtime::cpu_model()}, {"threads", base::default_threads()}, {"features", cpu_features()}};

  text += fmt::format("\n{}", advice);
  Result<std::optional<TuningTable>> given = table_option.load();
  if (!given) return output.fail(given.error());
  if (gpu) {
    text += fmt::format("\nOn {}:\n", gpu->name);
    explain_device(*gpu, *given, text, document["on_gpu"]);
  }
  text += "\nOn the CPU:\n";
  explain_device(Device::cpu(), *given, text, document["on_cpu"]);
  const TuningTable table = *given ? **given : shipped_tuning_table(gpu ? *gpu : Device::h200());
  text += "\n" + table_text(table, *given ? "The table given" : "The table that ships", document["table"]);
  document["advice"] = advice;
  output.text("{}", text);
  return output.finish(document, kOk);
}

}  // namespace

Run add_doctor(CLI::App& app, Output& output) {
  auto table = std::make_shared<TableOption>();
  table->add_to(app);
  output.add_json_flag(app);
  app.footer(kExample);
  return [table, &output] { return run(*table, output); };
}

}  // namespace nybble::cli
