// Tuning: the kernels that may win, timed on each problem, and the file that says what they took. The library reads it
// as a TuningTable.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "bench/duty.h"
#include "bench/results.h"
#include "bench/shapes.h"

namespace nybble::bench {

// The measurements of one device, as they stand in a file.
class TuningFile {
 public:
  TuningFile(const RunInfo& run, const Device& device);
  // What stands in `path` already, or nothing yet. Rows of another device, driver or commit are refused.
  static Result<TuningFile> extend(const std::string& path, const RunInfo& run, const Device& device);

  bool has(const Problem& problem) const { return problems_.contains(to_string(problem)); }
  // Those of `measured` that are right, the quickest first, each with the cost model's estimate.
  void add(const Problem& problem, Duty duty, const std::vector<Measurement>& measured,
           const std::vector<double>& estimates_us);
  size_t size() const { return rows_.size(); }
  const Json& rows() const { return rows_; }

  Result<void> write(const std::string& path) const;  // atomically

 private:
  Json head_, rows_ = Json::array();
  std::set<std::string> problems_;
};

struct TuneOptions {
  MeasureOptions measure;    // its kernel and its duty do not count
  std::optional<Duty> duty;  // unset: the usual one for m
  int top = 8;               // kernels of the lowest estimates that are tried; 0: all that fit
  TimeLimit limit;           // problems left when it is over are not begun
};

// The kernels to try on a problem, and their estimates, lowest first. With `top`, none that is estimated to take
// several times as long as the first.
struct Candidates {
  std::vector<std::string> kernels;
  std::vector<double> estimates_us;
};
Candidates candidates(const Problem& problem, const Device& device, int top);

struct TuneReport {
  // Problems: measured, those that the file had already, and those that the time limit left.
  int measured = 0, kept = 0, left = 0;
  std::vector<std::string> refused;  // problems that no kernel can do, with the reason
  std::vector<std::string> wrong;    // kernels whose result was wrong, with what was wrong
};

// Measures what the file lacks. `done` is called after each problem, also one that was kept or refused, with the number
// of those so far; an error from it ends the tuning.
Result<TuneReport> tune(Bench& bench, const Work& work, const TuneOptions& options, TuningFile& file,
                        const std::function<Result<void>(int64_t)>& done);

}  // namespace nybble::bench
