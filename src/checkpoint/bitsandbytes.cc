// bitsandbytes NF4 and FP4: codes into a table of 16 numbers, a scale for each block of the flattened weight. For a
// layer of n x k in blocks of b (bitsandbytes/functional.py, QuantState.as_dict):
//   weight                                U8 [n k / 2, 1]   two codes a byte, the first in the high four bits; with
//                                                           another quant_storage the same bytes under another type
//   weight.absmax                         F32 [n k / b]     scales; U8 where they are quantized in turn ("nested")
//   weight.quant_map                      F32 [16]          the table
//   weight.nested_absmax                  F32 [ceil(n k / b / nested b)]
//   weight.nested_quant_map               F32 [256]
//   weight.quant_state.bitsandbytes__nf4  U8                JSON: type, shape, block sizes, nested_offset
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/format.h"
#include "checkpoint/layers.h"

namespace nybble::checkpoint {
namespace {

constexpr char kWeight[] = ".weight";
constexpr char kAbsmax[] = ".weight.absmax";
constexpr char kQuantMap[] = ".weight.quant_map";
constexpr char kNestedAbsmax[] = ".weight.nested_absmax";
constexpr char kNestedQuantMap[] = ".weight.nested_quant_map";
constexpr const char* kStates[] = {".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4"};
constexpr char kAnyState[] = ".quant_state.bitsandbytes__";

// The tensors of one layer, their shapes checked against its state.
struct BlockLayer {
  TensorRef weight, absmax, quant_map, nested_absmax, nested_quant_map;  // the last two may be absent
  int64_t n = 0, k = 0, block = 0, nested_block = 0;
  float nested_offset = 0;
};

TensorRef state_of(const ModelFiles& model, const std::string& layer) {
  for (const char* suffix : kStates)
    if (const TensorRef state = model.find(layer + suffix)) return state;
  return {};
}

// A whole number of the state between 1 and `last`.
Result<int64_t> positive(const nlohmann::json& value, int64_t last, const std::string& what) {
  if (!value.is_number_integer() || value.get<double>() < 1 || value.get<double>() > static_cast<double>(last))
    return invalid_data("{} is {}; it must be a whole number from 1 to {}", what, base::printable(value.dump()), last);
  return value.get<int64_t>();
}

// The sizes in a layer's state.
Result<void> read_state(const TensorRef& state, BlockLayer& layer) {
  constexpr uint64_t kMaxStateBytes = 1 << 16;
  if (state->type != TensorType::kU8 || state->shape.size() != 1 || state->size_bytes() > kMaxStateBytes)
    return invalid_data("{}: is {} {}; a quantization state is JSON as U8 of at most {} bytes", state.where(),
                        tensor_type_name(state->type), shape_text(state->shape), kMaxStateBytes);
  const Result<std::vector<std::byte>> bytes = state.read_all();
  if (!bytes) return bytes.error();
  const std::string_view text(reinterpret_cast<const char*>(bytes->data()), bytes->size());
  const Result<nlohmann::json> parsed = base::parse_json(text, state.where(), {});
  if (!parsed) return parsed.error();
  if (!parsed->is_object()) return invalid_data("{}: must be one object", state.where());
  const auto member = [&](const char* key) {
    const auto found = parsed->find(key);
    return found == parsed->end() ? nlohmann::json() : *found;
  };
  const nlohmann::json shape = member("shape");
  if (shape.is_array() && shape.size() > 2)
    return unsupported(
        "{}: its weight has {} dimensions; experts in one tensor are not read in this format. Quantize "
        "the unquantized model again, experts as layers of their own",
        state.where(), shape.size());
  if (!shape.is_array() || shape.size() != 2)
    return invalid_data("{}: shape is {}; it must be [n, k]", state.where(), base::printable(shape.dump()));
  for (const auto& [key, value, last, to] : {std::tuple{"shape[0]", shape[0], int64_t{INT32_MAX}, &layer.n},
                                             {"shape[1]", shape[1], int64_t{INT32_MAX}, &layer.k},
                                             {"blocksize", member("blocksize"), int64_t{1} << 24, &layer.block}}) {
    const Result<int64_t> number = positive(value, last, state.where() + ": " + key);
    if (!number) return number.error();
    *to = *number;
  }
  if (!layer.nested_absmax) return {};
  if (const std::string dtype = string_member(*parsed, "nested_dtype"); dtype != "float32")
    return unsupported("{}: nested_dtype is {}; only float32 is read", state.where(), base::printable(dtype));
  const Result<int64_t> nested =
      positive(member("nested_blocksize"), int64_t{1} << 24, state.where() + ": nested_blocksize");
  if (!nested) return nested.error();
  layer.nested_block = *nested;
  const nlohmann::json offset = member("nested_offset");
  layer.nested_offset = offset.is_number() ? offset.get<float>() : NAN;
  if (!std::isfinite(layer.nested_offset))
    return invalid_data("{}: nested_offset is {}; it must be a number", state.where(), base::printable(offset.dump()));
  return {};
}

Result<BlockLayer> find_layer(const ModelFiles& model, const std::string& name) {
  BlockLayer layer;
  const TensorRef state = state_of(model, name);
  const std::string_view beside = std::string_view(state->name).substr(name.size());
  for (const auto& [suffix, to] :
       {std::pair{kWeight, &layer.weight}, {kAbsmax, &layer.absmax}, {kQuantMap, &layer.quant_map}}) {
    const Result<TensorRef> tensor = required_tensor(model, name, suffix, beside);
    if (!tensor) return tensor.error();
    *to = *tensor;
  }
  layer.nested_absmax = model.find(name + kNestedAbsmax);
  if (Result<void> read = read_state(state, layer); !read) return read.error();

  const std::string why = fmt::format("a weight of {} x {} in blocks of {}", layer.n, layer.k, layer.block);
  // Whatever type the bytes were stored under.
  if (layer.n * layer.k % 2 != 0 || layer.weight->size_bytes() != static_cast<uint64_t>(layer.n * layer.k / 2))
    return invalid_data("{}: holds {} bytes, but {} needs {}", layer.weight.where(), layer.weight->size_bytes(), why,
                        layer.n * layer.k / 2);
  if (layer.k % layer.block != 0)
    return unsupported(
        "{}: the blocks of {} straddle rows of {}, so rows have no scales of their own. Dequantize the layer with "
        "bitsandbytes, or quantize the unquantized model again in blocks that divide {}",
        layer.weight.where(), layer.block, layer.k, layer.k);
  const int64_t blocks = layer.n * (layer.k / layer.block);
  const TensorType scale_type = layer.nested_absmax ? TensorType::kU8 : TensorType::kF32;
  if (Result<void> fits = expect_tensor(layer.absmax, scale_type, {blocks}, why); !fits) return fits.error();
  if (Result<void> fits = expect_tensor(layer.quant_map, TensorType::kF32, {16}, "a table of 4-bit codes"); !fits)
    return fits.error();
  if (!layer.nested_absmax) return layer;

  const Result<TensorRef> map = required_tensor(model, name, kNestedQuantMap, kNestedAbsmax);
  if (!map) return map.error();
  layer.nested_quant_map = *map;
  if (Result<void> fits = expect_tensor(*map, TensorType::kF32, {256}, "a table of 8-bit codes"); !fits)
    return fits.error();
  const int64_t nested = (blocks + layer.nested_block - 1) / layer.nested_block;
  if (Result<void> fits = expect_tensor(layer.nested_absmax, TensorType::kF32, {nested},
                                        fmt::format("{} scales in blocks of {}", blocks, layer.nested_block));
      !fits)
    return fits.error();
  return layer;
}

// nested_quant_map[code] * nested_absmax + nested_offset, each step rounded to fp32 as upstream does.
Result<FloatArray> read_nested_scales(const BlockLayer& layer) {
  const Result<std::vector<std::byte>> codes = layer.absmax.read_all();
  if (!codes) return codes.error();
  const Result<FloatArray> map = read_finite_floats(layer.nested_quant_map),
                           scales = read_finite_floats(layer.nested_absmax);
  if (!map) return map.error();
  if (!scales) return scales.error();
  std::vector<float> values(codes->size());
  for (size_t i = 0; i < values.size(); ++i) {
    const float product =
        map->at(static_cast<size_t>((*codes)[i])) * scales->at(i / static_cast<size_t>(layer.nested_block));
    values[i] = product + layer.nested_offset;
  }
  return FloatArray::from_floats(DType::kFp32, values);
}

class BitsAndBytesCheckpoint final : public LayerCheckpoint {
 public:
  using LayerCheckpoint::LayerCheckpoint;

  std::string format() const override { return kBitsAndBytesFormat.name; }
  std::string convention() const override {
    size_t nf4 = 0, fp4 = 0, nested = 0;
    for (const LayerInfo& layer : layers()) {
      if (!layer.quantized) continue;
      (model().find(layer.name + kStates[0]) ? nf4 : fp4) += 1;
      nested += static_cast<bool>(model().find(layer.name + kNestedAbsmax));
    }
    return fmt::format(
        "bitsandbytes, as each layer's quant_state says: {} layers of NF4 and {} of FP4 through the table in "
        "quant_map, "
        "the first code of a byte in its high bits; the scales of {} are quantized in turn; {} dense layers",
        nf4, fp4, nested, layers().size() - nf4 - fp4);
  }

 protected:
  std::span<const std::string_view> weight_suffixes() const override {
    static constexpr std::string_view kSuffixes[] = {kWeight,         kAbsmax,    kQuantMap, kNestedAbsmax,
                                                     kNestedQuantMap, kStates[0], kStates[1]};
    return kSuffixes;
  }
  Result<QuantizedWeight> read_codes(const LayerInfo& info) const override {
    const Result<BlockLayer> layer = find_layer(model(), info.name);
    if (!layer) return layer.error();
    QuantizedWeight weight = empty_weight(info);
    const Result<FloatArray> table = read_floats(layer->quant_map);
    if (!table) return table.error();
    for (size_t code = 0; code < table->size(); ++code) weight.table.push_back(table->at(code));
    const Result<std::vector<std::byte>> packed = layer->weight.read_all();
    if (!packed) return packed.error();
    weight.codes.resize(2 * packed->size());
    for (size_t i = 0; i < packed->size(); ++i) {
      weight.codes[2 * i] = static_cast<uint8_t>((*packed)[i] >> 4);
      weight.codes[2 * i + 1] = static_cast<uint8_t>((*packed)[i] & std::byte{15});
    }
    Result<FloatArray> scales = layer->nested_absmax ? read_nested_scales(*layer) : read_floats(layer->absmax);
    if (!scales) return scales.error();
    weight.scales = std::move(*scales);
    return weight;
  }
};

bool recognizes_bitsandbytes(const ModelFiles& model) {
  const nlohmann::json& settings = model.quantization_config();
  if (!settings.is_null()) return string_member(settings, "quant_method") == "bitsandbytes";
  return std::any_of(model.tensors().begin(), model.tensors().end(),
                     [](const TensorRef& tensor) { return tensor->name.find(kAnyState) != std::string::npos; });
}

Result<LayerInfo> layer_info(const ModelFiles& model, const std::string& name) {
  const Result<BlockLayer> layer = find_layer(model, name);
  if (!layer) return layer.error();
  return quantized_layer_info(
      model, name, layer->weight, layer->n, layer->k,
      {.scale_dtype = DType::kFp32, .zero_kind = ZeroKind::kTable, .group_size = static_cast<int>(layer->block)});
}

Result<std::unique_ptr<Checkpoint>> open_bitsandbytes(std::shared_ptr<const ModelFiles> model) {
  std::vector<LayerInfo> layers;
  for (const TensorRef& tensor : model->tensors()) {
    const std::string& name = tensor->name;
    if (name.ends_with(".SCB"))
      return unsupported(
          "{}: belongs to 8-bit integers (LLM.int8()); only NF4 and FP4 are read. Quantize the "
          "unquantized model again",
          tensor.where());
    if (name.find(kAnyState) != std::string::npos) {
      const auto suffix = std::find_if(std::begin(kStates), std::end(kStates),
                                       [&](const char* known) { return !layer_of(name, known).empty(); });
      if (suffix == std::end(kStates))
        return unsupported(
            "{}: is the state of a quantized tensor that is no linear layer's weight in NF4 or FP4; such "
            "tensors are not read. Quantize the unquantized model again without it",
            tensor.where());
      Result<LayerInfo> info = layer_info(*model, std::string(layer_of(name, *suffix)));
      if (!info) return info.error();
      layers.push_back(std::move(*info));
    } else if (const std::string_view layer = layer_of(name, kAbsmax);
               !layer.empty() && !state_of(*model, std::string(layer))) {
      return invalid_data("{}: layer {} has {}, but no {} or {}: its type and shape would be a guess", model->path(),
                          base::printable(layer), kAbsmax + 1, kStates[0] + 1, kStates[1] + 1);
    }
  }
  if (layers.empty())
    return invalid_data(
        "{}: config.json says bitsandbytes, but no tensor is named *{}nf4 or fp4: the weights are not quantized yet. "
        "Remove quantization_config from config.json to read it as a dense model",
        model->path(), kAnyState);
  if (Result<void> distinct = check_distinct(*model, layers); !distinct) return distinct.error();
  add_dense_layers(*model, layers);
  return std::unique_ptr<Checkpoint>(std::make_unique<BitsAndBytesCheckpoint>(std::move(model), std::move(layers)));
}

}  // namespace

const Format kBitsAndBytesFormat = {"bitsandbytes", recognizes_bitsandbytes, open_bitsandbytes};

}  // namespace nybble::checkpoint
