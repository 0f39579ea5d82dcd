// Measuring on the CPU: rotating weights as on the GPU, Eigen in fp32 between the repetitions.
#include "bench/cpu_bench.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <optional>
#include <thread>
#include <vector>

#include "bench/dense_cpu.h"
#include "bench/duty.h"
#include "bench/host_workspace.h"
#include "bench/random_data.h"
#include "bench/result_check.h"
#include "nybble/pack.h"

namespace nybble::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kUnknownCacheBytes = size_t{64} << 20;  // where the system does not tell
constexpr int kMaxCopies = 1000;
// Bounds the bench's memory: a virtual machine may report a cache that it shares with its whole host.
constexpr size_t kMaxCopiedBytes = size_t{512} << 20;
constexpr size_t kAlign = 128;  // of a packed weight

using Run = std::function<Result<void>(int copy)>;  // multiplies by copy number `copy` of the weight

double milliseconds(Clock::duration duration) { return std::chrono::duration<double, std::milli>(duration).count(); }

int copies_of(size_t bytes) {
  const long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
  const size_t cache = l3 > 0 ? static_cast<size_t>(l3) : kUnknownCacheBytes;
  return std::clamp(static_cast<int>(std::min(3 * cache, kMaxCopiedBytes) / bytes) + 1, 2, kMaxCopies);
}

class CpuBench : public Bench {
 public:
  explicit CpuBench(Device device) : device_(std::move(device)) {}

  const Device& device() const override { return device_; }
  std::string dense_impl() const override { return has_dense_gemm() ? "eigen" : ""; }
  std::string dense_note() const override { return has_dense_gemm() ? "Eigen, fp32" : "the CPU lacks AVX2"; }

  Result<void> load(QuantizedWeight weight, DType act_dtype, int64_t max_m) override {
    weight_ = std::move(weight);
    act_dtype_ = act_dtype;
    dense_copies_ = 0;
    Result<PackedWeight> packed = pack(weight_, {.num_threads = device_.num_threads});
    if (!packed) return packed.error();
    packed_ = std::move(*packed);
    copies_ = copies_of(packed_.size_bytes());
    stride_ = (packed_.size_bytes() + kAlign - 1) / kAlign * kAlign;
    if (const size_t bytes = stride_ * copies_; bytes > weights_bytes_)
      weights_ = {}, weights_ = allocate_packed(bytes), weights_bytes_ = bytes;
    for (int i = 0; i < copies_; ++i) std::memcpy(weights_.get() + i * stride_, packed_.data(), packed_.size_bytes());
    act_ = random_numbers(max_m * weight_.k, act_dtype_, 1.0, 1);
    return {};
  }

  Result<Measurement> measure(int64_t m, const MeasureOptions& options) override {
    Contestant ours;
    ResultChecks checks(weight_, act_, m);
    if (Result<void> done = prepare(ours, checks, m, options.plan, options.out.value_or(act_dtype_)); !done)
      return done.error();
    if (!ours.measurement.wrong.empty()) return ours.measurement;
    std::vector<Series> series = {series_of(ours)};
    std::vector<float> dense_act, dense_out;
    if (options.dense && has_dense_gemm()) {
      prepare_dense();
      dense_act.resize(m * weight_.k);
      for (size_t i = 0; i < dense_act.size(); ++i) dense_act[i] = act_.at(i);
      dense_out.resize(m * weight_.n);
      series.push_back({[&](int copy) -> Result<void> {
                          dense_gemm(m, weight_.n, weight_.k, dense_act.data(),
                                     dense_weights_.data() + copy * weight_.n * weight_.k, dense_out.data(),
                                     device_.num_threads);
                          return {};
                        },
                        dense_copies_});
    }
    const Result<std::vector<Timing>> timings = time(series, options);
    if (!timings) return timings.error();
    ours.measurement.ours = timings->front();
    if (series.size() > 1) ours.measurement.dense = timings->back();
    return ours.measurement;
  }

  Result<std::vector<Measurement>> measure_each(int64_t m, const std::vector<std::string>& kernels,
                                                const MeasureOptions& options) override {
    std::vector<Contestant> contestants(kernels.size());
    ResultChecks checks(weight_, act_, m);
    std::vector<Series> series;
    std::vector<Contestant*> timed;
    for (size_t i = 0; i < kernels.size(); ++i) {
      PlanOptions plan = options.plan;
      plan.kernel = kernels[i];
      if (Result<void> done = prepare(contestants[i], checks, m, plan, options.out.value_or(act_dtype_)); !done)
        return done.error();
      if (!contestants[i].measurement.wrong.empty()) continue;
      series.push_back(series_of(contestants[i]));
      timed.push_back(&contestants[i]);
    }
    const Result<std::vector<Timing>> timings = time(series, options);
    if (!timings) return timings.error();
    for (size_t i = 0; i < timed.size(); ++i) timed[i]->measurement.ours = (*timings)[i];
    std::vector<Measurement> measurements;
    for (Contestant& one : contestants) measurements.push_back(std::move(one.measurement));
    return measurements;
  }

 private:
  // One kernel with what it needs to run.
  struct Contestant {
    Measurement measurement;
    std::optional<Plan> plan;
    std::optional<HostWorkspace> workspace;
    FloatArray out;
  };

  struct Series {
    Run run;
    int copies;
    int calls = 1, next = 0;  // of a replay; the copy of the weight that comes next
  };

  // Plans, runs once and checks the result.
  Result<void> prepare(Contestant& one, ResultChecks& checks, int64_t m, const PlanOptions& options, DType out_dtype) {
    one.measurement.problem = problem_for(packed_, m, act_dtype_);
    one.measurement.problem.out_dtype = out_dtype;
    Result<Plan> plan = make_plan(one.measurement.problem, device_, options);
    if (!plan) return plan.error();
    one.plan = std::move(*plan);
    one.measurement.kernel = one.plan->kernel();
    one.out.dtype = out_dtype;
    one.out.bytes.assign(m * weight_.n * dtype_bytes(out_dtype), std::byte{0xFF});  // NaNs
    one.workspace.emplace(one.plan->workspace_bytes());
    std::memset(one.workspace->data(), 0xFF, one.workspace->size_bytes());  // it may hold anything
    if (Result<void> done = run(one, 0); !done) return done;
    one.measurement.wrong = wrong_result(one.out, checks.of(one.plan->numerics()));
    return {};
  }

  Result<void> run(Contestant& one, int copy) {
    return launch(*one.plan, {.act = act_.bytes.data(),
                              .weight = weights_.get() + copy * stride_,
                              .out = one.out.bytes.data(),
                              .workspace = one.workspace->data(),
                              .workspace_bytes = one.workspace->size_bytes()});
  }

  Series series_of(Contestant& one) {
    return {[this, &one](int copy) { return run(one, copy); }, copies_};
  }

  static std::string wrong_result(const FloatArray& out, const ResultCheck& check) {
    const size_t row_bytes = out.bytes.size() / (check.tokens().back() + 1);  // the last token is among the sampled
    FloatArray rows{.dtype = out.dtype};
    for (int64_t token : check.tokens())
      rows.bytes.insert(rows.bytes.end(), &out.bytes[token * row_bytes], &out.bytes[token * row_bytes] + row_bytes);
    for (size_t i = 0; i < out.size(); ++i)
      if (std::isnan(out.at(i))) return fmt::format("output number {} was not written, or is NaN", i);
    return check.judge(rows);
  }

  void prepare_dense() {
    if (dense_copies_ > 0) return;
    const std::vector<float> weight = dequantize(weight_);
    dense_copies_ = copies_of(weight.size() * sizeof(float));
    if (dense_weights_.size() < weight.size() * dense_copies_) dense_weights_.resize(weight.size() * dense_copies_);
    for (int i = 0; i < dense_copies_; ++i)
      std::copy(weight.begin(), weight.end(), dense_weights_.begin() + static_cast<int64_t>(weight.size()) * i);
  }

  // Calls that fill a replay, and then the replay's microseconds a call.
  static Result<double> time_calls(const Run& run, int copies, int calls, int& next) {
    const Clock::time_point begin = Clock::now();
    for (int i = 0; i < calls; ++i, next = (next + 1) % copies)
      if (Result<void> done = run(next); !done) return done.error();
    return milliseconds(Clock::now() - begin) * 1e3 / calls;
  }

  static Result<std::vector<Timing>> time(std::vector<Series>& series, const MeasureOptions& options) {
    const DutyCycle duty = duty_cycle(options.duty);
    for (Series& one : series) {
      for (int warm = 0; warm < 2; ++warm) {  // the first call wakes threads and touches pages
        const Result<double> us = time_calls(one.run, one.copies, one.calls, one.next);
        if (!us) return us.error();
        if (warm == 1) one.calls = std::clamp(static_cast<int>(duty.replay_ms * 1e3 / *us), 1, 1 << 20);
      }
    }
    return time_in_turn(series.size(), options.duty, options.replays, options.keep_within,
                        [&](size_t i) -> Result<Sample> {
                          std::this_thread::sleep_for(std::chrono::milliseconds(duty.idle_ms));
                          Series& one = series[i];
                          const Result<double> us = time_calls(one.run, one.copies, one.calls, one.next);
                          if (!us) return us.error();
                          return Sample{.us = *us};
                        });
  }

  Device device_;
  QuantizedWeight weight_;
  DType act_dtype_ = DType::kBf16;
  FloatArray act_;
  PackedWeight packed_;
  // The same bytes many times over, one copy every stride_; memory is kept from layer to layer.
  std::shared_ptr<std::byte[]> weights_;
  size_t weights_bytes_ = 0, stride_ = 0;
  int copies_ = 0;
  std::vector<float> dense_weights_;
  int dense_copies_ = 0;
};

}  // namespace

Result<std::unique_ptr<Bench>> open_cpu_bench(const Device& device) {
  return std::unique_ptr<Bench>(std::make_unique<CpuBench>(device));
}

}  // namespace nybble::bench
