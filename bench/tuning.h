// Tuning: the kernels that may win, timed on each problem, and the file that says what they took. The library reads it
// as a TuningTable.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "base/name_pattern.h"
#include "bench/duty.h"
#include "bench/results.h"
#include "bench/shapes.h"

namespace nybble::bench {

// The measurements of one device, as they stand in a file.
class TuningFile {
 public:
  // `kernels`: the regular expression that chose the kernels by name, which the file then says, because plans by it
  // will choose no others; empty: all had their chance.
  TuningFile(const RunInfo& run, const Device& device, const std::string& kernels = "");
  // What stands in `path` already, or nothing yet. Rows of another device, driver, commit or choice of kernels are
  // refused.
  static Result<TuningFile> extend(const std::string& path, const RunInfo& run, const Device& device,
                                   const std::string& kernels = "");

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

// Which of the kernels that fit a problem are tried: those of such names, of these those of the lowest estimates.
struct KernelChoice {
  std::optional<base::NamePattern> names;  // found anywhere in a name; unset: all
  int top = 8;                             // so many; 0: all
  double within = 4;                       // and within this factor of the lowest estimate among them; 0: all
};

struct TuneOptions {
  MeasureOptions measure;    // its kernel and its duty do not count
  std::optional<Duty> duty;  // unset: the usual one for m
  KernelChoice choice;
  TimeLimit limit;  // problems left when it is over are not begun
};

// The kernels to try on a problem, and their estimates, lowest first.
struct Candidates {
  std::vector<std::string> kernels;
  std::vector<double> estimates_us;
};
Candidates candidates(const Problem& problem, const Device& device, const KernelChoice& choice);

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
