// nybble convert: a model of one 4-bit format in another, or as plain weights.
#include <chrono>
#include <map>
#include <optional>

#include "base/error.h"
#include "cli/progress.h"
#include "cli/verbs.h"
#include "nybble/convert.h"

namespace nybble::cli {
namespace {

constexpr char kExample[] =
    "Example:\n"
    "  nybble convert DIR-AWQ --to compressed-tensors --out DIR\n"
    "  nybble convert MODEL.gguf --to gptq --scale-dtype fp16 --out DIR\n"
    "  nybble convert DIR-GPTQ --to dense --dtype bf16 --out DIR\n"
    "What a format cannot hold is refused before anything is written. Layers that are left out with --exclude become\n"
    "dense; everything that is not quantized is copied as it is.";

const std::map<std::string, ModelTarget> kTargets = {{"dense", ModelTarget::kDense},
                                                     {"compressed-tensors", ModelTarget::kCompressedTensors},
                                                     {"gptq", ModelTarget::kGptq},
                                                     {"awq", ModelTarget::kAwq}};

struct Options {
  std::string in, out, to;
  std::string dtype = "fp32", scale_dtype;
  ConvertOptions convert;
};

int run(Options options, const Output& output) {
  options.convert.target = kTargets.at(options.to);
  const Result<DType> dtype = parse_dtype(options.dtype);
  if (!dtype) return output.fail(dtype.error());
  options.convert.dense_dtype = *dtype;
  if (!options.scale_dtype.empty()) {
    const Result<DType> scale = parse_dtype(options.scale_dtype);
    if (!scale) return output.fail(scale.error());
    options.convert.scale_dtype = *scale;
  }
  const auto begin = std::chrono::steady_clock::now();
  const Result<WrittenModel> written = [&] {
    Progress progress("converting");
    return convert_model(options.in, options.out, options.convert, progress.callback());
  }();
  if (!written) return output.fail(written.error());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  output.text("{}: {} layers as {}, {} dense; {} in {:.1f} s\n", options.out, written->quantized.size(), options.to,
              written->ignored.size(), human_bytes(static_cast<double>(written->bytes_out)), seconds);
  if (written->kept_shards > 0) output.text("kept {} files of an earlier run\n", written->kept_shards);
  for (const std::string& file : written->left_out) output.text("not copied: {}\n", file);
  return output.finish({{"ok", true},
                        {"out", options.out},
                        {"to", options.to},
                        {"converted", written->quantized},
                        {"dense", written->ignored},
                        {"left_out", written->left_out},
                        {"kept_shards", written->kept_shards},
                        {"bytes_out", written->bytes_out},
                        {"seconds", seconds}},
                       kOk);
}

}  // namespace

Run add_convert(CLI::App& app, Output& output) {
  auto options = std::make_shared<Options>();
  std::vector<std::string> targets;
  for (const auto& [name, target] : kTargets) targets.push_back(name);
  app.add_option("in", options->in, "A model folder, a .safetensors file or a .gguf file")->required();
  app.add_option("--to", options->to, "The format of the layers that are 4-bit in the input")
      ->check(CLI::IsMember(targets))
      ->required();
  app.add_option("--out", options->out, "The folder to write")->required();
  app.add_option("--dtype", options->dtype, "Type of layers that become dense: fp32, bf16 or fp16")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  app.add_option("--scale-dtype", options->scale_dtype,
                 "Round scales to this type: fp16, bf16 or fp32; default: as read for compressed-tensors, else fp16 "
                 "where it holds every scale exactly")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}));
  app.add_option("--include", options->convert.include,
                 "Convert the layers whose name this regular expression is found in; may be given several times")
      ->type_name("REGEX");
  app.add_option("--exclude", options->convert.exclude, "Make these dense; may be given several times")
      ->type_name("REGEX");
  app.add_option("--shard-size", options->convert.shard_bytes,
                 "Begin a new file before this many bytes of tensors (5GB, 500MB); default: the input's files")
      ->transform(CLI::AsSizeValue(true));
  app.add_flag("--resume", options->convert.resume, "Keep the files that an interrupted run finished");
  app.add_flag("--force", options->convert.force, "Write into a folder that is not empty");
  output.add_json_flag(app);
  app.footer(kExample);
  return [options, &output] { return run(*options, output); };
}

}  // namespace nybble::cli
