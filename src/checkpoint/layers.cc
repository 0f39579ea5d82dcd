#include "checkpoint/layers.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "base/check.h"
#include "base/error.h"
#include "base/json_text.h"

namespace nybble::checkpoint {
namespace {

std::string tensor_name(std::string_view layer, const char* suffix) { return std::string(layer) + suffix; }

}  // namespace

std::string_view layer_of(std::string_view tensor_name, std::string_view suffix) {
  if (!tensor_name.ends_with(suffix)) return {};
  return tensor_name.substr(0, tensor_name.size() - suffix.size());
}

bool is_dense_layer(const ModelFiles& model, std::string_view layer) {
  const TensorRef weight = model.find(tensor_name(layer, ".weight"));
  if (!weight || weight->shape.size() != 2 || weight->size_bytes() == 0 || !float_type(weight->type)) return false;
  const TensorRef bias = model.find(tensor_name(layer, ".bias"));
  return !bias || (bias->shape == std::vector{weight->shape[0]} && float_type(bias->type));
}

LayerInfo dense_layer_info(const ModelFiles& model, std::string_view layer) {
  const TensorRef weight = model.find(tensor_name(layer, ".weight"));
  NYBBLE_CHECK(is_dense_layer(model, layer), "the caller asked is_dense_layer()");
  LayerInfo info;
  info.name = layer;
  info.n = weight->shape[0];
  info.k = weight->shape[1];
  info.dense_dtype = *float_type(weight->type);
  info.file = model.shard_name(weight);
  return info;
}

void add_dense_layers(const ModelFiles& model, std::vector<LayerInfo>& layers) {
  std::set<std::string, std::less<>> quantized;
  for (const LayerInfo& layer : layers) quantized.insert(layer.name);
  for (const TensorRef& tensor : model.tensors())
    if (const std::string_view layer = layer_of(tensor->name, ".weight");
        !layer.empty() && quantized.find(layer) == quantized.end() && is_dense_layer(model, layer))
      layers.push_back(dense_layer_info(model, layer));
}

LayerInfo quantized_layer_info(const ModelFiles& model, std::string_view layer, const TensorRef& codes, int64_t n,
                               int64_t k, const WeightFormat& format) {
  LayerInfo info;
  info.name = layer;
  info.n = n;
  info.k = k;
  info.quantized = true;
  info.format = format;
  info.file = model.shard_name(codes);
  return info;
}

QuantizedWeight empty_weight(const LayerInfo& layer) {
  QuantizedWeight weight;
  weight.name = layer.name;
  weight.n = layer.n;
  weight.k = layer.k;
  weight.group_size = layer.format.group_size;
  weight.zero_kind = layer.format.zero_kind;
  return weight;
}

Result<std::vector<LayerInfo>> list_layers(const ModelFiles& model, std::string_view suffix, std::string_view method,
                                           const std::function<Result<LayerInfo>(const std::string& layer)>& info_of) {
  std::vector<LayerInfo> layers;
  for (const TensorRef& tensor : model.tensors()) {
    const std::string_view name = layer_of(tensor->name, suffix);
    if (name.empty()) continue;
    Result<LayerInfo> info = info_of(std::string(name));
    if (!info) return info.error();
    layers.push_back(std::move(*info));
  }
  if (layers.empty())
    return invalid_data("{}: config.json says {}, but no tensor is named *{}", model.path(), method, suffix);
  add_dense_layers(model, layers);
  return layers;
}

bool are_symmetric(std::span<const uint8_t> zeros) {
  return std::all_of(zeros.begin(), zeros.end(), [](uint8_t zero) { return zero == 8; });
}

void list_as_symmetric(std::vector<LayerInfo>& layers) {
  for (LayerInfo& layer : layers)
    if (layer.quantized && layer.format.zero_kind == ZeroKind::kInt) layer.format.zero_kind = ZeroKind::kNone;
}

bool is_of_method(const ModelFiles& model, std::string_view method, std::string_view suffix) {
  const nlohmann::json& settings = model.quantization_config();
  if (!settings.is_null()) return string_member(settings, "quant_method") == method;
  return std::any_of(model.tensors().begin(), model.tensors().end(),
                     [&](const TensorRef& tensor) { return tensor->name.ends_with(suffix); });
}

Result<FloatArray> read_floats(const TensorSlice& tensor) {
  const Result<DType> dtype = float_type(tensor.type());
  if (!dtype) return invalid_data("{}: {}", tensor.where(), dtype.error().message);
  Result<std::vector<std::byte>> bytes = tensor.read_all();
  if (!bytes) return bytes.error();
  FloatArray values;
  values.dtype = *dtype;
  values.bytes = std::move(*bytes);
  return values;
}

Result<FloatArray> read_finite_floats(const TensorSlice& tensor) {
  Result<FloatArray> values = read_floats(tensor);
  if (!values) return values;
  if (Result<void> finite = check_finite(*values, tensor); !finite) return finite.error();
  return values;
}

FloatArray arranged(const FloatArray& stored, int64_t n, int64_t groups, int64_t row_stride, int64_t group_stride) {
  FloatArray values;
  values.dtype = stored.dtype;
  values.resize(static_cast<size_t>(n * groups));
  size_t i = 0;
  for (int64_t row = 0; row < n; ++row)
    for (int64_t group = 0; group < groups; ++group, ++i)
      values.set_bits(i, stored.bits_at(static_cast<size_t>(row * row_stride + group * group_stride)));
  return values;
}

Result<FloatArray> read_bias(const TensorSlice& bias, int64_t n) {
  if (!bias) return FloatArray{};
  if (bias.shape().size() != 1 || bias.shape()[0] != n)
    return invalid_data("{}: has shape {}; the layer's {} output features need [{}]", bias.where(),
                        shape_text(bias.shape()), n, n);
  return read_floats(bias);
}

Result<void> check_finite(const FloatArray& values, const TensorSlice& tensor) {
  const uint32_t exponent = values.dtype == DType::kBf16   ? 0x7F80u
                            : values.dtype == DType::kFp16 ? 0x7C00u
                                                           : 0x7F800000u;
  for (size_t i = 0; i < values.size(); ++i)
    if ((values.bits_at(i) & exponent) == exponent)
      return invalid_data("{}: element {} of shape {} is {}", tensor.where(), i, shape_text(tensor.shape()),
                          values.at(i));
  return {};
}

Result<TensorSlice> StoredLayer::find(const ModelFiles& model, std::string_view suffix) const {
  const TensorRef tensor = model.find(std::string(name).append(suffix));
  if (!tensor || !index) return TensorSlice(tensor);
  if (tensor->shape.empty() || *index >= tensor->shape[0] || tensor_type_bits(tensor->type) % 8 != 0)
    return invalid_data("{}: is {} {}, but the layer {} is index {} of it", tensor.where(),
                        tensor_type_name(tensor->type), shape_text(tensor->shape), expert_name(name, *index), *index);
  return TensorSlice(tensor, *index);
}

Result<TensorSlice> StoredLayer::require(const ModelFiles& model, std::string_view suffix,
                                         std::string_view beside) const {
  const Result<TensorRef> tensor = required_tensor(model, name, suffix, beside);
  if (!tensor) return tensor.error();
  if (const TensorRef other = model.find(std::string(name).append(beside));
      index && other && !other->shape.empty() && !(*tensor)->shape.empty() && (*tensor)->shape[0] > other->shape[0])
    return invalid_data("{}: has shape {}, but {}{} beside it holds {} experts", tensor->where(),
                        shape_text((*tensor)->shape), name, beside, other->shape[0]);
  return find(model, suffix);
}

StoredLayer stored_layer(const ModelFiles& model, std::string_view layer, std::string_view suffix) {
  StoredLayer stored{std::string(layer), std::nullopt};
  if (model.find(stored.name + std::string(suffix))) return stored;
  const size_t dot = layer.rfind('.');
  int64_t index = 0;
  if (dot == std::string_view::npos) return stored;
  const std::string_view digits = layer.substr(dot + 1);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
  if (error != std::errc{} || end != digits.data() + digits.size() || index < 0) return stored;
  return {std::string(layer.substr(0, dot)), index};
}

std::string expert_name(std::string_view stored_name, int64_t index) {
  return fmt::format("{}.{}", stored_name, index);
}

Result<void> check_distinct(const ModelFiles& model, const std::vector<LayerInfo>& layers) {
  std::set<std::string_view> names;
  for (const LayerInfo& layer : layers)
    if (!names.insert(layer.name).second)
      return invalid_data("{}: layer {} is stored twice, by itself and within a tensor of several experts",
                          model.path(), base::printable(layer.name));
  return {};
}

Result<void> check_no_orphans(const ModelFiles& model, std::string_view codes,
                              std::initializer_list<std::string_view> beside) {
  for (const TensorRef& tensor : model.tensors())
    for (const std::string_view suffix : beside) {
      const std::string layer(layer_of(tensor->name, suffix));
      if (!layer.empty() && !model.find(layer + std::string(codes)) && !model.find(layer + ".weight"))
        return invalid_data("{}: belongs to a layer whose codes are missing: there is no {}{}", tensor.where(), layer,
                            codes);
    }
  return {};
}

LayerCheckpoint::LayerCheckpoint(std::shared_ptr<const ModelFiles> model, std::vector<LayerInfo> layers)
    : model_(std::move(model)), layers_(std::move(layers)) {
  std::sort(layers_.begin(), layers_.end(), [](const LayerInfo& a, const LayerInfo& b) { return a.name < b.name; });
}

size_t LayerCheckpoint::quantized_count() const {
  return static_cast<size_t>(
      std::count_if(layers_.begin(), layers_.end(), [](const LayerInfo& layer) { return layer.quantized; }));
}

Result<TensorSlice> LayerCheckpoint::bias_of(const LayerInfo& layer) const {
  return TensorSlice(model_->find(tensor_name(layer.name, ".bias")));
}

const LayerInfo* LayerCheckpoint::look_up(std::string_view layer) const {
  const auto at = std::lower_bound(layers_.begin(), layers_.end(), layer,
                                   [](const LayerInfo& info, std::string_view wanted) { return info.name < wanted; });
  return at == layers_.end() || at->name != layer ? nullptr : &*at;
}

Result<const LayerInfo*> LayerCheckpoint::find(const std::string& layer, bool quantized) const {
  const LayerInfo* at = look_up(layer);
  if (at == nullptr)
    return invalid_argument("{}: has no linear layer {}; layers() lists all {}", model_->path(), base::printable(layer),
                            layers_.size());
  if (at->quantized != quantized)
    return invalid_argument("{}: layer {} is {}quantized; read it with {}", model_->path(), base::printable(layer),
                            at->quantized ? "" : "not ", at->quantized ? "read_quantized()" : "read_dense()");
  return at;
}

Result<DenseWeight> LayerCheckpoint::read_dense(const std::string& layer) const {
  const Result<const LayerInfo*> info = find(layer, false);
  if (!info) return info.error();
  Result<FloatArray> values = read_floats(model_->find(tensor_name(layer, ".weight")));
  if (!values) return values.error();
  const Result<TensorSlice> bias_tensor = bias_of(**info);
  if (!bias_tensor) return bias_tensor.error();
  Result<FloatArray> bias = read_bias(*bias_tensor, (*info)->n);
  if (!bias) return bias.error();
  return DenseWeight{layer, (*info)->n, (*info)->k, std::move(*values), std::move(*bias)};
}

Result<QuantizedWeight> LayerCheckpoint::read_quantized(const std::string& layer) const {
  const Result<const LayerInfo*> info = find(layer, true);
  if (!info) return info.error();
  Result<QuantizedWeight> weight = read_codes(**info);
  if (!weight) return weight;
  const Result<TensorSlice> bias_tensor = bias_of(**info);
  if (!bias_tensor) return bias_tensor.error();
  Result<FloatArray> bias = read_bias(*bias_tensor, weight->n);
  if (!bias) return bias.error();
  weight->bias = std::move(*bias);
  if (Result<void> valid = validate(*weight); !valid)
    return invalid_data("{}: {}", model_->path(), valid.error().message);
  return weight;
}

bool LayerCheckpoint::is_part_of_weight(const TensorRef& tensor) const {
  const auto suffixes = weight_suffixes();
  return std::any_of(suffixes.begin(), suffixes.end(), [&](std::string_view suffix) {
    const std::string_view name = layer_of(tensor->name, suffix);
    const LayerInfo* layer = name.empty() ? nullptr : look_up(name);
    if (layer == nullptr && !name.empty()) layer = look_up(expert_name(name, 0));
    return layer != nullptr && layer->quantized;
  });
}

std::vector<OtherTensor> LayerCheckpoint::other_tensors() const {
  std::vector<OtherTensor> others;
  for (const TensorRef& tensor : model_->tensors())
    if (!is_part_of_weight(tensor))
      others.push_back({tensor->name, tensor_type_name(tensor->type), tensor->shape, model_->shard_name(tensor)});
  return others;
}

Result<std::vector<std::byte>> LayerCheckpoint::read_other_tensor(const std::string& name) const {
  const TensorRef tensor = model_->find(name);
  if (!tensor || is_part_of_weight(tensor))
    return invalid_argument("{}: {} is {}", model_->path(), base::printable(name),
                            tensor ? "part of a quantized weight; read that with read_quantized()" : "no tensor of it");
  return tensor.read_all();
}

Result<void> LayerCheckpoint::check_layer(const LayerInfo& layer) const {
  FloatArray bias;
  if (layer.quantized) {
    Result<QuantizedWeight> weight = read_quantized(layer.name);
    if (!weight) return weight.error();
    bias = std::move(weight->bias);
  } else {
    Result<DenseWeight> weight = read_dense(layer.name);
    if (!weight) return weight.error();
    if (Result<void> finite = check_finite(weight->values, model_->find(tensor_name(layer.name, ".weight"))); !finite)
      return finite;
    bias = std::move(weight->bias);
  }
  return bias.empty() ? Result<void>() : check_finite(bias, *bias_of(layer));
}

int64_t LayerCheckpoint::bytes_of(const LayerInfo& layer) const {
  return layer.quantized ? layer.n * layer.k / 2
                         : layer.n * layer.k * static_cast<int64_t>(dtype_bytes(layer.dense_dtype));
}

Result<void> LayerCheckpoint::check(const std::function<void(int64_t, int64_t)>& progress) const {
  int64_t total = 0, done = 0;
  for (const LayerInfo& layer : layers_) total += bytes_of(layer);
  for (const LayerInfo& layer : layers_) {
    if (Result<void> checked = check_layer(layer); !checked) return checked;
    done += bytes_of(layer);
    if (progress) progress(done, total);
  }
  return {};
}

}  // namespace nybble::checkpoint
