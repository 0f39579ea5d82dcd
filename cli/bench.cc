// nybble bench: kernels against the dense product and the physical limit.
#include <algorithm>
#include <filesystem>
#include <set>
#include <tuple>

#include "base/error.h"
#include "bench/random_data.h"
#include "bench/results.h"
#include "bench/shapes.h"
#include "cli/options.h"
#include "cli/verbs.h"

namespace nybble::cli {
namespace {

constexpr char kExample[] =
    "Example:\n"
    "  nybble bench --shape 28672x4096,8192x8192 --m 1,16,4096 --json results.json\n"
    "Weights rotate over more than three times the cache, launches stand in CUDA graphs, replays of nybble and of "
    "cuBLAS\n"
    "alternate, and every result is checked against double precision before it is timed. Figures compare only within "
    "one\n"
    "duty cycle. `of floor` is the share of the speed that memory (4.73 TB/s) or tensor cores (860 TFLOP/s) allow.\n"
    "Exit code 1 says that a result was wrong.";

constexpr int64_t kBurstFrom = 256;  // tokens from which power limits, so that the chip must rest longer

struct Options {
  std::string model, shape, set, m, group = "128", act = "bf16", zero_point = "none", duty = "auto";
  bench::MeasureOptions measure;
  std::string json_file, resume_file, cublas;
  bool no_pdl = false, no_dense = false;
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
        bench::model_shapes(options.model.empty() ? "llama3-8b" : options.model);
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

// The file to add to, if there is one and its rows may stand beside new ones.
Result<bench::ResultFile> results_to_extend(const std::string& path, const bench::ResultFile& now) {
  if (path.empty() || !std::filesystem::exists(path)) return now;
  Result<bench::ResultFile> file = bench::read_results(path);
  if (!file) return file;
  for (const auto& [what, before, here] : {std::tuple{"device", file->name, now.name},
                                           std::tuple{"driver", file->driver.value_or(""), now.driver.value_or("")},
                                           std::tuple{"commit", file->commit, now.commit}})
    if (before != here)
      return invalid_argument(
          "{} was measured with {} '{}', this is '{}'; rows of both must not stand in one file: give "
          "--resume another one",
          path, what, before, here);
  return file;
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
    output_.text("{:>14} {:>6} {:>10} {:>9} {:>8} {:>10} {:>7} {:>8} {:>7}  {}\n", fmt::format("{}x{}", row.n, row.k),
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

int run(const Options& options, const Output& output) {
  const Result<Device> device = options.device.open();
  if (!device) return output.fail(device.error(), options.device.exit_for_open(device.error()));
  const Result<Work> work = work_of(options, device->kind);
  if (!work) return output.fail(work.error());
  const std::string path = options.resume_file.empty() ? options.json_file : options.resume_file;
  Result<bench::ResultFile> file = results_to_extend(options.resume_file, bench::describe_run(*device, command_line()));
  if (!file) return output.fail(file.error());
  std::set<std::string> known;
  for (const bench::Row& row : file->rows) known.insert(row.key());

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
  int wrong = 0, refused = 0, kept = 0;
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
      if (known.contains(question.key())) {
        ++kept;
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
      for (bench::Row& row : bench::rows_of(*measured, measure.duty, bench.dense_impl())) {
        if (row.impl == "nybble") report.row(row);
        known.insert(row.key());
        file->rows.push_back(std::move(row));
      }
      if (!path.empty())
        if (const Result<void> written = bench::write_results(*file, path); !written)
          return output.fail(written.error());
    }
  }
  if (kept > 0) output.text("{} problems were in {} already\n", kept, options.resume_file);
  if (!path.empty()) {
    if (const Result<void> written = bench::write_results(*file, path); !written) return output.fail(written.error());
    output.text("{} rows in {}\n", file->rows.size(), path);
  }
  if (wrong > 0) fmt::print(stderr, "nybble: {} results were WRONG\n", wrong);
  return output.finish(bench::to_json(*file), wrong > 0 ? kCheckFailed : refused > 0 ? kBadRequest : kOk);
}

}  // namespace

Run add_bench(CLI::App& app, Output& output) {
  auto options = std::make_shared<Options>();
  app.add_option("--model", options->model,
                 fmt::format("Layer shapes of a model (default llama3-8b): {}", fmt::join(bench::model_names(), ", ")));
  app.add_option("--shape", options->shape, "Shapes as output x input features: 28672x4096,8192x8192");
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
  app.add_flag("--no-pdl", options->no_pdl, "Launch without overlapping the predecessor's end");
  app.add_flag(
      "--dense,!--no-dense", [options](int64_t count) { options->no_dense = count < 0; },
      "Measure the dense product, too: cuBLAS, or Eigen on the CPU (default: yes)");
  app.add_option("--cublas", options->cublas, "The cuBLAS library to open");
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
