// What an open checkpoint must keep to, whatever file it was read from.
#pragma once

#include <cmath>
#include <string>

#include "nybble/checkpoint.h"

namespace nybble::testing {

// Whether dequantize() must give finite numbers: far from where a product of finite ones leaves fp32.
inline bool has_moderate_numbers(const QuantizedWeight& weight) {
  constexpr float kLargest = 0x1p60f;
  const auto moderate = [](const FloatArray& values) {
    for (size_t i = 0; i < values.size(); ++i)
      if (std::abs(values.at(i)) > kLargest) return false;
    return true;
  };
  for (const float value : weight.table)
    if (std::abs(value) > kLargest) return false;
  return moderate(weight.scales) && moderate(weight.float_zeros);
}

// What is wrong with a weight that was read; empty: nothing.
inline std::string fault_of(const QuantizedWeight& weight, const LayerInfo& layer) {
  const Result<void> valid = validate(weight);
  if (!valid) return "read, but not valid: " + valid.error().message;
  if (weight.n != layer.n || weight.k != layer.k) return layer.name + ": another shape than layers() says";
  if (weight.format() != layer.format) return layer.name + ": another format than layers() says";
  const std::vector<float> values = dequantize(weight);
  if (values.size() != static_cast<size_t>(layer.n * layer.k)) return layer.name + ": another number of weights";
  const bool moderate = has_moderate_numbers(weight);
  for (const float value : values)
    if (std::isnan(value) || (moderate && std::isinf(value))) return layer.name + ": dequantizes to no finite number";
  return "";
}

// What is wrong with the checkpoint: empty if check() passes only what can be read, and all that is read is valid.
inline std::string fault_of(const Checkpoint& checkpoint) {
  const Result<void> checked = checkpoint.check({});
  if (!checked && checked.error().message.empty()) return "check() refuses without a word";
  if (checkpoint.format().empty() || checkpoint.convention().empty()) return "does not say what it found";
  for (const std::string& warning : checkpoint.warnings())
    if (warning.empty()) return "an empty warning";
  for (const LayerInfo& layer : checkpoint.layers()) {
    if (layer.quantized) {
      const Result<QuantizedWeight> weight = checkpoint.read_quantized(layer.name);
      if (!weight && checked) return layer.name + ": check() passed what read_quantized() refuses";
      if (!weight) continue;
      if (std::string fault = fault_of(*weight, layer); !fault.empty()) return fault;
    } else {
      const Result<DenseWeight> weight = checkpoint.read_dense(layer.name);
      if (!weight && checked) return layer.name + ": check() passed what read_dense() refuses";
      if (weight && weight->values.size() != static_cast<size_t>(layer.n * layer.k))
        return layer.name + ": another number of weights than layers() says";
    }
  }
  for (const OtherTensor& tensor : checkpoint.other_tensors())
    if (const auto bytes = checkpoint.read_other_tensor(tensor.name);
        !bytes && (checked || bytes.error().code == ErrorCode::kInvalidArgument))
      return tensor.name + ": listed among the other tensors, but not read";
  return "";
}

}  // namespace nybble::testing
