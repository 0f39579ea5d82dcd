#include "cli/packed_model.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <filesystem>
#include <optional>
#include <set>
#include <span>

#include "base/error.h"
#include "base/file.h"
#include "base/json_text.h"
#include "base/name_pattern.h"
#include "cli/output.h"
#include "cli/packed_file.h"
#include "nybble/pack.h"

namespace nybble::cli {
namespace {

constexpr char kManifest[] = "manifest.json", kFormat[] = "nybble packed model", kRest[] = "model",
               kLayers[] = "layers/";

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
  return fmt::format("{}{:05}-{}.nybble", kLayers, number, safe);
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

// One job: what is packed, and the rest.
class PackedWriter {
 public:
  PackedWriter(const checkpoint::ModelJob& job, const ConvertOptions& options)
      : job_(job),
        model_(*job.source.checkpoint),
        options_(options),
        pack_options_{.scale_dtype = options.scale_dtype} {}

  // All of the layers that can be known to be wrong before anything is written.
  Result<void> prepare() {
    Result<std::vector<LayerInfo>> layers = choose(model_, options_);
    if (!layers) return layers.error();
    layers_ = std::move(*layers);
    for (const LayerInfo& layer : layers_) {
      WeightFormat format = layer.format;
      format.scale_dtype = options_.scale_dtype.value_or(format.scale_dtype);
      const Result<size_t> bytes = packed_bytes(layer.n, layer.k, format);
      if (!bytes)
        return make_error(bytes.error().code, "layer {}: {}; exclude the layer, which writes it dense",
                          base::printable(layer.name), bytes.error().message);
      total_ += static_cast<int64_t>(*bytes);
      if (!options_.scale_dtype || *options_.scale_dtype == layer.format.scale_dtype) continue;
      if (const Result<PackedWeight> fits = pack_layer(model_, layer, pack_options_); !fits) return fits.error();
    }
    rest_ = std::make_unique<Rest>(model_, layers_);
    return {};
  }

  int64_t total() const { return total_; }  // bytes of packed files

  // Locks the folder; nothing in it is changed.
  Result<void> claim_folder() {
    Result<base::Directory> folder = claim(job_.out, options_);
    if (!folder) return folder.error();
    folder_ = std::make_unique<base::Directory>(std::move(*folder));
    return {};
  }

  bool has_rest() const { return !rest_->layers().empty() || !rest_->other_tensors().empty(); }
  checkpoint::ModelJob rest_job() const {
    return {{rest_.get(), job_.source.files, job_.source.what + "; without packed layers"}, job_.out + '/' + kRest};
  }
  Result<void> begin_folder() const { return begin(*folder_); }

  // The packed files, and the manifest. `advance` is told of bytes.
  Result<PackedModel> write(const std::function<void(int64_t)>& advance) const {
    PackedModel written;
    Json list = Json::array();
    for (const LayerInfo& layer : layers_) {
      const Result<PackedWeight> packed = pack_layer(model_, layer, pack_options_);
      if (!packed) return packed.error();
      const std::string file = file_name(list.size(), layer.name);
      if (options_.resume && is_kept(job_.out + '/' + file, *packed))
        ++written.kept_layers;
      else if (Result<void> saved = save_packed(*packed, job_.out + '/' + file); !saved)
        return saved.error();
      list.push_back({{"name", layer.name},
                      {"file", file},
                      {"n", layer.n},
                      {"k", layer.k},
                      {"format", to_string(packed->format())},
                      {"bytes", packed->size_bytes()}});
      written.packed.push_back(layer.name);
      written.bytes_out += packed->size_bytes();
      advance(static_cast<int64_t>(packed->size_bytes()));
    }
    const Json manifest = {{"format", kFormat},
                           {"model", has_rest() ? Json(kRest) : Json()},
                           {"converted_from", model_.format()},
                           {"layers", list}};
    if (Result<void> done = base::write_file(job_.out + '/' + kManifest, manifest.dump(2) + "\n"); !done)
      return done.error();
    return written;
  }

 private:
  const checkpoint::ModelJob& job_;
  const Checkpoint& model_;
  const ConvertOptions& options_;
  PackOptions pack_options_;
  std::vector<LayerInfo> layers_;  // that are packed
  std::unique_ptr<Rest> rest_;
  std::unique_ptr<base::Directory> folder_;
  int64_t total_ = 0;
};

// One row of the manifest, or nothing where it is none.
std::optional<PackedLayer> layer_from(const nlohmann::json& row) {
  const auto is_count = [&](const char* key) {
    const auto found = row.find(key);
    return found != row.end() && found->is_number_integer() && *found >= 0 && *found <= base::kMaxExactInteger;
  };
  const auto is_text = [&](const char* key) { return row.contains(key) && row[key].is_string(); };
  if (!row.is_object() || !is_text("name") || !is_text("file") || !is_text("format") || !is_count("n") ||
      !is_count("k") || !is_count("bytes"))
    return std::nullopt;
  PackedLayer layer{row["name"], row["file"], row["n"], row["k"], row["format"], row["bytes"]};
  const std::string_view file = layer.file;
  if (!file.starts_with(kLayers) || file.substr(sizeof kLayers - 1).find('/') != file.npos ||
      base::has_control_character(file))
    return std::nullopt;
  return layer;
}

}  // namespace

bool is_packed_model(const std::string& path) {
  const Result<base::File> file = base::File::open(path + '/' + kManifest);
  if (!file) return false;
  std::string begin(std::min<uint64_t>(file->size(), 200), '\0');
  return file->read_at(0, std::as_writable_bytes(std::span(begin))) &&
         begin.find(fmt::format("\"{}\"", kFormat)) != begin.npos;
}

Result<PackedManifest> read_packed_manifest(const std::string& path) {
  constexpr uint64_t kMaxBytes = 64 << 20;
  const std::string what = path + '/' + kManifest;
  const Result<base::File> file = base::File::open(what);
  if (!file) return file.error();
  const Result<std::string> text = base::read_file(*file, kMaxBytes);
  if (!text) return text.error();
  const Result<nlohmann::json> json = base::parse_json(*text, what, {});
  if (!json) return json.error();
  const auto member = [&](const char* key) {
    return json->is_object() && json->contains(key) ? (*json)[key] : nlohmann::json();
  };
  const nlohmann::json format = member("format"), rest = member("model"), from = member("converted_from"),
                       layers = member("layers");
  if (format != kFormat || !(rest.is_null() || rest == kRest) || !from.is_string() || !layers.is_array())
    return invalid_data(
        "{}: is no manifest of a packed model: format, model, converted_from or layers is missing or wrong", what);
  PackedManifest manifest{from, rest.is_null() ? "" : kRest, {}};
  for (const nlohmann::json& row : layers) {
    std::optional<PackedLayer> layer = layer_from(row);
    if (!layer)
      return invalid_data("{}: layer {} has no name, file below {}, n, k, format or bytes", what,
                          manifest.layers.size(), kLayers);
    manifest.layers.push_back(std::move(*layer));
  }
  return manifest;
}

Result<void> check_packed_layer(const std::string& path, const PackedLayer& layer) {
  const std::string file = path + '/' + layer.file;
  const Result<PackedWeight> packed = load_sound_packed(file);
  if (!packed) return packed.error();
  if (packed->n() != layer.n || packed->k() != layer.k || to_string(packed->format()) != layer.format ||
      packed->size_bytes() != layer.bytes)
    return invalid_data("{}: is {} x {}, {}, {} bytes; {} says {} x {}, {}, {} bytes", file, packed->n(), packed->k(),
                        to_string(packed->format()), packed->size_bytes(), kManifest, layer.n, layer.k,
                        base::printable(layer.format), layer.bytes);
  return {};
}

Result<std::vector<PackedModel>> write_packed_models(const std::vector<checkpoint::ModelJob>& jobs,
                                                     const ConvertOptions& options,
                                                     const std::function<void(int64_t, int64_t)>& progress) {
  std::vector<PackedWriter> writers;
  int64_t total = 0, done = 0;
  for (const checkpoint::ModelJob& job : jobs) {
    if (Result<void> fine = writers.emplace_back(job, options).prepare(); !fine) return fine.error();
    total += writers.back().total();
  }
  for (PackedWriter& writer : writers)
    if (Result<void> claimed = writer.claim_folder(); !claimed) return claimed.error();

  std::vector<checkpoint::ModelJob> rests;
  for (const PackedWriter& writer : writers)
    if (writer.has_rest()) rests.push_back(writer.rest_job());
  const ConvertOptions plain{.dense_dtype = options.dense_dtype, .resume = options.resume, .force = options.force};
  Result<std::vector<WrittenModel>> models = checkpoint::write_models(rests, plain, {}, [&]() -> Result<void> {
    for (const PackedWriter& writer : writers)
      if (Result<void> begun = writer.begin_folder(); !begun) return begun;
    return {};
  });
  if (!models) return models.error();

  std::vector<PackedModel> written;
  auto rest = models->begin();
  for (const PackedWriter& writer : writers) {
    Result<PackedModel> model = writer.write([&](int64_t bytes) {
      done += bytes;
      if (progress) progress(done, total);
    });
    if (!model) return model.error();
    if (writer.has_rest()) model->rest = std::move(*rest++);
    written.push_back(std::move(*model));
  }
  return written;
}

}  // namespace nybble::cli
