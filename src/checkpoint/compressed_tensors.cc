// compressed-tensors "pack-quantized" with 4-bit integers (compressed_tensors.h): symmetric or with zero points, in
// groups or per output feature, with or without act-order. Layers that are not packed are listed as dense ones.
#include "checkpoint/compressed_tensors.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/compressed_tensors_config.h"
#include "checkpoint/format.h"
#include "checkpoint/int4_words.h"
#include "checkpoint/layers.h"

namespace nybble::checkpoint {
namespace {

// The tensors of one packed layer, their shapes checked against each other and the scheme.
struct PackedLayer {
  TensorRef packed, scale, zero_point, group_index;  // the last two may be absent
  Int4Scheme scheme;
  int64_t n = 0, k = 0, groups = 0;
};

Error wrong_shape(const TensorRef& tensor, const char* type, std::vector<int64_t> shape, std::string_view why) {
  return invalid_data("{}: is {} {}, but {} needs {} {}", tensor.where(), tensor_type_name(tensor->type),
                      shape_text(tensor->shape), why, type, shape_text(shape));
}

Result<TensorRef> required(const ModelFiles& model, const std::string& layer, const char* suffix) {
  const TensorRef tensor = model.find(layer + suffix);
  if (!tensor)
    return invalid_data("{}: layer {} has {}{}, but no {}{}", model.path(), base::printable(layer), layer,
                        kWeightPacked, layer, suffix);
  return tensor;
}

// weight_shape: two numbers, which weight_packed must agree with. This is where n and k come from.
Result<void> read_shape(const ModelFiles& model, const std::string& layer, PackedLayer& found) {
  const Result<TensorRef> shape = required(model, layer, kWeightShape);
  if (!shape) return shape.error();
  const bool wide = (*shape)->type == TensorType::kI64;
  if ((!wide && (*shape)->type != TensorType::kI32) || (*shape)->shape != std::vector<int64_t>{2})
    return wrong_shape(*shape, "I64", {2}, "the shape of a layer");
  int64_t dims[2] = {};
  if (wide) {
    if (Result<void> read = shape->read(0, std::as_writable_bytes(std::span(dims))); !read) return read;
  } else {
    int32_t narrow[2] = {};
    if (Result<void> read = shape->read(0, std::as_writable_bytes(std::span(narrow))); !read) return read;
    std::copy(std::begin(narrow), std::end(narrow), dims);
  }
  const std::vector<int64_t>& words = found.packed->shape;
  if (dims[0] < 1 || dims[1] < 1 || dims[0] != words[0] || dims[1] > INT32_MAX || words_for(dims[1]) != words[1])
    return invalid_data("{}: holds [{}, {}], which does not fit weight_packed's shape {} ([n, ceil(k / 8)])",
                        shape->where(), dims[0], dims[1], shape_text(words));
  found.n = dims[0];
  found.k = dims[1];
  return {};
}

Result<PackedLayer> find_layer(const ModelFiles& model, const CompressedTensorsConfig& config,
                               const std::string& layer) {
  PackedLayer found;
  const Result<Int4Scheme> scheme = config.scheme_of(layer);
  if (!scheme) return scheme.error();
  found.scheme = *scheme;
  found.packed = model.find(layer + kWeightPacked);
  if (found.packed->type != TensorType::kI32 || found.packed->shape.size() != 2) {
    if (found.packed->shape.size() == 3)
      return unsupported("{}: has shape {}: experts in one 3-D tensor are not read; save them as one layer each",
                         found.packed.where(), shape_text(found.packed->shape));
    return invalid_data("{}: is {} {}, but 4-bit integers are packed as I32 [n, ceil(k / 8)]", found.packed.where(),
                        tensor_type_name(found.packed->type), shape_text(found.packed->shape));
  }
  if (model.find(layer + ".weight"))
    return invalid_data("{}: layer {} has both a .weight and a {}; which one is meant is a guess", model.path(),
                        base::printable(layer), kWeightPacked);
  if (Result<void> read = read_shape(model, layer, found); !read) return read.error();

  const int group_size = found.scheme.group_size;
  if (group_size != kPerColumn && found.k % group_size != 0)
    return invalid_data("{}: layer {} has k = {}, which is no multiple of config.json's group_size {}", model.path(),
                        base::printable(layer), found.k, group_size);
  found.groups = group_size == kPerColumn ? 1 : found.k / group_size;
  const std::string why = group_size == kPerColumn ? fmt::format("n = {} per channel", found.n)
                                                   : fmt::format("n = {}, k = {} in groups of {} (config.json)",
                                                                 found.n, found.k, group_size);

  const Result<TensorRef> scale = required(model, layer, kWeightScale);
  if (!scale) return scale.error();
  found.scale = *scale;
  if (!float_type(found.scale->type) || found.scale->shape != std::vector{found.n, found.groups})
    return wrong_shape(found.scale, "BF16, F16 or F32", {found.n, found.groups}, why);

  found.zero_point = model.find(layer + kWeightZeroPoint);
  if (!found.zero_point && !found.scheme.symmetric) return required(model, layer, kWeightZeroPoint).error();
  if (found.zero_point && (found.zero_point->type != TensorType::kI32 ||
                           found.zero_point->shape != std::vector{words_for(found.n), found.groups}))
    return wrong_shape(found.zero_point, "I32", {words_for(found.n), found.groups}, why);

  found.group_index = model.find(layer + kWeightGroupIndex);
  if (!found.group_index && found.scheme.act_order) return required(model, layer, kWeightGroupIndex).error();
  if (found.group_index &&
      (found.group_index->type != TensorType::kI32 || found.group_index->shape != std::vector{found.k}))
    return wrong_shape(found.group_index, "I32", {found.k}, why);
  return found;
}

// weight_g_idx as the canonical k_order; empty where the features stand in order. The groups must be a permutation of
// equal groups: kernels index by it.
Result<std::vector<int32_t>> read_order(const PackedLayer& layer) {
  if (!layer.group_index) return std::vector<int32_t>();
  std::vector<int32_t> group_of(static_cast<size_t>(layer.k));
  if (Result<void> read = layer.group_index.read(0, std::as_writable_bytes(std::span(group_of))); !read)
    return read.error();
  // Writers that never filled the tensor left -1 in it, and their readers take the features in order then.
  if (std::find(group_of.begin(), group_of.end(), -1) != group_of.end()) return std::vector<int32_t>();
  for (size_t i = 0; i < group_of.size(); ++i)
    if (group_of[i] < 0 || group_of[i] >= layer.groups)
      return invalid_data("{}: element {} is {}; the layer has groups 0 to {}", layer.group_index.where(), i,
                          group_of[i], layer.groups - 1);
  std::vector<int32_t> order(group_of.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return group_of[a] < group_of[b]; });
  const int64_t group_size = layer.k / layer.groups;
  for (size_t p = 0; p < order.size(); ++p)
    if (group_of[order[p]] != static_cast<int64_t>(p) / group_size)
      return invalid_data("{}: its groups are not equal: the group of element {} has another number of members than {}",
                          layer.group_index.where(), order[p], group_size);
  if (std::is_sorted(order.begin(), order.end())) return std::vector<int32_t>();
  if (!layer.scheme.act_order)
    return invalid_data("{}: reorders the input features, but config.json names no actorder \"group\"",
                        layer.group_index.where());
  return order;
}

Result<std::vector<uint8_t>> read_codes_of(const PackedLayer& layer) {
  constexpr int64_t kPieceBytes = 4 << 20;
  const int64_t row_words = words_for(layer.k), row_bytes = row_words * 4;
  const int64_t rows_per_piece = std::clamp<int64_t>(kPieceBytes / row_bytes, 1, layer.n);
  std::vector<uint32_t> words(static_cast<size_t>(rows_per_piece * row_words));
  std::vector<uint8_t> codes(static_cast<size_t>(layer.n * layer.k));
  for (int64_t row = 0; row < layer.n; row += rows_per_piece) {
    const int64_t rows = std::min(rows_per_piece, layer.n - row);
    const auto piece = std::span(words).first(static_cast<size_t>(rows * row_words));
    if (Result<void> read = layer.packed.read(static_cast<uint64_t>(row * row_bytes), std::as_writable_bytes(piece));
        !read)
      return read.error();
    for (int64_t r = 0; r < rows; ++r)
      unpack_words(piece.subspan(static_cast<size_t>(r * row_words), static_cast<size_t>(row_words)),
                   std::span(codes).subspan(static_cast<size_t>((row + r) * layer.k), static_cast<size_t>(layer.k)));
  }
  return codes;
}

Result<std::vector<uint8_t>> read_zeros(const PackedLayer& layer) {
  std::vector<uint32_t> words(static_cast<size_t>(words_for(layer.n) * layer.groups));
  if (Result<void> read = layer.zero_point.read(0, std::as_writable_bytes(std::span(words))); !read)
    return read.error();
  std::vector<uint8_t> zeros(static_cast<size_t>(layer.n * layer.groups));
  for (int64_t n = 0; n < layer.n; ++n)
    for (int64_t group = 0; group < layer.groups; ++group)
      zeros[static_cast<size_t>(n * layer.groups + group)] =
          nibble_of(words[static_cast<size_t>(n / kNibblesPerWord * layer.groups + group)], n % kNibblesPerWord);
  return zeros;
}

Result<LayerInfo> layer_info(const ModelFiles& model, const CompressedTensorsConfig& config, std::string_view name) {
  const Result<PackedLayer> layer = find_layer(model, config, std::string(name));
  if (!layer) return layer.error();
  const Result<std::vector<int32_t>> order = read_order(*layer);
  if (!order) return order.error();
  LayerInfo info;
  info.name = name;
  info.n = layer->n;
  info.k = layer->k;
  info.quantized = true;
  info.format.scale_dtype = *float_type(layer->scale->type);
  info.format.zero_kind = layer->scheme.symmetric ? ZeroKind::kNone : ZeroKind::kInt;
  info.format.group_size = layer->scheme.group_size;
  info.format.k_order = !order->empty();
  info.file = model.shard_name(layer->packed);
  return info;
}

class CompressedTensorsCheckpoint final : public LayerCheckpoint {
 public:
  CompressedTensorsCheckpoint(std::shared_ptr<const ModelFiles> model, CompressedTensorsConfig config,
                              std::vector<LayerInfo> layers)
      : LayerCheckpoint(std::move(model), std::move(layers)), config_(std::move(config)) {}

  std::string format() const override { return kCompressedTensorsFormat.name; }
  std::string convention() const override {
    size_t packed = 0, with_zeros = 0, with_order = 0;
    for (const LayerInfo& layer : layers()) {
      packed += layer.quantized;
      with_zeros += layer.quantized && layer.format.zero_kind == ZeroKind::kInt;
      with_order += layer.quantized && layer.format.k_order;
    }
    return fmt::format(
        "compressed-tensors pack-quantized, as config.json says: {} layers of 4-bit integers, codes and zero points "
        "stored + 8; "
        "{} symmetric, {} with zero points packed along n, {} with act-order (weight_g_idx); {} dense layers",
        packed, packed - with_zeros, with_zeros, with_order, layers().size() - packed);
  }

 protected:
  std::span<const std::string_view> weight_suffixes() const override {
    static constexpr std::string_view kSuffixes[] = {kWeightPacked, kWeightScale, kWeightShape, kWeightZeroPoint,
                                                     kWeightGroupIndex};
    return kSuffixes;
  }
  Result<QuantizedWeight> read_codes(const LayerInfo& info) const override {
    const Result<PackedLayer> layer = find_layer(model(), config_, info.name);
    if (!layer) return layer.error();
    QuantizedWeight weight;
    weight.name = info.name;
    weight.n = layer->n;
    weight.k = layer->k;
    weight.group_size = layer->scheme.group_size;
    Result<std::vector<int32_t>> order = read_order(*layer);
    if (!order) return order.error();
    weight.k_order = std::move(*order);
    Result<std::vector<uint8_t>> codes = read_codes_of(*layer);
    if (!codes) return codes.error();
    weight.codes = std::move(*codes);
    Result<FloatArray> scales = read_floats(layer->scale);
    if (!scales) return scales.error();
    if (Result<void> finite = check_finite(*scales, layer->scale); !finite) return finite.error();
    weight.scales = std::move(*scales);
    if (!layer->zero_point) return weight;

    Result<std::vector<uint8_t>> zeros = read_zeros(*layer);
    if (!zeros) return zeros.error();
    if (!layer->scheme.symmetric) {
      weight.zero_kind = ZeroKind::kInt;
      weight.int_zeros = std::move(*zeros);
    } else if (const auto odd = std::find_if(zeros->begin(), zeros->end(), [](uint8_t zero) { return zero != 8; });
               odd != zeros->end()) {
      return invalid_data(
          "{}: row {}, group {} is {}, but config.json calls the layer symmetric (every zero 0); one of the "
          "two is wrong",
          layer->zero_point.where(), (odd - zeros->begin()) / layer->groups, (odd - zeros->begin()) % layer->groups,
          static_cast<int>(*odd) - 8);
    }
    return weight;
  }

 private:
  CompressedTensorsConfig config_;
};

bool recognizes_compressed_tensors(const ModelFiles& model) {
  const nlohmann::json& settings = model.quantization_config();
  if (!settings.is_null()) return string_member(settings, "quant_method") == kQuantMethod;
  return std::any_of(model.tensors().begin(), model.tensors().end(),
                     [](const TensorRef& tensor) { return tensor->name.ends_with(kWeightPacked); });
}

Result<std::unique_ptr<Checkpoint>> open_compressed_tensors(std::shared_ptr<const ModelFiles> model) {
  if (model->quantization_config().is_null())
    return invalid_data(
        "{}: has {} tensors, but no config.json beside it with their quantization_config: group sizes and "
        "zero points would be a guess. Put the model's config.json into the folder",
        model->path(), kWeightPacked);
  Result<CompressedTensorsConfig> config = CompressedTensorsConfig::parse(model->quantization_config(), model->path());
  if (!config) return config.error();
  std::vector<LayerInfo> layers;
  for (const TensorRef& tensor : model->tensors()) {
    if (const std::string_view packed = layer_of(tensor->name, kWeightPacked); !packed.empty()) {
      Result<LayerInfo> info = layer_info(*model, *config, packed);
      if (!info) return info.error();
      layers.push_back(std::move(*info));
    } else if (const std::string_view dense = layer_of(tensor->name, ".weight");
               !dense.empty() && is_dense_layer(*model, dense)) {
      layers.push_back(dense_layer_info(*model, dense));
    }
  }
  if (std::none_of(layers.begin(), layers.end(), [](const LayerInfo& layer) { return layer.quantized; }))
    return invalid_data("{}: config.json says compressed-tensors, but no tensor is named *{}", model->path(),
                        kWeightPacked);
  return std::unique_ptr<Checkpoint>(
      std::make_unique<CompressedTensorsCheckpoint>(std::move(model), std::move(*config), std::move(layers)));
}

}  // namespace

const Format kCompressedTensorsFormat = {"compressed-tensors", recognizes_compressed_tensors, open_compressed_tensors};

}  // namespace nybble::checkpoint
