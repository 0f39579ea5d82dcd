// The folder that a model is written into: claimed, filled shard by shard, finished by its config.json and index.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/model_files.h"

namespace nybble::checkpoint {

// The metadata of every shard that is written: a hash of what it was made from, and how. By the first an earlier run's
// files are known, by both what of them may be kept.
inline constexpr char kSourceKey[] = "nybble.source";
inline constexpr char kRecipeKey[] = "nybble.recipe";

// The model's config.json with one member added at its end; every other byte stays, unless quantization settings are
// there already: then these go, wherever models keep them. Null settings: none are added.
std::string with_quantization_config(const ModelFiles& model, const nlohmann::ordered_json& settings);

struct FolderUse {
  bool resume = false;  // go on in a folder that an earlier run left
  bool force = false;   // write into whatever is there
};

class ModelFolder {
 public:
  // Makes and locks the folder and refuses one that cannot take the shards of these names; nothing in it is changed.
  // `input`: the folder that is read, which must be another; may be nullptr.
  static Result<ModelFolder> claim(const std::string& path, const base::Directory* input,
                                   std::vector<std::string> shard_names, FolderUse use);

  const base::Directory& directory() const { return *directory_; }
  // Marks the folder as unfinished, and removes what could be taken for a finished model and what killed writers left.
  Result<void> begin() const;
  // Tokenizer, generation settings, module lists, licence: everything but weights, subfolders included. `left_out` gets
  // the files that are not copied, each with the reason.
  Result<void> copy_other_files(const ModelFiles& model, std::vector<std::string>& left_out) const;
  // The last files: config.json and, for a model of several shards, the index, which says that the shards are whole.
  // Then the mark goes.
  Result<void> finish(const std::string& config, bool with_index) const;

 private:
  ModelFolder() = default;
  Result<void> write_index() const;

  std::unique_ptr<base::Directory> directory_;
  std::vector<std::string> shard_names_;
};

}  // namespace nybble::checkpoint
