// The measurements behind a TuningTable, and what they say of a kernel's time on a problem.
//
// What a kernel is expected to take, given the cost model's estimate of it:
//   1. Measured on exactly this format, n, k and m: that time. make_plan then compares measured kernels only.
//   2. Otherwise the estimate times a correction: what measurements in this format took, as multiples of their own
//      estimates. Logarithms of these ratios are averaged.
//      - Within a shape (n, k) they run straight between the measured m, over ln m, and stay level beyond the ends.
//      - The problem's own shape counts by exp(-distance / 3); distance is |ln m| to the nearest m measured.
//      - The rest is a mean over the other shapes, each weighted by 1 / (0.1 + ln n^2 + ln k^2 + 0.3 distance^2),
//      beside
//        a weight of 3 for what all kernels around the problem share; and that is their mean, so weighted, beside a
//        weight of 3 for no correction. So measurements far away change little, and a kernel that was not measured
//        does not win because the others' estimates were found too low.
//   3. A format without measurements: the estimate. docs/decisions/0004-measured-tables.md says why, and how well all
//      this chooses.
#pragma once

#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "nybble/tuning.h"
#include "runtime/kernel_entry.h"

namespace nybble {

// What counts of a format here: a bias, a residual or the order of input features costs every kernel alike.
struct TunedFormat {
  DType act_dtype, scale_dtype;
  ZeroKind zero_kind;
  int group_size;

  static TunedFormat of(const Problem& problem);
  Problem problem(int64_t m, int64_t n, int64_t k) const;
  friend bool operator==(const TunedFormat&, const TunedFormat&) = default;
};

struct TunedTime {
  int64_t m;
  double us;
  double estimate_us;  // the file's, until an Expectations has put this library's in its place; 0: not known
};

struct TunedShape {
  int64_t n, k;
  std::vector<TunedTime> times;  // by m
};

struct TunedKernel {
  std::string name;
  const KernelEntry* entry;  // null: this library has no kernel of that name
  std::vector<TunedShape> shapes;
};

// All times of one format.
struct TunedFormatTimes {
  TunedFormat format;
  std::vector<TunedKernel> kernels;
  std::once_flag estimated;
};

struct TuningData {
  std::string device;   // TuningTable::device()
  int num_threads = 0;  // CPU only
  std::deque<TunedFormatTimes> formats;

  // False where the kernel's time on this problem was there already.
  bool add(const Problem& problem, const std::string& kernel, double us, double estimate_us = 0);
  TunedFormatTimes* find(const Problem& problem);
};

// From the text of a file that may lie; `what` names it in errors.
Result<TuningTable> parse_tuning_table(std::string_view text, const std::string& what);

// The name that a table must have been measured under.
std::string tuned_device_name(const Device& device);

// What `us` of a kernel counts in the choice (KernelEntry::chain_factor). Null: a kernel that this library has not.
double counted_us(const KernelEntry* entry, const Problem& problem, double us);

// What to leave out of a table, to judge what it says of problems that it was not measured on.
enum class LeaveOut : uint8_t { kNothing, kProblem, kShape };

// A table as it stands to one problem.
class Expectations {
 public:
  struct Expectation {
    double us;
    bool measured;      // on exactly this problem
    double correction;  // us as a multiple of the estimate
  };

  Expectations(const TuningTable& table, const Problem& problem, const Device& device,
               LeaveOut leave_out = LeaveOut::kNothing);
  Expectation expect(const std::string& kernel, double estimate_us) const;

 private:
  struct Sum {
    double weights = 0, sum = 0;
    void add(double weight, double value) { weights += weight, sum += weight * value; }
    void add(const Sum& other) { weights += other.weights, sum += other.sum; }
    double mean() const { return sum / weights; }
  };
  bool is_own(const TunedShape& shape) const { return shape.n == problem_.n && shape.k == problem_.k; }
  Sum around(const TunedKernel& kernel, bool own_too) const;

  const TunedFormatTimes* times_ = nullptr;
  Problem problem_;
  LeaveOut leave_out_;
  double common_ = 0;  // logarithm of the correction that all kernels share around the problem
};

}  // namespace nybble
