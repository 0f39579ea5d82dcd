// nybble shard: one model for every rank of tensor parallelism.
#include <chrono>

#include "checkpoint/split.h"
#include "cli/convert_flags.h"
#include "cli/packed_model.h"
#include "cli/progress.h"
#include "cli/verbs.h"

namespace nybble::cli {
namespace {

constexpr char kExample[] =
    "Example:\n"
    "  nybble shard DIR-4bit --tp 4 --to compressed-tensors --out DIR\n"
    "  nybble shard DIR-4bit --tp 4 --to nybble --out DIR\n"
    "writes DIR/rank-0-of-4 and so on, the second packed for the kernels. q_proj, k_proj, v_proj, gate_proj and "
    "up_proj are split by output features,\n"
    "o_proj and down_proj by input features on group boundaries; every other layer is whole on each rank.\n"
    "A bias of the latter is on rank 0 and zero elsewhere: the ranks' outputs are added.";

struct Options {
  std::string in, out;
  SplitOptions split;
  ConvertFlags flags;
};

using Clock = std::chrono::steady_clock;

int finish(const SplitModel& split, const Json& ranks, Clock::time_point begin, const Output& output) {
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  output.text("{} layers split by output features, {} by input features, {} whole on each rank; {:.1f} s\n",
              split.column.size(), split.row.size(), split.replicated.size(), seconds);
  for (const std::string& file : split.written[0].left_out) output.text("not copied: {}\n", file);
  return output.finish({{"ok", true},
                        {"ranks", ranks},
                        {"column", split.column},
                        {"row", split.row},
                        {"replicated", split.replicated},
                        {"left_out", split.written[0].left_out},
                        {"seconds", seconds}},
                       kOk);
}

int run_packed(const Options& options, const Output& output) {
  const auto begin = Clock::now();
  const Result<checkpoint::Ranks> ranks = checkpoint::open_ranks(options.in, options.out, options.split);
  if (!ranks) return output.fail(ranks.error());
  Result<std::vector<PackedModel>> models = [&] {
    Progress progress("splitting");
    return write_packed_models(ranks->jobs, options.split.convert, progress.callback());
  }();
  if (!models) return output.fail(models.error());
  SplitModel split = checkpoint::outline(*ranks);
  Json list = Json::array();
  for (size_t rank = 0; rank < models->size(); ++rank) {
    PackedModel& model = (*models)[rank];
    const std::string& out = split.folders[rank];
    output.text("{}: {} layers packed, {}\n", out, model.packed.size(),
                human_bytes(static_cast<double>(model.bytes_out)));
    list.push_back({{"out", out}, {"bytes_out", model.bytes_out}, {"kept_layers", model.kept_layers}});
    split.written.push_back(std::move(model.rest));
  }
  return finish(split, list, begin, output);
}

int run(Options options, const Output& output) {
  const Result<ConvertOptions> convert = options.flags.parse();
  if (!convert) return output.fail(convert.error());
  options.split.convert = *convert;
  if (options.flags.to == kPackedTarget) return run_packed(options, output);
  const auto begin = Clock::now();
  const Result<SplitModel> split = [&] {
    Progress progress("splitting");
    return split_model(options.in, options.out, options.split, progress.callback());
  }();
  if (!split) return output.fail(split.error());
  Json ranks = Json::array();
  for (size_t rank = 0; rank < split->folders.size(); ++rank) {
    const WrittenModel& written = split->written[rank];
    output.text("{}: {} layers as {}, {}\n", split->folders[rank], written.quantized.size(), options.flags.to,
                human_bytes(static_cast<double>(written.bytes_out)));
    ranks.push_back(
        {{"out", split->folders[rank]}, {"bytes_out", written.bytes_out}, {"kept_shards", written.kept_shards}});
  }
  return finish(*split, ranks, begin, output);
}

}  // namespace

Run add_shard(CLI::App& app, Output& output) {
  auto options = std::make_shared<Options>();
  app.add_option("in", options->in, "A model folder, a .safetensors file or a .gguf file")->required();
  app.add_option("--tp", options->split.ranks, "Number of ranks")->required();
  app.add_option("--out", options->out, "The folder that gets a folder for every rank")->required();
  for (const auto& [flag, patterns, help] :
       {std::tuple("--column", &options->split.column, "Split these layers by output features"),
        {"--row", &options->split.row, "Split these layers by input features"},
        {"--replicate", &options->split.replicate, "Leave these layers whole on each rank"}})
    app.add_option(flag, *patterns, help)->type_name("REGEX");
  options->flags.add_to(app, {kPackedTarget});
  output.add_json_flag(app);
  app.footer(kExample);
  return [options, &output] { return run(*options, output); };
}

}  // namespace nybble::cli
