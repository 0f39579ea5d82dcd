// Quantized layers as plain weights: dequantize(), then one rounding where a 16-bit type is asked for.
#include <cmath>

#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/target.h"

namespace nybble::checkpoint {
namespace {

class DenseTarget final : public Target {
 public:
  explicit DenseTarget(DType dtype) : dtype_(dtype) {}

  Result<void> check(const LayerInfo&) const override { return {}; }
  bool depends_on_values(const LayerInfo&) const override { return dtype_ == DType::kFp16; }
  std::vector<LayerPart> parts(const LayerInfo& layer) const override {
    return {{{layer.name + ".weight", tensor_type(dtype_), {layer.n, layer.k}}, {}}};
  }
  Result<PartBytes> make(const LayerInfo& layer, QuantizedWeight weight) const override {
    const std::vector<float> values = dequantize(weight);
    weight = {};
    FloatArray rounded = FloatArray::from_floats(dtype_, values);
    for (size_t i = 0; i < values.size(); ++i)
      if (!std::isfinite(rounded.at(i)))
        return unsupported("layer {}: the weight of row {}, column {} is {}, beyond the range of {}; take bf16 or fp32",
                           base::printable(layer.name), i / static_cast<size_t>(layer.k),
                           i % static_cast<size_t>(layer.k), values[i], dtype_name(dtype_));
    return PartBytes{std::move(rounded.bytes)};
  }
  nlohmann::ordered_json settings(const std::vector<LayerInfo>&, const std::vector<std::string>&) const override {
    return nullptr;
  }
  std::string recipe() const override { return fmt::format("dense {}", dtype_name(dtype_)); }

 private:
  DType dtype_;
};

}  // namespace

std::unique_ptr<Target> dense_target(DType dtype) { return std::make_unique<DenseTarget>(dtype); }

}  // namespace nybble::checkpoint
