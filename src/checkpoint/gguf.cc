// GGUF models: 2-D `*.weight` tensors are linear layers, under GGUF's own names ("blk.0.attn_q"). Q4_0 and Q4_1 become
// the canonical form without loss; F32, F16, BF16 are dense as they are, Q8_0 is dense in fp32. Blocks after ggml's
// ggml-common.h and ggml-quants.c: 32 elements, of which byte i of the codes holds number i in its low and number
// 16 + i in its high half.
#include "checkpoint/gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "base/check.h"
#include "base/error.h"
#include "base/float16.h"
#include "base/json_text.h"
#include "checkpoint/gguf_file.h"
#include "checkpoint/safetensors.h"

namespace nybble::checkpoint {
namespace {

constexpr int kBlock = 32;
constexpr std::string_view kWeight = ".weight";

bool is_4bit(const GgufTensor& tensor) { return tensor.type->id == ggml::kQ4_0 || tensor.type->id == ggml::kQ4_1; }

// The element type that a tensor which is no 4-bit layer is read as; kF64 etc. stay what they are. Nullptr: not read.
const char* read_type(const GgufTensor& tensor) {
  switch (tensor.type->id) {
    case ggml::kQ4_0:
    case ggml::kQ4_1:
    case ggml::kQ8_0:
      return "F32";
    default:
      return tensor.type->block == 1 ? tensor.type->name : nullptr;  // ggml spells these as safetensors does
  }
}

Result<DType> float_type_of(const GgufTensor& tensor) {
  switch (tensor.type->id) {
    case ggml::kF32:
    case ggml::kQ8_0:
      return DType::kFp32;
    case ggml::kF16:
      return DType::kFp16;
    case ggml::kBf16:
      return DType::kBf16;
    default:
      return invalid_argument("{} is no float type", tensor.type->name);
  }
}

uint16_t load_u16(const std::byte* bytes) {
  uint16_t number;
  std::memcpy(&number, bytes, sizeof number);
  return number;
}

uint8_t code_at(const std::byte* codes, int i) {
  const auto byte = static_cast<uint8_t>(codes[i % 16]);
  return i < 16 ? byte & 15 : byte >> 4;
}

bool is_finite_fp16(uint16_t bits) { return (bits & 0x7C00u) != 0x7C00u; }

class GgufCheckpoint final : public Checkpoint {
 public:
  GgufCheckpoint(std::shared_ptr<const GgufFile> file, std::vector<LayerInfo> layers)
      : file_(std::move(file)), layers_(std::move(layers)) {}

  std::string format() const override { return "gguf"; }
  std::string convention() const override;
  std::vector<std::string> warnings() const override;
  const std::vector<LayerInfo>& layers() const override { return layers_; }
  Result<DenseWeight> read_dense(const std::string& layer) const override;
  Result<QuantizedWeight> read_quantized(const std::string& layer) const override;
  std::vector<OtherTensor> other_tensors() const override;
  Result<std::vector<std::byte>> read_other_tensor(const std::string& name) const override;
  Result<void> check(const std::function<void(int64_t, int64_t)>& progress) const override;

 private:
  const LayerInfo* look_up(std::string_view layer) const;
  const LayerInfo* layer_of(const GgufTensor& tensor) const;  // null: the tensor is no layer's weight
  bool is_quantized_layer(const GgufTensor& tensor) const;
  Result<const GgufTensor*> find(const std::string& layer, bool quantized) const;
  Result<FloatArray> read_bias(const std::string& layer, int64_t n) const;
  Result<std::vector<std::byte>> read_as_written(const GgufTensor& tensor) const;
  Error not_read(const GgufTensor& tensor) const;

  std::shared_ptr<const GgufFile> file_;
  std::vector<LayerInfo> layers_;  // sorted by name
};

std::string GgufCheckpoint::convention() const {
  std::map<std::string, int> counts;
  for (const GgufTensor& tensor : file_->tensors()) ++counts[tensor.type->name];
  std::string types;
  for (const auto& [type, count] : counts) types += fmt::format("{}{} {}", types.empty() ? "" : ", ", count, type);
  const GgufValue* architecture = file_->find_value("general.architecture");
  const bool named = architecture != nullptr && !architecture->is_array && architecture->type == GgufValueType::kString;
  return fmt::format(
      "GGUF version {}, architecture {}, tensors by their own types: {}; Q4_0 is (code - 8) * d, Q4_1 code * d + m, "
      "both "
      "in groups of 32; Q8_0 is read as fp32",
      file_->version(), named ? base::printable(architecture->text_at(0)) : "not named", types);
}

std::vector<std::string> GgufCheckpoint::warnings() const {
  std::map<std::string, std::pair<int, std::string>> refused;  // type -> how many, the first
  for (const GgufTensor& tensor : file_->tensors()) {
    if (read_type(tensor) != nullptr) continue;
    auto& [count, first] = refused[tensor.type->name];
    if (count++ == 0) first = tensor.name;
  }
  std::vector<std::string> warnings;
  for (const auto& [type, found] : refused)
    warnings.push_back(fmt::format("{} tensors of type {} cannot be read, {} the first", found.first, type,
                                   base::printable(found.second)));
  return warnings;
}

const LayerInfo* GgufCheckpoint::look_up(std::string_view layer) const {
  const auto at = std::lower_bound(layers_.begin(), layers_.end(), layer,
                                   [](const LayerInfo& info, std::string_view wanted) { return info.name < wanted; });
  return at == layers_.end() || at->name != layer ? nullptr : &*at;
}

const LayerInfo* GgufCheckpoint::layer_of(const GgufTensor& tensor) const {
  if (!tensor.name.ends_with(kWeight)) return nullptr;
  return look_up(std::string_view(tensor.name).substr(0, tensor.name.size() - kWeight.size()));
}

bool GgufCheckpoint::is_quantized_layer(const GgufTensor& tensor) const {
  const LayerInfo* layer = layer_of(tensor);
  return layer != nullptr && layer->quantized;
}

Error GgufCheckpoint::not_read(const GgufTensor& tensor) const {
  return unsupported(
      "{}: is {}; of ggml's types Q4_0, Q4_1, Q8_0, F16, BF16 and F32 are read. Make one of these with llama-quantize "
      "from the model's F16 file (Q4_0 and Q4_1 with --pure, or the LM head becomes Q6_K)",
      file_->where(tensor), tensor.type->name);
}

Result<const GgufTensor*> GgufCheckpoint::find(const std::string& layer, bool quantized) const {
  const LayerInfo* info = look_up(layer);
  if (info == nullptr)
    return invalid_argument("{}: has no linear layer {}; layers() lists all {}", file_->file().path(),
                            base::printable(layer), layers_.size());
  if (info->quantized != quantized)
    return invalid_argument("{}: layer {} is {}quantized; read it with {}", file_->file().path(),
                            base::printable(layer), info->quantized ? "" : "not ",
                            info->quantized ? "read_quantized()" : "read_dense()");
  const GgufTensor* tensor = file_->find(layer + std::string(kWeight));
  NYBBLE_CHECK(tensor != nullptr, "a layer was listed because of its weight");
  return tensor;
}

// The tensor's elements as read_type() says.
Result<std::vector<std::byte>> GgufCheckpoint::read_as_written(const GgufTensor& tensor) const {
  if (read_type(tensor) == nullptr) return not_read(tensor);
  if (tensor.type->block == 1) return file_->read_all(tensor);
  constexpr int64_t kBlocksAtOnce = 16384;
  const int64_t blocks = static_cast<int64_t>(tensor.size_bytes) / tensor.type->bytes;
  std::vector<std::byte> out(static_cast<size_t>(blocks) * kBlock * sizeof(float));
  std::vector<std::byte> piece;
  for (int64_t first = 0; first < blocks; first += kBlocksAtOnce) {
    const int64_t count = std::min(kBlocksAtOnce, blocks - first);
    piece.resize(static_cast<size_t>(count) * tensor.type->bytes);
    if (Result<void> done = file_->read(tensor, static_cast<uint64_t>(first) * tensor.type->bytes, piece); !done)
      return done.error();
    for (int64_t i = 0; i < count; ++i) {
      const std::byte* block = piece.data() + i * tensor.type->bytes;
      const uint16_t scale_bits = load_u16(block);
      const uint16_t offset_bits = tensor.type->id == ggml::kQ4_1 ? load_u16(block + 2) : 0;
      if (!is_finite_fp16(scale_bits) || !is_finite_fp16(offset_bits))
        return invalid_data("{}: the {} of block {} (byte {} of the file) is no finite number", file_->where(tensor),
                            is_finite_fp16(scale_bits) ? "offset" : "scale", first + i,
                            file_->file_offset(tensor) + static_cast<uint64_t>((first + i) * tensor.type->bytes));
      // An fp16 times a small integer, plus an fp16: exact in double, so rounded once, as dequantize() does.
      const double scale = base::fp16_to_float(scale_bits), offset = base::fp16_to_float(offset_bits);
      float values[kBlock];
      for (int e = 0; e < kBlock; ++e) {
        const double code = tensor.type->id == ggml::kQ8_0   ? static_cast<int8_t>(block[2 + e])
                            : tensor.type->id == ggml::kQ4_0 ? code_at(block + 2, e) - 8
                                                             : code_at(block + 4, e);
        values[e] = static_cast<float>(code * scale + offset);
      }
      std::memcpy(out.data() + (first + i) * sizeof values, values, sizeof values);
    }
  }
  return out;
}

Result<FloatArray> GgufCheckpoint::read_bias(const std::string& layer, int64_t n) const {
  const GgufTensor* bias = file_->find(layer + ".bias");
  if (bias == nullptr) return FloatArray{};
  if (bias->shape != std::vector{n})
    return invalid_data("{}: has shape {}; the layer's {} output features need [{}]", file_->where(*bias),
                        shape_text(bias->shape), n, n);
  const Result<DType> dtype = float_type_of(*bias);
  if (!dtype) return invalid_data("{}: is {}; a bias is F32, F16 or BF16", file_->where(*bias), bias->type->name);
  Result<std::vector<std::byte>> bytes = read_as_written(*bias);
  if (!bytes) return bytes.error();
  FloatArray values;
  values.dtype = *dtype;
  values.bytes = std::move(*bytes);
  return values;
}

Result<DenseWeight> GgufCheckpoint::read_dense(const std::string& layer) const {
  const Result<const GgufTensor*> found = find(layer, false);
  if (!found) return found.error();
  const GgufTensor& tensor = **found;
  Result<std::vector<std::byte>> bytes = read_as_written(tensor);
  if (!bytes) return bytes.error();
  DenseWeight weight;
  weight.name = layer;
  weight.n = tensor.shape[0];
  weight.k = tensor.shape[1];
  weight.values.dtype = *float_type_of(tensor);
  weight.values.bytes = std::move(*bytes);
  Result<FloatArray> bias = read_bias(layer, weight.n);
  if (!bias) return bias.error();
  weight.bias = std::move(*bias);
  return weight;
}

Result<QuantizedWeight> GgufCheckpoint::read_quantized(const std::string& layer) const {
  const Result<const GgufTensor*> found = find(layer, true);
  if (!found) return found.error();
  const GgufTensor& tensor = **found;
  const bool with_offset = tensor.type->id == ggml::kQ4_1;
  const int codes_at = with_offset ? 4 : 2;
  const Result<std::vector<std::byte>> bytes = file_->read_all(tensor);
  if (!bytes) return bytes.error();

  QuantizedWeight weight;
  weight.name = layer;
  weight.n = tensor.shape[0];
  weight.k = tensor.shape[1];
  weight.group_size = kBlock;
  weight.zero_kind = with_offset ? ZeroKind::kOffset : ZeroKind::kNone;
  const size_t blocks = bytes->size() / tensor.type->bytes;
  weight.codes.resize(blocks * kBlock);
  weight.scales.dtype = DType::kFp16;
  weight.scales.resize(blocks);
  if (with_offset) {
    weight.float_zeros.dtype = DType::kFp16;
    weight.float_zeros.resize(blocks);
  }
  for (size_t i = 0; i < blocks; ++i) {
    const std::byte* block = bytes->data() + i * tensor.type->bytes;
    weight.scales.set_bits(i, load_u16(block));
    if (with_offset) weight.float_zeros.set_bits(i, load_u16(block + 2));
    for (int e = 0; e < kBlock; ++e) weight.codes[i * kBlock + e] = code_at(block + codes_at, e);
  }
  Result<FloatArray> bias = read_bias(layer, weight.n);
  if (!bias) return bias.error();
  weight.bias = std::move(*bias);
  if (Result<void> valid = validate(weight); !valid)
    return invalid_data("{}: {}", file_->file().path(), valid.error().message);
  return weight;
}

std::vector<OtherTensor> GgufCheckpoint::other_tensors() const {
  std::vector<OtherTensor> others;
  for (const GgufTensor& tensor : file_->tensors()) {
    if (is_quantized_layer(tensor)) continue;
    const char* type = read_type(tensor);
    others.push_back({tensor.name, type != nullptr ? type : tensor.type->name, tensor.shape, file_->base_name()});
  }
  return others;
}

Result<std::vector<std::byte>> GgufCheckpoint::read_other_tensor(const std::string& name) const {
  const GgufTensor* tensor = file_->find(name);
  if (tensor == nullptr || is_quantized_layer(*tensor))
    return invalid_argument(
        "{}: {} is {}", file_->file().path(), base::printable(name),
        tensor != nullptr ? "part of a quantized weight; read that with read_quantized()" : "no tensor of it");
  return read_as_written(*tensor);
}

Result<void> GgufCheckpoint::check(const std::function<void(int64_t, int64_t)>& progress) const {
  int64_t total = 0, done = 0;
  for (const GgufTensor& tensor : file_->tensors()) total += static_cast<int64_t>(tensor.size_bytes);
  for (const GgufTensor& tensor : file_->tensors()) {
    const LayerInfo* layer = layer_of(tensor);
    if (layer != nullptr && layer->quantized) {
      const Result<QuantizedWeight> weight = read_quantized(layer->name);
      if (!weight) return weight.error();
    } else {
      Result<std::vector<std::byte>> bytes = read_as_written(tensor);
      if (!bytes) return bytes.error();
      if (const Result<DType> dtype = float_type_of(tensor); dtype) {
        FloatArray values;
        values.dtype = *dtype;
        values.bytes = std::move(*bytes);
        for (size_t i = 0; i < values.size(); ++i)
          if (!std::isfinite(values.at(i)))
            return invalid_data("{}: element {} of shape {} is {}", file_->where(tensor), i, shape_text(tensor.shape),
                                values.at(i));
      }
      if (layer != nullptr)
        if (const Result<FloatArray> bias = read_bias(layer->name, layer->n); !bias) return bias.error();
    }
    done += static_cast<int64_t>(tensor.size_bytes);
    if (progress) progress(done, total);
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Checkpoint>> open_gguf(const std::string& path) {
  Result<std::shared_ptr<const GgufFile>> file = GgufFile::open(path);
  if (!file) return file.error();
  if (const GgufValue* splits = (*file)->find_value("split.count");
      splits != nullptr && !splits->is_array && splits->is_integer() && splits->number_at(0) > 1)
    return unsupported("{}: is one of {} pieces of a model; merge them first: llama-gguf-split --merge FIRST OUT",
                       (*file)->file().path(), splits->number_at(0));
  std::vector<LayerInfo> layers;
  for (const GgufTensor& tensor : (*file)->tensors()) {
    if (!tensor.name.ends_with(kWeight) || tensor.name.size() == kWeight.size() || tensor.shape.size() != 2) continue;
    if (tensor.type->block == 1 && !float_type_of(tensor)) continue;  // integers are no weights
    LayerInfo info;
    info.name = tensor.name.substr(0, tensor.name.size() - kWeight.size());
    info.n = tensor.shape[0];
    info.k = tensor.shape[1];
    info.quantized = is_4bit(tensor);
    info.file = (*file)->base_name();
    if (info.quantized) {
      info.format.scale_dtype = DType::kFp16;
      info.format.group_size = kBlock;
      info.format.zero_kind = tensor.type->id == ggml::kQ4_1 ? ZeroKind::kOffset : ZeroKind::kNone;
    } else if (const Result<DType> dtype = float_type_of(tensor); dtype) {
      info.dense_dtype = *dtype;
    }
    layers.push_back(std::move(info));
  }
  std::sort(layers.begin(), layers.end(), [](const LayerInfo& a, const LayerInfo& b) { return a.name < b.name; });
  return std::unique_ptr<Checkpoint>(std::make_unique<GgufCheckpoint>(std::move(*file), std::move(layers)));
}

}  // namespace nybble::checkpoint
