// `nybble quantize --method`: from the command line to a function that quantizes a layer.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/output.h"
#include "nybble/checkpoint.h"
#include "nybble/scale_folds.h"

namespace nybble::cli {

struct MethodOptions {
  std::string method = "rtn";
  std::string statistics;     // a file
  bool range_search = false;  // of rtn
  std::string range = "";     // full, shrink, percentile; empty: the method's own
  double norm = 2.4;
  bool weighted_range = false;  // of gptq
  std::string act_order = "none";
  bool static_groups = false;
  double damping = 0.01;
  int64_t awq_rows = 0;
  bool no_clip = false;
  bool report_errors = false;
  bool on_gpu = false;

  void add_to(CLI::App& verb);
  // kInvalidArgument for an option that the method does not take.
  Result<void> check(const CLI::App& verb) const;
};

// What a run spent in the method, in seconds.
struct MethodSeconds {
  double statistics = 0;  // reading and checking the file
  double quantizing = 0;
  double errors = 0;  // those that --report-errors asks for
};

// What a run needs of the method; made before anything is written.
class QuantizeMethod {
 public:
  // `grid.scale_dtype` is replaced, unless `scale_dtype` is given, by fp16 for fp16 weights and bf16 for others. AWQ
  // searches its scales here. `progress(done, total)` counts bytes of weights.
  static Result<std::unique_ptr<QuantizeMethod>> prepare(const MethodOptions& options, const GridOptions& grid,
                                                         std::optional<DType> scale_dtype, const std::string& model,
                                                         const QuantizeModelOptions& choice,
                                                         const std::function<void(int64_t, int64_t)>& progress);

  Result<QuantizedWeight> quantize(const DenseWeight& dense);
  std::string recipe() const;  // all that the result depends on, in words
  TensorEdits edits() const;

  const std::vector<std::string>& warnings() const { return warnings_; }
  const MethodSeconds& seconds() const { return seconds_; }
  // {layer: relative output error} where they were asked for.
  const Json& errors() const { return errors_; }

 private:
  QuantizeMethod(const MethodOptions& options, const GridOptions& grid, std::optional<DType> scale_dtype)
      : options_(options), grid_(grid), scale_dtype_(scale_dtype) {}
  Result<QuantizedWeight> quantize(const DenseWeight& dense, const GridOptions& grid,
                                   const std::optional<LayerStatistics>& statistics);
  Result<QuantizedWeight> calibrated(const DenseWeight& dense, const GridOptions& grid,
                                     const LayerStatistics& statistics);

  MethodOptions options_;
  GridOptions grid_;
  std::optional<DType> scale_dtype_;
  std::optional<StatisticsFile> statistics_;
  uint64_t statistics_hash_ = 0;
  std::optional<ScaleFolds> folds_;
  std::vector<std::string> warnings_;
  MethodSeconds seconds_;
  Json errors_ = Json::object();
};

}  // namespace nybble::cli
