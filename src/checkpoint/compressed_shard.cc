#include "checkpoint/compressed_shard.h"

#include <algorithm>
#include <future>
#include <map>
#include <set>
#include <tuple>

#include "base/check.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/json_text.h"
#include "checkpoint/compressed_layer.h"
#include "checkpoint/compressed_tensors.h"
#include "checkpoint/int4_words.h"
#include "checkpoint/layers.h"
#include "checkpoint/model_folder.h"

namespace nybble::checkpoint {
namespace {

constexpr uint64_t kPieceBytes = 4 << 20;
// Reading the next layer and writing the last one go on beside the quantizer where they move more than this.
constexpr uint64_t kBackgroundBytes = 1 << 20;

// Falling element size keeps every tensor aligned. Scales, whose type comes last, follow the 4-byte numbers: they fit
// there whether they have 4 bytes or 2.
int place_of(TensorType type, bool is_scale) {
  const int bits = tensor_type_bits(type);
  if (is_scale) return 2;
  return bits >= 64 ? 0 : bits == 32 ? 1 : bits == 16 ? 3 : bits == 8 ? 4 : 5;
}

// One hash of the shard's header and its tensors, whatever order they were read in.
class SourceHash {
 public:
  void add(const std::string& tensor, const base::ContentHash& hash) { tensors_[tensor] = hash.digest(); }
  uint64_t digest(const SafetensorsFile& shard) const {
    base::ContentHash all;
    const uint64_t header = shard.header_hash();
    all.update(std::as_bytes(std::span(&header, 1)));
    for (const auto& [name, hash] : tensors_) all.update(std::as_bytes(std::span(&hash, 1)));
    return all.digest();
  }

 private:
  std::map<std::string, uint64_t> tensors_;
};

// Feeds a tensor to `use` in pieces and hashes it.
Result<void> read_pieces(const TensorRef& tensor, const ByteProgress& progress, SourceHash& source,
                         const std::function<Result<void>(std::span<const std::byte>)>& use) {
  std::vector<std::byte> buffer(std::min(kPieceBytes, tensor->size_bytes()));
  base::ContentHash hash;
  for (uint64_t at = 0; at < tensor->size_bytes();) {
    const auto piece = std::span(buffer).first(std::min<uint64_t>(buffer.size(), tensor->size_bytes() - at));
    if (Result<void> read = tensor.read(at, piece); !read) return read;
    hash.update(piece);
    if (Result<void> used = use(piece); !used) return used;
    at += piece.size();
    progress(piece.size());
  }
  source.add(tensor->name, hash);
  return {};
}

}  // namespace

Result<void> check_quantized(const QuantizedWeight& weight, const LayerInfo& layer,
                             const CompressedTensorsScheme& scheme) {
  const std::string name = base::printable(layer.name);
  if (weight.n != layer.n || weight.k != layer.k)
    return invalid_argument("layer {}: the quantizer returned {} x {}, but the layer is {} x {}", name, weight.n,
                            weight.k, layer.n, layer.k);
  if (weight.group_size != scheme.group_size)
    return invalid_argument("layer {}: the quantizer returned groups of {}, but the scheme says {} (0: per column)",
                            name, weight.group_size, scheme.group_size);
  const ZeroKind expected = scheme.symmetric ? ZeroKind::kNone : ZeroKind::kInt;
  if (weight.zero_kind != expected)
    return unsupported(
        "layer {}: the quantizer returned zero points of kind '{}', but a {} compressed-tensors layer has '{}'", name,
        zero_kind_name(weight.zero_kind), scheme.symmetric ? "symmetric" : "asymmetric", zero_kind_name(expected));
  if (!weight.k_order.empty())
    return unsupported(
        "layer {}: compressed-tensors no longer stores reordered input features (actorder \"group\"); quantize "
        "without act-order",
        name);
  if (Result<void> valid = validate(weight); !valid) return valid;
  for (size_t i = 0; i < weight.int_zeros.size(); ++i)
    if (weight.int_zeros[i] > 15)
      return unsupported("layer {}: the zero point of row {}, group {} is {}; compressed-tensors has room for 0 to 15",
                         name, static_cast<int64_t>(i) / weight.groups(), static_cast<int64_t>(i) % weight.groups(),
                         weight.int_zeros[i]);
  return {};
}

CompressedShard::CompressedShard(const ModelFiles& model, const Checkpoint& dense, size_t shard,
                                 std::vector<LayerInfo> layers, const CompressedTensorsScheme& scheme)
    : model_(model),
      dense_(dense),
      input_(model.shards()[shard]),
      name_(model.shard_names()[shard]),
      layers_(std::move(layers)),
      scheme_(scheme) {
  std::set<std::string> replaced;
  for (const LayerInfo& layer : layers_) {
    add_layer_items(layer);
    replaced.insert(layer.name + ".weight");
  }
  for (const TensorInfo& tensor : input_.tensors()) {
    if (!replaced.contains(tensor.name))
      items_.push_back({.entry = {tensor.name, tensor.type, tensor.shape}, .source = {&input_, &tensor}});
  }
  std::sort(items_.begin(), items_.end(), [](const Item& a, const Item& b) {
    const int place_a = place_of(a.entry.type, a.is_scale), place_b = place_of(b.entry.type, b.is_scale);
    return std::tie(place_a, a.entry.name) < std::tie(place_b, b.entry.name);
  });
}

void CompressedShard::add_layer_items(const LayerInfo& layer) {
  const int64_t groups = scheme_.group_size == kPerColumn ? 1 : layer.k / scheme_.group_size;
  const auto add = [&](const char* suffix, TensorType type, std::vector<int64_t> shape, bool is_scale = false) {
    items_.push_back({.entry = {layer.name + suffix, type, std::move(shape)}, .layer = &layer, .is_scale = is_scale});
  };
  add(kWeightPacked, TensorType::kI32, {layer.n, words_for(layer.k)});
  add(kWeightScale, TensorType::kBf16, {layer.n, groups}, true);
  add(kWeightShape, TensorType::kI64, {2});
  if (!scheme_.symmetric) add(kWeightZeroPoint, TensorType::kI32, {words_for(layer.n), groups});
}

std::vector<std::string> CompressedShard::tensor_names() const {
  std::vector<std::string> names;
  for (const Item& item : items_) names.push_back(item.entry.name);
  return names;
}

// What the result depends on beside the input's bytes. The layers chosen show in the output's tensors.
Metadata CompressedShard::metadata(uint64_t source_hash) const {
  Metadata metadata = input_.metadata();
  metadata.emplace("format", "pt");  // transformers refuses files that do not name a framework
  metadata[kSourceKey] = fmt::format("xxh3:{:016x}", source_hash);
  metadata[kRecipeKey] =
      fmt::format("int4 {} {}; {}", scheme_.group_size == kPerColumn ? "col" : fmt::format("g{}", scheme_.group_size),
                  scheme_.symmetric ? "symmetric" : "asymmetric", scheme_.recipe);
  return metadata;
}

Result<uint64_t> CompressedShard::source_hash(const ByteProgress& progress) const {
  SourceHash hash;
  for (const TensorInfo& tensor : input_.tensors()) {
    Result<void> read =
        read_pieces({&input_, &tensor}, progress, hash, [](std::span<const std::byte>) { return Result<void>(); });
    if (!read) return read.error();
  }
  return hash.digest(input_);
}

Result<bool> CompressedShard::is_finished(const base::Directory& folder, const ByteProgress& progress) const {
  if (!folder.has(name_)) return false;
  Result<base::File> file = folder.open_file(name_);
  if (!file) return file.error();
  const Result<SafetensorsFile> shard = SafetensorsFile::open(std::move(*file));
  if (!shard || shard->tensors().size() != items_.size()) return false;
  for (const Item& item : items_) {
    const TensorInfo* tensor = shard->find(item.entry.name);
    if (tensor == nullptr || tensor->shape != item.entry.shape || (!item.is_scale && tensor->type != item.entry.type))
      return false;
  }
  const auto recipe = shard->metadata().find(kRecipeKey);
  if (recipe == shard->metadata().end() || recipe->second != metadata(0).at(kRecipeKey)) return false;
  const Result<uint64_t> hash = source_hash(progress);
  if (!hash) return hash.error();
  return shard->metadata() == metadata(*hash);
}

struct CompressedShard::Job {
  struct ReadLayer {
    DenseWeight weight;
    base::ContentHash hash;
  };

  const CompressedShard& shard;
  const LayerQuantizer& quantizer;
  const ByteProgress& progress;
  SafetensorsWriter writer;
  SourceHash source;
  std::map<std::string, std::vector<std::byte>> made;  // tensors of quantized layers that are not written yet
  std::map<std::string, TensorType> scale_types;
  std::vector<const LayerInfo*> to_come;  // the layers that are not read yet, the next one last
  // At most one of each is under way. They end before what they use: they stand last.
  std::future<Result<ReadLayer>> reading;
  std::future<Result<void>> writing;

  Result<ReadLayer> read(const LayerInfo& layer) const {
    Result<DenseWeight> dense = shard.dense_.read_dense(layer.name);
    if (!dense) return dense.error();
    ReadLayer done{std::move(*dense), {}};
    done.hash.update(done.weight.values.bytes);
    return done;
  }

  // The next layer, and the one after it begun.
  Result<ReadLayer> next_layer() {
    const LayerInfo& layer = *to_come.back();
    to_come.pop_back();
    Result<ReadLayer> done = reading.valid() ? reading.get() : read(layer);
    if (!done || to_come.empty()) return done;
    const LayerInfo& following = *to_come.back();
    if (static_cast<uint64_t>(following.n * following.k) * 2 >= kBackgroundBytes)
      reading = std::async([this, &following] { return read(following); });
    return done;
  }

  Result<void> written() { return writing.valid() ? writing.get() : Result<void>(); }

  Result<void> append(std::span<const std::byte> bytes) {
    if (Result<void> done = written(); !done) return done;
    return writer.write(bytes);
  }

  Result<void> append_behind(std::vector<std::byte> bytes) {
    if (bytes.size() < kBackgroundBytes) return append(bytes);
    if (Result<void> done = written(); !done) return done;
    writing = std::async([this, bytes = std::move(bytes)] { return writer.write(bytes); });
    return {};
  }

  Result<void> quantize(const LayerInfo& layer) {
    Result<ReadLayer> dense = next_layer();
    if (!dense) return dense.error();
    NYBBLE_CHECK(dense->weight.name == layer.name, "layers are quantized in the order in which they are read");
    source.add(layer.name + ".weight", dense->hash);
    const uint64_t dense_bytes = dense->weight.values.bytes.size();
    Result<QuantizedWeight> weight = quantizer(dense->weight);
    if (!weight) return weight.error();
    dense->weight = {};
    if (Result<void> checked = check_quantized(*weight, layer, shard.scheme_); !checked) return checked;
    made[layer.name + kWeightPacked] = packed_codes(*weight);
    if (!shard.scheme_.symmetric) made[layer.name + kWeightZeroPoint] = packed_zeros(*weight);
    made[layer.name + kWeightScale] = std::move(weight->scales.bytes);
    scale_types[layer.name + kWeightScale] = tensor_type(weight->scales.dtype);
    progress(dense_bytes);
    return {};
  }

  Result<void> write_edited(const Item& item) {
    const Result<DType> dtype = float_type(item.source->type);
    if (!dtype)
      return unsupported("{}: has type {}, but only F16, BF16 and F32 can be changed on the way", item.source.where(),
                         tensor_type_name(item.source->type));
    FloatArray values{.dtype = *dtype};
    Result<void> read = read_pieces(item.source, progress, source, [&](std::span<const std::byte> piece) {
      values.bytes.insert(values.bytes.end(), piece.begin(), piece.end());
      return Result<void>();
    });
    if (!read) return read;
    if (Result<void> edited = shard.scheme_.edits.apply(item.entry.name, values); !edited) return edited;
    if (values.dtype != *dtype || values.bytes.size() != item.entry.size_bytes())
      return invalid_argument("{}: an edit must keep a tensor's type and number of elements", item.source.where());
    return append(values.bytes);
  }

  Result<void> write(const Item& item) {
    const std::vector<std::string>& edited = shard.scheme_.edits.names;
    if (item.source && std::find(edited.begin(), edited.end(), item.entry.name) != edited.end())
      return write_edited(item);
    if (item.source)
      return read_pieces(item.source, progress, source,
                         [&](std::span<const std::byte> piece) { return append(piece); });
    if (item.entry.name == item.layer->name + kWeightShape) {
      const int64_t dims[2] = {item.layer->n, item.layer->k};
      return append(std::as_bytes(std::span(dims)));
    }
    if (!made.contains(item.entry.name))
      if (Result<void> quantized = quantize(*item.layer); !quantized) return quantized;
    return append_behind(std::move(made.extract(item.entry.name).mapped()));
  }
};

Result<uint64_t> CompressedShard::write(const base::Directory& folder, const LayerQuantizer& quantizer,
                                        const ByteProgress& progress) const {
  // Of the types that a scale can have, "BF16" has the longest name, and F32 twice its bytes.
  std::vector<TensorEntry> longest;
  uint64_t max_data_bytes = 0;
  for (const Item& item : items_) {
    longest.push_back(item.entry);
    max_data_bytes += item.entry.size_bytes() * (item.is_scale ? 2 : 1);
  }
  Result<SafetensorsWriter> writer =
      SafetensorsWriter::create(folder.path() + '/' + name_, longest, max_data_bytes, metadata(0));
  if (!writer) return writer.error();
  Job job{*this, quantizer, progress, std::move(*writer), {}, {}, {}, {}, {}, {}};
  for (const Item& item : items_)
    if (item.layer != nullptr && item.entry.name == item.layer->name + kWeightPacked) job.to_come.push_back(item.layer);
  std::reverse(job.to_come.begin(), job.to_come.end());

  const auto scales_begin = std::find_if(items_.begin(), items_.end(), [](const Item& item) { return item.is_scale; });
  const auto scales_end = std::find_if(scales_begin, items_.end(), [](const Item& item) { return !item.is_scale; });
  std::vector<Item> ordered(items_.begin(), scales_begin);
  for (const Item& item : ordered)
    if (Result<void> written = job.write(item); !written) return written.error();

  std::vector<Item> scales(scales_begin, scales_end);
  for (Item& item : scales) item.entry.type = job.scale_types.at(item.entry.name);
  std::stable_sort(scales.begin(), scales.end(), [](const Item& a, const Item& b) {
    return tensor_type_bits(a.entry.type) > tensor_type_bits(b.entry.type);
  });
  scales.insert(scales.end(), scales_end, items_.end());
  for (const Item& item : scales)
    if (Result<void> written = job.write(item); !written) return written.error();
  ordered.insert(ordered.end(), scales.begin(), scales.end());

  if (Result<void> done = job.written(); !done) return done.error();
  std::vector<TensorEntry> entries;
  for (const Item& item : ordered) entries.push_back(item.entry);
  return job.writer.finish(entries, metadata(job.source.digest(input_)));
}

}  // namespace nybble::checkpoint
