#include "linear.h"

#include <cstring>

namespace llama {
namespace {

std::vector<float> widen(const nybble::FloatArray& values) {
  std::vector<float> floats(values.size());
  if (values.dtype == nybble::DType::kFp32) {
    if (!floats.empty()) std::memcpy(floats.data(), values.bytes.data(), values.bytes.size());
    return floats;
  }
  for (size_t i = 0; i < floats.size(); ++i) floats[i] = values.at(i);
  return floats;
}

}  // namespace

std::vector<float> to_floats(const LayerWeight& weight) {
  if (const auto* quantized = std::get_if<nybble::QuantizedWeight>(&weight)) return nybble::dequantize(*quantized);
  return widen(std::get<nybble::DenseWeight>(weight).values);
}

Result<Linear> Linear::make(const std::string& name, const LayerWeight& weight, bool dense) {
  Linear linear;
  linear.name_ = name;
  std::visit(
      [&](const auto& any) {
        linear.n_ = any.n;
        linear.k_ = any.k;
        linear.bias_ = widen(any.bias);
      },
      weight);
  const auto* quantized = std::get_if<nybble::QuantizedWeight>(&weight);
  if (quantized == nullptr || dense) {
    linear.dense_ = to_floats(weight);
    return linear;
  }
  Result<nybble::PackedWeight> packed = nybble::pack(*quantized);
  if (!packed) return packed.error();
  linear.packed_ = std::move(*packed);
  return linear;
}

Result<void> Linear::run(Workers& workers, const float* act, int64_t m, float* out) {
  if (!is_4bit()) {
    dense_multiply(workers, act, m, k_, dense_.data(), n_, out);
    if (!bias_.empty())
      for (int64_t row = 0; row < m; ++row) add_scaled(out + row * n_, 1, bias_.data(), n_);
    return {};
  }
  auto plan = plans_.find(m);
  if (plan == plans_.end()) {
    nybble::Problem problem = nybble::problem_for(packed_, m, nybble::DType::kFp32);
    problem.epilogue.bias = !bias_.empty();
    problem.aligned = false;  // vectors of floats begin where they like
    Result<nybble::Plan> made = nybble::make_plan(problem, nybble::Device::cpu(workers.count()));
    if (!made) return made.error();
    plan = plans_.emplace(m, std::move(*made)).first;
  }
  if (workspace_.size() < plan->second.workspace_bytes()) workspace_.resize(plan->second.workspace_bytes());
  nybble::LaunchArgs args;
  args.act = act;
  args.weight = packed_.data();
  args.out = out;
  args.bias = bias_.empty() ? nullptr : bias_.data();
  args.workspace = workspace_.data();
  args.workspace_bytes = workspace_.size();
  return nybble::launch(plan->second, args);
}

}  // namespace llama
