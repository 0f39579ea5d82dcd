// HQQ: 4-bit codes with a float scale and a float zero point for each group. For a layer of n x k in groups of g along
// k, R = n k / g groups in all (hqq/core/quantize.py, HQQLinear.state_dict; hqq/core/bitpack.py, pack_4bit_u8):
//   W_q          U8 [R / 2, g]      codes of group r in the high four bits of row r, those of group r + R / 2 in the
//   low
//                                   four; with view_as_float the same bytes under another type
//   scale, zero  float [R, 1]       w = (code - zero) * scale
//   shape, nbits, axis, group_size, packing, view_as_float, ...   settings, each a tensor; text is U8, a character each
#include <algorithm>

#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/format.h"
#include "checkpoint/layers.h"

namespace nybble::checkpoint {
namespace {

constexpr char kCodes[] = ".W_q";
constexpr char kScale[] = ".scale";
constexpr char kZero[] = ".zero";
constexpr char kPacking[] = ".packing";
constexpr char kShape[] = ".shape";

// The tensors of one layer, their shapes checked against its settings.
struct HqqLayer {
  TensorRef codes, scale, zero;
  int64_t n = 0, k = 0, group = 0;  // group == k: one for each row
};

Error refuse(const TensorRef& tensor, const std::string& what, const char* known) {
  return unsupported("{}: is {}; only {} is read. Quantize the unquantized model again with axis=1, nbits=4",
                     tensor.where(), what, known);
}

// A whole number of the layer's settings; `missing` where there is no such tensor.
Result<int64_t> setting(const ModelFiles& model, const std::string& layer, const char* suffix,
                        std::optional<int64_t> missing = {}) {
  if (missing && !model.find(layer + suffix)) return *missing;
  const Result<TensorRef> tensor = required_tensor(model, layer, suffix, kCodes);
  if (!tensor) return tensor.error();
  return read_integer(*tensor);
}

Result<void> check_settings(const ModelFiles& model, const std::string& layer) {
  const struct {
    const char* suffix;
    int64_t wanted;
    std::optional<int64_t> missing;
  } settings[] = {
      {".nbits", 4, {}}, {".axis", 1, {}}, {".channel_wise", 1, 1}, {".quant_scale", 0, 0}, {".quant_zero", 0, 0}};
  for (const auto& [suffix, wanted, missing] : settings) {
    const Result<int64_t> value = setting(model, layer, suffix, missing);
    if (!value) return value.error();
    if (*value != wanted)
      return refuse(model.find(layer + suffix), std::to_string(*value), std::to_string(wanted).c_str());
  }
  for (const char* suffix : {".scale_q", ".zero_q"})
    if (const TensorRef quantized = model.find(layer + suffix))
      return refuse(quantized, "a quantized scale or zero point", "float");

  const Result<TensorRef> packing = required_tensor(model, layer, kPacking, kCodes);
  if (!packing) return packing.error();
  constexpr uint64_t kMaxText = 64;
  if ((*packing)->type != TensorType::kU8 || (*packing)->size_bytes() > kMaxText)
    return invalid_data("{}: is {} {}; a packing is text as U8", packing->where(), tensor_type_name((*packing)->type),
                        shape_text((*packing)->shape));
  const Result<std::vector<std::byte>> text = packing->read_all();
  if (!text) return text.error();
  if (const std::string_view name(reinterpret_cast<const char*>(text->data()), text->size()); name != "4bit_u8")
    return refuse(*packing, base::printable(name), "4bit_u8");
  return {};
}

Result<void> read_shape(const ModelFiles& model, const std::string& name, HqqLayer& layer) {
  const Result<TensorRef> shape = required_tensor(model, name, kShape, kCodes);
  if (!shape) return shape.error();
  if (Result<void> fits = expect_tensor(*shape, TensorType::kI64, {2}, "the shape of a layer"); !fits) return fits;
  int64_t dims[2] = {};
  if (Result<void> read = shape->read(0, std::as_writable_bytes(std::span(dims))); !read) return read;
  if (dims[0] < 1 || dims[1] < 1 || dims[0] > INT32_MAX || dims[1] > INT32_MAX)
    return invalid_data("{}: holds [{}, {}]; n and k are 1 to {}", shape->where(), dims[0], dims[1], INT32_MAX);
  layer.n = dims[0];
  layer.k = dims[1];
  return {};
}

Result<HqqLayer> find_layer(const ModelFiles& model, const std::string& name) {
  if (Result<void> checked = check_settings(model, name); !checked) return checked.error();
  HqqLayer layer;
  layer.codes = model.find(name + kCodes);
  if (Result<void> read = read_shape(model, name, layer); !read) return read.error();
  const Result<int64_t> group = setting(model, name, ".group_size", layer.k);  // none: a group for each row
  if (!group) return group.error();
  layer.group = *group;
  if (layer.group < 1 || layer.group > INT32_MAX)
    return invalid_data("{}: is {}; a group has 1 to {} input features", model.find(name + ".group_size").where(),
                        layer.group, INT32_MAX);
  if (layer.k % layer.group != 0)
    return unsupported(
        "{}: the groups of {} straddle rows of {}, so rows have no scales of their own. Quantize the unquantized model "
        "again in groups that divide {}",
        layer.codes.where(), layer.group, layer.k, layer.k);

  const int64_t groups = layer.n * (layer.k / layer.group);
  const std::string why = fmt::format("n = {}, k = {} in groups of {}", layer.n, layer.k, layer.group);
  // Whatever type the bytes were stored under.
  if (groups % 2 != 0 || layer.codes->shape.size() != 2 || layer.codes->shape[0] != groups / 2 ||
      layer.codes->size_bytes() != static_cast<uint64_t>(groups / 2 * layer.group))
    return invalid_data("{}: has shape {} and {} bytes, but {} needs U8 [{}, {}] for pairs of groups",
                        layer.codes.where(), shape_text(layer.codes->shape), layer.codes->size_bytes(), why, groups / 2,
                        layer.group);
  for (const auto& [suffix, to] : {std::pair{kScale, &layer.scale}, {kZero, &layer.zero}}) {
    const Result<TensorRef> tensor = required_tensor(model, name, suffix, kCodes);
    if (!tensor) return tensor.error();
    *to = *tensor;
    if (!float_type((*tensor)->type) || (*tensor)->shape != std::vector<int64_t>{groups, 1})
      return wrong_tensor(*tensor, "BF16, F16 or F32", std::vector<int64_t>{groups, 1}, why);
  }
  if (layer.scale->type != layer.zero->type)
    return invalid_data("{}: is {}, but the zero points beside it are {}; both have one type", layer.scale.where(),
                        tensor_type_name(layer.scale->type), tensor_type_name(layer.zero->type));
  return layer;
}

Result<LayerInfo> layer_info(const ModelFiles& model, const std::string& name) {
  const Result<HqqLayer> layer = find_layer(model, name);
  if (!layer) return layer.error();
  return quantized_layer_info(model, name, layer->codes, layer->n, layer->k,
                              {.scale_dtype = *float_type(layer->scale->type),
                               .zero_kind = ZeroKind::kFloat,
                               .group_size = static_cast<int>(layer->group)});
}

class HqqCheckpoint final : public LayerCheckpoint {
 public:
  using LayerCheckpoint::LayerCheckpoint;

  std::string format() const override { return kHqqFormat.name; }
  std::string convention() const override {
    return fmt::format(
        "HQQ, as each layer's own settings say: {} layers of 4-bit codes along axis 1, two halves of the groups in the "
        "high and the low bits of a byte, zero points that are floats; {} dense layers",
        quantized_count(), dense_count());
  }

 protected:
  std::span<const std::string_view> weight_suffixes() const override {
    static constexpr std::string_view kSuffixes[] = {kCodes,
                                                     kScale,
                                                     kZero,
                                                     kShape,
                                                     kPacking,
                                                     ".nbits",
                                                     ".group_size",
                                                     ".axis",
                                                     ".view_as_float",
                                                     ".unpack_view_dtype",
                                                     ".channel_wise",
                                                     ".optimize",
                                                     ".round_zero",
                                                     ".offload_meta",
                                                     ".encoded_state_dict",
                                                     ".quant_scale",
                                                     ".quant_zero",
                                                     ".compute_dtype",
                                                     ".stores_quant_config"};
    return kSuffixes;
  }
  Result<QuantizedWeight> read_codes(const LayerInfo& info) const override {
    const Result<HqqLayer> layer = find_layer(model(), info.name);
    if (!layer) return layer.error();
    QuantizedWeight weight = empty_weight(info);
    const Result<std::vector<std::byte>> packed = layer->codes.read_all();
    if (!packed) return packed.error();
    weight.codes.resize(2 * packed->size());
    for (size_t i = 0; i < packed->size(); ++i) {
      weight.codes[i] = static_cast<uint8_t>((*packed)[i] >> 4);
      weight.codes[packed->size() + i] = static_cast<uint8_t>((*packed)[i] & std::byte{15});
    }
    Result<FloatArray> scales = read_finite_floats(layer->scale), zeros = read_finite_floats(layer->zero);
    if (!scales) return scales.error();
    if (!zeros) return zeros.error();
    weight.scales = std::move(*scales);
    weight.float_zeros = std::move(*zeros);
    return weight;
  }
};

bool recognizes_hqq(const ModelFiles& model) { return is_of_method(model, "hqq", kCodes); }

Result<std::unique_ptr<Checkpoint>> open_hqq(std::shared_ptr<const ModelFiles> model) {
  if (Result<void> whole = check_no_orphans(*model, kCodes, {kPacking}); !whole) return whole.error();
  Result<std::vector<LayerInfo>> layers =
      list_layers(*model, kCodes, "hqq", [&](const std::string& layer) { return layer_info(*model, layer); });
  if (!layers) return layers.error();
  return std::unique_ptr<Checkpoint>(std::make_unique<HqqCheckpoint>(std::move(model), std::move(*layers)));
}

}  // namespace

const Format kHqqFormat = {"hqq", recognizes_hqq, open_hqq};

}  // namespace nybble::checkpoint
