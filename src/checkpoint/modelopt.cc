// ModelOpt's NVFP4. For a layer of n x k (modelopt/torch/quantization/qtensor/nvfp4_tensor.py):
//   weight          U8 [n, k / 2]         E2M1 codes, two a byte, the low four bits first
//   weight_scale    F8_E4M3 [n, k / 16]
//   weight_scale_2  F32, one number       the scale of a group is weight_scale * weight_scale_2
//   input_scale     F32, one number       for activations in 4 bits; not used
// The settings stand in config.json's quantization_config or, alone, in hf_quant_config.json.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/format.h"
#include "checkpoint/fp4.h"
#include "checkpoint/layers.h"
#include "checkpoint/quantization_settings.h"

namespace nybble::checkpoint {
namespace {

constexpr char kSettingsFile[] = "hf_quant_config.json";
constexpr char kWeight[] = ".weight";
constexpr char kScale[] = ".weight_scale";
constexpr char kScale2[] = ".weight_scale_2";
constexpr int kGroup = 16;
constexpr const char* kAlgorithms[] = {"NVFP4", "W4A16_NVFP4", "NVFP4_AWQ", "MIXED_PRECISION"};

struct Nvfp4Layer {
  TensorRef weight, scale, scale_2;
  int64_t n = 0, k = 0;
};

Result<Nvfp4Layer> find_layer(const ModelFiles& model, const std::string& name) {
  Nvfp4Layer layer;
  layer.scale_2 = model.find(name + kScale2);
  for (const auto& [suffix, to] : {std::pair{kWeight, &layer.weight}, {kScale, &layer.scale}}) {
    const Result<TensorRef> tensor = required_tensor(model, name, suffix, kScale2);
    if (!tensor) return tensor.error();
    *to = *tensor;
  }
  const std::vector<int64_t>& shape = layer.weight->shape;
  if (shape.size() == 3)
    return unsupported(
        "{}: has shape {}: experts in one tensor are not read in this format. Export the model again, "
        "experts as layers of their own",
        layer.weight.where(), shape_text(shape));
  if (layer.weight->type != TensorType::kU8 || shape.size() != 2 || layer.weight->size_bytes() == 0 ||
      shape[0] > INT32_MAX || shape[1] > INT32_MAX / 2)
    return invalid_data("{}: is {} {}, but NVFP4 is packed as U8 [n, k / 2]", layer.weight.where(),
                        tensor_type_name(layer.weight->type), shape_text(shape));
  layer.n = shape[0];
  layer.k = 2 * shape[1];
  if (layer.k % kGroup != 0)
    return invalid_data("{}: layer {} has k = {}, which is no multiple of NVFP4's groups of {}", model.path(),
                        base::printable(name), layer.k, kGroup);
  if (Result<void> fits = expect_tensor(layer.scale, TensorType::kF8E4M3, {layer.n, layer.k / kGroup},
                                        fmt::format("n = {}, k = {} in groups of {}", layer.n, layer.k, kGroup));
      !fits)
    return fits.error();
  if (layer.scale_2->type != TensorType::kF32 || layer.scale_2->size_bytes() != sizeof(float))
    return wrong_tensor(layer.scale_2, "F32", std::vector<int64_t>{}, "the scale of a tensor");
  for (const char* suffix : {".pre_quant_scale", ".weight_quantizer.svdquant_lora_a"})
    if (const TensorRef extra = model.find(name + suffix))
      return unsupported(
          "{}: is applied to the activations beside the weight, which nybble does not do. Export the model again with "
          "it folded into the weights before",
          extra.where());
  return layer;
}

class ModelOptCheckpoint final : public LayerCheckpoint {
 public:
  using LayerCheckpoint::LayerCheckpoint;

  std::string format() const override { return kModelOptFormat.name; }
  std::string convention() const override {
    return fmt::format(
        "ModelOpt NVFP4, by its tensors *{}: {} layers of E2M1 codes in groups of 16, whose scale is weight_scale * "
        "weight_scale_2; {} dense layers",
        kScale2, quantized_count(), dense_count());
  }
  std::vector<std::string> warnings() const override {
    const bool scaled = std::any_of(model().tensors().begin(), model().tensors().end(), [](const TensorRef& tensor) {
      return !layer_of(tensor->name, ".input_scale").empty();
    });
    if (!scaled) return {};
    return {
        "its input_scale tensors ask for activations in 4-bit floats; nybble multiplies these weights with 16-bit "
        "ones"};
  }

 protected:
  std::span<const std::string_view> weight_suffixes() const override {
    static constexpr std::string_view kSuffixes[] = {kWeight, kScale, kScale2};
    return kSuffixes;
  }
  Result<QuantizedWeight> read_codes(const LayerInfo& info) const override {
    const Result<Nvfp4Layer> layer = find_layer(model(), info.name);
    if (!layer) return layer.error();
    QuantizedWeight weight = empty_weight(info);
    weight.table = e2m1_table();
    const Result<std::vector<std::byte>> packed = layer->weight.read_all();
    if (!packed) return packed.error();
    weight.codes = unpack_low_first(*packed);
    float scale_2 = 0;
    if (Result<void> read = layer->scale_2.read(0, std::as_writable_bytes(std::span(&scale_2, 1))); !read)
      return read.error();
    if (!std::isfinite(scale_2))
      return invalid_data("{}: is {}; scales are multiplied by it", layer->scale_2.where(), scale_2);
    Result<FloatArray> scales = read_e4m3_scales(layer->scale, [&](float scale) { return scale * scale_2; });
    if (!scales) return scales.error();
    weight.scales = std::move(*scales);
    return weight;
  }
};

bool recognizes_modelopt(const ModelFiles& model) {
  const nlohmann::json& settings = model.quantization_config();
  if (!settings.is_null()) return string_member(settings, "quant_method").starts_with("modelopt");
  const bool has_file = model.folder().has(kSettingsFile);  // which may have been left beside a dense model
  return std::any_of(model.tensors().begin(), model.tensors().end(), [&](const TensorRef& tensor) {
    return tensor->name.ends_with(kScale2) || (has_file && tensor->name.ends_with(kScale));
  });
}

Result<void> check_algorithm(const ModelFiles& model) {
  const Result<QuantizationSettings> found = find_quantization_settings(model, kSettingsFile);
  if (!found) return found.error();
  if (found->object.is_null()) return {};
  const nlohmann::json* settings = &found->object;
  if (found->path.empty()) {  // a file of their own, which has more than them
    settings = find_member(*settings, {"quantization"});
    if (settings == nullptr || !settings->is_object())
      return invalid_data("{}: has no object \"quantization\", which says how the model is quantized", found->subject);
  }
  const std::string algorithm = string_member(*settings, "quant_algo");
  if (std::find(std::begin(kAlgorithms), std::end(kAlgorithms), algorithm) == std::end(kAlgorithms))
    return unsupported(
        "{}: quant_algo {} is not read; known is NVFP4 (also W4A16_NVFP4, NVFP4_AWQ and the NVFP4 of "
        "MIXED_PRECISION). Quantize the unquantized model again",
        found->subject, base::printable(algorithm));
  return {};
}

Result<std::unique_ptr<Checkpoint>> open_modelopt(std::shared_ptr<const ModelFiles> model) {
  if (Result<void> known = check_algorithm(*model); !known) return known.error();
  std::vector<LayerInfo> layers;
  for (const TensorRef& tensor : model->tensors()) {
    if (const std::string_view name = layer_of(tensor->name, kScale2); !name.empty()) {
      const Result<Nvfp4Layer> layer = find_layer(*model, std::string(name));
      if (!layer) return layer.error();
      layers.push_back(
          quantized_layer_info(*model, name, layer->weight, layer->n, layer->k,
                               {.scale_dtype = DType::kFp32, .zero_kind = ZeroKind::kTable, .group_size = kGroup}));
    } else if (tensor->name.ends_with("_weight_scale_2")) {
      return unsupported(
          "{}: belongs to experts in one tensor, which are not read in this format. Export the model again, "
          "experts as layers of their own",
          tensor.where());
    } else if (const std::string_view scaled = layer_of(tensor->name, kScale);
               !scaled.empty() && !model->find(std::string(scaled) + kScale2)) {
      const TensorRef weight = model->find(std::string(scaled) + kWeight);
      return unsupported(
          "{}: layer {} is quantized, but not in NVFP4, which would have a {}{}: its weight is {}. Quantize "
          "the unquantized model again with NVFP4 alone",
          model->path(), base::printable(scaled), scaled, kScale2, weight ? tensor_type_name(weight->type) : "missing");
    }
  }
  if (layers.empty())
    return invalid_data("{}: it says ModelOpt NVFP4, but no tensor is named *{}", model->path(), kScale2);
  add_dense_layers(*model, layers);
  return std::unique_ptr<Checkpoint>(std::make_unique<ModelOptCheckpoint>(std::move(model), std::move(layers)));
}

}  // namespace

const Format kModelOptFormat = {"modelopt", recognizes_modelopt, open_modelopt};

}  // namespace nybble::checkpoint
