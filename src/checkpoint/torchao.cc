// torchao's 4-bit weights with float zero points, as its safetensors support writes them. What a layer is, the header's
// __metadata__ says under "<layer>.weight", as JSON: {"_type": class, "_data": {"block_size": [1, g], "shape": [n, k]},
// "_tensor_data_names": [...]} (torchao/prototype/safetensors). Two classes are read:
//   Int4Tensor                _weight_qdata I8 [n, k / 2]: signed codes -8 to 7, two a byte, the low four bits first;
//                             _weight_scale, _weight_zero_point float [k / g, n]: w = q * scale + zero
//   Int4TilePackedTo4dTensor  _weight_qdata I32 [N / 8][K / 128][32][4], N and K being n and k rounded up to multiples
//                             of 8 and 1024: eight codes a word, as a tile of tensor cores wants them (code_of_tile);
//                             _weight_scale_and_zero BF16 [K / g, N, 2]: w = (code - 8) * scale + zero
// Canonical are w = code * scale + (zero - 8 scale), in fp32: that offset is exact unless zero and 8 scale are so far
// apart that fp32 does not hold their sum, and then rounded once.
#include <algorithm>

#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/format.h"
#include "checkpoint/fp4.h"
#include "checkpoint/layers.h"

namespace nybble::checkpoint {
namespace {

constexpr char kCodes[] = "._weight_qdata";
constexpr char kScale[] = "._weight_scale";
constexpr char kZero[] = "._weight_zero_point";
constexpr char kScaleAndZero[] = "._weight_scale_and_zero";
constexpr char kActPreScale[] = "._weight_act_pre_scale";
constexpr char kPlain[] = "Int4Tensor";
constexpr char kTiles[] = "Int4TilePackedTo4dTensor";

// Other classes that exist, and what they are.
constexpr std::pair<const char*, const char*> kForeignTypes[] = {
    {"Int4PlainInt32Tensor", "4-bit codes in the layout of another device"},
    {"Int4PreshuffledTensor", "4-bit codes in one kernel's own layout"},
    {"Int4MarlinSparseTensor", "2:4 sparse weights"},
    {"Int4OpaqueTensor", "4-bit codes in a CPU kernel's own layout"},
    {"Int8Tensor", "8-bit integers"},
    {"IntxUnpackedToInt8Tensor", "integers of other widths, one a byte"},
    {"Float8Tensor", "8-bit floats"},
    {"MXTensor", "microscaling floats with settings of its own"},
    {"NVFP4Tensor", "4-bit floats in a GPU kernel's own layout"},
};
constexpr char kWayOut[] =
    "Quantize the unquantized model again with Int4WeightOnlyConfig and the packing format plain or tile_packed_to_4d";

struct Int4Layer {
  bool tiles = false;
  TensorRef codes, scale, zero;  // of tiles, `scale` holds both
  int64_t n = 0, k = 0, group = 0;

  int64_t padded_n() const { return tiles ? (n + 7) / 8 * 8 : n; }
  int64_t padded_k() const { return tiles ? (k + 1023) / 1024 * 1024 : k; }
  int64_t groups() const { return (k + group - 1) / group; }
};

// An array of two whole numbers from 1 to 2^31 - 1 out of a layer's metadata.
Result<std::pair<int64_t, int64_t>> read_pair(const nlohmann::json& data, const char* key, const std::string& what) {
  const auto member = data.find(key);
  const auto whole = [](const nlohmann::json& value) {
    return value.is_number_integer() && value.get<double>() >= 1 && value.get<double>() <= INT32_MAX;
  };
  if (member != data.end() && member->is_array() && member->size() > 2)
    return unsupported(
        "{}: {} is {}: experts in one tensor are not read in this format. {}, experts as layers of their "
        "own",
        what, key, base::printable(member->dump()), kWayOut);
  if (member == data.end() || !member->is_array() || member->size() != 2 || !whole((*member)[0]) ||
      !whole((*member)[1]))
    return invalid_data("{}: {} is {}; it must be two whole numbers", what, key,
                        base::printable(member == data.end() ? "missing" : member->dump()));
  return std::pair((*member)[0].get<int64_t>(), (*member)[1].get<int64_t>());
}

// What the header of any shard says of a tensor; null where none does.
Result<nlohmann::json> metadata_of(const ModelFiles& model, const std::string& tensor) {
  for (const SafetensorsFile& shard : model.shards()) {
    const auto entry = shard.metadata().find(tensor);
    if (entry == shard.metadata().end()) continue;
    return base::parse_json(entry->second, shard.file().path() + ": __metadata__ of " + tensor, {.max_depth = 16});
  }
  return nlohmann::json();
}

Result<Int4Layer> find_layer(const ModelFiles& model, const std::string& name) {
  Int4Layer layer;
  layer.codes = model.find(name + kCodes);
  const Result<nlohmann::json> metadata = metadata_of(model, name + ".weight");
  if (!metadata) return metadata.error();
  const std::string what = fmt::format("{}: __metadata__ of {}.weight", model.path(), name);
  if (metadata->is_null())
    return invalid_data(
        "{}: no shard's header says what it is, so its layout would be a guess. Save the model again with "
        "torchao's flatten_tensor_state_dict()",
        layer.codes.where());
  const std::string type = string_member(*metadata, "_type");
  layer.tiles = type == kTiles;
  if (!layer.tiles && type != kPlain) {
    const auto foreign = std::find_if(std::begin(kForeignTypes), std::end(kForeignTypes),
                                      [&](const auto& known) { return type == known.first; });
    return unsupported("{}: _type {} is not read ({}); known are {} and {}. {}", what, base::printable(type),
                       foreign == std::end(kForeignTypes) ? "unknown" : foreign->second, kPlain, kTiles, kWayOut);
  }
  const auto data = metadata->find("_data");
  if (data == metadata->end() || !data->is_object()) return invalid_data("{}: has no object _data", what);
  const auto shape = read_pair(*data, "shape", what), block = read_pair(*data, "block_size", what);
  if (!shape) return shape.error();
  if (!block) return block.error();
  std::tie(layer.n, layer.k) = *shape;
  layer.group = block->second;
  if (block->first != 1)
    return unsupported("{}: block_size is [{}, {}]; only groups within a row are read. {}", what, block->first,
                       block->second, kWayOut);
  if (const TensorRef scale = model.find(name + kActPreScale))
    return unsupported(
        "{}: multiplies the activations beside the weight, which nybble does not do. {}, without AWQ or "
        "SmoothQuant before it",
        scale.where(), kWayOut);
  if (const auto act = data->find("activation_dtype"); act != data->end() && act->is_object())
    if (const std::string dtype = string_member(*act, "_data"); dtype.starts_with("float8"))
      return unsupported("{}: activation_dtype is {}, but nybble multiplies 16-bit activations. {}", what,
                         base::printable(dtype), kWayOut);

  const std::string why = fmt::format("n = {}, k = {} in groups of {} ({})", layer.n, layer.k, layer.group, type);
  const Result<TensorRef> scale = required_tensor(model, name, layer.tiles ? kScaleAndZero : kScale, kCodes);
  if (!scale) return scale.error();
  layer.scale = *scale;
  if (layer.tiles) {
    if (layer.padded_k() % layer.group != 0)
      return invalid_data("{}: block_size is [1, {}], which does not divide the padded k of {}", what, layer.group,
                          layer.padded_k());
    if (Result<void> fits =
            expect_tensor(layer.codes, TensorType::kI32, {layer.padded_n() / 8, layer.padded_k() / 128, 32, 4}, why);
        !fits)
      return fits.error();
    if (Result<void> fits =
            expect_tensor(layer.scale, TensorType::kBf16, {layer.padded_k() / layer.group, layer.padded_n(), 2}, why);
        !fits)
      return fits.error();
    return layer;
  }
  if (layer.k % layer.group != 0 || layer.k % 2 != 0)
    return invalid_data("{}: k is {}, which is no multiple of {}", what, layer.k, layer.k % 2 != 0 ? 2 : layer.group);
  if (!layer.codes || (layer.codes->type != TensorType::kI8 && layer.codes->type != TensorType::kU8) ||
      layer.codes->shape != std::vector{layer.n, layer.k / 2})
    return wrong_tensor(layer.codes, "I8", std::vector{layer.n, layer.k / 2}, why);
  const Result<TensorRef> zero = required_tensor(model, name, kZero, kCodes);
  if (!zero) return zero.error();
  layer.zero = *zero;
  for (const TensorRef& tensor : {layer.scale, layer.zero})
    if (!float_type(tensor->type) || tensor->shape != std::vector{layer.groups(), layer.n})
      return wrong_tensor(tensor, "BF16, F16 or F32", std::vector{layer.groups(), layer.n}, why);
  return layer;
}

// The code of (n, k): of a tile of 8 rows and 128 columns, lane t holds row t / 4, and its word p the eight columns
// 32 p + 2 (t % 4) + {0, 8, 16, 24} and the ones after them, in this order (pytorch, int4mm.cu).
uint8_t code_of_tile(std::span<const uint32_t> words, int64_t padded_k, int64_t n, int64_t k) {
  const int64_t tile = n / 8 * (padded_k / 128) + k / 128, column = k % 32;
  const int64_t lane = n % 8 * 4 + column % 8 / 2, word = k % 128 / 32;
  const int64_t nibble = column / 8 + column % 2 * 4;
  return static_cast<uint8_t>(words[static_cast<size_t>((tile * 32 + lane) * 4 + word)] >> (4 * nibble) & 15);
}

Result<std::vector<uint8_t>> read_tiles(const Int4Layer& layer) {
  std::vector<uint32_t> words(layer.codes->size_bytes() / 4);
  if (Result<void> read = layer.codes.read(0, std::as_writable_bytes(std::span(words))); !read) return read.error();
  std::vector<uint8_t> codes(static_cast<size_t>(layer.n * layer.k));
  for (int64_t n = 0; n < layer.n; ++n)
    for (int64_t k = 0; k < layer.k; ++k)
      codes[static_cast<size_t>(n * layer.k + k)] = code_of_tile(words, layer.padded_k(), n, k);
  return codes;
}

Result<std::vector<uint8_t>> read_plain(const Int4Layer& layer) {
  const Result<std::vector<std::byte>> bytes = layer.codes.read_all();
  if (!bytes) return bytes.error();
  std::vector<uint8_t> codes = unpack_low_first(*bytes);
  for (uint8_t& code : codes) code ^= 8;  // two's complement to 8 above
  return codes;
}

// Scales and offsets [n, groups] from scales and zeros, whose numbers of (group, n) stand where `place` says.
template <class Place>
void set_numbers(const Int4Layer& layer, const FloatArray& scales, const FloatArray& zeros, const Place& place,
                 QuantizedWeight& weight) {
  weight.scales.dtype = weight.float_zeros.dtype = DType::kFp32;
  weight.scales.resize(static_cast<size_t>(layer.n * layer.groups()));
  weight.float_zeros.resize(weight.scales.size());
  size_t i = 0;
  for (int64_t n = 0; n < layer.n; ++n)
    for (int64_t group = 0; group < layer.groups(); ++group, ++i) {
      const auto [at_scale, at_zero] = place(group, n);
      const double scale = scales.at(at_scale), zero = zeros.at(at_zero);
      weight.scales.set_bits(i, std::bit_cast<uint32_t>(static_cast<float>(scale)));
      weight.float_zeros.set_bits(i, std::bit_cast<uint32_t>(static_cast<float>(zero - 8 * scale)));
    }
}

class TorchaoCheckpoint final : public LayerCheckpoint {
 public:
  using LayerCheckpoint::LayerCheckpoint;

  std::string format() const override { return kTorchaoFormat.name; }
  std::string convention() const override {
    size_t plain = 0, tiles = 0;
    for (const LayerInfo& layer : layers())
      if (layer.quantized) (model().find(layer.name + kScaleAndZero) ? tiles : plain) += 1;
    return fmt::format(
        "torchao, as the metadata of its shards says: {} layers of {}, {} of {}; w = code * scale + (zero - 8 * "
        "scale), "
        "in fp32; {} dense layers",
        plain, kPlain, tiles, kTiles, layers().size() - plain - tiles);
  }

 protected:
  std::span<const std::string_view> weight_suffixes() const override {
    static constexpr std::string_view kSuffixes[] = {kCodes, kScale, kZero, kScaleAndZero};
    return kSuffixes;
  }
  Result<QuantizedWeight> read_codes(const LayerInfo& info) const override {
    const Result<Int4Layer> layer = find_layer(model(), info.name);
    if (!layer) return layer.error();
    QuantizedWeight weight = empty_weight(info);
    Result<std::vector<uint8_t>> codes = layer->tiles ? read_tiles(*layer) : read_plain(*layer);
    if (!codes) return codes.error();
    weight.codes = std::move(*codes);
    const Result<FloatArray> scales = read_finite_floats(layer->scale);
    if (!scales) return scales.error();
    const auto place = [&](int64_t group, int64_t n) { return static_cast<size_t>(group * layer->padded_n() + n); };
    if (layer->tiles) {
      set_numbers(
          *layer, *scales, *scales,
          [&](int64_t group, int64_t n) { return std::pair(2 * place(group, n), 2 * place(group, n) + 1); }, weight);
      return weight;
    }
    const Result<FloatArray> zeros = read_finite_floats(layer->zero);
    if (!zeros) return zeros.error();
    set_numbers(
        *layer, *scales, *zeros, [&](int64_t group, int64_t n) { return std::pair(place(group, n), place(group, n)); },
        weight);
    return weight;
  }
};

bool recognizes_torchao(const ModelFiles& model) { return is_of_method(model, "torchao", kCodes); }

Result<LayerInfo> layer_info(const ModelFiles& model, const std::string& name) {
  const Result<Int4Layer> layer = find_layer(model, name);
  if (!layer) return layer.error();
  return quantized_layer_info(
      model, name, layer->codes, layer->n, layer->k,
      {.scale_dtype = DType::kFp32, .zero_kind = ZeroKind::kOffset, .group_size = static_cast<int>(layer->group)});
}

Result<std::unique_ptr<Checkpoint>> open_torchao(std::shared_ptr<const ModelFiles> model) {
  for (const TensorRef& tensor : model->tensors())
    if (tensor->name.ends_with("_qdata") && layer_of(tensor->name, kCodes).empty())
      return unsupported(
          "{}: is a quantized tensor that is no linear layer's weight; such tensors are not read. {}, without it",
          tensor.where(), kWayOut);
  if (Result<void> whole = check_no_orphans(*model, kCodes, {kScale, kZero, kScaleAndZero}); !whole)
    return whole.error();
  Result<std::vector<LayerInfo>> layers =
      list_layers(*model, kCodes, "torchao", [&](const std::string& layer) { return layer_info(*model, layer); });
  if (!layers) return layers.error();
  return std::unique_ptr<Checkpoint>(std::make_unique<TorchaoCheckpoint>(std::move(model), std::move(*layers)));
}

}  // namespace

const Format kTorchaoFormat = {"torchao", recognizes_torchao, open_torchao};

}  // namespace nybble::checkpoint
