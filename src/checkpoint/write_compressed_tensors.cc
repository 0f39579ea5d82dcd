// Model folder in, compressed-tensors model folder out: checks first, then shards, other files, config.json and index.
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "base/json_text.h"
#include "checkpoint/compressed_shard.h"
#include "checkpoint/compressed_tensors.h"
#include "checkpoint/format.h"
#include "checkpoint/layer_choice.h"
#include "checkpoint/layers.h"
#include "checkpoint/model_files.h"

namespace nybble {
namespace checkpoint {
namespace {

using OrderedJson = nlohmann::ordered_json;

// The keys that every release of compressed-tensors and vLLM since the format's beginning takes, and no others.
OrderedJson quantization_config(const CompressedTensorsScheme& scheme, const std::vector<std::string>& ignore) {
  const bool per_column = scheme.group_size == kPerColumn;
  const OrderedJson weights = {
      {"num_bits", 4},
      {"type", "int"},
      {"symmetric", scheme.symmetric},
      {"strategy", per_column ? "channel" : "group"},
      {"group_size", per_column ? OrderedJson() : OrderedJson(scheme.group_size)},
      {"dynamic", false},
      {"actorder", nullptr},
  };
  const OrderedJson group = {
      {"targets", {"Linear"}},
      {"weights", weights},
      {"input_activations", nullptr},
      {"output_activations", nullptr},
  };
  return {
      {"quant_method", kQuantMethod},          {"format", kPackQuantized}, {"quantization_status", "compressed"},
      {"config_groups", {{"group_0", group}}}, {"ignore", ignore},         {"kv_cache_scheme", nullptr},
      {"global_compression_ratio", nullptr},
  };
}

// The model's config.json with one member added at its end; every other byte stays, unless the member is there already
// (as null: the model is dense).
std::string with_quantization_config(const ModelFiles& model, const OrderedJson& settings) {
  constexpr char kKey[] = "quantization_config";
  if (model.config().contains(kKey)) {
    OrderedJson config = OrderedJson::parse(model.config_text());
    config[kKey] = settings;
    return config.dump(2) + "\n";
  }
  const std::string text = model.has_config() ? model.config_text() : "{}\n";
  const size_t end = text.rfind('}');
  std::string before = text.substr(0, end);
  before.erase(before.find_last_not_of(" \t\r\n") + 1);
  std::string indented;
  for (const char c : settings.dump(2)) indented += c == '\n' ? std::string("\n  ") : std::string(1, c);
  return fmt::format("{}{}\n  \"{}\": {}\n{}", before, before.ends_with('{') ? "" : ",", kKey, indented,
                     text.substr(end));
}

// Language models that share their head's weight with the embedding have a Linear module without a tensor of its own,
// which loaders would otherwise expect to be quantized.
bool has_shared_head(const ModelFiles& model) {
  if (model.find("lm_head.weight")) return false;
  const auto architectures = model.config().find("architectures");
  if (architectures == model.config().end() || !architectures->is_array()) return false;
  return std::any_of(architectures->begin(), architectures->end(), [](const nlohmann::json& entry) {
    if (!entry.is_string()) return false;
    const std::string& name = entry.get_ref<const std::string&>();
    return name.find("ForCausalLM") != std::string::npos || name.find("LMHead") != std::string::npos ||
           name.find("ForConditionalGeneration") != std::string::npos;
  });
}

// Why a file of the model folder that is no part of the model proper is not copied; nullptr: it is.
const char* why_left_out(const std::string& name) {
  constexpr const char* kWeights[] = {".safetensors", ".bin",  ".pt",   ".pth",       ".ckpt", ".h5",
                                      ".msgpack",     ".gguf", ".onnx", ".onnx_data", ".npz",  ".index.json"};
  if (!base::is_plain_name(name)) return "its name holds a control character";
  if (name.starts_with('.')) return "hidden";
  for (const char* suffix : kWeights)
    if (name.ends_with(suffix)) return "other weights, which would no longer be this model's";
  return nullptr;
}

Result<void> make_folder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return io_error("{}: mkdir failed: {}", path, error.message());
  return {};
}

Result<void> copy_file(const base::File& from, const std::string& to) {
  constexpr uint64_t kPieceBytes = 4 << 20;
  Result<base::AtomicFile> file = base::AtomicFile::create(to);
  if (!file) return file.error();
  std::vector<std::byte> buffer(std::min(kPieceBytes, from.size()));
  for (uint64_t at = 0; at < from.size();) {
    const auto piece = std::span(buffer).first(std::min<uint64_t>(buffer.size(), from.size() - at));
    if (Result<void> read = from.read_at(at, piece); !read) return read;
    if (Result<void> written = file->write(piece); !written) return written;
    at += piece.size();
  }
  return file->commit();
}

// Tokenizer, generation settings, module lists, licence: everything but weights, subfolders included.
class OtherFiles {
 public:
  OtherFiles(const ModelFiles& model, const base::Directory& out, std::vector<std::string>& left_out)
      : out_(out), left_out_(left_out), done_elsewhere_(model.shard_names().begin(), model.shard_names().end()) {
    done_elsewhere_.insert(ModelFiles::kIndexFile);
    done_elsewhere_.insert(ModelFiles::kConfigFile);
  }

  Result<void> copy(const base::Directory& from, const std::string& within, int depth) {
    const Result<std::vector<base::DirectoryEntry>> entries = from.list();
    if (!entries) return entries.error();
    for (const base::DirectoryEntry& entry : *entries) {
      if (depth == 0 && done_elsewhere_.contains(entry.name)) continue;
      if (const char* why = why_left_out(entry.name)) {
        leave_out(within + entry.name, why);
      } else if (entry.kind == base::EntryKind::kDirectory) {
        if (Result<void> copied = copy_folder(from, within, entry.name, depth); !copied) return copied;
      } else if (entry.kind == base::EntryKind::kOther) {
        leave_out(within + entry.name, "no regular file");
      } else {
        const Result<base::File> file = from.open_file(entry.name);
        if (!file && entry.kind == base::EntryKind::kLink) {
          leave_out(within + entry.name, file.error().message);
          continue;
        }
        if (!file) return file.error();
        const std::string folder = out_.path() + '/' + within;
        if (Result<void> made = make_folder(folder); !made) return made;
        if (Result<void> copied = copy_file(*file, folder + entry.name); !copied) return copied;
      }
    }
    return {};
  }

 private:
  Result<void> copy_folder(const base::Directory& from, const std::string& within, const std::string& name, int depth) {
    constexpr int kMaxDepth = 8;
    if (depth == kMaxDepth) {
      leave_out(within + name, "nested too deep");
      return {};
    }
    const Result<base::Directory> folder = from.open_directory(name);
    if (!folder) return folder.error();
    if (folder->same_directory(out_)) return {};  // the output lies within the input
    return copy(*folder, within + name + '/', depth + 1);
  }
  void leave_out(const std::string& name, std::string_view why) {
    left_out_.push_back(fmt::format("{} ({})", base::printable(name), why));
  }

  const base::Directory& out_;
  std::vector<std::string>& left_out_;
  std::set<std::string> done_elsewhere_;
};

class ModelWriter {
 public:
  ModelWriter(std::shared_ptr<const ModelFiles> model, std::unique_ptr<Checkpoint> dense,
              const CompressedTensorsScheme& scheme, const LayerQuantizer& quantizer,
              const QuantizeModelOptions& options, const std::function<void(int64_t, int64_t)>& progress)
      : model_(std::move(model)),
        dense_(std::move(dense)),
        scheme_(scheme),
        quantizer_(quantizer),
        options_(options),
        progress_(progress) {
    for (const TensorRef& tensor : model_->tensors()) total_ += tensor->size_bytes();
  }

  // All that can be known to be wrong before anything is written.
  Result<void> prepare(const std::string& out) {
    Result<LayerChoice> choice = choose_layers(*model_, options_);
    if (!choice) return choice.error();
    if (Result<void> fits = check_group_fits(choice->chosen, scheme_.group_size); !fits) return fits;
    if (Result<void> free = check_names_free(choice->chosen); !free) return free;
    for (const LayerInfo& layer : choice->chosen) written_.quantized.push_back(layer.name);
    written_.ignored = std::move(choice->ignored);
    if (has_shared_head(*model_)) written_.ignored.push_back("lm_head");
    for (size_t i = 0; i < model_->shards().size(); ++i) {
      std::vector<LayerInfo> layers;
      for (const LayerInfo& layer : choice->chosen)
        if (layer.file == model_->shard_names()[i]) layers.push_back(layer);
      shards_.push_back(std::make_unique<CompressedShard>(*model_, *dense_, i, std::move(layers), scheme_));
      written_.bytes_in += model_->shards()[i].file().size();
    }
    return prepare_folder(out);
  }

  Result<WrittenModel> write() {
    for (const std::string& name : unfinished_)
      if (Result<void> removed = out_->remove_file(name); !removed) return removed.error();
    if (Result<void> synced = out_->sync(); !synced) return synced.error();
    for (const auto& shard : shards_)
      if (Result<void> written = write_shard(*shard); !written) return written.error();
    if (Result<void> copied = OtherFiles(*model_, *out_, written_.left_out).copy(model_->folder(), "", 0); !copied)
      return copied.error();
    const std::string config = with_quantization_config(*model_, quantization_config(scheme_, written_.ignored));
    if (Result<void> done = base::write_file(out_->path() + '/' + ModelFiles::kConfigFile, config); !done)
      return done.error();
    if (model_->is_sharded())
      if (Result<void> done = write_index(); !done) return done.error();
    return std::move(written_);
  }

 private:
  Result<void> check_names_free(const std::vector<LayerInfo>& chosen) const {
    for (const LayerInfo& layer : chosen)
      for (const char* suffix : {kWeightPacked, kWeightScale, kWeightShape, kWeightZeroPoint, kWeightGroupIndex})
        if (const TensorRef taken = model_->find(layer.name + suffix))
          return unsupported("{}: has a name that the quantized form of layer {} needs; exclude the layer",
                             taken.where(), base::printable(layer.name));
    return {};
  }

  Result<void> prepare_folder(const std::string& out) {
    if (Result<void> made = make_folder(out); !made) return made;
    Result<base::Directory> folder = base::Directory::open(out);
    if (!folder) return folder.error();
    out_ = std::make_unique<base::Directory>(std::move(*folder));
    if (out_->same_directory(model_->folder()))
      return invalid_argument("{}: is the input folder; the output needs a folder of its own", out);
    const Result<bool> locked = out_->try_lock();
    if (!locked) return locked.error();
    if (!*locked) return invalid_argument("{}: another process is writing a model there", out);
    const Result<std::vector<base::DirectoryEntry>> entries = out_->list();
    if (!entries) return entries.error();
    if (!entries->empty() && !options_.force && !options_.resume)
      return invalid_argument("{}: is not empty; resume goes on with a run that was interrupted, force overwrites",
                              out);
    // Without its index and configuration nothing takes the folder for a model until all is written. The index goes
    // first: it is what says that the shards are whole.
    for (const char* name : {ModelFiles::kIndexFile, ModelFiles::kConfigFile})
      if (out_->has(name)) unfinished_.push_back(name);
    const std::set<std::string> shards(model_->shard_names().begin(), model_->shard_names().end());
    for (const base::DirectoryEntry& entry : *entries) {
      if (entry.name.starts_with('.') && entry.name.find(base::AtomicFile::kTemporaryMark) != std::string::npos)
        unfinished_.push_back(entry.name);  // of a run that was killed
      else if (entry.name.ends_with(".safetensors") && !shards.contains(entry.name))
        return invalid_argument(
            "{}/{}: would be left beside the new model, whose files have other names, and confuse its "
            "readers; remove it or choose another folder",
            out, entry.name);
    }
    if (options_.force) return {};
    for (const auto& shard : shards_) {
      const Result<bool> replaceable = shard->is_replaceable(*out_);
      if (!replaceable) return replaceable.error();
      if (!*replaceable)
        return invalid_argument(
            "{}/{}: was not written by an earlier run of this kind, so resume does not touch it; force "
            "overwrites",
            out, shard->name());
    }
    return {};
  }

  Result<void> write_shard(const CompressedShard& shard) {
    const int64_t before = done_;
    const ByteProgress progress = [this](uint64_t bytes) {
      done_ += static_cast<int64_t>(bytes);
      if (progress_) progress_(done_, total_);
    };
    if (options_.resume) {
      const Result<bool> finished = shard.is_finished(*out_, progress);
      if (!finished) return finished.error();
      if (*finished) {
        ++written_.kept_shards;
        const Result<base::File> file = out_->open_file(shard.name());
        if (!file) return file.error();
        written_.bytes_out += file->size();
        return {};
      }
      done_ = before;
    }
    const Result<uint64_t> bytes = shard.write(*out_, quantizer_, progress);
    if (!bytes) return bytes.error();
    written_.bytes_out += *bytes;
    return {};
  }

  Result<void> write_index() const {
    std::map<std::string, std::string> weight_map;
    uint64_t total = 0;
    for (const auto& shard : shards_) {
      Result<base::File> file = out_->open_file(shard->name());
      if (!file) return file.error();
      const Result<SafetensorsFile> written = SafetensorsFile::open(std::move(*file));
      if (!written) return written.error();
      for (const TensorInfo& tensor : written->tensors()) {
        weight_map[tensor.name] = shard->name();
        total += tensor.size_bytes();
      }
    }
    const OrderedJson index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
    return base::write_file(out_->path() + '/' + ModelFiles::kIndexFile, index.dump(2) + "\n");
  }

  std::shared_ptr<const ModelFiles> model_;
  std::unique_ptr<Checkpoint> dense_;
  const CompressedTensorsScheme& scheme_;
  const LayerQuantizer& quantizer_;
  const QuantizeModelOptions& options_;
  const std::function<void(int64_t, int64_t)>& progress_;
  int64_t total_ = 0, done_ = 0;
  std::unique_ptr<base::Directory> out_;
  std::vector<std::string> unfinished_;  // files in the output folder to remove first
  std::vector<std::unique_ptr<CompressedShard>> shards_;
  WrittenModel written_;
};

}  // namespace
}  // namespace checkpoint

Result<WrittenModel> write_compressed_tensors(const std::string& in, const std::string& out,
                                              const CompressedTensorsScheme& scheme, const LayerQuantizer& quantizer,
                                              const QuantizeModelOptions& options,
                                              const std::function<void(int64_t, int64_t)>& progress) {
  using namespace checkpoint;
  if (!quantizer) return invalid_argument("write_compressed_tensors() needs a quantizer");
  Result<std::shared_ptr<const ModelFiles>> model = ModelFiles::open(in);
  if (!model) return model.error();
  if (!(*model)->is_folder())
    return invalid_argument(
        "{}: is a single file; give the model's folder, whose config.json and tokenizer belong to it", in);
  const Result<const Format*> format = find_format(**model);
  if (!format) return format.error();
  if (*format != &kDenseFormat)
    return invalid_argument("{}: is already quantized ({}); quantize the unquantized model", in, (*format)->name);
  Result<std::unique_ptr<Checkpoint>> dense = (*format)->open(*model);
  if (!dense) return dense.error();
  ModelWriter writer(std::move(*model), std::move(*dense), scheme, quantizer, options, progress);
  if (Result<void> prepared = writer.prepare(out); !prepared) return prepared.error();
  return writer.write();
}

}  // namespace nybble
