// nybble inspect: what a file or folder holds, and whether all of it is sound.
#include <algorithm>
#include <map>

#include "base/json_text.h"
#include "cli/packed_file.h"
#include "cli/packed_model.h"
#include "cli/progress.h"
#include "cli/verbs.h"
#include "nybble/checkpoint.h"
#include "nybble/pack.h"

namespace nybble::cli {
namespace {

constexpr char kExample[] =
    "Example:\n"
    "  nybble inspect models/llama-w4\n"
    "Takes a model folder, a .safetensors or .gguf file, or a packed weight or model of nybble. All of it is read and\n"
    "checked: values that steer indexing, NaN and infinite scales. Exit code 1 says that something in it is broken.";

struct Options {
  std::string path;
  bool list = false;
};

std::string form_of(const LayerInfo& layer) {
  if (!layer.quantized) return dtype_name(layer.dense_dtype);
  return (layer.format.zero_kind == ZeroKind::kTable ? "4-bit " : "int4 ") + to_string(layer.format);
}

Json json_of(const LayerInfo& layer) {
  Json json = {{"name", layer.name}, {"n", layer.n}, {"k", layer.k}, {"quantized", layer.quantized}};
  if (layer.quantized) {
    json["group_size"] = layer.format.group_size;
    json["zero_point"] = zero_kind_name(layer.format.zero_kind);
    json["scale_dtype"] = dtype_name(layer.format.scale_dtype);
    json["k_order"] = layer.format.k_order;
  } else {
    json["dtype"] = dtype_name(layer.dense_dtype);
  }
  json["file"] = layer.file;
  return json;
}

struct Row {
  std::string name, shape, form, file;
};

std::vector<Row> rows_of(const std::vector<LayerInfo>& layers) {
  std::vector<Row> rows;
  for (const LayerInfo& layer : layers)
    rows.push_back({layer.name, fmt::format("{} x {}", layer.n, layer.k), form_of(layer), layer.file});
  return rows;
}

// Every layer, or one row for all layers that look alike.
std::string table_of(const std::vector<Row>& rows, bool list) {
  if (list) {
    Table table({"layer", "n x k", "form", "file"}, {0, 2, 3});
    for (const Row& row : rows) table.add({row.name, row.shape, row.form, row.file});
    return table.text();
  }
  std::map<std::pair<std::string, std::string>, std::pair<int, std::string>> alike;  // (shape, form): count, first name
  for (const Row& row : rows) {
    auto& [count, first] = alike[{row.shape, row.form}];
    if (count++ == 0) first = row.name;
  }
  Table table({"layers", "n x k", "form", "the first is"}, {2, 3});
  for (const auto& [key, value] : alike) table.add({std::to_string(value.first), key.first, key.second, value.second});
  return table.text();
}

// The verdict on what was shown; `sound` says what is.
int finish(const Output& output, Json& document, const Result<void>& checked, const std::string& sound) {
  document["ok"] = checked.ok();
  if (checked) {
    output.text("\nchecked: {}\n", sound);
    return output.finish(document, kOk);
  }
  fmt::print(stderr, "nybble: {}\n", checked.error().message);
  document["error"] = {{"code", error_code_name(checked.error().code)}, {"message", checked.error().message}};
  return output.finish(document, exit_for_check(checked.error()));
}

int inspect_packed(const Options& options, const Output& output) {
  const Result<PackedWeight> packed = load_sound_packed(options.path);
  if (!packed) return output.fail(packed.error(), exit_for_check(packed.error()));
  const WeightFormat format = packed->format();
  output.text("{}: a packed weight of nybble, layout version {}\n{} x {}, int4 {}, {}\nchecked: sound\n", options.path,
              packed->layout_version(), packed->n(), packed->k(), to_string(format),
              human_bytes(static_cast<double>(packed->size_bytes())));
  return output.finish({{"ok", true},
                        {"path", options.path},
                        {"format", "nybble-packed"},
                        {"layout_version", packed->layout_version()},
                        {"n", packed->n()},
                        {"k", packed->k()},
                        {"group_size", format.group_size},
                        {"zero_point", zero_kind_name(format.zero_kind)},
                        {"scale_dtype", dtype_name(format.scale_dtype)},
                        {"k_order", format.k_order},
                        {"bytes", packed->size_bytes()}},
                       kOk);
}

// The packed layers, and the plain model beside them.
int inspect_packed_model(const Options& options, const Output& output) {
  const Result<PackedManifest> manifest = read_packed_manifest(options.path);
  if (!manifest) return output.fail(manifest.error(), exit_for_check(manifest.error()));
  std::vector<Row> rows;
  Json document = {{"ok", false},
                   {"path", options.path},
                   {"format", "nybble-packed-model"},
                   {"converted_from", manifest->converted_from},
                   {"layers", Json::array()}};
  uint64_t bytes = 0;
  for (const PackedLayer& layer : manifest->layers) {
    rows.push_back({layer.name, fmt::format("{} x {}", layer.n, layer.k), "int4 " + layer.format, layer.file});
    document["layers"].push_back({{"name", layer.name},
                                  {"n", layer.n},
                                  {"k", layer.k},
                                  {"format", layer.format},
                                  {"file", layer.file},
                                  {"bytes", layer.bytes}});
    bytes += layer.bytes;
  }
  output.text("{}: a model of {} packed weights of nybble, {}, made from {}\n\n{}", options.path, rows.size(),
              human_bytes(static_cast<double>(bytes)), base::printable(manifest->converted_from),
              table_of(rows, options.list));
  std::fflush(stdout);  // what it holds stands before the verdict, whoever reads both streams
  const Result<void> checked = [&]() -> Result<void> {
    Progress progress("checking");
    const auto advance = progress.callback();
    uint64_t done = 0;
    for (const PackedLayer& layer : manifest->layers) {
      if (Result<void> sound = check_packed_layer(options.path, layer); !sound) return sound;
      advance(static_cast<int64_t>(done += layer.bytes), static_cast<int64_t>(bytes));
    }
    if (manifest->rest.empty()) return {};
    const Result<std::unique_ptr<Checkpoint>> rest = open_checkpoint(options.path + '/' + manifest->rest);
    if (!rest) return rest.error();
    return (*rest)->check({});
  }();
  return finish(output, document, checked,
                fmt::format("all {} packed layers are sound{}", rows.size(),
                            manifest->rest.empty() ? "" : ", and the rest of the model beside them"));
}

int run(const Options& options, const Output& output) {
  if (is_packed_file(options.path)) return inspect_packed(options, output);
  if (is_packed_model(options.path)) return inspect_packed_model(options, output);
  const Result<std::unique_ptr<Checkpoint>> opened = open_checkpoint(options.path);
  if (!opened) return output.fail(opened.error(), exit_for_check(opened.error()));
  const Checkpoint& checkpoint = **opened;
  output.text("{}: {}\n{}\n\n{}", options.path, checkpoint.format(), checkpoint.convention(),
              table_of(rows_of(checkpoint.layers()), options.list));
  const auto tables = std::count_if(checkpoint.layers().begin(), checkpoint.layers().end(), [](const LayerInfo& layer) {
    return layer.quantized && layer.format.zero_kind == ZeroKind::kTable;
  });
  if (tables > 0)
    output.text("\n{} of these layers are codes into a table, which no kernel reads yet: `nybble convert --to dense`\n",
                tables);
  for (const std::string& warning : checkpoint.warnings()) output.text("\nwarning: {}\n", warning);
  std::fflush(stdout);  // what it holds stands before the verdict, whoever reads both streams
  const Result<void> checked = [&] {
    Progress progress("checking");
    return checkpoint.check(progress.callback());
  }();
  Json document = {{"ok", checked.ok()},
                   {"path", options.path},
                   {"format", checkpoint.format()},
                   {"convention", checkpoint.convention()},
                   {"warnings", checkpoint.warnings()},
                   {"layers", Json::array()}};
  for (const LayerInfo& layer : checkpoint.layers()) document["layers"].push_back(json_of(layer));
  return finish(output, document, checked, fmt::format("all {} layers are sound", checkpoint.layers().size()));
}

}  // namespace

Run add_inspect(CLI::App& app, Output& output) {
  auto options = std::make_shared<Options>();
  app.add_option("path", options->path, "A model folder, a .safetensors or .gguf file or what nybble packed")
      ->required();
  app.add_flag("--list", options->list, "One row for each layer");
  output.add_json_flag(app);
  app.footer(kExample);
  return [options, &output] { return run(*options, output); };
}

}  // namespace nybble::cli
