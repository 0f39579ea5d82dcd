// One class for each device; both poison their outputs, so that an unwritten one is seen.
#include "cli/layer_runner.h"

#include <cmath>

#include "bench/host_workspace.h"
#include "runtime/cuda_call.h"

namespace nybble::cli {
namespace {

constexpr int kNanByte = 0xFF;  // a NaN in every type when repeated

class Layer : public LayerRunner {
 public:
  explicit Layer(Device device) : device_(std::move(device)) {}
  const PackedWeight& packed() const override { return packed_; }

 protected:
  Result<void> pack_layer(const QuantizedWeight& weight) {
    Result<PackedWeight> packed = pack(weight, {.num_threads = device_.num_threads});
    if (!packed) return packed.error();
    packed_ = std::move(*packed);
    bias_source_ = weight.bias;
    return {};
  }

  Result<Plan> plan_for(int64_t m, DType act_dtype) {
    Problem problem = problem_for(packed_, m, act_dtype);
    problem.epilogue.bias = !bias_source_.empty();
    std::vector<float> bias(bias_source_.size());
    for (size_t i = 0; i < bias.size(); ++i) bias[i] = bias_source_.at(i);
    bias_ = FloatArray::from_floats(act_dtype, bias);
    return make_plan(problem, device_);
  }

  size_t out_bytes(int64_t m, DType act_dtype) const { return m * packed_.n() * dtype_bytes(act_dtype); }

  Device device_;
  PackedWeight packed_;
  FloatArray bias_source_;  // as read
  FloatArray bias_;         // of the activations' type
};

class CpuLayer : public Layer {
 public:
  using Layer::Layer;

  Result<void> load(const QuantizedWeight& weight) override { return pack_layer(weight); }

  Result<LayerRun> run(const FloatArray& act, int64_t m) override {
    Result<Plan> plan = plan_for(m, act.dtype);
    if (!plan) return plan.error();
    LayerRun run{std::move(*plan), {.dtype = act.dtype}};
    run.out.bytes.assign(out_bytes(m, act.dtype), std::byte{kNanByte});
    const bench::HostWorkspace workspace(run.plan.workspace_bytes());
    Result<void> launched = launch(run.plan, {.act = act.bytes.data(),
                                              .weight = packed_.data(),
                                              .out = run.out.bytes.data(),
                                              .bias = bias_.empty() ? nullptr : bias_.bytes.data(),
                                              .workspace = workspace.data(),
                                              .workspace_bytes = workspace.size_bytes()});
    if (!launched) return launched.error();
    return run;
  }
};

class CudaLayer : public Layer {
 public:
  using Layer::Layer;

  Result<void> load(const QuantizedWeight& weight) override {
    NYBBLE_CUDA(cudaSetDevice(device_.ordinal));
    if (Result<void> packed = pack_layer(weight); !packed) return packed;
    return upload(weight_device_, packed_.data(), packed_.size_bytes());
  }

  Result<LayerRun> run(const FloatArray& act, int64_t m) override {
    Result<Plan> plan = plan_for(m, act.dtype);
    if (!plan) return plan.error();
    LayerRun run{std::move(*plan), {.dtype = act.dtype}};
    run.out.bytes.resize(out_bytes(m, act.dtype));
    if (Result<void> done = upload(act_device_, act.bytes.data(), act.bytes.size()); !done) return done.error();
    if (Result<void> done = upload(bias_device_, bias_.bytes.data(), bias_.bytes.size()); !done) return done.error();
    if (Result<void> done = out_device_.reserve(run.out.bytes.size()); !done) return done.error();
    if (Result<void> done = workspace_.reserve(run.plan.workspace_bytes()); !done) return done.error();
    NYBBLE_CUDA(cudaMemset(out_device_.data(), kNanByte, run.out.bytes.size()));
    NYBBLE_CUDA(cudaDeviceSynchronize());
    Result<void> launched = launch(run.plan, {.act = act_device_.data(),
                                              .weight = weight_device_.data(),
                                              .out = out_device_.data(),
                                              .bias = bias_.empty() ? nullptr : bias_device_.data(),
                                              .workspace = workspace_.data(),
                                              .workspace_bytes = workspace_.size_bytes()});
    if (!launched) return launched.error();
    NYBBLE_CUDA(cudaDeviceSynchronize());
    NYBBLE_CUDA(cudaMemcpy(run.out.bytes.data(), out_device_.data(), run.out.bytes.size(), cudaMemcpyDeviceToHost));
    return run;
  }

 private:
  static Result<void> upload(runtime::DeviceBuffer& buffer, const void* bytes, size_t size) {
    if (Result<void> done = buffer.reserve(size); !done) return done;
    if (size > 0) NYBBLE_CUDA(cudaMemcpy(buffer.data(), bytes, size, cudaMemcpyHostToDevice));
    return {};
  }

  runtime::DeviceBuffer weight_device_, act_device_, bias_device_, out_device_, workspace_;
};

}  // namespace

DType act_dtype_for(const WeightFormat& format) {
  return format.scale_dtype == DType::kFp16 ? DType::kFp16 : DType::kBf16;
}

Result<std::unique_ptr<LayerRunner>> LayerRunner::open(const Device& device) {
  if (device.kind == DeviceKind::kCpu) return std::unique_ptr<LayerRunner>(std::make_unique<CpuLayer>(device));
  return std::unique_ptr<LayerRunner>(std::make_unique<CudaLayer>(device));
}

void ErrorStats::Sum::add(double out, double reference) {
  const double error = out - reference;
  // A comparison with NaN is false, so that a NaN must be looked for.
  if (std::isnan(error) || std::abs(error) > max_abs_) max_abs_ = std::isnan(max_abs_) ? max_abs_ : std::abs(error);
  error_ += error * error;
  out_ += out * out;
  reference_ += reference * reference;
  product_ += out * reference;
}

ErrorStats ErrorStats::Sum::stats() const {
  const double lengths = std::sqrt(out_) * std::sqrt(reference_);
  return {.max_abs = max_abs_,
          .relative = reference_ > 0 ? std::sqrt(error_ / reference_) : std::sqrt(error_),
          .cosine = lengths > 0 ? product_ / lengths : 1};
}

}  // namespace nybble::cli
