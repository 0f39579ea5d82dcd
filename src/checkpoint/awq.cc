// AWQ, version "gemm": 4-bit codes with a scale and an integer zero point for each group. For a layer of n x k with G
// groups along k (AutoAWQ, awq/modules/linear/gemm.py; GPTQModel, gptqmodel/nn_modules/qlinear/gemm_awq.py):
//   qweight  I32 [k, n / 8]   eight codes along n in a word, in the order of kNibbleOf
//   qzeros   I32 [G, n / 8]   true zero points in the same order; absent without zero_point: all are 8
//   scales   float [G, n]     w = (code - zero) * scale
#include <algorithm>

#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/format.h"
#include "checkpoint/int4_words.h"
#include "checkpoint/layers.h"

namespace nybble::checkpoint {
namespace {

constexpr char kCodes[] = ".qweight";
constexpr char kZeros[] = ".qzeros";
constexpr char kScales[] = ".scales";
constexpr int64_t kNibbleOf[] = {0, 4, 1, 5, 2, 6, 3, 7};  // of column n % 8

struct Settings {
  int64_t group_size = -1;  // -1: one for each row
  bool zero_point = true;
};

struct AwqLayer {
  TensorRef codes, scales, zeros;  // zeros may be absent
  int64_t n = 0, k = 0, groups = 0;
};

const nlohmann::json* member(const nlohmann::json& object, const char* name, const char* synonym) {
  for (const char* key : {name, synonym})
    if (const auto found = object.find(key); found != object.end() && !found->is_null()) return &*found;
  return nullptr;
}

Result<Settings> parse_settings(const ModelFiles& model) {
  const nlohmann::json& object = model.quantization_config();
  const std::string subject = model.path() + ": config.json: quantization_config";
  constexpr char kWayOut[] = "Quantize the unquantized model again with 4 bits and version gemm";
  if (!object.is_object()) return invalid_data("{} must be an object", subject);
  const nlohmann::json* bits = member(object, "bits", "w_bit");
  if (bits == nullptr) return invalid_data("{}: has no bits", subject);
  if (*bits != 4)
    return unsupported("{}: bits is {}; only 4 is read. {}", subject, base::printable(bits->dump()), kWayOut);
  std::string version = string_member(object, "version");
  if (version.empty()) version = string_member(object, "format");
  for (char& c : version) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  if (!version.empty() && version != "gemm")
    return unsupported("{}: version {} is not read, only gemm. {}", subject, base::printable(version), kWayOut);
  Settings settings;
  const nlohmann::json* size = member(object, "group_size", "q_group_size");
  if (size == nullptr || !size->is_number_integer() || size->get<double>() < -1 || size->get<double>() > 1 << 24 ||
      *size == 0)
    return invalid_data("{}: group_size is {}; it must be -1 or 1 to {}", subject,
                        size == nullptr ? "missing" : base::printable(size->dump()), 1 << 24);
  settings.group_size = size->get<int64_t>();
  if (const nlohmann::json* zero_point = member(object, "zero_point", "zero_point")) {
    if (!zero_point->is_boolean()) return invalid_data("{}: zero_point must be true or false", subject);
    settings.zero_point = zero_point->get<bool>();
  }
  return settings;
}

Result<AwqLayer> find_layer(const ModelFiles& model, const Settings& settings, const std::string& name) {
  AwqLayer layer;
  layer.codes = model.find(name + kCodes);
  const std::vector<int64_t>& shape = layer.codes->shape;
  if (layer.codes->type != TensorType::kI32 || shape.size() != 2 || shape[0] < 1 || shape[1] < 1 ||
      shape[0] > INT32_MAX || shape[1] > INT32_MAX / kNibblesPerWord)
    return invalid_data("{}: is {} {}, but 4-bit codes are packed as I32 [k, n / 8]", layer.codes.where(),
                        tensor_type_name(layer.codes->type), shape_text(shape));
  layer.k = shape[0];
  layer.n = shape[1] * kNibblesPerWord;
  layer.groups = settings.group_size == -1 ? 1 : (layer.k - 1) / settings.group_size + 1;
  const std::string why =
      fmt::format("n = {}, k = {} in groups of {} (config.json)", layer.n, layer.k, settings.group_size);
  const Result<TensorRef> scales = required_tensor(model, name, kScales, kCodes);
  if (!scales) return scales.error();
  layer.scales = *scales;
  if (!float_type((*scales)->type) || (*scales)->shape != std::vector{layer.groups, layer.n})
    return wrong_tensor(*scales, "BF16, F16 or F32", std::vector{layer.groups, layer.n}, why);
  if (!settings.zero_point && !model.find(name + kZeros)) return layer;
  const Result<TensorRef> zeros = required_tensor(model, name, kZeros, kCodes);
  if (!zeros) return zeros.error();
  layer.zeros = *zeros;
  if (Result<void> fits = expect_tensor(*zeros, TensorType::kI32, {layer.groups, shape[1]}, why); !fits)
    return fits.error();
  return layer;
}

// Numbers of a tensor [rows, n / 8] of words as [n, rows].
Result<std::vector<uint8_t>> unpack(const TensorRef& tensor, int64_t n, int64_t rows) {
  std::vector<uint32_t> words(static_cast<size_t>(n / kNibblesPerWord));
  std::vector<uint8_t> values(static_cast<size_t>(n * rows));
  for (int64_t row = 0; row < rows; ++row) {
    if (Result<void> read =
            tensor.read(static_cast<uint64_t>(row) * words.size() * 4, std::as_writable_bytes(std::span(words)));
        !read)
      return read.error();
    for (int64_t i = 0; i < n; ++i)
      values[static_cast<size_t>(i * rows + row)] =
          nibble_of(words[static_cast<size_t>(i / kNibblesPerWord)], kNibbleOf[i % kNibblesPerWord]);
  }
  return values;
}

class AwqCheckpoint final : public LayerCheckpoint {
 public:
  AwqCheckpoint(std::shared_ptr<const ModelFiles> model, std::vector<LayerInfo> layers, Settings settings)
      : LayerCheckpoint(std::move(model), std::move(layers)), settings_(settings) {}

  std::string format() const override { return kAwqFormat.name; }
  std::string convention() const override {
    return "AWQ gemm, as config.json says: words interleaved along n, zero points as they are stored, 8 where there "
           "are none";
  }

 protected:
  std::span<const std::string_view> weight_suffixes() const override {
    static constexpr std::string_view kSuffixes[] = {kCodes, kZeros, kScales};
    return kSuffixes;
  }
  Result<QuantizedWeight> read_codes(const LayerInfo& info) const override {
    const Result<AwqLayer> layer = find_layer(model(), settings_, info.name);
    if (!layer) return layer.error();
    QuantizedWeight weight;
    weight.name = info.name;
    weight.n = layer->n;
    weight.k = layer->k;
    weight.group_size = info.format.group_size;
    weight.zero_kind = info.format.zero_kind;
    Result<std::vector<uint8_t>> codes = unpack(layer->codes, layer->n, layer->k);
    if (!codes) return codes.error();
    weight.codes = std::move(*codes);
    if (layer->zeros) {
      Result<std::vector<uint8_t>> zeros = unpack(layer->zeros, layer->n, layer->groups);
      if (!zeros) return zeros.error();
      weight.int_zeros = std::move(*zeros);
    }
    const Result<FloatArray> stored = read_floats(layer->scales);
    if (!stored) return stored.error();
    if (Result<void> finite = check_finite(*stored, layer->scales); !finite) return finite.error();
    weight.scales.dtype = stored->dtype;
    weight.scales.resize(stored->size());
    for (int64_t n = 0; n < layer->n; ++n)
      for (int64_t group = 0; group < layer->groups; ++group)
        weight.scales.set_bits(static_cast<size_t>(n * layer->groups + group),
                               stored->bits_at(static_cast<size_t>(group * layer->n + n)));
    return weight;
  }

 private:
  Settings settings_;
};

bool recognizes_awq(const ModelFiles& model) {
  return string_member(model.quantization_config(), "quant_method") == "awq";
}

Result<std::unique_ptr<Checkpoint>> open_awq(std::shared_ptr<const ModelFiles> model) {
  const Result<Settings> settings = parse_settings(*model);
  if (!settings) return settings.error();
  std::vector<LayerInfo> layers;
  for (const TensorRef& tensor : model->tensors()) {
    const std::string name(layer_of(tensor->name, kCodes));
    if (name.empty()) continue;
    const Result<AwqLayer> layer = find_layer(*model, *settings, name);
    if (!layer) return layer.error();
    LayerInfo info;
    info.name = name;
    info.n = layer->n;
    info.k = layer->k;
    info.quantized = true;
    info.format = {.scale_dtype = *float_type(layer->scales->type),
                   .zero_kind = layer->zeros ? ZeroKind::kInt : ZeroKind::kNone,
                   .group_size = settings->group_size == -1 ? kPerColumn : static_cast<int>(settings->group_size)};
    info.file = model->shard_name(layer->codes);
    layers.push_back(std::move(info));
  }
  if (layers.empty())
    return invalid_data("{}: config.json says awq, but no tensor is named *{}", model->path(), kCodes);
  add_dense_layers(*model, layers);
  return std::unique_ptr<Checkpoint>(std::make_unique<AwqCheckpoint>(std::move(model), std::move(layers), *settings));
}

}  // namespace

const Format kAwqFormat = {"awq", recognizes_awq, open_awq};

}  // namespace nybble::checkpoint
