// nybble quantize: model folder in, 4-bit model folder out.
#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "cli/options.h"
#include "cli/progress.h"
#include "cli/quantize_method.h"
#include "cli/verbs.h"

namespace nybble::cli {
namespace {

constexpr char kExample[] =
    "Example:\n"
    "  nybble quantize models/llama --out models/llama-w4 --group 64 --exclude 'layers\\.0\\.'\n"
    "  nybble quantize models/llama --out models/llama-gptq --method gptq --stats stats.safetensors\n"
    "Without --include, every 2-D float weight is quantized whose name holds no embed, norm or lm_head. What is not\n"
    "quantized is copied as it is and named in the output's ignore list.";

struct Options {
  std::string in, out;
  std::string group = "128";
  bool asymmetric = false;
  MethodOptions method;
  std::string scale_dtype;
  std::string device = "cpu";
  int threads = 0;
  QuantizeModelOptions model;
};

int run(Options options, const Output& output, const CLI::App& verb) {
  options.method.on_gpu = options.device == "cuda";
  if (const Result<void> fine = options.method.check(verb); !fine) return output.fail(fine.error());
  const Result<int> group = parse_group(options.group);
  if (!group) return output.fail(group.error());
  const GridOptions grid{.group_size = *group,
                         .symmetric = !options.asymmetric && options.method.method != "hqq",
                         .num_threads = options.threads};
  std::optional<DType> scale_dtype;
  if (!options.scale_dtype.empty()) {
    const Result<DType> parsed = parse_dtype(options.scale_dtype);
    if (!parsed) return output.fail(parsed.error());
    scale_dtype = *parsed;
  }
  if (options.method.on_gpu)
    if (const Result<Device> device = Device::cuda(); !device) return output.fail(device.error(), kWorldFailed);

  const auto begin = std::chrono::steady_clock::now();
  const Result<std::unique_ptr<QuantizeMethod>> prepared = [&] {
    Progress progress("searching scales");
    return QuantizeMethod::prepare(options.method, grid, scale_dtype, options.in, options.model, progress.callback());
  }();
  if (!prepared) return output.fail(prepared.error());
  const auto prepared_at = std::chrono::steady_clock::now();
  QuantizeMethod& method = **prepared;
  const CompressedTensorsScheme scheme = {
      .group_size = grid.group_size, .symmetric = grid.symmetric, .recipe = method.recipe(), .edits = method.edits()};
  Result<WrittenModel> written = [&] {
    Progress progress("quantizing");
    return write_compressed_tensors(
        options.in, options.out, scheme, [&](const DenseWeight& dense) { return method.quantize(dense); },
        options.model, progress.callback());
  }();
  if (!written) return output.fail(written.error());
  const auto end = std::chrono::steady_clock::now();
  const double seconds = std::chrono::duration<double>(end - begin).count();
  const double preparing = std::chrono::duration<double>(prepared_at - begin).count();
  const MethodSeconds& spent = method.seconds();
  output.text("{}: {} layers quantized to 4 bits, {} weights left as they are; {} -> {} in {:.1f} s\n", options.out,
              written->quantized.size(), written->ignored.size(), human_bytes(static_cast<double>(written->bytes_in)),
              human_bytes(static_cast<double>(written->bytes_out)), seconds);
  if (written->kept_shards > 0) output.text("kept {} shards of an earlier run\n", written->kept_shards);
  for (const std::string& file : written->left_out) output.text("not copied: {}\n", file);
  std::vector<std::string> warnings = method.warnings();
  if (written->kept_shards > 0 && !options.method.statistics.empty())
    warnings.push_back(fmt::format(
        "{} shards were kept from an earlier run; what quantizing their layers gave warnings of, and those layers' "
        "output errors, are not repeated",
        written->kept_shards));
  for (const std::string& warning : warnings) output.text("warning: {}\n", warning);
  return output.finish(
      {{"ok", true},
       {"out", options.out},
       {"method", scheme.recipe},
       {"quantized", written->quantized},
       {"ignored", written->ignored},
       {"left_out", written->left_out},
       {"warnings", warnings},
       {"output_errors", method.errors()},
       {"kept_shards", written->kept_shards},
       {"bytes_in", written->bytes_in},
       {"bytes_out", written->bytes_out},
       {"seconds", seconds},
       {"seconds_by_stage",
        {{"preparing", preparing},
         {"statistics", spent.statistics},
         {"quantizing", spent.quantizing},
         {"output_errors", spent.errors},
         {"reading_and_writing", seconds - preparing - spent.statistics - spent.quantizing - spent.errors}}}},
      kOk);
}

}  // namespace

Run add_quantize(CLI::App& app, Output& output) {
  auto options = std::make_shared<Options>();
  app.add_option("in", options->in, "A model folder or a .safetensors file")->required();
  app.add_option("--out", options->out, "The folder to write")->required();
  app.add_option("--include", options->model.include,
                 "Quantize the layers whose name this regular expression is found in; "
                 "may be given several times")
      ->type_name("REGEX");
  app.add_option("--exclude", options->model.exclude, "Leave these out; may be given several times")
      ->type_name("REGEX");
  app.add_option("--group", options->group,
                 "Input features per scale: a multiple of 16, or col for one scale per output "
                 "feature")
      ->capture_default_str();
  app.add_flag("--asymmetric,--asym", options->asymmetric, "Integer zero points, for weights that are not centred");
  options->method.add_to(app);
  app.add_option("--scale-dtype", options->scale_dtype, "bf16 or fp16; default: fp16 for fp16 weights, else bf16")
      ->check(CLI::IsMember({"bf16", "fp16"}));
  app.add_flag("--resume", options->model.resume, "Keep the shards that an interrupted run finished");
  app.add_flag("--force", options->model.force, "Write into a folder that is not empty");
  app.add_option("--device", options->device,
                 "Where to quantize: cpu or, for rtn, gptq and awq, cuda; the result is the same, bit for bit")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--threads", options->threads, "CPU threads; 0: all cores")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  output.add_json_flag(app);
  app.footer(kExample);
  return [options, &output, &app] { return run(*options, output, app); };
}

}  // namespace nybble::cli
