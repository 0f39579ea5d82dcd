// The door to the converters: opens the input and finds the files that belong to it.
#include "nybble/convert.h"

#include "base/error.h"
#include "checkpoint/gguf_file.h"
#include "checkpoint/model_writer.h"
#include "checkpoint/split.h"

namespace nybble {

namespace checkpoint {
namespace {

struct Input {
  std::unique_ptr<Checkpoint> checkpoint;
  std::shared_ptr<const ModelFiles> files;  // nullptr: GGUF
};

Result<Input> open_input(const std::string& path) {
  Input input;
  Result<std::unique_ptr<Checkpoint>> checkpoint = open_checkpoint(path);
  if (!checkpoint) return checkpoint.error();
  input.checkpoint = std::move(*checkpoint);
  if (is_gguf_path(path)) return input;
  Result<std::shared_ptr<const ModelFiles>> files = ModelFiles::open(path);
  if (!files) return files.error();
  input.files = std::move(*files);
  return input;
}

}  // namespace
}  // namespace checkpoint

Result<WrittenModel> convert_model(const std::string& in, const std::string& out, const ConvertOptions& options,
                                   const std::function<void(int64_t, int64_t)>& progress) {
  using namespace checkpoint;
  const Result<Input> input = open_input(in);
  if (!input) return input.error();
  Result<std::vector<WrittenModel>> written =
      write_models({{{input->checkpoint.get(), input->files, ""}, out}}, options, progress);
  if (!written) return written.error();
  return std::move(written->front());
}

Result<SplitModel> split_model(const std::string& in, const std::string& out, const SplitOptions& options,
                               const std::function<void(int64_t, int64_t)>& progress) {
  using namespace checkpoint;
  const Result<Input> input = open_input(in);
  if (!input) return input.error();
  const Result<SplitPlan> plan =
      plan_split(*input->checkpoint, input->files ? input->files->config() : nlohmann::json::object(), options);
  if (!plan) return plan.error();
  SplitModel split{
      .column = plan->names(Split::kColumn), .row = plan->names(Split::kRow), .replicated = plan->names(Split::kNone)};
  std::vector<std::unique_ptr<Checkpoint>> ranks;
  std::vector<ModelJob> jobs;
  for (int rank = 0; rank < options.ranks; ++rank) {
    ranks.push_back(rank_of(*input->checkpoint, *plan, rank));
    split.folders.push_back(fmt::format("{}/rank-{}-of-{}", out, rank, options.ranks));
    jobs.push_back({{ranks.back().get(), input->files, plan->recipe(rank)}, split.folders.back()});
  }
  Result<std::vector<WrittenModel>> written = write_models(jobs, options.convert, progress);
  if (!written) return written.error();
  split.written = std::move(*written);
  return split;
}

}  // namespace nybble
