// nybble verify: every quantized layer through pack, make_plan and launch, judged by the reference.
#include <optional>

#include "base/error.h"
#include "base/name_pattern.h"
#include "bench/random_data.h"
#include "cli/layer_check.h"
#include "cli/options.h"
#include "cli/packed_file.h"
#include "cli/progress.h"
#include "cli/verbs.h"
#include "nybble/checkpoint.h"

namespace nybble::cli {
namespace {

constexpr char kExample[] =
    "Example:\n"
    "  nybble verify models/llama-w4 --against models/llama --device cuda\n"
    "Each layer runs at 1, 16 and 256 tokens on random activations. An output passes when it is no further from the\n"
    "double-precision sum than one rounding of the store and fp32 accumulation explain; `of allowed` is the share of "
    "the\n"
    "latter that the worst output needs. Exit code 1 says that a layer did not pass.";

constexpr int64_t kTokens[] = {1, 16, 256};

struct Options {
  std::string path, against, layers;
  DeviceOption device;
};

// What verify takes its layers from: a checkpoint, or one packed weight.
struct Source {
  std::unique_ptr<Checkpoint> checkpoint;
  std::optional<QuantizedWeight> packed;
  std::vector<std::string> names;

  Result<QuantizedWeight> read(const std::string& name) const {
    if (packed) return *packed;
    return checkpoint->read_quantized(name);
  }
};

Result<Source> open_source(const Options& options) {
  Source source;
  if (is_packed_file(options.path)) {
    const Result<PackedWeight> packed = load_packed(options.path);
    if (!packed) return packed.error();
    Result<QuantizedWeight> weight = unpack(*packed);
    if (!weight) return weight.error();
    source.packed = std::move(*weight);
    source.packed->name = options.path;
    source.names = {options.path};
    return source;
  }
  Result<std::unique_ptr<Checkpoint>> opened = open_checkpoint(options.path);
  if (!opened) return opened.error();
  source.checkpoint = std::move(*opened);
  base::MatchBudget budget;
  const Result<base::NamePattern> pattern = base::NamePattern::compile(options.layers, budget);
  if (!pattern) return pattern.error();
  int quantized = 0;
  for (const LayerInfo& layer : source.checkpoint->layers()) {
    if (!layer.quantized) continue;
    ++quantized;
    if (pattern->found_in(layer.name, budget)) source.names.push_back(layer.name);
  }
  if (Result<void> fine = budget.check("--layers"); !fine) return fine.error();
  if (quantized == 0)
    return invalid_argument("{} holds no quantized layer ({}); make one with `nybble quantize`", options.path,
                            source.checkpoint->convention());
  if (source.names.empty())
    return invalid_argument(
        "--layers '{}' is found in none of the {} quantized layers of {}; `nybble inspect --list` names "
        "them",
        options.layers, quantized, options.path);
  return source;
}

Json json_of(const ErrorStats& stats) {
  return {{"max_abs", stats.max_abs}, {"relative", stats.relative}, {"cosine", stats.cosine}};
}

int run(const Options& options, const Output& output) {
  const Result<Device> device = options.device.open();
  if (!device) return output.fail(device.error(), options.device.exit_for_open(device.error()));
  const Result<Source> source = open_source(options);
  if (!source) return output.fail(source.error(), exit_for_check(source.error()));
  std::unique_ptr<Checkpoint> dense;
  if (!options.against.empty()) {
    Result<std::unique_ptr<Checkpoint>> opened = open_checkpoint(options.against);
    if (!opened) return output.fail(opened.error());
    dense = std::move(*opened);
  }
  const Result<std::unique_ptr<LayerRunner>> runner = LayerRunner::open(*device);
  if (!runner) return output.fail(runner.error());

  const bool show_weights = dense != nullptr;
  std::vector<std::string> header = {"layer", "n x k", "m", "max abs", "relative", "cosine", "of allowed", "verdict"};
  if (show_weights) header.push_back("weight error");
  header.push_back("kernel");
  Table table(header, {0, 7, header.size() - 1});
  Json document = {{"ok", true}, {"path", options.path}, {"device", device->name}, {"layers", Json::array()}};
  size_t failed = 0, sampled = 0;
  {
    Progress progress("verifying");
    for (size_t i = 0; i < source->names.size(); ++i) {
      progress.update(static_cast<int64_t>(i), static_cast<int64_t>(source->names.size()));
      const Result<QuantizedWeight> weight = source->read(source->names[i]);
      if (!weight) return output.fail(weight.error(), exit_for_check(weight.error()));
      if (const Result<void> valid = validate(*weight); !valid)
        return output.fail(valid.error(), exit_for_check(valid.error()));
      Json layer = {
          {"name", weight->name}, {"n", weight->n}, {"k", weight->k}, {"format", to_string(weight->format())}};
      std::optional<ErrorStats> weight_error;
      if (dense != nullptr) {
        const Result<DenseWeight> original = dense->read_dense(source->names[i]);
        if (!original) return output.fail(original.error());
        if (original->n != weight->n || original->k != weight->k)
          return output.fail(invalid_argument(
              "layer {} is {} x {} in {}, but {} x {} in {}; --against takes the model that was "
              "quantized",
              weight->name, weight->n, weight->k, options.path, original->n, original->k, options.against));
        weight_error = weight_error_of(*weight, *original);
        layer["weight_error"] = json_of(*weight_error);
      }
      if (const Result<void> loaded = (*runner)->load(*weight); !loaded) return output.fail(loaded.error());
      const DType act_dtype = act_dtype_for(weight->format());
      layer["act"] = dtype_name(act_dtype);
      layer["runs"] = Json::array();
      for (const int64_t m : kTokens) {
        const FloatArray act = bench::random_numbers(m * weight->k, act_dtype, 1.0, i);
        const Result<LayerRun> ran = (*runner)->run(act, m);
        if (!ran) return output.fail(ran.error());
        const LayerVerdict verdict = judge_layer(*weight, act, m, *ran, device->num_threads);
        if (!verdict.ok()) ++failed;
        if (verdict.checked < m * weight->n) ++sampled;
        Json run = {{"m", m}, {"kernel", ran->plan.kernel()}, {"ok", verdict.ok()}};
        run.update(json_of(verdict.stats));
        run["of_allowed"] = verdict.of_allowed;
        run["outputs_checked"] = verdict.checked;
        layer["runs"].push_back(run);
        std::vector<std::string> row = {weight->name,
                                        fmt::format("{} x {}", weight->n, weight->k),
                                        std::to_string(m),
                                        fmt::format("{:.2e}", verdict.stats.max_abs),
                                        fmt::format("{:.2e}", verdict.stats.relative),
                                        fmt::format("{:.7f}", verdict.stats.cosine),
                                        fmt::format("{:.3f}", verdict.of_allowed),
                                        verdict.ok() ? "ok" : "FAILED"};
        if (show_weights) row.push_back(fmt::format("{:.4f}", weight_error->relative));
        row.push_back(ran->plan.kernel());
        table.add(std::move(row));
        if (!verdict.ok())
          fmt::print(stderr, "nybble: {} at m = {} on {}: {}\n", weight->name, m, ran->plan.kernel(),
                     verdict.first_bad);
      }
      document["layers"].push_back(std::move(layer));
    }
  }
  document["ok"] = failed == 0;
  output.text("{}", table.text());
  if (sampled > 0) output.text("{} runs were judged on a sample of their outputs; --json tells how many\n", sampled);
  output.text("{} layers on {}: {}\n", source->names.size(), device->name,
              failed == 0 ? "all runs are within what is allowed" : fmt::format("{} runs FAILED", failed));
  return output.finish(document, failed == 0 ? kOk : kCheckFailed);
}

}  // namespace

Run add_verify(CLI::App& app, Output& output) {
  auto options = std::make_shared<Options>();
  app.add_option("path", options->path, "A quantized model folder, .safetensors or .gguf file or packed weight")
      ->required();
  app.add_option("--against", options->against, "The dense model it was made from: adds the weights' error");
  app.add_option("--layers", options->layers, "Only the layers whose name this regular expression is found in")
      ->type_name("REGEX");
  options->device.add_to(app, "cpu");
  output.add_json_flag(app);
  app.footer(kExample);
  return [options, &output] { return run(*options, output); };
}

}  // namespace nybble::cli
