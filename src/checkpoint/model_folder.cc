#include "checkpoint/model_folder.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "base/error.h"
#include "base/json_text.h"

namespace nybble::checkpoint {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr char kUnfinishedText[] =
    "A nybble command is writing this model, or was interrupted while it did. Given again with --resume, it goes on.\n";

// Whether there were any.
bool erase_quantization_config(OrderedJson& config) {
  bool found = false;
  for (const char* key : {"quantization_config", "compression_config"}) {
    found |= config.erase(key) > 0;
    if (config.contains("text_config") && config["text_config"].is_object())
      found |= config["text_config"].erase(key) > 0;
  }
  return found;
}

// Whether the file of this name, if there is one, is a shard that a writer of this library made: one that may be
// replaced.
Result<bool> is_replaceable(const base::Directory& folder, const std::string& name) {
  if (!folder.has(name)) return true;
  Result<base::File> file = folder.open_file(name);
  if (!file) return file.error();
  const Result<SafetensorsFile> shard = SafetensorsFile::open(std::move(*file));
  return shard && shard->metadata().contains(kSourceKey);
}

// Why a file of the model folder that is no part of the model proper is not copied; nullptr: it is.
const char* why_left_out(const std::string& name) {
  constexpr const char* kWeights[] = {".safetensors", ".bin",  ".pt",   ".pth",       ".ckpt", ".h5",
                                      ".msgpack",     ".gguf", ".onnx", ".onnx_data", ".npz",  ".index.json"};
  if (!base::is_plain_name(name)) return "its name holds a control character";
  if (name.starts_with('.')) return "hidden";
  if (name == "quantize_config.json" || name == "quant_config.json" || name == "hf_quant_config.json")
    return "settings of the weights that were read, not of those that were written";
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
        if (Result<void> made = prepare_folder(within); !made) return made;
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
  // A subfolder, once: made, and without what killed writers left.
  Result<void> prepare_folder(const std::string& within) {
    if (within.empty() || !prepared_.insert(within).second) return {};
    const std::string path = out_.path() + '/' + within;
    if (Result<void> made = make_folder(path); !made) return made;
    const Result<base::Directory> folder = base::Directory::open(path);
    return folder ? folder->remove_temporaries() : Result<void>(folder.error());
  }
  void leave_out(const std::string& name, std::string_view why) {
    left_out_.push_back(fmt::format("{} ({})", base::printable(name), why));
  }

  const base::Directory& out_;
  std::vector<std::string>& left_out_;
  std::set<std::string> done_elsewhere_, prepared_;
};

}  // namespace

std::string with_quantization_config(const ModelFiles& model, const OrderedJson& settings) {
  constexpr char kKey[] = "quantization_config";
  OrderedJson parsed = model.has_config() ? OrderedJson::parse(model.config_text()) : OrderedJson::object();
  if (erase_quantization_config(parsed)) {
    if (!settings.is_null()) parsed[kKey] = settings;
    return parsed.dump(2) + "\n";
  }
  if (settings.is_null()) return model.has_config() ? model.config_text() : "{}\n";
  const std::string text = model.has_config() ? model.config_text() : "{}\n";
  const size_t end = text.rfind('}');
  std::string before = text.substr(0, end);
  before.erase(before.find_last_not_of(" \t\r\n") + 1);
  std::string indented;
  for (const char c : settings.dump(2)) indented += c == '\n' ? std::string("\n  ") : std::string(1, c);
  return fmt::format("{}{}\n  \"{}\": {}\n{}", before, before.ends_with('{') ? "" : ",", kKey, indented,
                     text.substr(end));
}

Result<ModelFolder> ModelFolder::claim(const std::string& path, const base::Directory* input,
                                       std::vector<std::string> shard_names, FolderUse use) {
  ModelFolder made_folder;
  made_folder.shard_names_ = std::move(shard_names);
  if (Result<void> made = make_folder(path); !made) return made.error();
  Result<base::Directory> folder = base::Directory::open(path);
  if (!folder) return folder.error();
  made_folder.directory_ = std::make_unique<base::Directory>(std::move(*folder));
  const base::Directory& directory = *made_folder.directory_;
  if (input != nullptr && directory.same_directory(*input))
    return invalid_argument("{}: is the input folder; the output needs a folder of its own", path);
  const Result<bool> locked = directory.try_lock();
  if (!locked) return locked.error();
  if (!*locked) return invalid_argument("{}: another process is writing a model there", path);
  const Result<std::vector<base::DirectoryEntry>> entries = directory.list();
  if (!entries) return entries.error();
  const bool used = std::any_of(entries->begin(), entries->end(), [](const base::DirectoryEntry& entry) {
    return entry.name != ModelFiles::kUnfinishedFile;  // alone, it is what a run left that had written nothing
  });
  if (used && !use.force && !use.resume)
    return invalid_argument("{}: is not empty; resume goes on with a run that was interrupted, force overwrites", path);
  const std::set<std::string> shards(made_folder.shard_names_.begin(), made_folder.shard_names_.end());
  for (const base::DirectoryEntry& entry : *entries) {
    if (entry.name.ends_with(".safetensors") && !shards.contains(entry.name))
      return invalid_argument(
          "{}/{}: would be left beside the new model, whose files have other names, and confuse its "
          "readers; remove it or choose another folder",
          path, entry.name);
  }
  if (use.force) return made_folder;
  for (const std::string& name : made_folder.shard_names_) {
    const Result<bool> replaceable = is_replaceable(directory, name);
    if (!replaceable) return replaceable.error();
    if (!*replaceable)
      return invalid_argument(
          "{}/{}: was not written by an earlier run of this kind, so resume does not touch it; force "
          "overwrites",
          path, name);
  }
  return made_folder;
}

Result<void> ModelFolder::begin() const {
  if (Result<void> marked = base::write_file(directory_->path() + '/' + ModelFiles::kUnfinishedFile, kUnfinishedText);
      !marked)
    return marked;
  // Other libraries do not know the mark, but without index and configuration they see no model. The index goes first:
  // it is what says that the shards are whole.
  for (const char* name : {ModelFiles::kIndexFile, ModelFiles::kConfigFile})
    if (Result<void> removed = directory_->remove_file(name); !removed) return removed;
  if (Result<void> removed = directory_->remove_temporaries(); !removed) return removed;
  return directory_->sync();
}

Result<void> ModelFolder::copy_other_files(const ModelFiles& model, std::vector<std::string>& left_out) const {
  return OtherFiles(model, *directory_, left_out).copy(model.folder(), "", 0);
}

Result<void> ModelFolder::finish(const std::string& config, bool with_index) const {
  if (Result<void> done = base::write_file(directory_->path() + '/' + ModelFiles::kConfigFile, config); !done)
    return done;
  if (with_index)
    if (Result<void> done = write_index(); !done) return done;
  if (Result<void> removed = directory_->remove_file(ModelFiles::kUnfinishedFile); !removed) return removed;
  return directory_->sync();
}

Result<void> ModelFolder::write_index() const {
  std::map<std::string, std::string> weight_map;
  uint64_t total = 0;
  for (const std::string& name : shard_names_) {
    Result<base::File> file = directory_->open_file(name);
    if (!file) return file.error();
    const Result<SafetensorsFile> written = SafetensorsFile::open(std::move(*file));
    if (!written) return written.error();
    for (const TensorInfo& tensor : written->tensors()) {
      weight_map[tensor.name] = name;
      total += tensor.size_bytes();
    }
  }
  const OrderedJson index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
  return base::write_file(directory_->path() + '/' + ModelFiles::kIndexFile, index.dump(2) + "\n");
}

}  // namespace nybble::checkpoint
