// Chains of layers on a GPU. One activation buffer for each layer of a block serves all blocks, as in a model's engine:
// a launch that runs ahead of its predecessor would overwrite what that one still reads, or read what is not there yet.
#include "bench/chain.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "base/error.h"
#include "bench/duty.h"
#include "bench/graph_timer.h"
#include "bench/random_data.h"
#include "nybble/pack.h"

namespace nybble::bench {
namespace {

constexpr int kNanByte = 0xFF;        // 0xFFFF is a NaN in bf16 and in fp16
constexpr int kOverlappedRuns = 3;    // compared with the plain one
constexpr double kLargestDrift = 16;  // of the rms: weights are scaled to keep it at 1
constexpr int64_t kRowElements = 8;   // rows that begin at 16-byte boundaries, as all kernels can read them

struct LayerWeight {
  runtime::DeviceBuffer blob;
  Problem problem;  // of one token
};

using Outputs = std::vector<std::vector<std::byte>>;  // of one block's layers

class CudaChain : public Chain {
 public:
  explicit CudaChain(Device device) : device_(std::move(device)) {}

  Result<void> open() { return timer_.open(device_); }

  Result<void> load(const ChainSpec& spec, int64_t max_m) override {
    if (Result<void> fine = check_chain(spec); !fine) return fine;
    spec_ = spec;
    weights_.clear(), outs_.clear();
    const size_t element = dtype_bytes(spec_.act_dtype);
    for (int i = 0; i < num_launches(); ++i) {
      const Shape& shape = layer(i);
      const Result<PackedWeight> packed = pack(random_weight(shape.n, shape.k, spec_.format, static_cast<uint64_t>(i),
                                                             neutral_scale(shape.k, spec_.format)));
      if (!packed) return packed.error();
      LayerWeight weight{.blob = {}, .problem = problem_for(*packed, 1, spec_.act_dtype)};
      if (Result<void> done = weight.blob.reserve(packed->size_bytes()); !done) return done;
      NYBBLE_CUDA(cudaMemcpy(weight.blob.data(), packed->data(), packed->size_bytes(), cudaMemcpyHostToDevice));
      weights_.push_back(std::move(weight));
    }
    const FloatArray act = random_numbers(max_m * spec_.layers.front().k, spec_.act_dtype, 1.0, 1);
    if (Result<void> done = input_.reserve(act.bytes.size()); !done) return done;
    NYBBLE_CUDA(cudaMemcpy(input_.data(), act.bytes.data(), act.bytes.size(), cudaMemcpyHostToDevice));
    for (const Shape& shape : spec_.layers) {
      Result<runtime::DeviceBuffer> out = runtime::DeviceBuffer::allocate(max_m * shape.n * element);
      if (!out) return out.error();
      outs_.push_back(std::move(*out));
    }
    NYBBLE_CUDA(cudaDeviceSynchronize());  // the timer's stream does not wait for copies of the default stream
    return {};
  }

  Result<ChainCheck> check(int64_t m, const ChainOptions& options) override {
    const Result<Graphs> graphs = make_graphs(m, options);
    if (!graphs) return graphs.error();
    return compare(*graphs, m);
  }

  Result<ChainMeasurement> measure(int64_t m, const ChainOptions& options) override {
    ChainMeasurement measurement;
    measurement.spec = spec_;
    measurement.m = m;
    Result<Graphs> graphs = make_graphs(m, options);
    if (!graphs) return graphs.error();
    for (size_t j = 0; j < spec_.layers.size(); ++j)
      measurement.kernels.push_back(graphs->overlapped_plans[j].kernel());
    for (const Plan& plan : graphs->plain_plans) {
      const Result<double> floor = floor_us(plan.problem());
      if (!floor) return floor.error();
      measurement.floor_us += *floor;
    }
    const Result<ChainCheck> compared = compare(*graphs, m);
    if (!compared) return compared.error();
    measurement.check = *compared;
    if (!measurement.check.wrong.empty()) return measurement;

    std::vector<TimedGraph> timed;
    const auto add = [&](GraphExec graph, int launches) -> Result<void> {
      const Result<double> ms = timer_.replay(graph, 1);
      if (!ms) return ms.error();
      timed.push_back({std::move(graph), launches, *ms});
      return {};
    };
    if (Result<void> done = add(std::move(graphs->overlapped), 1); !done) return done.error();
    if (Result<void> done = add(std::move(graphs->plain), 1); !done) return done.error();
    const int num_layers = static_cast<int>(spec_.layers.size());
    for (int j = 0; j < num_layers; ++j) {
      Result<GraphExec> graph = timer_.capture([&] {
        Result<void> enqueued;
        for (int i = j; i < num_launches() && enqueued; i += num_layers)
          enqueued = enqueue(graphs->overlapped_plans[i], i);
        return enqueued;
      });
      if (!graph) return graph.error();
      if (Result<void> done = add(std::move(*graph), spec_.blocks); !done) return done.error();
    }
    const Result<std::vector<Timing>> timings = timer_.time(timed, options.duty, options.replays);
    if (!timings) return timings.error();
    measurement.overlapped = (*timings)[0];
    measurement.plain = (*timings)[1];
    measurement.layers.assign(timings->begin() + 2, timings->end());
    return measurement;
  }

 private:
  struct Graphs {
    std::vector<Plan> overlapped_plans, plain_plans;  // of every launch
    GraphExec overlapped, plain;
    size_t workspace_bytes = 0;  // of the launch that needs most
  };

  int num_launches() const { return spec_.blocks * static_cast<int>(spec_.layers.size()); }
  const Shape& layer(int launch) const { return spec_.layers[launch % spec_.layers.size()]; }

  Result<Graphs> make_graphs(int64_t m, const ChainOptions& options) {
    const std::vector<std::string>& kernels = options.kernels;
    Graphs graphs;
    std::map<std::string, Plan> known;  // by question: most launches ask what another one asked
    for (const bool pdl : {true, false}) {
      for (int i = 0; i < num_launches(); ++i) {
        Problem problem = weights_[i].problem;
        problem.m = m;
        const std::string kernel = kernels.empty() ? "" : kernels[i % kernels.size()];
        const std::string question = fmt::format("{} {} {}", to_string(problem), kernel, pdl);
        auto found = known.find(question);
        if (found == known.end()) {
          Result<Plan> plan = make_plan(problem, device_, {.kernel = kernel, .pdl = pdl, .table = options.table});
          if (!plan) return plan.error();
          found = known.emplace(question, std::move(*plan)).first;
        }
        graphs.workspace_bytes = std::max(graphs.workspace_bytes, found->second.workspace_bytes());
        (pdl ? graphs.overlapped_plans : graphs.plain_plans).push_back(found->second);
      }
    }
    // Launches of one stream may share a workspace, also those that overlap: a kernel touches it only
    // when its predecessor has ended.
    if (Result<void> done = workspace_.reserve(graphs.workspace_bytes); !done) return done.error();
    for (const bool pdl : {true, false}) {
      const std::vector<Plan>& plans = pdl ? graphs.overlapped_plans : graphs.plain_plans;
      Result<GraphExec> graph = timer_.capture([&] {
        Result<void> enqueued;
        for (int i = 0; i < num_launches() && enqueued; ++i) enqueued = enqueue(plans[i], i);
        return enqueued;
      });
      if (!graph) return graph.error();
      (pdl ? graphs.overlapped : graphs.plain) = std::move(*graph);
    }
    return Result<Graphs>(std::move(graphs));
  }

  Result<void> enqueue(const Plan& plan, int launch_index) {
    const size_t layers = spec_.layers.size(), place = launch_index % layers, before = (place + layers - 1) % layers;
    return launch(plan, {.act = launch_index == 0 ? input_.data() : outs_[before].data(),
                         .ld_act = launch_index == 0 ? 0 : spec_.layers[before].n,
                         .weight = weights_[launch_index].blob.data(),
                         .out = outs_[place].data(),
                         .workspace = workspace_.data(),
                         .workspace_bytes = plan.workspace_bytes(),
                         .stream = timer_.stream()});
  }

  // All outputs of the last block, after a run over poisoned ones that finds these bytes in its workspace.
  Result<Outputs> run(const GraphExec& graph, int64_t m, int workspace_byte) {
    for (const runtime::DeviceBuffer& out : outs_)
      NYBBLE_CUDA(cudaMemsetAsync(out.data(), kNanByte, out.size_bytes(), timer_.stream()));
    if (workspace_.size_bytes() > 0)
      NYBBLE_CUDA(cudaMemsetAsync(workspace_.data(), workspace_byte, workspace_.size_bytes(), timer_.stream()));
    if (const Result<double> ran = timer_.replay(graph, 1); !ran) return ran.error();
    Outputs outputs;
    for (size_t j = 0; j < outs_.size(); ++j) {
      outputs.emplace_back(m * spec_.layers[j].n * dtype_bytes(spec_.act_dtype));
      NYBBLE_CUDA(cudaMemcpy(outputs[j].data(), outs_[j].data(), outputs[j].size(), cudaMemcpyDeviceToHost));
    }
    return outputs;
  }

  Result<ChainCheck> compare(const Graphs& graphs, int64_t m) {
    const Result<Outputs> plain = run(graphs.plain, m, kNanByte);
    if (!plain) return plain.error();
    ChainCheck check;
    const FloatArray last{.dtype = spec_.act_dtype, .bytes = plain->back()};
    double square = 0;
    for (size_t i = 0; i < last.size(); ++i) square += static_cast<double>(last.at(i)) * last.at(i);
    check.rms = std::sqrt(square / static_cast<double>(last.size()));
    if (!(check.rms > 1 / kLargestDrift && check.rms < kLargestDrift)) {  // also where it is NaN
      check.wrong = fmt::format(
          "the last outputs' rms is {:.3g}, not about 1: they exploded, vanished or were not "
          "written",
          check.rms);
      return check;
    }
    if (graphs.workspace_bytes > 0) {
      const Result<Outputs> again = run(graphs.plain, m, 0);
      if (!again) return again.error();
      if (const std::string difference = difference_in(*plain, *again); !difference.empty()) {
        check.wrong = "what the workspace held before changes the outputs of " + difference;
        return check;
      }
    }
    for (int i = 0; i < kOverlappedRuns; ++i) {
      const Result<Outputs> overlapped = run(graphs.overlapped, m, kNanByte);
      if (!overlapped) return overlapped.error();
      if (const std::string difference = difference_in(*plain, *overlapped); !difference.empty()) {
        check.wrong = "overlapping launches change the outputs of " + difference;
        return check;
      }
    }
    return check;
  }

  // The first layer whose outputs differ, and how; empty where all bits are the same.
  std::string difference_in(const Outputs& a, const Outputs& b) const {
    for (size_t j = 0; j < a.size(); ++j)
      if (const std::string difference = difference_in(a[j], b[j], spec_.layers[j]); !difference.empty())
        return fmt::format("{}: {}", shape_text(spec_.layers[j]), difference);
    return "";
  }

  static std::string shape_text(const Shape& shape) {
    return fmt::format("{}{}{}x{}", shape.name, shape.name.empty() ? "" : " ", shape.n, shape.k);
  }

  static std::string difference_in(const std::vector<std::byte>& a, const std::vector<std::byte>& b,
                                   const Shape& shape) {
    if (std::memcmp(a.data(), b.data(), a.size()) == 0) return "";
    int64_t count = 0, first = -1;
    for (size_t i = 0; i < a.size(); i += 2) {
      if (a[i] == b[i] && a[i + 1] == b[i + 1]) continue;
      if (count++ == 0) first = static_cast<int64_t>(i / 2);
    }
    return fmt::format("{} of {} elements, first at [{}, {}]", count, a.size() / 2, first / shape.n, first % shape.n);
  }

  Device device_;
  GraphTimer timer_;
  ChainSpec spec_;
  std::vector<LayerWeight> weights_;  // of every launch
  std::vector<runtime::DeviceBuffer> outs_;
  runtime::DeviceBuffer input_, workspace_;
};

}  // namespace

Result<void> check_chain(const ChainSpec& spec) {
  if (spec.layers.size() < 2)
    return invalid_argument("a chain needs at least two layers, {} were given", spec.layers.size());
  if (spec.blocks < 1) return invalid_argument("a chain needs at least one block of layers, not {}", spec.blocks);
  if (spec.act_dtype == DType::kFp32) return invalid_argument("a chain runs in bf16 or fp16, not in fp32");
  for (size_t j = 0; j < spec.layers.size(); ++j) {
    const Shape &layer = spec.layers[j], &before = spec.layers[(j + spec.layers.size() - 1) % spec.layers.size()];
    if (layer.k > before.n)
      return invalid_argument("layer {}x{} reads {} features, but the layer before it, {}x{}, writes only {}", layer.n,
                              layer.k, layer.k, before.n, before.k, before.n);
    if (layer.n % kRowElements != 0 || layer.k % kRowElements != 0)
      return invalid_argument("layer {}x{}: in a chain both numbers must be multiples of {}", layer.n, layer.k,
                              kRowElements);
  }
  return {};
}

std::string chain_text(const ChainSpec& spec, int64_t m) {
  return fmt::format("chain {} x{} m{} {} {}", spec.name, spec.blocks, m, dtype_name(spec.act_dtype),
                     to_string(spec.format));
}

Result<std::unique_ptr<Chain>> open_chain(const Device& device) {
  if (device.kind != DeviceKind::kCuda)
    return unsupported("a chain runs on a GPU only: on the CPU no launch overlaps another");
  auto chain = std::make_unique<CudaChain>(device);
  if (const Result<void> opened = chain->open(); !opened) return opened.error();
  return std::unique_ptr<Chain>(std::move(chain));
}

}  // namespace nybble::bench
