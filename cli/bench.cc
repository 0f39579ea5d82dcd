// nybble bench: kernels against the dense product and the physical limit.
#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "bench/random_data.h"
#include "bench/results.h"
#include "bench/shapes.h"
#include "cli/bench_chain.h"
#include "cli/options.h"
#include "cli/verbs.h"

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

constexpr char kUsualModel[] = "llama3-8b";
constexpr int64_t kBurstFrom = 256;  // tokens from which power limits, so that the chip must rest longer

struct Options {
  std::string model, shape, set, m, group = "128", act = "bf16", zero_point = "none", duty = "auto";
  bench::MeasureOptions measure;
  std::string json_file, resume_file, cublas;
  bool no_pdl = false, no_dense = false, chain = false;
  int layers = 32;
  double time_limit = 0;  // seconds; 0: none
  DeviceOption device;
};

struct Work {
  std::vector<bench::Shape> shapes;
  std::vector<int64_t> ms;
  WeightFormat format;
  DType act;
};

Result<Work> work_of(const Options& options, DeviceKind device) {
  Work work;
  if (!options.set.empty()) {
    Result<bench::ShapeSet> set = bench::read_shape_set(options.set);
    if (!set) return set.error();
    work.shapes = std::move(set->shapes);
    work.ms = std::move(set->ms);
  }
  if (!options.shape.empty()) {
    const Result<std::vector<bench::Shape>> shapes = bench::parse_shapes(options.shape);
    if (!shapes) return shapes.error();
    work.shapes.insert(work.shapes.end(), shapes->begin(), shapes->end());
  }
  if (!options.model.empty() || work.shapes.empty()) {
    const Result<std::vector<bench::Shape>> shapes =
        bench::model_shapes(options.model.empty() ? kUsualModel : options.model);
    if (!shapes) return shapes.error();
    work.shapes.insert(work.shapes.end(), shapes->begin(), shapes->end());
  }
  if (!options.m.empty() || work.ms.empty()) {
    const char* const usual = device == DeviceKind::kCuda ? "1,16,64,256,1024,4096" : "1,16,128";
    Result<std::vector<int64_t>> ms = bench::parse_ms(options.m.empty() ? usual : options.m);
    if (!ms) return ms.error();
    work.ms = std::move(*ms);
  }
  const Result<int> group = parse_group(options.group);
  if (!group) return group.error();
  work.act = *parse_dtype(options.act);
  work.format = {.scale_dtype = work.act, .zero_kind = *parse_zero_kind(options.zero_point), .group_size = *group};
  return work;
}

bench::Duty duty_for(const std::string& text, int64_t m) {
  if (text == "auto") return m < kBurstFrom ? bench::Duty::kIdle10 : bench::Duty::kBurst;
  return *bench::parse_duty(text);
}

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

ChainRequest chain_request(const Options& options, Work work) {
  ChainRequest request;
  request.spec = {.name = options.shape.empty() ? options.model.empty() ? kUsualModel : options.model : options.shape,
                  .layers = std::move(work.shapes),
                  .blocks = options.layers,
                  .format = work.format,
                  .act_dtype = work.act};
  request.ms = options.m.empty() ? std::vector<int64_t>{1} : std::move(work.ms);
  for (const int64_t m : request.ms) request.duties.push_back(duty_for(options.duty, m));
  request.options.replays = options.measure.replays;
  if (!options.measure.plan.kernel.empty()) request.options.kernels = {options.measure.plan.kernel};
  return request;
}

int run(const Options& options, const Output& output) {
  const Result<Device> device = options.device.open();
  if (!device) return output.fail(device.error(), options.device.exit_for_open(device.error()));
  const Result<Work> work = work_of(options, device->kind);
  if (!work) return output.fail(work.error());
  Result<bench::ResultLog> log =
      bench::ResultLog::open(bench::describe_run(*device, command_line()), options.json_file, options.resume_file);
  if (!log) return output.fail(log.error());
  if (options.chain) return run_chain(chain_request(options, *work), *device, std::move(*log), output);

  Result<std::unique_ptr<bench::Bench>> opened = bench::open_bench(*device, options.cublas);
  if (!opened) return output.fail(opened.error());
  bench::Bench& bench = **opened;
  const bool dense = !options.no_dense && !bench.dense_impl().empty();
  output.text("{}; dense: {}\n", device->name, options.no_dense ? "not asked for" : bench.dense_note());
  const Report report(output, dense ? bench.dense_impl() : "");
  report.header();

  bench::MeasureOptions measure = options.measure;
  measure.plan.pdl = !options.no_pdl;
  measure.dense = dense;
  const int64_t max_m = *std::max_element(work->ms.begin(), work->ms.end());
  const auto begin = std::chrono::steady_clock::now();
  int wrong = 0, refused = 0, kept = 0, left = 0;
  for (const bench::Shape& shape : work->shapes) {
    bool loaded = false;
    for (const int64_t m : work->ms) {
      measure.duty = duty_for(options.duty, m);
      // The packer decides scales_in_window, so the final text of the problem is known only once it is loaded; random
      // scales lie in the window.
      const Problem asked{
          .m = m, .n = shape.n, .k = shape.k, .act_dtype = work->act, .out_dtype = work->act, .weight = work->format};
      bench::Row question{.problem = to_string(asked), .impl = "nybble", .duty = bench::duty_name(measure.duty)};
      question.pdl = device->kind == DeviceKind::kCuda && measure.plan.pdl;
      if (log->has(question)) {
        ++kept;
        continue;
      }
      const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
      if (options.time_limit > 0 && passed.count() > options.time_limit) {
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
  if (left > 0) output.text("{} problems are left: the time limit of {} s is over\n", left, options.time_limit);
  if (const Result<void> written = log->write(); !written) return output.fail(written.error());
  if (!log->path().empty()) output.text("{} rows in {}\n", log->file().rows.size(), log->path());
  if (wrong > 0) fmt::print(stderr, "nybble: {} results were WRONG\n", wrong);
  return output.finish(bench::to_json(log->file()), wrong > 0 ? kCheckFailed : refused > 0 ? kBadRequest : kOk);
}

}  // namespace

Run add_bench(CLI::App& app, Output& output) {
  auto options = std::make_shared<Options>();
  app.add_option(
      "--model", options->model,
      fmt::format("Layer shapes of a model (default {}): {}", kUsualModel, fmt::join(bench::model_names(), ", ")));
  app.add_option("--shape", options->shape, "Shapes as output x input features: 28672x4096,8192x8192");
  auto* const set =
      app.add_option("--set", options->set, "A file of shapes and token counts, such as bench/shapes.txt");
  app.add_option("--m", options->m, "Token counts: 1,16,4096");
  app.add_option("--act", options->act, "bf16 or fp16, of activations, outputs and scales")
      ->check(CLI::IsMember({"bf16", "fp16"}))
      ->capture_default_str();
  app.add_option("--group", options->group, "Input features per scale, or col")->capture_default_str();
  app.add_option("--zero-point", options->zero_point, "none, int, float or offset")
      ->check(CLI::IsMember({"none", "int", "float", "offset"}))
      ->capture_default_str();
  app.add_option(
         "--duty", options->duty,
         "idle10 (10 ms idle before each replay of about 4 ms), burst (100 ms idle), sustained (replays of 400 ms back "
         "to back), or auto: idle10 below 256 tokens, else burst")
      ->check(CLI::IsMember({"auto", "idle10", "burst", "sustained"}))
      ->capture_default_str();
  app.add_option("--replays", options->measure.replays, "Timed replays of each kind; 0: 15, 9 or 5 by duty")
      ->check(CLI::Range(0, 10000))
      ->capture_default_str();
  app.add_option("--kernel", options->measure.plan.kernel, "This kernel instead of the one the planner chooses");
  auto* const no_pdl = app.add_flag("--no-pdl", options->no_pdl, "Launch without overlapping the predecessor's end");
  app.add_flag(
      "--dense,!--no-dense", [options](int64_t count) { options->no_dense = count < 0; },
      "Measure the dense product, too: cuBLAS, or Eigen on the CPU (default: yes)");
  app.add_option("--cublas", options->cublas, "The cuBLAS library to open");
  app.add_option("--time-limit", options->time_limit,
                 "Seconds after which no further problem is begun; --resume goes on")
      ->type_name("SECONDS")
      ->check(CLI::PositiveNumber);
  auto* const chain =
      app.add_flag("--chain", options->chain,
                   "Run the shapes one after the other, each on what the one before it wrote, --layers times over with "
                   "other weights, as one graph; with overlapping launches and without, which must agree bit for bit. "
                   "Default --m: 1")
          ->excludes(set)
          ->excludes(no_pdl);
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
