// Model folder in, compressed-tensors model folder out: checks first, then shards, other files, config.json and index.
#include <algorithm>

#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/compressed_layer.h"
#include "checkpoint/compressed_shard.h"
#include "checkpoint/compressed_tensors.h"
#include "checkpoint/format.h"
#include "checkpoint/layer_choice.h"
#include "checkpoint/layers.h"
#include "checkpoint/model_files.h"
#include "checkpoint/model_folder.h"

namespace nybble {
namespace checkpoint {
namespace {

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
    std::vector<std::string> names;
    for (const auto& shard : shards_) names.push_back(shard->name());
    Result<ModelFolder> folder =
        ModelFolder::claim(out, &model_->folder(), std::move(names), {options_.resume, options_.force});
    if (!folder) return folder.error();
    out_ = std::make_unique<ModelFolder>(std::move(*folder));
    return {};
  }

  Result<WrittenModel> write() {
    if (Result<void> begun = out_->begin(); !begun) return begun.error();
    for (const auto& shard : shards_)
      if (Result<void> written = write_shard(*shard); !written) return written.error();
    if (Result<void> copied = out_->copy_other_files(*model_, written_.left_out); !copied) return copied.error();
    const std::string config = with_quantization_config(
        *model_, compressed_settings({{scheme_.group_size, scheme_.symmetric, false, {"Linear"}}}, written_.ignored));
    if (Result<void> done = out_->finish(config, model_->is_sharded()); !done) return done.error();
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

  Result<void> write_shard(const CompressedShard& shard) {
    const int64_t before = done_;
    const ByteProgress progress = [this](uint64_t bytes) {
      done_ += static_cast<int64_t>(bytes);
      if (progress_) progress_(done_, total_);
    };
    if (options_.resume) {
      const Result<bool> finished = shard.is_finished(out_->directory(), progress);
      if (!finished) return finished.error();
      if (*finished) {
        ++written_.kept_shards;
        const Result<base::File> file = out_->directory().open_file(shard.name());
        if (!file) return file.error();
        written_.bytes_out += file->size();
        return {};
      }
      done_ = before;
    }
    const Result<uint64_t> bytes = shard.write(out_->directory(), quantizer_, progress);
    if (!bytes) return bytes.error();
    written_.bytes_out += *bytes;
    return {};
  }

  std::shared_ptr<const ModelFiles> model_;
  std::unique_ptr<Checkpoint> dense_;
  const CompressedTensorsScheme& scheme_;
  const LayerQuantizer& quantizer_;
  const QuantizeModelOptions& options_;
  const std::function<void(int64_t, int64_t)>& progress_;
  int64_t total_ = 0, done_ = 0;
  std::unique_ptr<ModelFolder> out_;
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
