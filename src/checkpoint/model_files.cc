#include "checkpoint/model_files.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <set>

#include "base/check.h"
#include "base/error.h"
#include "base/json_text.h"

namespace nybble::checkpoint {
namespace {

constexpr uint64_t kMaxConfigBytes = 16 << 20;
constexpr int64_t kMaxIndexValues = 2 * kMaxTensors + 1000;  // a name and a file for each tensor
constexpr size_t kMaxShards = 4096;                          // one descriptor each

struct Index {
  std::map<std::string, std::vector<std::string>> shards;  // shard -> its tensors
  std::optional<uint64_t> total_size;
};

// total_size is a whole number, which some writers print as a float ("5368709120.0").
Result<std::optional<uint64_t>> read_total_size(const nlohmann::json& document, const std::string& path) {
  const auto metadata = document.find("metadata");
  if (metadata == document.end() || metadata->is_null()) return std::optional<uint64_t>();
  if (!metadata->is_object()) return invalid_data("{}: metadata must be an object", path);
  const auto total = metadata->find("total_size");
  if (total == metadata->end()) return std::optional<uint64_t>();
  const double value = total->is_number() ? total->get<double>() : -1;
  if (!(value >= 0 && value <= static_cast<double>(base::kMaxExactInteger)) ||
      value != static_cast<double>(static_cast<uint64_t>(value)))
    return invalid_data("{}: metadata.total_size must be a whole number from 0 to 2^53", path);
  return std::optional<uint64_t>(static_cast<uint64_t>(value));
}

Result<Index> read_index(const base::File& file) {
  const std::string& path = file.path();
  const Result<std::string> text = base::read_file(file, kMaxHeaderBytes);
  if (!text) return text.error();
  Result<nlohmann::json> document = base::parse_json(*text, path, {.max_values = kMaxIndexValues});
  if (!document) return document.error();
  if (!document->is_object()) return invalid_data("{}: must be one object", path);
  const auto map = document->find("weight_map");
  if (map == document->end() || !map->is_object())
    return invalid_data("{}: has no weight_map object, which says where each tensor is", path);
  if (map->empty()) return invalid_data("{}: weight_map is empty", path);
  if (map->size() > kMaxTensors) return invalid_data("{}: weight_map lists more than {} tensors", path, kMaxTensors);
  Index index;
  for (const auto& [tensor, shard] : map->items()) {
    if (base::has_control_character(tensor))
      return invalid_data("{}: weight_map: the name {} holds a control character", path, base::printable(tensor));
    if (!shard.is_string())
      return invalid_data("{}: weight_map: the file of {} is no string", path, base::printable(tensor));
    const std::string& name = shard.get_ref<const std::string&>();
    if (!base::is_plain_name(name))
      return invalid_data("{}: weight_map: the file of {} is {}; only plain file names within the folder are followed",
                          path, base::printable(tensor), base::printable(name));
    if (!name.ends_with(".safetensors"))
      return invalid_data("{}: weight_map: the file of {} is {}; only .safetensors files are read", path,
                          base::printable(tensor), base::printable(name));
    index.shards[name].push_back(tensor);
    if (index.shards.size() > kMaxShards)
      return invalid_data("{}: weight_map names more than {} files", path, kMaxShards);
  }
  const Result<std::optional<uint64_t>> total = read_total_size(*document, path);
  if (!total) return total.error();
  index.total_size = *total;
  return index;
}

// What torch.save() writes, by the names in use.
bool is_pickle(std::string_view name) {
  return name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth") || name.ends_with(".ckpt");
}

Error pickle_error(const std::string& path, const std::string& what) {
  return unsupported(
      "{}: {}; pickles run code when they are loaded and are not read. Load the model with the library that wrote it "
      "and "
      "save it as safetensors (transformers: save_pretrained())",
      path, what);
}

}  // namespace

std::string string_member(const nlohmann::json& object, const char* key) {
  if (!object.is_object()) return {};
  const auto member = object.find(key);
  return member != object.end() && member->is_string() ? member->get<std::string>() : std::string();
}

std::string TensorRef::where() const {
  return fmt::format("{}: tensor {}", shard->file().path(), base::printable(info->name));
}

Result<std::vector<std::byte>> TensorRef::read_all() const {
  std::vector<std::byte> bytes(info->size_bytes());
  if (Result<void> done = read(0, bytes); !done) return done.error();
  return bytes;
}

Result<std::shared_ptr<const ModelFiles>> ModelFiles::open(const std::string& path) {
  struct stat status;
  if (::stat(path.c_str(), &status) != 0)
    return io_error("{}: stat failed: {} (errno {})", path, std::strerror(errno), errno);
  const auto model = std::make_shared<ModelFiles>();
  model->path_ = path;
  model->is_folder_ = S_ISDIR(status.st_mode);
  if (model->is_folder_) {
    if (Result<void> opened = model->open_folder(); !opened) return opened.error();
  } else {
    const size_t slash = path.rfind('/');
    const std::string parent = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
    if (is_pickle(path)) return pickle_error(path, "is a pickle");
    if (!path.ends_with(".safetensors"))
      return invalid_argument("{}: is neither a folder nor a .safetensors file", path);
    Result<base::Directory> folder = base::Directory::open(parent);
    if (!folder) return folder.error();
    model->folder_ = std::make_unique<base::Directory>(std::move(*folder));
    // The user named this very file, so a symbolic link is followed wherever it leads.
    Result<base::File> file = base::File::open(path);
    if (!file) return file.error();
    Result<SafetensorsFile> shard = SafetensorsFile::open(std::move(*file));
    if (!shard) return shard.error();
    model->shard_names_.push_back(slash == std::string::npos ? path : path.substr(slash + 1));
    model->shards_.push_back(std::move(*shard));
  }
  if (Result<void> collected = model->collect_tensors(); !collected) return collected.error();
  if (Result<void> read = model->read_config(); !read) return read.error();
  return std::shared_ptr<const ModelFiles>(model);
}

Result<void> ModelFiles::open_folder() {
  Result<base::Directory> folder = base::Directory::open(path_);
  if (!folder) return folder.error();
  folder_ = std::make_unique<base::Directory>(std::move(*folder));
  if (folder_->has(kUnfinishedFile))
    return invalid_data(
        "{}: was left unfinished by the command that wrote it (it holds {}); give that command again with --resume, or "
        "open a file of the folder itself",
        path_, kUnfinishedFile);
  const bool single = folder_->has(kSingleFile), index = folder_->has(kIndexFile);
  if (single && index)
    return invalid_data(
        "{}: holds both {} and {}, so which tensors are the model's is a guess; remove one or open the file "
        "itself",
        path_, kSingleFile, kIndexFile);
  if (index) return open_index();
  if (single) return open_shard(kSingleFile);

  const Result<std::vector<base::DirectoryEntry>> entries = folder_->list();
  if (!entries) return entries.error();
  std::vector<std::string> found;
  for (const base::DirectoryEntry& entry : *entries)
    if (entry.name.ends_with(".safetensors")) found.push_back(entry.name);
  if (found.size() == 1) return open_shard(found[0]);
  const auto pickle = std::find_if(entries->begin(), entries->end(),
                                   [](const base::DirectoryEntry& entry) { return is_pickle(entry.name); });
  if (found.empty() && pickle != entries->end())
    return pickle_error(path_,
                        fmt::format("holds its weights in pickles, {} the first", base::printable(pickle->name)));
  if (found.empty())
    return invalid_data("{}: holds no .safetensors file; checkpoints in other containers must be converted first",
                        path_);
  return invalid_data("{}: holds {} .safetensors files, but no {} that says how they belong together", path_,
                      found.size(), kIndexFile);
}

Result<void> ModelFiles::open_index() {
  is_sharded_ = true;
  const Result<base::File> file = folder_->open_file(kIndexFile);
  if (!file) return file.error();
  const Result<Index> index = read_index(*file);
  if (!index) return index.error();
  uint64_t total = 0;
  for (const auto& [name, tensors] : index->shards) {
    if (Result<void> opened = open_shard(name); !opened) return opened.error();
    const SafetensorsFile& shard = shards_.back();
    for (const std::string& tensor : tensors)
      if (shard.find(tensor) == nullptr)
        return invalid_data("{}: weight_map: tensor {} should be in {}, but is not there", file->path(),
                            base::printable(tensor), name);
    if (shard.tensors().size() != tensors.size()) {
      const std::set<std::string> listed(tensors.begin(), tensors.end());
      for (const TensorInfo& tensor : shard.tensors())
        if (!listed.contains(tensor.name))
          return invalid_data("{}: tensor {} is in this file, but {} does not say so", shard.file().path(),
                              base::printable(tensor.name), kIndexFile);
    }
    for (const TensorInfo& tensor : shard.tensors()) total += tensor.size_bytes();
  }
  if (index->total_size && *index->total_size != total)
    return invalid_data(
        "{}: metadata.total_size is {}, but the tensors have {} bytes; correct or delete the entry if the "
        "files are whole",
        file->path(), *index->total_size, total);
  return {};
}

Result<void> ModelFiles::open_shard(const std::string& name) {
  Result<base::File> file = folder_->open_file(name);
  if (!file) return file.error();
  Result<SafetensorsFile> shard = SafetensorsFile::open(std::move(*file));
  if (!shard) return shard.error();
  shard_names_.push_back(name);
  shards_.push_back(std::move(*shard));
  return {};
}

Result<void> ModelFiles::collect_tensors() {
  for (const SafetensorsFile& shard : shards_)
    for (const TensorInfo& tensor : shard.tensors()) tensors_.push_back({&shard, &tensor});
  std::sort(tensors_.begin(), tensors_.end(),
            [](const TensorRef& a, const TensorRef& b) { return a.info->name < b.info->name; });
  for (size_t i = 1; i < tensors_.size(); ++i)
    if (tensors_[i - 1]->name == tensors_[i]->name)
      return invalid_data("{} is also in {}; a tensor has one shard", tensors_[i].where(),
                          tensors_[i - 1].shard->file().path());
  return {};
}

Result<void> ModelFiles::read_config() {
  if (!folder_->has(kConfigFile)) return {};
  const Result<base::File> file = folder_->open_file(kConfigFile);
  if (!file) return file.error();
  Result<std::string> text = base::read_file(*file, kMaxConfigBytes);
  if (!text) return text.error();
  constexpr int kMaxConfigDepth = 64;
  Result<nlohmann::json> config = base::parse_json(*text, file->path(), {.max_depth = kMaxConfigDepth});
  if (!config) return config.error();
  if (!config->is_object()) return invalid_data("{}: must be one object", file->path());
  config_text_ = std::move(*text);
  config_ = std::move(*config);
  return {};
}

const std::string& ModelFiles::shard_name(const TensorRef& tensor) const {
  NYBBLE_CHECK(tensor.shard >= shards_.data() && tensor.shard < shards_.data() + shards_.size(),
               "a tensor of this model");
  return shard_names_[static_cast<size_t>(tensor.shard - shards_.data())];
}

TensorRef ModelFiles::find(std::string_view name) const {
  const auto at =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const TensorRef& tensor, std::string_view wanted) { return tensor->name < wanted; });
  return at != tensors_.end() && (*at)->name == name ? *at : TensorRef{};
}

const nlohmann::json& ModelFiles::quantization_config() const {
  static const nlohmann::json kNone;
  const std::vector<std::string> path = quantization_config_path();
  const nlohmann::json* settings = path.empty() ? &kNone : &config_;
  for (const std::string& member : path) settings = &(*settings)[member];
  return *settings;
}

std::vector<std::string> ModelFiles::quantization_config_path() const {
  for (const std::vector<std::string>& within : {std::vector<std::string>{}, {"text_config"}}) {
    const nlohmann::json* object = &config_;
    for (const std::string& member : within) object = object->contains(member) ? &(*object)[member] : nullptr;
    if (object == nullptr || !object->is_object()) continue;
    for (const char* key : {"quantization_config", "compression_config"}) {
      const auto found = object->find(key);
      if (found == object->end() || found->is_null()) continue;
      std::vector<std::string> path = within;
      path.emplace_back(key);
      return path;
    }
  }
  return {};
}

}  // namespace nybble::checkpoint
