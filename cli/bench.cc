// nybble bench: kernels against the dense product and the physical limit.
#include <algorithm>

#include "base/error.h"
#include "bench/random_data.h"
#include "bench/results.h"
#include "cli/bench_chain.h"
#include "cli/options.h"
#include "cli/verbs.h"
#include "cli/work_options.h"

namespace nybble::cli {
namespace {

constexpr char kExample[] =
    "Example:\n"
    "  nybble bench --shape 28672x4096,8192x8192 --m 1,16,4096 --json results.json\n"
    "  nybble bench --chain --model llama3-8b --m 1\n"
    "Weights rotate over more than three times the cache, launches stand in CUDA graphs, replays of nybble and of "
    "cuBLAS\n"
    "alternate, and every result is checked against double precision before it is timed. Figures compare only within "
    "one\n"
    "duty cycle. `of floor` is the share of the speed that memory (4.73 TB/s) or tensor cores (860 TFLOP/s) allow.\n"
    "Exit code 1 says that a result was wrong.";

struct Options {
  WorkOptions work;
  std::string kernel, json_file, resume_file, cublas;
  bool fp32_out = false, no_dense = false, chain = false;
  int layers = 32;
  TableOption table;
  DeviceOption device;
};

class Report {
 public:
  Report(const Output& output, std::string dense_impl) : output_(output), dense_impl_(std::move(dense_impl)) {}

  void header() const {
    output_.text("{:>14} {:>6} {:>10} {:>9} {:>8} {:>10} {:>7} {:>8} {:>7}  {}\n", "n x k", "m", "duty", "us",
                 "of floor", dense_impl_.empty() ? "dense us" : dense_impl_ + " us", "times", "spread", "SM MHz",
                 "kernel");
  }

  void row(const bench::Row& row) const {
    output_.text("{:>14} {:>6} {:>10} {:>9} {:>8} {:>10} {:>7} {:>8} {:>7}  {}\n", fmt::format("{}x{}", *row.n, *row.k),
                 row.m, row.duty, human_us(row.us), row.floor_us ? fmt::format("{:.2f}", *row.floor_us / row.us) : "-",
                 row.dense_us ? human_us(*row.dense_us) : "-",
                 row.dense_us ? fmt::format("{:.2f}x", *row.dense_us / row.us) : "-",
                 fmt::format("{:.1f} %", row.spread * 100), row.sm_mhz ? fmt::format("{:.0f}", *row.sm_mhz) : "-",
                 row.kernel.value_or("-"));
    std::fflush(stdout);
  }

 private:
  const Output& output_;
  std::string dense_impl_;
};

ChainRequest chain_request(const Options& options, bench::Work work, std::optional<TuningTable> table) {
  ChainRequest request;
  request.spec = {.name = options.work.shapes_name(),
                  .layers = std::move(work.shapes),
                  .blocks = options.layers,
                  .format = work.format,
                  .act_dtype = work.act};
  request.ms = options.work.m.empty() ? std::vector<int64_t>{1} : std::move(work.ms);
  for (const int64_t m : request.ms) request.duties.push_back(options.work.duty_for(m));
  request.options.replays = options.work.replays;
  if (!options.kernel.empty()) request.options.kernels = {options.kernel};
  request.options.table = std::move(table);
  request.limit = bench::TimeLimit(options.work.time_limit);
  return request;
}

int run(const Options& options, const Output& output) {
  const Result<Device> device = options.device.open();
  if (!device) return output.fail(device.error(), options.device.exit_for_open(device.error()));
  Result<bench::Work> work = options.work.work(device->kind);
  if (!work) return output.fail(work.error());
  if (options.fp32_out) work->out = DType::kFp32;
  Result<std::optional<TuningTable>> table = options.table.load();
  if (!table) return output.fail(table.error());
  Result<bench::ResultLog> log =
      bench::ResultLog::open(bench::describe_run(*device, command_line()), options.json_file, options.resume_file);
  if (!log) return output.fail(log.error());
  if (options.chain)
    return run_chain(chain_request(options, *work, std::move(*table)), *device, std::move(*log), output);

  Result<std::unique_ptr<bench::Bench>> opened = bench::open_bench(*device, options.cublas);
  if (!opened) return output.fail(opened.error());
  bench::Bench& bench = **opened;
  const bool dense = !options.no_dense && !bench.dense_impl().empty();
  output.text("{}; dense: {}\n", device->name, options.no_dense ? "not asked for" : bench.dense_note());
  const Report report(output, dense ? bench.dense_impl() : "");
  report.header();

  bench::MeasureOptions measure{.out = work->out, .dense = dense, .replays = options.work.replays};
  measure.plan = {.kernel = options.kernel, .pdl = !options.work.no_pdl, .table = std::move(*table)};
  const int64_t max_m = *std::max_element(work->ms.begin(), work->ms.end());
  const bench::TimeLimit limit(options.work.time_limit);
  int wrong = 0, refused = 0, kept = 0, left = 0;
  for (const bench::Shape& shape : work->shapes) {
    bool loaded = false;
    for (const int64_t m : work->ms) {
      measure.duty = options.work.duty_for(m);
      bench::Row question{
          .problem = to_string(work->problem(shape, m)), .impl = "nybble", .duty = bench::duty_name(measure.duty)};
      question.pdl = device->kind == DeviceKind::kCuda && measure.plan.pdl;
      if (log->has(question)) {
        ++kept;
        continue;
      }
      if (limit.over()) {
        ++left;
        continue;
      }
      if (!loaded) {
        const Result<void> done = bench.load(bench::random_weight(shape.n, shape.k, work->format, 1), work->act, max_m);
        if (!done) return output.fail(done.error());
        loaded = true;
      }
      const Result<bench::Measurement> measured = bench.measure(m, measure);
      if (!measured) {
        // No kernel for this problem is no reason to leave out the others; anything else is.
        if (measured.error().code != ErrorCode::kUnsupported) return output.fail(measured.error());
        fmt::print(stderr, "nybble: {}\n", measured.error().message);
        ++refused;
        continue;
      }
      if (!measured->wrong.empty()) {
        fmt::print(stderr, "nybble: wrong result of {} for '{}': {}; nothing was timed\n", measured->kernel,
                   to_string(measured->problem), measured->wrong);
        ++wrong;
        continue;
      }
      std::vector<bench::Row> rows = bench::rows_of(*measured, measure.duty, bench.dense_impl());
      report.row(rows.front());
      if (const Result<void> added = log->add(std::move(rows)); !added) return output.fail(added.error());
    }
  }
  if (kept > 0) output.text("{} problems were in {} already\n", kept, log->path());
  if (left > 0) output.text("{} problems are left: the time limit of {} s is over\n", left, options.work.time_limit);
  if (const Result<void> written = log->write(); !written) return output.fail(written.error());
  if (!log->path().empty()) output.text("{} rows in {}\n", log->file().rows.size(), log->path());
  if (wrong > 0) fmt::print(stderr, "nybble: {} results were WRONG\n", wrong);
  return output.finish(bench::to_json(log->file()), wrong > 0 ? kCheckFailed : refused > 0 ? kBadRequest : kOk);
}

}  // namespace

Run add_bench(CLI::App& app, Output& output) {
  auto options = std::make_shared<Options>();
  options->work.add_to(app);
  app.add_option("--kernel", options->kernel, "This kernel instead of the one the planner chooses");
  options->table.add_to(app);
  app.add_flag(
      "--dense,!--no-dense", [options](int64_t count) { options->no_dense = count < 0; },
      "Measure the dense product, too: cuBLAS, or Eigen on the CPU (default: yes)");
  app.add_option("--cublas", options->cublas, "The cuBLAS library to open");
  auto* const chain =
      app.add_flag("--chain", options->chain,
                   "Run the shapes one after the other, each on what the one before it wrote, --layers times over with "
                   "other weights, as one graph; with overlapping launches and without, which must agree bit for bit. "
                   "Default --m: 1")
          ->excludes(app.get_option("--set"))
          ->excludes(app.get_option("--no-pdl"));
  app.add_flag("--fp32-out", options->fp32_out, "Outputs in fp32, cuBLAS's too")->excludes(chain);
  app.add_option("--layers", options->layers, "How often --chain repeats the shapes: the model's layers")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str()
      ->needs(chain);
  auto* const json = app.add_option_function<std::string>(
      "--json",
      [options, &output](const std::string& file) {
        options->json_file = file;
        output.set_json(file.empty());
      },
      "Write the results to FILE after each row; without FILE: to stdout, with nothing else there");
  json->expected(0, 1)->type_name("[FILE]");
  app.add_option("--resume", options->resume_file, "Add to this result file; what it holds is not measured again")
      ->type_name("FILE")
      ->excludes(json);
  options->device.add_to(app, "auto");
  app.footer(kExample);
  return [options, &output] { return run(*options, output); };
}

}  // namespace nybble::cli
