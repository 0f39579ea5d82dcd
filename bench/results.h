// Result files: rows of measurements with where, when and by what command they were taken.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "bench/bench.h"
#include "bench/chain.h"

namespace nybble::bench {

using Json = nlohmann::ordered_json;

// One measured figure; the JSON has the same names.
struct Row {
  std::string problem;
  std::string impl;  // "nybble", "cublas", "humming", "eigen"
  int64_t m = 0;
  std::optional<int64_t> n, k;  // absent for a chain of several layers
  std::string act;
  std::optional<int> group_size;  // 0: per column; absent for dense weights, as are format and zero_point
  std::optional<std::string> zero_point;
  std::optional<std::string> kernel;
  std::optional<bool> pdl;
  std::string duty;
  double us = 0;
  std::optional<double> floor_us;  // of the problem, whatever the implementation
  std::optional<double> dense_us;  // the dense product's, measured between the same replays
  double spread = 0;
  std::optional<double> sm_mhz;

  // Two rows with the same key answer the same question.
  std::string key() const;
};

// The rows one measurement makes: nybble's own, and the dense product's where it was measured.
std::vector<Row> rows_of(const Measurement& measurement, Duty duty, const std::string& dense_impl);

Row row_of(const ChainMeasurement& measurement, bool pdl, Duty duty);

// Where, when and by what command figures were taken: the head of every file of them.
struct RunInfo {
  std::string machine;  // "gpu" or "cpu": which key the name stands under
  std::string name;
  std::optional<std::string> driver;  // GPU only, like cuda
  std::optional<std::string> cuda;
  std::string commit;
  std::string date;  // UTC, ISO 8601
  std::string command;
};

RunInfo describe_run(const Device& device, const std::string& command);
Json to_json(const RunInfo& run);  // without the schema
// May throw Json::exception.
RunInfo run_from(const Json& json);
// Refuses rows of another device, driver or commit beside those of `before`, which stand in `path`.
Result<void> check_same_run(const std::string& path, const RunInfo& before, const RunInfo& now);

// How the chip was worked while it was timed, so that whoever reads a file need not have this build.
Json duty_cycles();

// One of its "rows" a line: readable, and a diff shows which figures moved. Atomically.
Result<void> write_json(Json file, const std::string& path);

// Four digits after the point: a tenth of a nanosecond, far below any spread.
double rounded(double value);

struct ResultFile {
  RunInfo run;
  std::vector<Row> rows;
};

Json to_json(const Row& row);
Json to_json(const ResultFile& file);
Result<void> write_results(const ResultFile& file, const std::string& path);
Result<ResultFile> read_results(const std::string& path);

// The rows of one run on their way to a file, or added to the file of an earlier one.
class ResultLog {
 public:
  // Rows go to `json_path`, overwritten, or to `resume_path`, added to what is there, or nowhere where both are empty.
  // Refuses a file whose rows must not stand beside new ones: of another device, driver or commit.
  static Result<ResultLog> open(RunInfo run, const std::string& json_path, const std::string& resume_path);

  bool has(const Row& question) const { return known_.contains(question.key()); }
  Result<void> add(std::vector<Row> rows);  // and writes the file
  Result<void> write() const;               // also without rows
  const ResultFile& file() const { return file_; }
  const std::string& path() const { return path_; }

 private:
  ResultFile file_;
  std::string path_;
  std::set<std::string> known_;
};

}  // namespace nybble::bench
