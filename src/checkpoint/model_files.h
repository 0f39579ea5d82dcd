// A model on disk: one safetensors file, or a folder with one or with a sharded index, and the config.json beside it.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "checkpoint/safetensors.h"

namespace nybble::checkpoint {

// A tensor and the shard that holds it.
struct TensorRef {
  const SafetensorsFile* shard = nullptr;
  const TensorInfo* info = nullptr;

  explicit operator bool() const { return info != nullptr; }
  const TensorInfo* operator->() const { return info; }
  // "model.safetensors: tensor 'a.weight'", to begin an error with.
  std::string where() const;
  Result<void> read(uint64_t offset, std::span<std::byte> out) const { return shard->read(*info, offset, out); }
  Result<std::vector<std::byte>> read_all() const;
};

class ModelFiles {
 public:
  static constexpr const char* kSingleFile = "model.safetensors";
  static constexpr const char* kIndexFile = "model.safetensors.index.json";
  static constexpr const char* kConfigFile = "config.json";
  // Stands in a folder from the first change of a writer of this library until the model is whole.
  static constexpr const char* kUnfinishedFile = ".nybble-unfinished";

  // `path` is a .safetensors file or a folder. What is opened is consistent: index and shards agree on every tensor. A
  // folder whose writer was interrupted is refused.
  static Result<std::shared_ptr<const ModelFiles>> open(const std::string& path);

  const std::string& path() const { return path_; }
  const base::Directory& folder() const { return *folder_; }
  bool is_folder() const { return is_folder_; }
  bool is_sharded() const { return is_sharded_; }
  const std::vector<std::string>& shard_names() const { return shard_names_; }  // plain names within the folder
  const std::vector<SafetensorsFile>& shards() const { return shards_; }
  const std::string& shard_name(const TensorRef& tensor) const;

  const std::vector<TensorRef>& tensors() const { return tensors_; }  // of all shards, sorted by name
  TensorRef find(std::string_view name) const;

  bool has_config() const { return !config_text_.empty(); }
  const std::string& config_text() const { return config_text_; }
  const nlohmann::json& config() const { return config_; }  // an object; empty without config.json
  // The quantization settings in config.json, wherever models keep them; null without any.
  const nlohmann::json& quantization_config() const;
  // The members of config.json that lead to them; empty without any.
  std::vector<std::string> quantization_config_path() const;

 private:
  Result<void> open_folder();
  Result<void> open_index();
  Result<void> open_shard(const std::string& name);
  Result<void> collect_tensors();
  Result<void> read_config();

  std::string path_;
  std::unique_ptr<base::Directory> folder_;
  bool is_folder_ = false, is_sharded_ = false;
  std::vector<std::string> shard_names_;
  std::vector<SafetensorsFile> shards_;
  std::vector<TensorRef> tensors_;
  std::string config_text_;
  nlohmann::json config_ = nlohmann::json::object();
};

// A string member of a JSON object; empty if it is absent or no string.
std::string string_member(const nlohmann::json& object, const char* key);

}  // namespace nybble::checkpoint
