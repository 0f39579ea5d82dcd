#include "cli/packed_model.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <filesystem>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "base/json_text.h"
#include "base/name_pattern.h"
#include "checkpoint/gguf_file.h"
#include "checkpoint/model_writer.h"
#include "cli/output.h"
#include "nybble/pack.h"

namespace nybble::cli {
namespace {

constexpr char kManifest[] = "manifest.json";

// The model without the layers that are packed.
class Rest final : public Checkpoint {
 public:
  Rest(const Checkpoint& model, const std::vector<LayerInfo>& packed) : model_(model) {
    std::set<std::string> names;
    for (const LayerInfo& layer : packed) names.insert(layer.name);
    for (const LayerInfo& layer : model.layers())
      if (!names.contains(layer.name)) layers_.push_back(layer);
  }
  std::string format() const override { return model_.format(); }
  std::string convention() const override { return model_.convention(); }
  const std::vector<LayerInfo>& layers() const override { return layers_; }
  Result<DenseWeight> read_dense(const std::string& layer) const override { return model_.read_dense(layer); }
  Result<QuantizedWeight> read_quantized(const std::string& layer) const override {
    return model_.read_quantized(layer);
  }
  std::vector<OtherTensor> other_tensors() const override { return model_.other_tensors(); }
  Result<std::vector<std::byte>> read_other_tensor(const std::string& name) const override {
    return model_.read_other_tensor(name);
  }
  Result<void> check(const std::function<void(int64_t, int64_t)>& progress) const override {
    return model_.check(progress);
  }

 private:
  const Checkpoint& model_;
  std::vector<LayerInfo> layers_;
};

// Layer names come from the file: only harmless characters of them reach the file system, and the number keeps two
// names apart that differ in others.
std::string file_name(size_t number, const std::string& layer) {
  constexpr size_t kMaxNameBytes = 150;
  std::string safe = layer.substr(0, kMaxNameBytes);
  for (char& c : safe)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '.' && c != '_' && c != '-') c = '_';
  return fmt::format("layers/{:05}-{}.nybble", number, safe);
}

Result<std::vector<LayerInfo>> choose(const Checkpoint& model, const ConvertOptions& options) {
  std::vector<LayerInfo> layers;
  for (const LayerInfo& layer : model.layers())
    if (layer.quantized) layers.push_back(layer);
  if (layers.empty())
    return invalid_argument("the model has no 4-bit layer ({}); `nybble quantize` makes a 4-bit model of a dense one",
                            model.format());
  base::MatchBudget budget;
  for (const auto& [texts, keep] : {std::pair(&options.include, true), {&options.exclude, false}}) {
    if (texts->empty()) continue;
    const Result<std::vector<base::NamePattern>> patterns = base::NamePattern::compile_all(*texts, budget);
    if (!patterns) return patterns.error();
    std::erase_if(layers, [&, keep = keep](const LayerInfo& layer) {
      return keep != base::any_found_in(*patterns, layer.name, budget);
    });
  }
  if (Result<void> fine = budget.check("the include and exclude expressions"); !fine) return fine.error();
  if (layers.empty()) return invalid_argument("no 4-bit layer is chosen by the include and exclude expressions");
  return layers;
}

Result<PackedWeight> pack_layer(const Checkpoint& model, const LayerInfo& layer, const PackOptions& options) {
  const Result<QuantizedWeight> weight = model.read_quantized(layer.name);
  if (!weight) return weight.error();
  return pack(*weight, options);
}

Result<void> make_folder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return io_error("{}: mkdir failed: {}", path, error.message());
  return {};
}

// The folder, locked; nothing in it is changed.
Result<base::Directory> claim(const std::string& path, const ConvertOptions& options) {
  if (Result<void> made = make_folder(path); !made) return made.error();
  Result<base::Directory> folder = base::Directory::open(path);
  if (!folder) return folder;
  const Result<bool> locked = folder->try_lock();
  if (!locked) return locked.error();
  if (!*locked) return invalid_argument("{}: another process is writing a model there", path);
  const Result<std::vector<base::DirectoryEntry>> entries = folder->list();
  if (!entries) return entries.error();
  if (!entries->empty() && !options.resume && !options.force)
    return invalid_argument("{}: is not empty; resume goes on with a run that was interrupted, force overwrites", path);
  return folder;
}

// From here on the folder holds no finished model until its new manifest is written.
Result<void> begin(const base::Directory& folder) {
  if (Result<void> removed = folder.remove_file(kManifest); !removed) return removed;
  if (Result<void> removed = folder.remove_temporaries(); !removed) return removed;
  if (Result<void> synced = folder.sync(); !synced) return synced;
  if (Result<void> made = make_folder(folder.path() + "/layers"); !made) return made;
  const Result<base::Directory> layers = folder.open_directory("layers");
  return layers ? layers->remove_temporaries() : Result<void>(layers.error());
}

bool is_kept(const std::string& path, const PackedWeight& packed) {
  const Result<PackedWeight> there = load_packed(path);
  return there && there->size_bytes() == packed.size_bytes() &&
         std::memcmp(there->data(), packed.data(), packed.size_bytes()) == 0;
}

}  // namespace

Result<PackedModel> write_packed_model(const std::string& in, const std::string& out, const ConvertOptions& options,
                                       const std::function<void(int64_t, int64_t)>& progress) {
  const Result<std::unique_ptr<Checkpoint>> opened = open_checkpoint(in);
  if (!opened) return opened.error();
  const Checkpoint& model = **opened;
  const Result<std::vector<LayerInfo>> layers = choose(model, options);
  if (!layers) return layers.error();
  const PackOptions pack_options{.scale_dtype = options.scale_dtype};
  int64_t total = 0, done = 0;
  for (const LayerInfo& layer : *layers) {
    WeightFormat format = layer.format;
    format.scale_dtype = options.scale_dtype.value_or(format.scale_dtype);
    const Result<size_t> bytes = packed_bytes(layer.n, layer.k, format);
    if (!bytes)
      return make_error(bytes.error().code, "layer {}: {}; exclude the layer, which writes it dense",
                        base::printable(layer.name), bytes.error().message);
    total += static_cast<int64_t>(*bytes);
    if (!options.scale_dtype || *options.scale_dtype == layer.format.scale_dtype) continue;
    if (const Result<PackedWeight> fits = pack_layer(model, layer, pack_options); !fits) return fits.error();
  }
  const Result<base::Directory> folder = claim(out, options);
  if (!folder) return folder.error();

  PackedModel written;
  const Rest rest(model, *layers);
  const bool has_rest = !rest.layers().empty() || !rest.other_tensors().empty();
  if (has_rest) {
    checkpoint::ModelJob job{{.checkpoint = &rest, .what = "; without packed layers"}, out + "/model"};
    if (!checkpoint::is_gguf_path(in)) {
      Result<std::shared_ptr<const checkpoint::ModelFiles>> files = checkpoint::ModelFiles::open(in);
      if (!files) return files.error();
      job.source.files = std::move(*files);
    }
    const ConvertOptions plain{.dense_dtype = options.dense_dtype, .resume = options.resume, .force = options.force};
    Result<std::vector<WrittenModel>> models =
        checkpoint::write_models({job}, plain, {}, [&] { return begin(*folder); });
    if (!models) return models.error();
    written.rest = std::move(models->front());
  } else if (Result<void> begun = begin(*folder); !begun) {
    return begun.error();
  }
  Json list = Json::array();
  for (const LayerInfo& layer : *layers) {
    const Result<PackedWeight> packed = pack_layer(model, layer, pack_options);
    if (!packed) return packed.error();
    const std::string file = file_name(list.size(), layer.name);
    if (options.resume && is_kept(out + '/' + file, *packed))
      ++written.kept_layers;
    else if (Result<void> saved = save_packed(*packed, out + '/' + file); !saved)
      return saved.error();
    list.push_back({{"name", layer.name},
                    {"file", file},
                    {"n", layer.n},
                    {"k", layer.k},
                    {"format", to_string(packed->format())},
                    {"bytes", packed->size_bytes()}});
    written.packed.push_back(layer.name);
    written.bytes_out += packed->size_bytes();
    done += static_cast<int64_t>(packed->size_bytes());
    if (progress) progress(done, total);
  }
  const Json manifest = {{"format", "nybble packed model"},
                         {"model", has_rest ? Json("model") : Json()},
                         {"converted_from", model.format()},
                         {"layers", list}};
  if (Result<void> done_last = base::write_file(out + '/' + kManifest, manifest.dump(2) + "\n"); !done_last)
    return done_last.error();
  return written;
}

}  // namespace nybble::cli
