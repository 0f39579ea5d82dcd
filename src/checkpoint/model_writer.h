// A checkpoint written as a model folder in a target's form.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "checkpoint/model_files.h"
#include "checkpoint/target.h"
#include "nybble/convert.h"

namespace nybble::checkpoint {

struct OpenModel {
  std::unique_ptr<Checkpoint> checkpoint;
  // Where config.json and other files come from; nullptr: there are none (GGUF).
  std::shared_ptr<const ModelFiles> files;
};

Result<OpenModel> open_model(const std::string& path);

struct ModelSource {
  const Checkpoint* checkpoint = nullptr;
  std::shared_ptr<const ModelFiles> files;  // as in OpenModel
  std::string what;  // the recipe's word for what is done to the source before it is written; empty: nothing
};

struct ModelJob {
  ModelSource source;
  std::string out;
};

// Writes every job's model. Whatever can be refused is refused before the first byte of the first one. Between the two
// `begin` is called, if there is one: the place for changes that a refusal must not follow. Its error ends everything.
Result<std::vector<WrittenModel>> write_models(const std::vector<ModelJob>& jobs, const ConvertOptions& options,
                                               const std::function<void(int64_t, int64_t)>& progress,
                                               const std::function<Result<void>()>& begin = {});

}  // namespace nybble::checkpoint
