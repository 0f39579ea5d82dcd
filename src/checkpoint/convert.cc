// The door to the converters: opens the input and finds the files that belong to it.
#include "nybble/convert.h"

#include "base/error.h"
#include "checkpoint/gguf_file.h"
#include "checkpoint/model_writer.h"

namespace nybble {

Result<WrittenModel> convert_model(const std::string& in, const std::string& out, const ConvertOptions& options,
                                   const std::function<void(int64_t, int64_t)>& progress) {
  using namespace checkpoint;
  const Result<std::unique_ptr<Checkpoint>> opened = open_checkpoint(in);
  if (!opened) return opened.error();
  ModelSource source{.checkpoint = opened->get()};
  if (!is_gguf_path(in)) {
    Result<std::shared_ptr<const ModelFiles>> files = ModelFiles::open(in);
    if (!files) return files.error();
    source.files = std::move(*files);
  }
  return write_model(source, out, options, progress);
}

}  // namespace nybble
