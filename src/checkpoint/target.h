// What a quantized layer becomes on disk: one Target for every format that models are converted to.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/safetensors_writer.h"
#include "nybble/convert.h"

namespace nybble::checkpoint {

// A tensor of a layer. Its bytes may be known before the weight is read.
struct LayerPart {
  TensorEntry entry;
  std::vector<std::byte> known;
};
using PartBytes = std::vector<std::vector<std::byte>>;  // in the order of the parts, empty for those known

class Target {
 public:
  virtual ~Target() = default;
  // Refuses a layer for its shape or format.
  virtual Result<void> check(const LayerInfo& layer) const = 0;
  // Whether make() may yet refuse a layer that check() lets pass, for its numbers.
  virtual bool depends_on_values(const LayerInfo& layer) const = 0;
  // The tensors of a layer that check() let pass.
  virtual std::vector<LayerPart> parts(const LayerInfo& layer) const = 0;
  virtual Result<PartBytes> make(const LayerInfo& layer, QuantizedWeight weight) const = 0;
  // Refuses layers that cannot stand in one model.
  virtual Result<void> check_together(const std::vector<LayerInfo>&, const std::vector<std::string>&) const {
    return {};
  }
  // quantization_config for a model of these quantized layers, in which `dense` are left as they are; null: none.
  virtual nlohmann::ordered_json settings(const std::vector<LayerInfo>& quantized,
                                          const std::vector<std::string>& dense) const = 0;
  // All that the bytes depend on beside the weight, in words.
  virtual std::string recipe() const = 0;
};

std::unique_ptr<Target> dense_target(DType dtype);
std::unique_ptr<Target> compressed_tensors_target(std::optional<DType> scale_dtype);
std::unique_ptr<Target> gptq_target(std::optional<DType> scale_dtype);
std::unique_ptr<Target> awq_target(std::optional<DType> scale_dtype);

// What the targets share.
template <class T> std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span<const T>(values));
  return {bytes.begin(), bytes.end()};
}
int64_t groups_of(const LayerInfo& layer);
// For a format of integer zero points 0 to 15: refuses the other kinds.
Result<void> check_integer_zeros(const LayerInfo& layer, const char* format);
Result<void> check_whole_groups(const LayerInfo& layer, const char* format);
Result<void> check_zeros_fit(const QuantizedWeight& weight, const LayerInfo& layer, const char* format);
// Scales in another type; `exact`: an error where that would change one.
Result<FloatArray> scales_as(const FloatArray& scales, DType dtype, bool exact, const LayerInfo& layer);
// [n, groups] as [groups, n].
std::vector<std::byte> transposed(const FloatArray& values, int64_t n, int64_t groups);
// The zero of row n in a group: 8 where the weight has none.
inline uint8_t zero_of(const QuantizedWeight& weight, size_t at) {
  return weight.int_zeros.empty() ? uint8_t{8} : weight.int_zeros[at];
}
// The group of every input feature.
std::vector<int32_t> group_index(const QuantizedWeight& weight);

}  // namespace nybble::checkpoint
