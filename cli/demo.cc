// nybble demo: the main job from end to end, one row a layer.
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/parallel.h"
#include "bench/bench.h"
#include "bench/random_data.h"
#include "bench/shapes.h"
#include "cli/layer_check.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/verbs.h"
#include "nybble/checkpoint.h"
#include "nybble/quantize.h"

namespace nybble::cli {
namespace {

constexpr char kExample[] =
    "Example:\n"
    "  nybble demo models/all-MiniLM-L6-v2\n"
    "Quantizes the linear layers in groups of 128 input features, writes a compressed-tensors checkpoint, reads it "
    "back and\n"
    "runs every layer. `error` is the outputs' distance from the fp32 layer's over their length; `dense` is the time "
    "of the\n"
    "unquantized layer: cuBLAS in 16 bits on a GPU, Eigen in fp32 with the same threads on the CPU.";

constexpr int kGroupSize = 128;
constexpr int64_t kErrorTokens = 16;  // on which the error is taken
constexpr int kReplays = 5;

struct Options {
  std::string model, out, m = "1,16", cublas;
  DeviceOption device;
};

// A folder in the system's place for temporary files that goes when the demo ends.
class TemporaryFolder {
 public:
  static Result<TemporaryFolder> make() {
    std::error_code failed;
    const std::filesystem::path parent = std::filesystem::temp_directory_path(failed);
    std::string path = (parent / "nybble-demo.XXXXXX").string();
    if (failed || mkdtemp(path.data()) == nullptr)
      return io_error("cannot make a temporary folder {}: {}; give one with --out", path, std::strerror(errno));
    TemporaryFolder folder;
    folder.path_ = path;
    return folder;
  }
  TemporaryFolder() = default;
  TemporaryFolder(TemporaryFolder&& other) noexcept : path_(std::exchange(other.path_, "")) {}
  TemporaryFolder& operator=(TemporaryFolder&& other) noexcept {
    std::swap(path_, other.path_);
    return *this;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct LayerReport {
  std::string name;
  int64_t n = 0, k = 0;
  size_t bytes_before = 0, bytes_after = 0;
  double error = 0;
  std::vector<bench::Measurement> times;  // one for each m
};

// |out - act x dense^T - bias| / |act x dense^T + bias| over all outputs, the dense layer in fp32 weights and double
// sums.
double error_against(const DenseWeight& dense, const FloatArray& act, int64_t m, const FloatArray& out) {
  std::vector<ErrorStats::Sum> sums(dense.n);
  std::vector<double> error(dense.n), length(dense.n);
  base::parallel_for(dense.n, 0, [&](int64_t n) {
    std::vector<double> row(dense.k);
    for (int64_t k = 0; k < dense.k; ++k) row[k] = dense.values.at(n * dense.k + k);
    for (int64_t token = 0; token < m; ++token) {
      double expected = dense.bias.empty() ? 0 : dense.bias.at(n);
      for (int64_t k = 0; k < dense.k; ++k) expected += act.at(token * dense.k + k) * row[k];
      const double difference = out.at(token * dense.n + n) - expected;
      error[n] += difference * difference;
      length[n] += expected * expected;
    }
  });
  double error_sum = 0, length_sum = 0;
  for (int64_t n = 0; n < dense.n; ++n) error_sum += error[n], length_sum += length[n];
  return length_sum > 0 ? std::sqrt(error_sum / length_sum) : std::sqrt(error_sum);
}

Json json_of(const LayerReport& layer) {
  Json json = {{"name", layer.name},
               {"n", layer.n},
               {"k", layer.k},
               {"bytes_before", layer.bytes_before},
               {"bytes_after", layer.bytes_after},
               {"error", layer.error},
               {"times", Json::array()}};
  for (const bench::Measurement& time : layer.times)
    json["times"].push_back({{"m", time.problem.m},
                             {"kernel", time.kernel},
                             {"us", time.ours.us},
                             {"dense_us", time.dense ? Json(time.dense->us) : Json(nullptr)}});
  return json;
}

class Demo {
 public:
  Demo(const Options& options, const Output& output) : options_(options), output_(output) {}

  int run() {
    const Result<std::vector<int64_t>> ms = bench::parse_ms(options_.m);
    if (!ms) return output_.fail(ms.error());
    ms_ = *ms;
    const Result<Device> device = options_.device.open();
    if (!device) return output_.fail(device.error(), options_.device.exit_for_open(device.error()));
    device_ = *device;
    TemporaryFolder temporary;
    std::string out = options_.out;
    if (out.empty()) {
      Result<TemporaryFolder> made = TemporaryFolder::make();
      if (!made) return output_.fail(made.error());
      temporary = std::move(*made);
      out = temporary.path();
    }
    Result<WrittenModel> written = quantize_to(out);
    if (!written) return output_.fail(written.error());
    output_.text("{}: {} linear layers quantized to 4 bits, groups of {}; {} -> {} with what stays as it is\n",
                 options_.model, written->quantized.size(), kGroupSize,
                 human_bytes(static_cast<double>(written->bytes_in)),
                 human_bytes(static_cast<double>(written->bytes_out)));
    output_.text("written as compressed-tensors to {} and read back; running on {}\n\n",
                 options_.out.empty() ? "a temporary folder" : out, device_.name);
    return run_layers(out);
  }

 private:
  Result<WrittenModel> quantize_to(const std::string& out) {
    RtnOptions rtn{.group_size = kGroupSize, .num_threads = options_.device.threads};
    const LayerQuantizer quantizer = [rtn](const DenseWeight& dense) mutable {
      rtn.scale_dtype = dense.values.dtype == DType::kFp16 ? DType::kFp16 : DType::kBf16;
      return quantize_rtn(dense, rtn);
    };
    QuantizeModelOptions model;
    model.force = options_.out.empty();  // the temporary folder is there already
    Progress progress("quantizing");
    return write_compressed_tensors(
        options_.model, out, {.group_size = kGroupSize, .symmetric = true, .recipe = "rtn, full range, default scales"},
        quantizer, model, progress.callback());
  }

  int run_layers(const std::string& out) {
    const Result<std::unique_ptr<Checkpoint>> dense = open_checkpoint(options_.model);
    if (!dense) return output_.fail(dense.error());
    const Result<std::unique_ptr<Checkpoint>> quantized = open_checkpoint(out);
    if (!quantized) return output_.fail(quantized.error());
    Result<std::unique_ptr<LayerRunner>> runner = LayerRunner::open(device_);
    if (!runner) return output_.fail(runner.error());
    Result<std::unique_ptr<bench::Bench>> bench = bench::open_bench(device_, options_.cublas);
    if (!bench) return output_.fail(bench.error());

    std::vector<std::string> names;
    for (const LayerInfo& layer : (*quantized)->layers())
      if (layer.quantized) names.push_back(layer.name);
    if (names.empty()) return output_.fail(invalid_argument("{} holds no linear layer to quantize", options_.model));

    std::vector<LayerReport> reports;
    std::vector<std::string> wrong;
    {
      Progress progress("running");
      for (size_t i = 0; i < names.size(); ++i) {
        progress.update(static_cast<int64_t>(i), static_cast<int64_t>(names.size()));
        const Result<LayerReport> report = run_layer(names[i], **dense, **quantized, **runner, **bench, wrong);
        if (!report) return output_.fail(report.error());
        reports.push_back(*report);
      }
    }
    output_.text("{}", table_of(reports));
    output_.text("\ndense: {}\n", (*bench)->dense_note());
    for (const std::string& message : wrong) fmt::print(stderr, "nybble: {}\n", message);
    output_.text("{} layers: {}\n", reports.size(),
                 wrong.empty() ? "every result agrees with the double-precision reference"
                               : fmt::format("{} results are WRONG", wrong.size()));
    Json document = {{"ok", wrong.empty()},
                     {"model", options_.model},
                     {"out", options_.out.empty() ? Json(nullptr) : Json(out)},
                     {"device", device_.name},
                     {"dense", (*bench)->dense_note()},
                     {"layers", Json::array()}};
    for (const LayerReport& report : reports) document["layers"].push_back(json_of(report));
    return output_.finish(document, wrong.empty() ? kOk : kCheckFailed);
  }

  Result<LayerReport> run_layer(const std::string& name, const Checkpoint& dense, const Checkpoint& quantized,
                                LayerRunner& runner, bench::Bench& bench, std::vector<std::string>& wrong) {
    const Result<DenseWeight> original = dense.read_dense(name);
    if (!original) return original.error();
    const Result<QuantizedWeight> weight = quantized.read_quantized(name);
    if (!weight) return weight.error();
    LayerReport report{.name = name, .n = weight->n, .k = weight->k, .bytes_before = original->values.bytes.size()};
    if (const Result<void> loaded = runner.load(*weight); !loaded) return loaded.error();
    report.bytes_after = runner.packed().size_bytes();
    const DType act_dtype = act_dtype_for(weight->format());
    const FloatArray act = bench::random_numbers(kErrorTokens * weight->k, act_dtype, 1.0, 0);
    const Result<LayerRun> ran = runner.run(act, kErrorTokens);
    if (!ran) return ran.error();
    const LayerVerdict verdict = judge_layer(*weight, act, kErrorTokens, *ran, options_.device.threads);
    if (!verdict.ok()) wrong.push_back(fmt::format("{} on {}: {}", name, ran->plan.kernel(), verdict.first_bad));
    report.error = error_against(*original, act, kErrorTokens, ran->out);

    if (const Result<void> loaded = bench.load(*weight, act_dtype, *std::max_element(ms_.begin(), ms_.end())); !loaded)
      return loaded.error();
    for (const int64_t m : ms_) {
      Result<bench::Measurement> measured = bench.measure(m, {.replays = kReplays});
      if (!measured) return measured.error();
      if (!measured->wrong.empty())
        wrong.push_back(fmt::format("{} at m = {} on {}: {}", name, m, measured->kernel, measured->wrong));
      report.times.push_back(std::move(*measured));
    }
    return report;
  }

  std::string table_of(const std::vector<LayerReport>& reports) const {
    std::vector<std::string> header = {"layer", "n x k", "before", "4-bit", "error"};
    for (const int64_t m : ms_) {
      header.push_back(fmt::format("m={} dense us", m));
      header.push_back("4-bit us");
    }
    Table table(header, {0});
    double before = 0, after = 0;
    std::vector<double> dense_us(ms_.size(), 0), us(ms_.size(), 0);
    for (const LayerReport& layer : reports) {
      before += static_cast<double>(layer.bytes_before);
      after += static_cast<double>(layer.bytes_after);
      std::vector<std::string> row = {
          layer.name, fmt::format("{} x {}", layer.n, layer.k), human_bytes(static_cast<double>(layer.bytes_before)),
          human_bytes(static_cast<double>(layer.bytes_after)), fmt::format("{:.4f}", layer.error)};
      for (size_t i = 0; i < ms_.size(); ++i) {
        const bench::Measurement& time = layer.times[i];
        row.push_back(time.dense ? human_us(time.dense->us) : "-");
        row.push_back(time.wrong.empty() ? human_us(time.ours.us) : "WRONG");
        dense_us[i] += time.dense ? time.dense->us : 0;
        us[i] += time.ours.us;
      }
      table.add(std::move(row));
    }
    std::vector<std::string> total = {"all", "", human_bytes(before), human_bytes(after), ""};
    for (size_t i = 0; i < ms_.size(); ++i) {
      total.push_back(dense_us[i] > 0 ? human_us(dense_us[i]) : "-");
      total.push_back(human_us(us[i]));
    }
    table.add(std::move(total));
    return table.text();
  }

  const Options& options_;
  const Output& output_;
  std::vector<int64_t> ms_;
  Device device_;
};

}  // namespace

Run add_demo(CLI::App& app, Output& output) {
  auto options = std::make_shared<Options>();
  app.add_option("model", options->model, "A dense model folder")->required();
  app.add_option("--out", options->out, "Keep the quantized model in this folder; default: a temporary one");
  app.add_option("--m", options->m, "Token counts to time")->capture_default_str();
  app.add_option("--cublas", options->cublas, "The cuBLAS library to open");
  options->device.add_to(app, "auto");
  output.add_json_flag(app);
  app.footer(kExample);
  return [options, &output] { return Demo(*options, output).run(); };
}

}  // namespace nybble::cli
