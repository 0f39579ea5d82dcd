// nybble tune: which kernel is quickest, measured; and how good the choice without measuring is.
#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "bench/choice_quality.h"
#include "bench/tuning.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/verbs.h"
#include "cli/work_options.h"
#include "registry/registry.h"

namespace nybble::cli {
namespace {

constexpr char kExample[] =
    "Examples:\n"
    "  nybble tune --shape 28672x4096,4096x14336 --m 1,2,4,8,16,32,64 --out mine.json\n"
    "  nybble tune --set bench/shapes.txt --resume mine.json      add what is missing\n"
    "  nybble tune --shape 8192x8192 --m 16 --kernel gemm --within 1.5 --out gemm.json\n"
    "  nybble kernels --why \"m16 n28672 k4096 bf16 g128\" --table mine.json\n"
    "  nybble tune --evaluate mine.json                           how good is the choice without it?\n"
    "Every result is checked before it is timed; kernels take turns, with weights that are never in the cache. A plan "
    "uses\n"
    "a table only on the device that it was measured on, and only where it is told to (PlanOptions::table, --table).\n"
    "Exit code 1 says that a result was wrong.";

constexpr std::chrono::seconds kSaveEvery{5};

struct Options {
  WorkOptions work;
  std::string out_file, resume_file, evaluate_file, kernels;
  bench::KernelChoice choice;
  bool all = false;
  double keep_within = 1.1;
  DeviceOption device;
};

std::string percent(double ratio) { return fmt::format("{:.2f} %", (ratio - 1) * 100); }

// How the choices compare with the best measured kernel, as text and as JSON.
Json report_quality(const TuningTable& table, const Output& output) {
  Json document = Json::array();
  for (const bench::FormatQuality& format : bench::judge_choices(table)) {
    output.text("\n{}: {} problems, {} to {} kernels each{}\n", format.format, format.problems, format.fewest,
                format.most,
                format.foreign > 0
                    ? fmt::format("; {} kernels that this build lacks count with the file's estimates", format.foreign)
                    : "");
    Table rows({"slower than the best by", "geomean", "worst", "over 3 %", "over 10 %", "at its worst"}, {0, 5});
    Json ways = Json::array();
    for (const bench::ChoiceQuality& way : format.ways) {
      rows.add({way.choice, percent(way.geomean), percent(way.worst), std::to_string(way.over_3),
                std::to_string(way.over_10),
                way.worst > 1 ? fmt::format("{}: {} instead of {}", way.worst_problem, way.chosen, way.best) : ""});
      ways.push_back({{"choice", way.choice},
                      {"geomean", way.geomean},
                      {"worst", way.worst},
                      {"over_3_percent", way.over_3},
                      {"over_10_percent", way.over_10},
                      {"worst_problem", way.worst_problem},
                      {"chosen", way.chosen},
                      {"best", way.best}});
    }
    output.text("{}", rows.text());
    document.push_back({{"format", format.format},
                        {"problems", format.problems},
                        {"fewest_kernels", format.fewest},
                        {"most_kernels", format.most},
                        {"foreign_kernels", format.foreign},
                        {"choices", std::move(ways)}});
  }
  return document;
}

int evaluate(const std::string& path, const Output& output) {
  const Result<TuningTable> table = load_tuning_table(path);
  if (!table) return output.fail(table.error());
  output.text("{}: measured on {}\n", path, table->device());
  const Json formats = report_quality(*table, output);
  return output.finish({{"ok", true}, {"device", table->device()}, {"formats", formats}}, kOk);
}

// Those that the options ask for.
Result<bench::KernelChoice> kernel_choice(const Options& options) {
  bench::KernelChoice choice = options.choice;
  if (options.all) choice.top = 0, choice.within = 0;
  if (options.kernels.empty()) return choice;
  base::MatchBudget budget;
  Result<base::NamePattern> names = base::NamePattern::compile(options.kernels, budget);
  if (!names) return names.error();
  choice.names = std::move(*names);
  const bool found = std::any_of(registry().begin(), registry().end(),
                                 [&](const KernelEntry& entry) { return choice.names->found_in(entry.name, budget); });
  if (Result<void> fine = budget.check("--kernel"); !fine) return fine.error();
  if (!found)
    return invalid_argument("no kernel of this library has a name with '{}' in it; `nybble kernels` lists them",
                            options.kernels);
  return choice;
}

int run(const Options& options, const Output& output) {
  if (!options.evaluate_file.empty()) return evaluate(options.evaluate_file, output);
  const std::string path = options.resume_file.empty() ? options.out_file : options.resume_file;
  if (path.empty())
    return output.fail(invalid_argument("say where the table goes: --out FILE, or --resume FILE to add to one"));
  const Result<Device> device = options.device.open();
  if (!device) return output.fail(device.error(), options.device.exit_for_open(device.error()));
  const Result<bench::Work> work = options.work.work(device->kind);
  if (!work) return output.fail(work.error());
  Result<bench::KernelChoice> choice = kernel_choice(options);
  if (!choice) return output.fail(choice.error());
  const bench::RunInfo run_info = bench::describe_run(*device, command_line());
  Result<bench::TuningFile> file =
      options.resume_file.empty() ? Result<bench::TuningFile>(bench::TuningFile(run_info, *device, options.kernels))
                                  : bench::TuningFile::extend(path, run_info, *device, options.kernels);
  if (!file) return output.fail(file.error());
  Result<std::unique_ptr<bench::Bench>> bench = bench::open_bench(*device, "");
  if (!bench) return output.fail(bench.error());

  // Now rather than after the work: a file that cannot be written.
  if (const Result<void> written = file->write(path); !written) return output.fail(written.error());

  bench::TuneOptions tuning;
  tuning.choice = std::move(*choice);
  tuning.limit = bench::TimeLimit(options.work.time_limit);
  tuning.measure.plan.pdl = !options.work.no_pdl;
  tuning.measure.replays = options.work.replays;
  tuning.measure.keep_within = options.keep_within;
  if (options.work.duty != "auto") tuning.duty = options.work.duty_for(0);
  output.text("{}\n{:>14} {:>6} {:>9} {:>8}  {}\n", device->name, "n x k", "m", "us", "kernels", "quickest");
  const int64_t total = static_cast<int64_t>(work->shapes.size() * work->ms.size());
  size_t shown = file->size();
  auto saved = std::chrono::steady_clock::now();
  Result<bench::TuneReport> report = [&] {
    Progress progress("tuning");
    return bench::tune(**bench, *work, tuning, *file, [&](int64_t done) -> Result<void> {
      for (; shown < file->size(); ++shown) {
        const Json& row = file->rows()[shown];
        const Problem problem = *parse_problem(row["problem"].get<std::string>());
        const Json& kernels = row["kernels"];
        progress.clear();
        output.text("{:>14} {:>6} {:>9} {:>8}  {}\n", fmt::format("{}x{}", problem.n, problem.k), problem.m,
                    kernels.empty() ? "-" : human_us(kernels[0]["us"]), kernels.size(),
                    kernels.empty() ? "-" : kernels[0]["kernel"].get<std::string>());
        std::fflush(stdout);
      }
      progress.update(done, total);
      if (std::chrono::steady_clock::now() - saved < kSaveEvery) return {};
      saved = std::chrono::steady_clock::now();
      return file->write(path);
    });
  }();
  // What was measured before an error is kept, too.
  if (const Result<void> written = file->write(path); !written) return output.fail(written.error());
  if (!report) return output.fail(report.error());
  if (report->kept > 0) output.text("{} problems were in {} already\n", report->kept, path);
  if (report->left > 0)
    output.text("{} problems are left: the time limit of {} s is over\n", report->left, options.work.time_limit);
  output.text("{} problems in {}\n", file->size(), path);
  for (const std::string& refused : report->refused) fmt::print(stderr, "nybble: {}\n", refused);
  for (const std::string& wrong : report->wrong)
    fmt::print(stderr, "nybble: wrong result of {}; it is not in the table\n", wrong);

  const Result<TuningTable> table = load_tuning_table(path);
  if (!table) return output.fail(table.error());
  const Json formats = report_quality(*table, output);
  const Exit code = !report->wrong.empty() ? kCheckFailed : !report->refused.empty() ? kBadRequest : kOk;
  return output.finish({{"ok", code == kOk},
                        {"file", path},
                        {"problems", file->size()},
                        {"measured", report->measured},
                        {"kept", report->kept},
                        {"left", report->left},
                        {"refused", report->refused},
                        {"wrong", report->wrong},
                        {"formats", formats}},
                       code);
}

}  // namespace

Run add_tune(CLI::App& app, Output& output) {
  auto options = std::make_shared<Options>();
  options->work.add_to(app);
  auto* const out = app.add_option("--out", options->out_file, "Write the table to FILE; it grows while measuring")
                        ->type_name("FILE");
  auto* const resume =
      app.add_option("--resume", options->resume_file, "Add to this table; what it holds is not measured again")
          ->type_name("FILE")
          ->excludes(out);
  app.add_option("--kernel", options->kernels,
                 "Try only kernels in whose name this regular expression is found; plans by such a table choose among "
                 "these only")
      ->type_name("REGEX");
  auto* const top = app.add_option("--top", options->choice.top, "Try so many kernels, those of the lowest estimates")
                        ->check(CLI::Range(1, 1000))
                        ->capture_default_str();
  auto* const within = app.add_option("--within", options->choice.within,
                                      "Try only kernels estimated to take at most this factor of the lowest estimate")
                           ->check(CLI::Range(1.0, 1e6))
                           ->capture_default_str();
  app.add_flag("--all", options->all, "Try every kernel that can do the problem, of --kernel's where that is given")
      ->excludes(top)
      ->excludes(within);
  app.add_option("--keep-within", options->keep_within,
                 "After two replays go on only with kernels within this factor of the quickest; 0: with all")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  app.add_option("--evaluate", options->evaluate_file,
                 "Measure nothing; say how much slower than the best the chosen kernel is on the problems of FILE")
      ->type_name("FILE")
      ->excludes(out)
      ->excludes(resume);
  options->device.add_to(app, "auto");
  output.add_json_flag(app);
  app.footer(kExample);
  return [options, &output] { return run(*options, output); };
}

}  // namespace nybble::cli
