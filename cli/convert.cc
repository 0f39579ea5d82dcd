// nybble convert: a model of one 4-bit format in another, or as plain weights.
#include <chrono>

#include "cli/convert_flags.h"
#include "cli/packed_model.h"
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
    "  nybble convert DIR-AWQ --to nybble --out DIR\n"
    "The last writes a packed file for every layer, a manifest that names them, and all else as a model under model/.\n"
    "What a format cannot hold is refused before anything is written. Layers that are left out with --exclude become\n"
    "dense; everything that is not quantized is copied as it is.";

struct Options {
  std::string in, out;
  ConvertFlags flags;
};

int run_packed(const Options& options, const ConvertOptions& convert, const Output& output) {
  const Result<checkpoint::OpenModel> model = checkpoint::open_model(options.in);
  if (!model) return output.fail(model.error());
  const Result<std::vector<PackedModel>> models = [&] {
    Progress progress("packing");
    return write_packed_models({{{model->checkpoint.get(), model->files, ""}, options.out}}, convert,
                               progress.callback());
  }();
  if (!models) return output.fail(models.error());
  const PackedModel& written = models->front();
  output.text("{}: {} layers packed, {}; the rest of the model is in {}/model\n", options.out, written.packed.size(),
              human_bytes(static_cast<double>(written.bytes_out)), options.out);
  if (written.kept_layers > 0) output.text("kept {} files of an earlier run\n", written.kept_layers);
  for (const std::string& file : written.rest.left_out) output.text("not copied: {}\n", file);
  return output.finish({{"ok", true},
                        {"out", options.out},
                        {"to", kPackedTarget},
                        {"converted", written.packed},
                        {"dense", written.rest.quantized},
                        {"left_out", written.rest.left_out},
                        {"kept_layers", written.kept_layers},
                        {"bytes_out", written.bytes_out}},
                       kOk);
}

int run(const Options& options, const Output& output) {
  const Result<ConvertOptions> convert = options.flags.parse();
  if (!convert) return output.fail(convert.error());
  if (options.flags.to == kPackedTarget) return run_packed(options, *convert, output);
  const auto begin = std::chrono::steady_clock::now();
  const Result<WrittenModel> written = [&] {
    Progress progress("converting");
    return convert_model(options.in, options.out, *convert, progress.callback());
  }();
  if (!written) return output.fail(written.error());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  output.text("{}: {} layers as {}, {} dense; {} in {:.1f} s\n", options.out, written->quantized.size(),
              options.flags.to, written->ignored.size(), human_bytes(static_cast<double>(written->bytes_out)), seconds);
  if (written->kept_shards > 0) output.text("kept {} files of an earlier run\n", written->kept_shards);
  for (const std::string& file : written->left_out) output.text("not copied: {}\n", file);
  return output.finish({{"ok", true},
                        {"out", options.out},
                        {"to", options.flags.to},
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
  app.add_option("in", options->in, "A model folder, a .safetensors file or a .gguf file")->required();
  app.add_option("--out", options->out, "The folder to write")->required();
  options->flags.add_to(app, {kPackedTarget});
  output.add_json_flag(app);
  app.footer(kExample);
  return [options, &output] { return run(*options, output); };
}

}  // namespace nybble::cli
