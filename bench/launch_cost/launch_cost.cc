// What a launch costs the host: nybble::launch beside cudaLaunchKernelExC alone, which gets the same kernel, grid,
// attributes and arguments. Batches of both alternate.
//   launch_cost [--kernel NAME] [--no-pdl] [--json FILE] ["m1 n4096 k4096 bf16 g128" ...]
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstring>
#include <memory>
#include <vector>

#include "base/error.h"
#include "bench/graph_timer.h"
#include "bench/random_data.h"
#include "bench/results.h"
#include "nybble/pack.h"
#include "runtime/cuda_call.h"
#include "runtime/tensor_map_cache.h"

namespace nybble::bench {
namespace {

constexpr int kBatch = 64;  // launches between two synchronizations: far fewer than make a launch wait for the GPU
constexpr int kBatches = 400, kWarmUp = 20;
// One buffer for activations and outputs, and so many that each tensor map is forgotten before it is needed again.
constexpr int kBufferCounts[] = {1, 2 * runtime::TensorMapCache::kEntries};
constexpr int kActByte = 0x3C;  // 0x3C3C is a small number in bf16 and about 1 in fp16
constexpr int kNanByte = 0xFF;

struct Options {
  std::vector<std::string> problems;
  PlanOptions plan;
  std::string json_file;
};

struct Cost {
  Problem problem;
  std::string kernel;
  bool pdl = false;
  int buffers = 0;
  double us = 0;                // of a launch, median over batches
  double launch_kernel_us = 0;  // of cudaLaunchKernelExC alone
  double above_us = 0;          // median difference of neighbouring batches
  double spread = 0;            // (p90 - p10) / median of us
};

using Graph = std::unique_ptr<CUgraph_st, Destroyer<cudaGraphDestroy>>;

// The one kernel launch that nybble::launch makes of a plan and arguments, found by capturing it.
class BareLaunch {
 public:
  static Result<BareLaunch> of(const Plan& plan, const LaunchArgs& args) {
    NYBBLE_CUDA(cudaStreamBeginCapture(args.stream, cudaStreamCaptureModeThreadLocal));
    const Result<void> launched = nybble::launch(plan, args);
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(args.stream, &graph);
    BareLaunch bare;
    bare.graph_.reset(graph);
    if (!launched) return launched.error();
    if (ended != cudaSuccess) return runtime::cuda_failure(ended, "cudaStreamEndCapture");

    cudaGraphNode_t node;
    size_t nodes = 0;
    NYBBLE_CUDA(cudaGraphGetNodes(graph, nullptr, &nodes));
    if (nodes != 1)
      return unsupported("{} launches {} kernels; the cost of one is measured here", plan.kernel(), nodes);
    NYBBLE_CUDA(cudaGraphGetNodes(graph, &node, &nodes));
    NYBBLE_CUDA(cudaGraphKernelNodeGetParams(node, &bare.kernel_));
    cudaLaunchAttributeValue cluster;
    NYBBLE_CUDA(cudaGraphKernelNodeGetAttribute(node, cudaLaunchAttributeClusterDimension, &cluster));
    if (cluster.clusterDim.x > 1)
      bare.attributes_.push_back({.id = cudaLaunchAttributeClusterDimension, .val = cluster});
    if (plan.pdl()) {
      cudaLaunchAttributeValue overlap{};
      overlap.programmaticStreamSerializationAllowed = 1;
      bare.attributes_.push_back({.id = cudaLaunchAttributeProgrammaticStreamSerialization, .val = overlap});
    }
    bare.stream_ = args.stream;
    return Result<BareLaunch>(std::move(bare));
  }

  Result<void> launch() {
    cudaLaunchConfig_t config{};
    config.gridDim = kernel_.gridDim;
    config.blockDim = kernel_.blockDim;
    config.dynamicSmemBytes = kernel_.sharedMemBytes;
    config.stream = stream_;
    config.attrs = attributes_.data();
    config.numAttrs = static_cast<unsigned>(attributes_.size());
    NYBBLE_CUDA(cudaLaunchKernelExC(&config, kernel_.func, kernel_.kernelParams));
    return {};
  }

 private:
  BareLaunch() = default;

  Graph graph_;  // owns the arguments
  cudaKernelNodeParams kernel_{};
  std::vector<cudaLaunchAttribute> attributes_;
  cudaStream_t stream_ = nullptr;
};

// Everything a problem needs on the device, with `buffers` places for activations and as many for outputs.
class Bench {
 public:
  static Result<Bench> make(const Plan& plan, int buffers) {
    const Problem& problem = plan.problem();
    Bench bench;
    cudaStream_t stream;
    NYBBLE_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    bench.stream_.reset(stream);
    const Result<PackedWeight> packed = pack(random_weight(problem.n, problem.k, problem.weight, 1));
    if (!packed) return packed.error();
    bench.act_stride_ = stride_of(problem.m * problem.k * dtype_bytes(problem.act_dtype));
    bench.out_stride_ = stride_of(problem.m * problem.n * dtype_bytes(problem.out_dtype));
    if (Result<void> done = bench.weight_.reserve(packed->size_bytes()); !done) return done.error();
    if (Result<void> done = bench.act_.reserve(bench.act_stride_ * buffers); !done) return done.error();
    if (Result<void> done = bench.out_.reserve(bench.out_stride_ * buffers); !done) return done.error();
    if (Result<void> done = bench.workspace_.reserve(plan.workspace_bytes()); !done) return done.error();
    NYBBLE_CUDA(cudaMemcpy(bench.weight_.data(), packed->data(), packed->size_bytes(), cudaMemcpyHostToDevice));
    NYBBLE_CUDA(cudaMemset(bench.act_.data(), kActByte, bench.act_.size_bytes()));
    NYBBLE_CUDA(cudaDeviceSynchronize());  // the stream does not wait for the default stream
    return Result<Bench>(std::move(bench));
  }

  LaunchArgs args(int buffer) const {
    return {.act = act_.as<std::byte>() + buffer * act_stride_,
            .weight = weight_.data(),
            .out = out_.as<std::byte>() + buffer * out_stride_,
            .workspace = workspace_.data(),
            .workspace_bytes = workspace_.size_bytes(),
            .stream = stream_.get()};
  }

  // What `launch`, which writes to the first output, wrote over NaN.
  template <class Launch> Result<std::vector<std::byte>> result_of(const Launch& launch) {
    NYBBLE_CUDA(cudaMemsetAsync(out_.data(), kNanByte, out_stride_, stream_.get()));
    if (Result<void> done = launch(); !done) return done.error();
    std::vector<std::byte> out(out_stride_);
    NYBBLE_CUDA(cudaMemcpyAsync(out.data(), out_.data(), out.size(), cudaMemcpyDeviceToHost, stream_.get()));
    NYBBLE_CUDA(cudaStreamSynchronize(stream_.get()));
    return Result<std::vector<std::byte>>(std::move(out));
  }

  // Host microseconds of a launch, mean of one batch.
  template <class Launch> Result<double> batch_us(const Launch& launch) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < kBatch; ++i)
      if (Result<void> done = launch(); !done) return done.error();
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
    NYBBLE_CUDA(cudaStreamSynchronize(stream_.get()));
    return took.count() / kBatch;
  }

 private:
  Bench() = default;
  static size_t stride_of(size_t bytes) { return (bytes + 255) / 256 * 256; }

  Stream stream_;
  runtime::DeviceBuffer weight_, act_, out_, workspace_;
  size_t act_stride_ = 0, out_stride_ = 0;
};

Result<Cost> measure(const Plan& plan, int buffers) {
  Result<Bench> bench = Bench::make(plan, buffers);
  if (!bench) return bench.error();
  Result<BareLaunch> bare = BareLaunch::of(plan, bench->args(0));
  if (!bare) return bare.error();
  const auto launch_bare = [&] { return bare->launch(); };
  int buffer = 0;
  const auto launch_ours = [&] {
    const Result<void> done = launch(plan, bench->args(buffer));
    buffer = buffer + 1 < buffers ? buffer + 1 : 0;
    return done;
  };

  const Result<std::vector<std::byte>> ours = bench->result_of([&] { return launch(plan, bench->args(0)); });
  if (!ours) return ours.error();
  const Result<std::vector<std::byte>> theirs = bench->result_of(launch_bare);
  if (!theirs) return theirs.error();
  if (*ours != *theirs)
    return cuda_error("{} gives other results when it is launched bare; nothing was timed", plan.kernel());

  std::vector<double> us, launch_kernel_us, above_us;
  for (int i = -kWarmUp; i < kBatches; ++i) {
    const Result<double> a = bench->batch_us(launch_bare), b = bench->batch_us(launch_ours);
    if (!a) return a.error();
    if (!b) return b.error();
    if (i < 0) continue;
    launch_kernel_us.push_back(*a);
    us.push_back(*b);
    above_us.push_back(*b - *a);
  }
  return Cost{.problem = plan.problem(),
              .kernel = plan.kernel(),
              .pdl = plan.pdl(),
              .buffers = buffers,
              .us = quantile(us, 0.5),
              .launch_kernel_us = quantile(launch_kernel_us, 0.5),
              .above_us = quantile(above_us, 0.5),
              .spread = timing_of(us, {}).spread};
}

Json to_json(const Cost& cost) {
  const auto nanoseconds = [](double us) { return std::round(us * 1e3) / 1e3; };
  return {{"problem", to_string(cost.problem)},
          {"kernel", cost.kernel},
          {"pdl", cost.pdl},
          {"buffers", cost.buffers},
          {"us", nanoseconds(cost.us)},
          {"launch_kernel_us", nanoseconds(cost.launch_kernel_us)},
          {"above_us", nanoseconds(cost.above_us)},
          {"spread", nanoseconds(cost.spread)}};
}

Result<void> run(const Options& options, const std::string& command) {
  const Result<Device> device = Device::cuda();
  if (!device) return device.error();
  Json file = to_json(ResultFile{.run = describe_run(*device, command), .rows = {}});
  file.erase("floor");
  fmt::print("{}; {} batches of {} launches\n", device->name, kBatches, kBatch);
  fmt::print("{:>28} {:>8} {:>10} {:>20} {:>9} {:>8}  {}\n", "problem", "buffers", "launch us", "cudaLaunchKernelExC",
             "above us", "spread", "kernel");
  for (const std::string& text : options.problems) {
    const Result<Problem> problem = parse_problem(text);
    if (!problem) return problem.error();
    const Result<Plan> plan = make_plan(*problem, *device, options.plan);
    if (!plan) return plan.error();
    for (const int buffers : kBufferCounts) {
      const Result<Cost> cost = measure(*plan, buffers);
      if (!cost) return cost.error();
      fmt::print("{:>28} {:>8} {:>10.3f} {:>20.3f} {:>9.3f} {:>6.1f} %  {}\n", to_string(cost->problem), cost->buffers,
                 cost->us, cost->launch_kernel_us, cost->above_us, cost->spread * 100, cost->kernel);
      file["rows"].push_back(to_json(*cost));
    }
  }
  return options.json_file.empty() ? Result<void>() : write_json(file, options.json_file);
}

}  // namespace
}  // namespace nybble::bench

int main(int argc, char** argv) {
  using namespace nybble::bench;
  // The streaming family; the wgmma family with one and with two tensor maps a launch.
  Options options{.problems = {"m1 n4096 k4096 bf16 g128", "m16 n4096 k4096 bf16 g128", "m256 n4096 k4096 bf16 g128"}};
  CLI::App app("Host time of nybble::launch beside cudaLaunchKernelExC alone.", "launch_cost");
  app.add_option("problem", options.problems, "What to launch, without bias or residual")->capture_default_str();
  app.add_option("--kernel", options.plan.kernel, "This kernel instead of the one the planner chooses");
  app.add_flag("--pdl,!--no-pdl", options.plan.pdl, "Launch so that it overlaps its predecessor's end (default: yes)");
  app.add_option("--json", options.json_file, "Write the results to FILE")->type_name("FILE");
  CLI11_PARSE(app, argc, argv);
  const auto done = run(options, fmt::format("launch_cost {}", fmt::join(argv + 1, argv + argc, " ")));
  if (done) return 0;
  fmt::print(stderr, "launch_cost: {}\n", done.error().message);
  return 1;
}
