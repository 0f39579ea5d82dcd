// The door to the converters.
#include "nybble/convert.h"

#include "checkpoint/model_writer.h"
#include "checkpoint/split.h"

namespace nybble {

Result<WrittenModel> convert_model(const std::string& in, const std::string& out, const ConvertOptions& options,
                                   const std::function<void(int64_t, int64_t)>& progress) {
  using namespace checkpoint;
  const Result<OpenModel> model = open_model(in);
  if (!model) return model.error();
  Result<std::vector<WrittenModel>> written =
      write_models({{{model->checkpoint.get(), model->files, ""}, out}}, options, progress);
  if (!written) return written.error();
  return std::move(written->front());
}

Result<SplitModel> split_model(const std::string& in, const std::string& out, const SplitOptions& options,
                               const std::function<void(int64_t, int64_t)>& progress) {
  using namespace checkpoint;
  const Result<Ranks> ranks = open_ranks(in, out, options);
  if (!ranks) return ranks.error();
  SplitModel split = outline(*ranks);
  Result<std::vector<WrittenModel>> written = write_models(ranks->jobs, options.convert, progress);
  if (!written) return written.error();
  split.written = std::move(*written);
  return split;
}

}  // namespace nybble
