#include "checkpoint/model_writer.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "base/error.h"
#include "base/hash.h"
#include "base/json_text.h"
#include "base/name_pattern.h"
#include "checkpoint/compressed_layer.h"
#include "checkpoint/gguf_file.h"
#include "checkpoint/model_folder.h"

namespace nybble::checkpoint {
namespace {

using Progress = std::function<void(int64_t, int64_t)>;

// A tensor of the output: a layer's part, or another tensor of the input.
struct Item {
  TensorEntry entry;
  const LayerInfo* layer = nullptr;
  size_t part = 0;
};

struct OutputShard {
  std::string name;
  std::vector<Item> items;
};

Result<TensorType> parse_tensor_type(const OtherTensor& tensor) {
  for (int type = 0; type <= static_cast<int>(TensorType::kF4); ++type)
    if (tensor.dtype == tensor_type_name(static_cast<TensorType>(type))) return static_cast<TensorType>(type);
  return unsupported("tensor {}: has type {}, which safetensors has no name for", base::printable(tensor.name),
                     base::printable(tensor.dtype));
}

template <class T> void hash_values(base::ContentHash& hash, const std::vector<T>& values) {
  hash.update(std::as_bytes(std::span<const T>(values)));
}

uint64_t hash_of(const QuantizedWeight& weight) {
  base::ContentHash hash;
  const int64_t numbers[] = {weight.n, weight.k, weight.group_size, static_cast<int64_t>(weight.zero_kind),
                             static_cast<int64_t>(weight.scales.dtype)};
  hash.update(std::as_bytes(std::span(numbers)));
  hash_values(hash, weight.codes);
  hash_values(hash, weight.scales.bytes);
  hash_values(hash, weight.int_zeros);
  hash_values(hash, weight.float_zeros.bytes);
  hash_values(hash, weight.table);
  hash_values(hash, weight.k_order);
  return hash.digest();
}

uint64_t hash_of(const std::vector<std::byte>& bytes) {
  base::ContentHash hash;
  hash.update(bytes);
  return hash.digest();
}

// One hash of all that a shard was made from, by the names of layers and tensors.
class SourceHash {
 public:
  void add(const std::string& name, uint64_t hash) { parts_[name] = hash; }
  uint64_t digest() const {
    base::ContentHash all;
    for (const auto& [name, hash] : parts_) {
      all.update(std::as_bytes(std::span(name.data(), name.size() + 1)));
      all.update(std::as_bytes(std::span(&hash, 1)));
    }
    return all.digest();
  }

 private:
  std::map<std::string, uint64_t> parts_;
};

class ModelWriter {
 public:
  ModelWriter(const ModelSource& source, const ConvertOptions& options, const Progress& progress)
      : source_(source), checkpoint_(*source.checkpoint), options_(options), progress_(progress) {
    dense_ = dense_target(options.dense_dtype);
    switch (options.target) {
      case ModelTarget::kDense:
        target_ = dense_target(options.dense_dtype);
        break;
      case ModelTarget::kCompressedTensors:
        target_ = compressed_tensors_target(options.scale_dtype);
        break;
      case ModelTarget::kGptq:
        target_ = gptq_target(options.scale_dtype);
        break;
      case ModelTarget::kAwq:
        target_ = awq_target(options.scale_dtype);
        break;
    }
  }

  // All that can be known to be wrong before anything is written.
  Result<void> prepare(const std::string& out) {
    if (Result<void> fine = check_options(); !fine) return fine;
    if (Result<void> chosen = choose(); !chosen) return chosen;
    for (const LayerInfo& layer : checkpoint_.layers())
      if (layer.quantized)
        if (Result<void> fine = target_of(layer).check(layer); !fine) return fine;
    if (Result<void> fine = target_->check_together(quantized_, written_.ignored); !fine) return fine;
    if (Result<void> planned = plan_shards(); !planned) return planned;
    for (const LayerInfo& layer : checkpoint_.layers()) {
      if (!layer.quantized || !target_of(layer).depends_on_values(layer)) continue;
      Result<QuantizedWeight> weight = checkpoint_.read_quantized(layer.name);
      if (!weight) return weight.error();
      if (const Result<PartBytes> made = target_of(layer).make(layer, std::move(*weight)); !made) return made.error();
    }
    std::vector<std::string> names;
    for (const OutputShard& shard : shards_) names.push_back(shard.name);
    Result<ModelFolder> folder = ModelFolder::claim(out, source_.files ? &source_.files->folder() : nullptr,
                                                    std::move(names), {options_.resume, options_.force});
    if (!folder) return folder.error();
    out_ = std::make_unique<ModelFolder>(std::move(*folder));
    return {};
  }

  int64_t total() const { return total_; }  // bytes of tensors, after prepare()

  Result<WrittenModel> write() {
    if (Result<void> begun = out_->begin(); !begun) return begun.error();
    for (const OutputShard& shard : shards_)
      if (Result<void> written = write_shard(shard); !written) return written.error();
    const nlohmann::ordered_json settings = quantized_.empty() || options_.target == ModelTarget::kDense
                                                ? nlohmann::ordered_json()
                                                : target_->settings(quantized_, written_.ignored);
    if (source_.files && source_.files->is_folder())
      if (Result<void> copied = out_->copy_other_files(*source_.files, written_.left_out); !copied)
        return copied.error();
    const std::string config =
        source_.files ? with_quantization_config(*source_.files, settings) : config_without_model(settings);
    const bool with_index = shards_.size() > 1 || shards_[0].name != ModelFiles::kSingleFile;
    if (Result<void> done = out_->finish(config, with_index); !done) return done.error();
    return std::move(written_);
  }

 private:
  static std::string config_without_model(const nlohmann::ordered_json& settings) {
    nlohmann::ordered_json config = nlohmann::ordered_json::object();
    if (!settings.is_null()) config["quantization_config"] = settings;
    return config.dump(2) + "\n";
  }

  Result<void> check_options() const {
    if (!options_.scale_dtype) return {};
    const bool allowed = options_.target == ModelTarget::kCompressedTensors ||
                         (options_.target == ModelTarget::kGptq && *options_.scale_dtype != DType::kFp32) ||
                         (options_.target == ModelTarget::kAwq && *options_.scale_dtype == DType::kFp16);
    if (allowed) return {};
    return invalid_argument(
        "scales of type {} were asked for; GPTQ takes fp16 and bf16, AWQ fp16, compressed-tensors all, and a dense "
        "model has none",
        dtype_name(*options_.scale_dtype));
  }

  // Which layers take the target's form, and which are or become dense.
  Result<void> choose() {
    base::MatchBudget budget;
    const Result<std::vector<base::NamePattern>> include = base::NamePattern::compile_all(options_.include, budget);
    if (!include) return include.error();
    const Result<std::vector<base::NamePattern>> exclude = base::NamePattern::compile_all(options_.exclude, budget);
    if (!exclude) return exclude.error();
    size_t stored = 0;
    for (const LayerInfo& layer : checkpoint_.layers()) {
      stored += layer.quantized ? 1 : 0;
      if (layer.quantized && (include->empty() || base::any_found_in(*include, layer.name, budget)) &&
          !base::any_found_in(*exclude, layer.name, budget)) {
        chosen_.insert(layer.name);
        quantized_.push_back(layer);
        written_.quantized.push_back(layer.name);
      } else {
        written_.ignored.push_back(layer.name);
      }
    }
    if (Result<void> fine = budget.check("the include and exclude expressions"); !fine) return fine;
    if (source_.files && has_shared_head(*source_.files) && !chosen_.contains("lm_head") &&
        std::find(written_.ignored.begin(), written_.ignored.end(), "lm_head") == written_.ignored.end())
      written_.ignored.push_back("lm_head");
    if (options_.target == ModelTarget::kDense || !quantized_.empty()) return {};
    if (stored == 0)
      return invalid_argument("the model has no 4-bit layer ({}); `nybble quantize` makes a 4-bit model of a dense one",
                              checkpoint_.format());
    return invalid_argument("none of the model's {} 4-bit layers is chosen by the include and exclude expressions",
                            stored);
  }

  const Target& target_of(const LayerInfo& layer) const { return chosen_.contains(layer.name) ? *target_ : *dense_; }

  // Every tensor of the output, in the file where it stood.
  Result<void> plan_shards() {
    std::map<std::string, std::vector<std::vector<Item>>> by_file;  // a layer's parts stay together
    std::set<std::string> names;
    const auto take_name = [&](const std::string& name) -> Result<void> {
      if (names.insert(name).second) return {};
      return unsupported("tensor {}: its name is needed twice, by the input's own tensor and a rewritten layer",
                         base::printable(name));
    };
    for (const OtherTensor& tensor : checkpoint_.other_tensors()) {
      const Result<TensorType> type = parse_tensor_type(tensor);
      if (!type) return type.error();
      if (Result<void> taken = take_name(tensor.name); !taken) return taken;
      by_file[tensor.file].push_back({{.entry = {tensor.name, *type, tensor.shape}}});
    }
    for (const LayerInfo& layer : checkpoint_.layers()) {
      if (!layer.quantized) continue;
      std::vector<Item> items;
      std::vector<LayerPart> parts = target_of(layer).parts(layer);
      for (size_t i = 0; i < parts.size(); ++i) {
        if (Result<void> taken = take_name(parts[i].entry.name); !taken) return taken;
        items.push_back({.entry = std::move(parts[i].entry), .layer = &layer, .part = i});
      }
      by_file[layer.file].push_back(std::move(items));
    }
    if (options_.shard_bytes > 0)
      divide_by_size(by_file);
    else
      keep_files(by_file);
    if (shards_.empty()) return invalid_argument("the model has no tensors");
    for (OutputShard& shard : shards_) {
      // Falling element size keeps every tensor aligned.
      std::sort(shard.items.begin(), shard.items.end(), [](const Item& a, const Item& b) {
        const int bits_a = -tensor_type_bits(a.entry.type), bits_b = -tensor_type_bits(b.entry.type);
        return std::tie(bits_a, a.entry.name) < std::tie(bits_b, b.entry.name);
      });
      for (const Item& item : shard.items) total_ += static_cast<int64_t>(item.entry.size_bytes());
    }
    return {};
  }

  using Files = std::map<std::string, std::vector<std::vector<Item>>>;

  void keep_files(const Files& by_file) {
    const bool sharded = source_.files && source_.files->is_sharded();
    for (const auto& [file, units] : by_file) {
      if (sharded || shards_.empty()) shards_.push_back({sharded ? file : ModelFiles::kSingleFile, {}});
      for (const std::vector<Item>& unit : units)
        shards_.back().items.insert(shards_.back().items.end(), unit.begin(), unit.end());
    }
  }

  void divide_by_size(Files& by_file) {
    uint64_t filled = 0;
    for (auto& [file, units] : by_file) {
      std::sort(units.begin(), units.end(), [](const std::vector<Item>& a, const std::vector<Item>& b) {
        return a.front().entry.name < b.front().entry.name;
      });
      for (const std::vector<Item>& unit : units) {
        uint64_t bytes = 0;
        for (const Item& item : unit) bytes += item.entry.size_bytes();
        if (shards_.empty() || (filled > 0 && filled + bytes > options_.shard_bytes)) {
          shards_.push_back({});
          filled = 0;
        }
        filled += bytes;
        shards_.back().items.insert(shards_.back().items.end(), unit.begin(), unit.end());
      }
    }
    for (size_t i = 0; i < shards_.size(); ++i)
      shards_[i].name = shards_.size() == 1 ? ModelFiles::kSingleFile
                                            : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards_.size());
  }

  Metadata metadata(uint64_t source_hash) const {
    return {{"format", "pt"},  // transformers refuses files that do not name a framework
            {kSourceKey, fmt::format("xxh3:{:016x}", source_hash)},
            {kRecipeKey,
             fmt::format("{}; {}{}; of {}", target_->recipe(), dense_->recipe(), source_.what, checkpoint_.format())}};
  }

  Result<bool> is_finished(const OutputShard& shard, uint64_t& bytes) const {
    if (!out_->directory().has(shard.name)) return false;
    Result<base::File> opened = out_->directory().open_file(shard.name);
    if (!opened) return opened.error();
    const Result<SafetensorsFile> file = SafetensorsFile::open(std::move(*opened));
    if (!file || file->tensors().size() != shard.items.size()) return false;
    for (const Item& item : shard.items) {
      const TensorInfo* tensor = file->find(item.entry.name);
      if (tensor == nullptr || tensor->shape != item.entry.shape || tensor->type != item.entry.type) return false;
    }
    const auto recipe = file->metadata().find(kRecipeKey);
    if (recipe == file->metadata().end() || recipe->second != metadata(0).at(kRecipeKey)) return false;
    SourceHash source;
    std::set<std::string> layers;
    for (const Item& item : shard.items) {
      if (item.layer != nullptr) {
        if (!layers.insert(item.layer->name).second) continue;
        const Result<QuantizedWeight> weight = checkpoint_.read_quantized(item.layer->name);
        if (!weight) return weight.error();
        source.add(item.layer->name, hash_of(*weight));
      } else {
        const Result<std::vector<std::byte>> tensor = checkpoint_.read_other_tensor(item.entry.name);
        if (!tensor) return tensor.error();
        source.add(item.entry.name, hash_of(*tensor));
      }
    }
    bytes = file->file().size();
    return file->metadata() == metadata(source.digest());
  }

  void advance(const Item& item) {
    done_ += static_cast<int64_t>(item.entry.size_bytes());
    if (progress_ && item.entry.size_bytes() > 0) progress_(done_, total_);
  }

  Result<void> write_shard(const OutputShard& shard) {
    if (options_.resume) {
      uint64_t bytes = 0;
      const Result<bool> finished = is_finished(shard, bytes);
      if (!finished) return finished.error();
      if (*finished) {
        ++written_.kept_shards;
        written_.bytes_out += bytes;
        for (const Item& item : shard.items) advance(item);
        return {};
      }
    }
    std::vector<TensorEntry> entries;
    uint64_t data_bytes = 0;
    for (const Item& item : shard.items) {
      entries.push_back(item.entry);
      data_bytes += item.entry.size_bytes();
    }
    Result<SafetensorsWriter> writer =
        SafetensorsWriter::create(out_->directory().path() + '/' + shard.name, entries, data_bytes, metadata(0));
    if (!writer) return writer.error();
    SourceHash source;
    std::map<const LayerInfo*, PartBytes> made;  // parts of layers begun that are not written yet
    for (const Item& item : shard.items) {
      Result<std::vector<std::byte>> bytes =
          item.layer != nullptr ? layer_part(item, source, made) : other_tensor(item, source);
      if (!bytes) return bytes.error();
      if (bytes->size() != item.entry.size_bytes())
        return invalid_data("tensor {}: has {} bytes, but {} were announced", base::printable(item.entry.name),
                            bytes->size(), item.entry.size_bytes());
      if (Result<void> written = writer->write(*bytes); !written) return written;
      advance(item);
    }
    const Result<uint64_t> size = writer->finish(entries, metadata(source.digest()));
    if (!size) return size.error();
    written_.bytes_out += *size;
    return {};
  }

  Result<std::vector<std::byte>> other_tensor(const Item& item, SourceHash& source) const {
    Result<std::vector<std::byte>> bytes = checkpoint_.read_other_tensor(item.entry.name);
    if (bytes) source.add(item.entry.name, hash_of(*bytes));
    return bytes;
  }

  Result<std::vector<std::byte>> layer_part(const Item& item, SourceHash& source,
                                            std::map<const LayerInfo*, PartBytes>& made) const {
    const LayerInfo& layer = *item.layer;
    const Target& target = target_of(layer);
    std::vector<std::byte> known = target.parts(layer)[item.part].known;
    if (!known.empty()) return known;
    if (!made.contains(&layer)) {
      Result<QuantizedWeight> weight = checkpoint_.read_quantized(layer.name);
      if (!weight) return weight.error();
      if (weight->n != layer.n || weight->k != layer.k || weight->format() != layer.format)
        return invalid_data("layer {}: is no longer what it was when the model was opened",
                            base::printable(layer.name));
      source.add(layer.name, hash_of(*weight));
      Result<PartBytes> bytes = target.make(layer, std::move(*weight));
      if (!bytes) return bytes.error();
      made.emplace(&layer, std::move(*bytes));
    }
    return std::move(made.at(&layer)[item.part]);
  }

  const ModelSource& source_;
  const Checkpoint& checkpoint_;
  const ConvertOptions& options_;
  const Progress& progress_;
  std::unique_ptr<Target> target_, dense_;  // of the chosen layers, and of the others
  std::set<std::string> chosen_;
  std::vector<LayerInfo> quantized_;  // the chosen layers
  std::vector<OutputShard> shards_;
  std::unique_ptr<ModelFolder> out_;
  WrittenModel written_;
  int64_t total_ = 0, done_ = 0;
};

}  // namespace

Result<OpenModel> open_model(const std::string& path) {
  OpenModel model;
  Result<std::unique_ptr<Checkpoint>> checkpoint = open_checkpoint(path);
  if (!checkpoint) return checkpoint.error();
  model.checkpoint = std::move(*checkpoint);
  if (is_gguf_path(path)) return model;
  Result<std::shared_ptr<const ModelFiles>> files = ModelFiles::open(path);
  if (!files) return files.error();
  model.files = std::move(*files);
  return model;
}

Result<std::vector<WrittenModel>> write_models(const std::vector<ModelJob>& jobs, const ConvertOptions& options,
                                               const std::function<void(int64_t, int64_t)>& progress,
                                               const std::function<Result<void>()>& begin) {
  int64_t total = 0, before = 0;
  const Progress of_all = [&](int64_t done, int64_t) {
    if (progress) progress(before + done, total);
  };
  std::vector<std::unique_ptr<ModelWriter>> writers;
  for (const ModelJob& job : jobs) {
    writers.push_back(std::make_unique<ModelWriter>(job.source, options, of_all));
    if (Result<void> prepared = writers.back()->prepare(job.out); !prepared) return prepared.error();
    total += writers.back()->total();
  }
  if (begin)
    if (Result<void> begun = begin(); !begun) return begun.error();
  std::vector<WrittenModel> written;
  for (const auto& writer : writers) {
    Result<WrittenModel> model = writer->write();
    if (!model) return model.error();
    written.push_back(std::move(*model));
    before += writer->total();
  }
  return written;
}

}  // namespace nybble::checkpoint
