// Measuring on a GPU: CUDA graphs over rotating weights, clocks read in the same period, cuBLAS between the replays.
#include "bench/cuda_bench.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "base/error.h"
#include "bench/cublas.h"
#include "bench/device_probe.h"
#include "bench/graph_timer.h"
#include "bench/random_data.h"
#include "bench/result_check.h"
#include "nybble/pack.h"
#include "runtime/cuda_call.h"

namespace nybble::bench {
namespace {

constexpr double kGraphMs = 4;   // of launches in one graph
constexpr int kProbeCalls = 20;  // launches that tell how long one takes
constexpr int kMaxCalls = 8000;  // of a graph, so that it stays small
constexpr size_t kCopyAlign = 256;
constexpr int kNanByte = 0xFF;  // 0xFFFF is a NaN in bf16 and in fp16

// The same bytes many times over, more of them than three L2 caches hold.
struct Copies {
  runtime::DeviceBuffer buffer;
  size_t stride = 0;
  int count = 0;

  void* at(int i) const { return buffer.as<std::byte>() + i * stride; }
};

// Enqueues one launch that reads copy number `copy` of the weight.
using Enqueue = std::function<Result<void>(int copy)>;

class CudaBench : public Bench {
 public:
  explicit CudaBench(Device device) : device_(std::move(device)) {}

  Result<void> open(const std::string& cublas) {
    if (Result<void> done = timer_.open(device_); !done) return done;
    NYBBLE_CUDA(cudaDeviceGetAttribute(&l2_bytes_, cudaDevAttrL2CacheSize, device_.ordinal));
    if (Result<void> done = nan_count_.reserve(sizeof(unsigned long long)); !done) return done;
    Result<std::unique_ptr<Cublas>> opened = Cublas::open(cublas);
    if (opened) {
      cublas_ = std::move(*opened);
      dense_note_ = cublas_->version();
    } else {
      if (!cublas.empty()) return opened.error();  // asked for by name, so it must be there
      dense_note_ = opened.error().message;
    }
    return {};
  }

  const Device& device() const override { return device_; }
  std::string dense_impl() const override { return cublas_ != nullptr ? "cublas" : ""; }
  std::string dense_note() const override { return dense_note_; }

  Result<void> load(QuantizedWeight weight, DType act_dtype, int64_t max_m) override {
    weights_ = {}, dense_weights_ = {}, act_device_ = {}, out_ = {};  // memory first, then the next layer's
    weight_ = std::move(weight);
    act_dtype_ = act_dtype;
    Result<PackedWeight> packed = pack(weight_);
    if (!packed) return packed.error();
    packed_ = std::move(*packed);
    if (Result<void> done = make_copies(weights_, packed_.size_bytes()); !done) return done;
    NYBBLE_CUDA(cudaMemcpy(weights_.at(0), packed_.data(), packed_.size_bytes(), cudaMemcpyHostToDevice));
    for (int made = 1; made < weights_.count; made *= 2) {
      const int more = std::min(made, weights_.count - made);
      NYBBLE_CUDA(cudaMemcpy(weights_.at(made), weights_.at(0), more * weights_.stride, cudaMemcpyDeviceToDevice));
    }
    act_ = random_numbers(max_m * weight_.k, act_dtype_, 1.0, 1);
    if (Result<void> done = act_device_.reserve(act_.bytes.size()); !done) return done;
    NYBBLE_CUDA(cudaMemcpy(act_device_.data(), act_.bytes.data(), act_.bytes.size(), cudaMemcpyHostToDevice));
    max_m_ = max_m;
    NYBBLE_CUDA(cudaDeviceSynchronize());  // the timer's stream does not wait for copies of the default stream
    return {};
  }

  Result<Measurement> measure(int64_t m, const MeasureOptions& options) override {
    std::vector<Contestant> contestants;
    if (Result<void> done = set_out(options.out); !done) return done.error();
    if (Result<void> done = plan(contestants, m, options.plan); !done) return done.error();
    Contestant& ours = contestants[0];
    ResultChecks checks(weight_, act_, m);
    if (Result<void> done = check(ours, checks, m); !done) return done.error();
    Measurement& measurement = ours.measurement;
    if (!measurement.wrong.empty()) return measurement;

    std::vector<TimedGraph> graphs;
    if (Result<void> done = add_graph(graphs, ours.enqueue, weights_); !done) return done.error();
    if (options.dense && cublas_ != nullptr) {
      if (Result<void> done = prepare_dense(); !done) return done.error();
      const Enqueue dense = [this, m](int copy) {
        return cublas_->gemm(m, weight_.n, weight_.k, act_dtype_, out_dtype_, act_device_.data(),
                             dense_weights_.at(copy), out_.data(), timer_.stream());
      };
      Result<std::string> wrong = wrong_result(dense, ResultCheck(weight_.n, weight_.k, dense_rows_, act_, m), m);
      if (!wrong) return wrong.error();
      if (!wrong->empty()) {
        measurement.wrong = "the dense product is wrong: " + *wrong;
        return measurement;
      }
      if (Result<void> done = add_graph(graphs, dense, dense_weights_); !done) return done.error();
    }
    const Result<std::vector<Timing>> timings = timer_.time(graphs, options.duty, options.replays);
    if (!timings) return timings.error();
    measurement.ours = timings->front();
    if (graphs.size() > 1) measurement.dense = timings->back();
    return measurement;
  }

  Result<std::vector<Measurement>> measure_each(int64_t m, const std::vector<std::string>& kernels,
                                                const MeasureOptions& options) override {
    std::vector<Contestant> contestants;
    if (Result<void> done = set_out(options.out); !done) return done.error();
    for (const std::string& kernel : kernels) {
      PlanOptions named = options.plan;
      named.kernel = kernel;
      if (Result<void> done = plan(contestants, m, named); !done) return done.error();
    }
    ResultChecks checks(weight_, act_, m);
    std::vector<TimedGraph> graphs;
    std::vector<Measurement*> timed;
    for (Contestant& one : contestants) {
      if (Result<void> done = check(one, checks, m); !done) return done.error();
      if (!one.measurement.wrong.empty()) continue;
      if (Result<void> done = add_graph(graphs, one.enqueue, weights_); !done) return done.error();
      timed.push_back(&one.measurement);
    }
    const Result<std::vector<Timing>> timings = timer_.time(graphs, options.duty, options.replays, options.keep_within);
    if (!timings) return timings.error();
    for (size_t i = 0; i < timed.size(); ++i) timed[i]->ours = (*timings)[i];
    std::vector<Measurement> measurements;
    for (Contestant& one : contestants) measurements.push_back(std::move(one.measurement));
    return measurements;
  }

 private:
  // One kernel with what it needs to run.
  struct Contestant {
    Measurement measurement;
    Numerics numerics;
    size_t workspace_bytes;
    Enqueue enqueue;
  };

  Result<void> set_out(std::optional<DType> dtype) {
    out_dtype_ = dtype.value_or(act_dtype_);
    return out_.reserve(max_m_ * weight_.n * dtype_bytes(out_dtype_));
  }

  // Makes room for the plan's workspace, so that all plans are made before the first launch: graphs hold the address.
  Result<void> plan(std::vector<Contestant>& contestants, int64_t m, const PlanOptions& options) {
    Contestant one;
    one.measurement.problem = problem_for(packed_, m, act_dtype_);
    one.measurement.problem.out_dtype = out_dtype_;
    const Result<Plan> plan = make_plan(one.measurement.problem, device_, options);
    if (!plan) return plan.error();
    one.measurement.kernel = plan->kernel();
    one.measurement.pdl = plan->pdl();
    one.numerics = plan->numerics();
    one.workspace_bytes = plan->workspace_bytes();
    const Result<double> floor = floor_us(one.measurement.problem);
    if (!floor) return floor.error();
    one.measurement.floor_us = *floor;
    if (Result<void> done = workspace_.reserve(one.workspace_bytes); !done) return done;
    one.enqueue = [this, plan = *plan](int copy) {
      return launch(plan, {.act = act_device_.data(),
                           .weight = weights_.at(copy),
                           .out = out_.data(),
                           .workspace = workspace_.data(),
                           .workspace_bytes = plan.workspace_bytes(),
                           .stream = timer_.stream()});
    };
    contestants.push_back(std::move(one));
    return {};
  }

  // A workspace may hold anything when a launch begins, so the result must be right in a poisoned one and, as in the
  // graphs that are timed, in one that the launch before left.
  Result<void> check(Contestant& one, ResultChecks& checks, int64_t m) {
    const ResultCheck& check = checks.of(one.numerics);
    if (one.workspace_bytes > 0)
      NYBBLE_CUDA(cudaMemsetAsync(workspace_.data(), kNanByte, workspace_.size_bytes(), timer_.stream()));
    Result<std::string> wrong = wrong_result(one.enqueue, check, m);
    if (!wrong) return wrong.error();
    if (wrong->empty() && one.workspace_bytes > 0) {
      wrong = wrong_result(one.enqueue, check, m);
      if (!wrong) return wrong.error();
      if (!wrong->empty()) *wrong = "launched again with the workspace as it was left: " + *wrong;
    }
    one.measurement.wrong = std::move(*wrong);
    return {};
  }

  Result<void> add_graph(std::vector<TimedGraph>& graphs, const Enqueue& enqueue, const Copies& copies) {
    Result<TimedGraph> built = build(enqueue, copies.count);
    if (!built) return built.error();
    graphs.push_back(std::move(*built));
    return {};
  }

  Result<void> make_copies(Copies& copies, size_t bytes) {
    copies.stride = (bytes + kCopyAlign - 1) / kCopyAlign * kCopyAlign;
    copies.count = std::max(2, static_cast<int>(3 * static_cast<size_t>(l2_bytes_) / copies.stride) + 1);
    return copies.buffer.reserve(copies.stride * copies.count);
  }

  Result<void> prepare_dense() {
    if (dense_weights_.count > 0) return {};
    const int64_t n = weight_.n, k = weight_.k;
    if (Result<void> done = make_copies(dense_weights_, n * k * dtype_bytes(act_dtype_)); !done) return done;
    for (int copy = 0; copy < dense_weights_.count; ++copy)
      NYBBLE_CUDA(fill_dense(dense_weights_.at(copy), act_dtype_, n * k, copy, timer_.stream()));
    NYBBLE_CUDA(cudaStreamSynchronize(timer_.stream()));
    const std::vector<int64_t> features = ResultCheck::sampled_features(n);
    const size_t row_bytes = k * dtype_bytes(act_dtype_);
    dense_rows_ = FloatArray{.dtype = act_dtype_};
    dense_rows_.resize(features.size() * k);
    for (size_t i = 0; i < features.size(); ++i)
      NYBBLE_CUDA(cudaMemcpy(&dense_rows_.bytes[i * row_bytes],
                             static_cast<std::byte*>(dense_weights_.at(0)) + features[i] * row_bytes, row_bytes,
                             cudaMemcpyDeviceToHost));
    return {};
  }

  // Launches once over poisoned outputs. Says what is wrong with the outputs, or nothing.
  Result<std::string> wrong_result(const Enqueue& enqueue, const ResultCheck& check, int64_t m) {
    const size_t row_bytes = weight_.n * dtype_bytes(out_dtype_);
    NYBBLE_CUDA(cudaMemsetAsync(out_.data(), kNanByte, m * row_bytes, timer_.stream()));
    NYBBLE_CUDA(cudaMemsetAsync(nan_count_.data(), 0, sizeof(unsigned long long), timer_.stream()));
    if (Result<void> done = enqueue(0); !done) return done.error();
    NYBBLE_CUDA(
        count_nans(out_.data(), out_dtype_, m * weight_.n, nan_count_.as<unsigned long long>(), timer_.stream()));
    unsigned long long nans = 0;
    NYBBLE_CUDA(cudaMemcpyAsync(&nans, nan_count_.data(), sizeof nans, cudaMemcpyDeviceToHost, timer_.stream()));
    NYBBLE_CUDA(cudaStreamSynchronize(timer_.stream()));
    if (nans > 0) return fmt::format("{} of {} outputs were not written, or are NaN", nans, m * weight_.n);
    FloatArray rows{.dtype = out_dtype_};
    rows.resize(check.tokens().size() * weight_.n);
    for (size_t i = 0; i < check.tokens().size(); ++i)
      NYBBLE_CUDA(cudaMemcpy(&rows.bytes[i * row_bytes], out_.as<std::byte>() + check.tokens()[i] * row_bytes,
                             row_bytes, cudaMemcpyDeviceToHost));
    return check.judge(rows);
  }

  Result<GraphExec> capture(const Enqueue& enqueue, int copies, int calls) {
    return timer_.capture([&] {
      Result<void> enqueued;
      for (int i = 0; i < calls && enqueued; ++i) enqueued = enqueue(i % copies);
      return enqueued;
    });
  }

  // A graph of about kGraphMs, replayed once so that its first use is over.
  Result<TimedGraph> build(const Enqueue& enqueue, int copies) {
    Result<GraphExec> probe = capture(enqueue, copies, 1);
    if (!probe) return probe.error();
    int calls = 1;
    for (int probe_calls : {1, kProbeCalls}) {
      if (probe_calls > 1) probe = capture(enqueue, copies, probe_calls);
      if (!probe) return probe.error();
      double ms = 0;
      for (int warm = 0; warm < 2; ++warm) {
        const Result<double> took = timer_.replay(*probe, 1);
        if (!took) return took.error();
        ms = *took;
      }
      const double call_ms = std::max(ms / probe_calls, kGraphMs / kMaxCalls);
      calls = std::max(1, static_cast<int>(std::lround(kGraphMs / call_ms)));
      if (calls <= kProbeCalls) break;  // long launches: one of them told enough
    }
    Result<GraphExec> graph = capture(enqueue, copies, calls);
    if (!graph) return graph.error();
    const Result<double> warm = timer_.replay(*graph, 1);
    if (!warm) return warm.error();
    return TimedGraph{std::move(*graph), calls, *warm};
  }

  Device device_;
  int l2_bytes_ = 0;
  GraphTimer timer_;
  runtime::DeviceBuffer nan_count_, workspace_, act_device_, out_;
  std::unique_ptr<Cublas> cublas_;
  std::string dense_note_;

  QuantizedWeight weight_;
  PackedWeight packed_;
  DType act_dtype_ = DType::kBf16, out_dtype_ = DType::kBf16;
  int64_t max_m_ = 0;
  FloatArray act_;
  Copies weights_, dense_weights_;
  FloatArray dense_rows_;  // of the first dense copy, at ResultCheck's features
};

}  // namespace

Result<std::unique_ptr<Bench>> open_cuda_bench(const Device& device, const std::string& cublas) {
  auto bench = std::make_unique<CudaBench>(device);
  if (const Result<void> opened = bench->open(cublas); !opened) return opened.error();
  return std::unique_ptr<Bench>(std::move(bench));
}

}  // namespace nybble::bench
