#include "cli/quantize_method.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"

namespace nybble::cli {
namespace {

RangeOptions range_of(const MethodOptions& options, RangeRule unless_given) {
  RangeOptions range{.rule = unless_given, .exponent = options.norm};
  if (options.range == "full") range.rule = RangeRule::kFull;
  if (options.range == "shrink") range.rule = RangeRule::kShrink;
  if (options.range == "percentile") range.rule = RangeRule::kPercentile;
  return range;
}

// The option and the methods that take it.
struct Taken {
  const char* option;
  std::vector<std::string> methods;
};
const Taken kTaken[] = {
    {"--range-search", {"rtn"}},    {"--range", {"range", "gptq"}}, {"--norm", {"range", "gptq"}},
    {"--weighted-range", {"gptq"}}, {"--act-order", {"gptq"}},      {"--static-groups", {"gptq"}},
    {"--damping", {"gptq"}},        {"--awq-rows", {"awq"}},        {"--no-clip", {"awq"}},
};

// Adds the time that it lives to a stage's.
class Stage {
 public:
  explicit Stage(double& seconds) : seconds_(seconds), begin_(Clock::now()) {}
  ~Stage() { seconds_ += std::chrono::duration<double>(Clock::now() - begin_).count(); }
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  double& seconds_;
  Clock::time_point begin_;
};

// AWQ leaves the ranges of queries and keys alone: their products are what counts, not their outputs.
bool may_clip(const std::string& layer) {
  for (const char* name : {"q_proj", "k_proj", "attn_q", "attn_k"})
    if (layer.ends_with(name)) return false;
  return true;
}

}  // namespace

void MethodOptions::add_to(CLI::App& verb) {
  verb.add_option("--method", method,
                  "rtn: round to nearest; range: search each group's range; hqq: search scales and zeros (implies "
                  "--asymmetric); gptq, awq: calibrated, with --stats")
      ->check(CLI::IsMember({"rtn", "range", "hqq", "gptq", "awq"}))
      ->capture_default_str();
  verb.add_option("--stats", statistics, "The statistics file of this model; range weighs errors by it")
      ->type_name("FILE");
  verb.add_flag("--range-search", range_search, "rtn: shrink each group's range where that lessens the squared error");
  verb.add_option("--range", range,
                  "range, gptq: full, shrink (step by step) or percentile (leave out the outermost weights); default: "
                  "shrink for range, full for gptq")
      ->check(CLI::IsMember({"full", "shrink", "percentile"}));
  verb.add_option("--norm", norm, "range, gptq: the exponent that a range's errors are judged by")
      ->check(CLI::Range(1.0, 8.0))
      ->capture_default_str();
  verb.add_flag("--weighted-range", weighted_range, "gptq: judge ranges by the inputs' mean squares");
  verb.add_option("--act-order", act_order,
                  "gptq: columns of large inputs first: static (over all groups, with scales from the weights as they "
                  "are) or group-aware (groups and the columns within them)")
      ->check(CLI::IsMember({"none", "static", "group-aware"}))
      ->capture_default_str();
  verb.add_flag("--static-groups", static_groups, "gptq: scales from the weights as they are");
  verb.add_option("--damping", damping, "gptq: added to the Hessian's diagonal, as a part of its mean")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  verb.add_option("--awq-rows", awq_rows, "awq: judge scales by this many rows of each layer; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb.add_flag("--no-clip", no_clip, "awq: scales only, no search of ranges");
  verb.add_flag("--report-errors", report_errors,
                "Compute each layer's relative output error under the statistics; with --json it is listed");
}

Result<void> MethodOptions::check(const CLI::App& verb) const {
  for (const Taken& taken : kTaken) {
    if (verb.count(taken.option) == 0) continue;
    if (std::find(taken.methods.begin(), taken.methods.end(), method) == taken.methods.end())
      return invalid_argument("{} is an option of --method {}, not of {}", taken.option, fmt::join(taken.methods, ", "),
                              method);
  }
  const bool calibrates = method == "range" || method == "gptq" || method == "awq";
  if (!statistics.empty() && !calibrates && !report_errors)
    return invalid_argument("--method {} makes no use of --stats but for --report-errors", method);
  if (statistics.empty() && (method == "gptq" || method == "awq"))
    return invalid_argument(
        "--method {} needs --stats FILE: collect it with examples/collect_statistics.py or `nybble-llama collect`",
        method);
  if (statistics.empty() && report_errors)
    return invalid_argument("--report-errors needs --stats FILE: the error is that of the outputs for its inputs");
  if (on_gpu && method != "rtn" && method != "gptq" && method != "awq")
    return unsupported("--device cuda: rtn, gptq and awq run there; --method {} takes cpu", method);
  return {};
}

Result<std::unique_ptr<QuantizeMethod>> QuantizeMethod::prepare(const MethodOptions& options, const GridOptions& grid,
                                                                std::optional<DType> scale_dtype,
                                                                const std::string& model,
                                                                const QuantizeModelOptions& choice,
                                                                const std::function<void(int64_t, int64_t)>& progress) {
  std::unique_ptr<QuantizeMethod> method(new QuantizeMethod(options, grid, scale_dtype));
  if (options.statistics.empty()) return method;
  Result<StatisticsFile> statistics = StatisticsFile::open(options.statistics);
  if (!statistics) return statistics.error();
  const Result<uint64_t> hash = statistics->content_hash();
  if (!hash) return hash.error();
  method->statistics_ = std::move(*statistics);
  method->statistics_hash_ = *hash;
  if (options.method == "awq") {
    Result<ScaleFolds> folds = ScaleFolds::search(model, choice, *method->statistics_, grid, {.rows = options.awq_rows},
                                                  progress, options.on_gpu ? DeviceKind::kCuda : DeviceKind::kCpu);
    if (!folds) return folds.error();
    method->warnings_ = folds->warnings();
    method->folds_ = std::move(*folds);
  }
  return method;
}

std::string QuantizeMethod::recipe() const {
  const std::string scales = fmt::format("{} scales", scale_dtype_ ? dtype_name(*scale_dtype_) : "default");
  const std::string calibration =
      statistics_ ? fmt::format(", statistics xxh3:{:016x}", statistics_hash_) : std::string();
  const auto range = [&](const char* unless_given) {
    return fmt::format("{} range, norm {}", options_.range.empty() ? unless_given : options_.range.c_str(),
                       options_.norm);
  };
  if (options_.method == "range") return fmt::format("range, {}, {}{}", range("shrink"), scales, calibration);
  if (options_.method == "hqq") return fmt::format("hqq, integer zeros, {}", scales);
  if (options_.method == "gptq")
    return fmt::format("gptq, act-order {}, {} groups, damping {}, {}{}, {}{}", options_.act_order,
                       options_.static_groups ? "static" : "updated", options_.damping, range("full"),
                       options_.weighted_range ? " weighted" : "", scales, calibration);
  if (options_.method == "awq")
    return fmt::format("awq, rows {}, {}, {}{}", options_.awq_rows, options_.no_clip ? "no clipping" : "clipping",
                       scales, calibration);
  return fmt::format("rtn, {}, {}", options_.range_search ? "range by least squared error" : "full range", scales);
}

TensorEdits QuantizeMethod::edits() const { return folds_ ? folds_->edits() : TensorEdits(); }

Result<QuantizedWeight> QuantizeMethod::quantize(const DenseWeight& dense) {
  GridOptions grid = grid_;
  grid.scale_dtype = scale_dtype_.value_or(dense.values.dtype == DType::kFp16 ? DType::kFp16 : DType::kBf16);
  std::optional<LayerStatistics> statistics;
  if (statistics_ && statistics_->has(dense.name)) {
    const Stage stage(seconds_.statistics);
    Result<LayerStatistics> read = statistics_->read(dense.name);
    if (!read) return read.error();
    statistics = std::move(*read);
  } else if (statistics_ && options_.method != "rtn" && options_.method != "hqq") {
    warnings_.push_back(
        fmt::format("{}: the statistics file lacks this layer; its ranges are searched without weights", dense.name));
  }
  const DenseWeight* weights = &dense;
  std::optional<DenseWeight> scaled;
  if (folds_) {
    Result<DenseWeight> weight = folds_->apply(dense, grid.num_threads);
    if (!weight) return weight.error();
    weights = &scaled.emplace(std::move(*weight));
    if (statistics) {
      Result<LayerStatistics> input = folds_->apply(*statistics);
      if (!input) return input.error();
      statistics = std::move(*input);
    }
  }
  Result<QuantizedWeight> result = [&] {
    const Stage stage(seconds_.quantizing);
    return quantize(*weights, grid, statistics);
  }();
  if (!result || !statistics || !options_.report_errors) return result;
  const Stage stage(seconds_.errors);
  const Result<double> error = options_.on_gpu
                                   ? relative_output_error_cuda(*weights, *result, *statistics)
                                   : relative_output_error(*weights, *result, *statistics, grid.num_threads);
  if (!error) return error.error();
  errors_[dense.name] = *error;
  return result;
}

Result<QuantizedWeight> QuantizeMethod::quantize(const DenseWeight& dense, const GridOptions& grid,
                                                 const std::optional<LayerStatistics>& statistics) {
  if (options_.method == "rtn") {
    const RtnOptions rtn{.group_size = grid.group_size,
                         .symmetric = grid.symmetric,
                         .range_search = options_.range_search ? RangeSearch::kSquaredError : RangeSearch::kNone,
                         .scale_dtype = grid.scale_dtype,
                         .num_threads = grid.num_threads};
    return options_.on_gpu ? quantize_rtn_cuda(dense, rtn) : quantize_rtn(dense, rtn);
  }
  if (options_.method == "hqq") return quantize_hqq(dense, grid, {.round_zeros = true});
  if (!statistics) return quantize_range(dense, grid, range_of(options_, RangeRule::kShrink));
  return calibrated(dense, grid, *statistics);
}

Result<QuantizedWeight> QuantizeMethod::calibrated(const DenseWeight& dense, const GridOptions& grid,
                                                   const LayerStatistics& statistics) {
  if (options_.method == "awq") {
    if (options_.no_clip || !may_clip(dense.name)) return quantize_range(dense, grid, {.rule = RangeRule::kFull});
    constexpr int kClipSteps = 10;
    return options_.on_gpu ? quantize_clipped_cuda(dense, grid, kClipSteps, statistics)
                           : quantize_clipped(dense, grid, kClipSteps, statistics);
  }
  if (options_.method == "gptq" && statistics.hessian.empty())
    warnings_.push_back(fmt::format(
        "{}: the statistics file has mean squares only; rounded to nearest, weighted by them, instead of GPTQ",
        dense.name));
  if (options_.method == "range" || statistics.hessian.empty())
    return quantize_range(dense, grid, range_of(options_, RangeRule::kShrink), &statistics);
  GptqOptions gptq{.static_groups = options_.static_groups || options_.act_order == "static",
                   .range = range_of(options_, RangeRule::kFull),
                   .weighted_range = options_.weighted_range,
                   .damping = options_.damping};
  if (options_.act_order == "static") gptq.act_order = ActOrder::kFull;
  if (options_.act_order == "group-aware") gptq.act_order = ActOrder::kGroupAware;
  Result<GptqResult> result = options_.on_gpu ? quantize_gptq_cuda(dense, grid, gptq, statistics)
                                              : quantize_gptq(dense, grid, gptq, statistics);
  if (!result) return result.error();
  warnings_.insert(warnings_.end(), result->warnings.begin(), result->warnings.end());
  return std::move(result->weight);
}

}  // namespace nybble::cli
