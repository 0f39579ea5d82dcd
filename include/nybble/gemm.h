// Problem (asked) -> Plan (chosen) -> launch (nothing left to decide).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nybble/launch.h"
#include "nybble/tuning.h"
#include "nybble/weight.h"

#pragma GCC visibility push(default)
namespace nybble {

class Plan;

struct PlanOptions {
  std::string kernel;  // force this kernel by name; empty: choose
  bool pdl = true;     // launch so that it may overlap its predecessor's end (programmatic dependent launch)
  // Measured times to choose by; unset: those that ship for this device; an empty table: the cost model alone.
  std::optional<TuningTable> table;
};

Result<Plan> make_plan(const Problem& problem, const Device& device, const PlanOptions& options = {});

// Checks its arguments, then runs (CPU) or enqueues (CUDA). Allocates nothing on the device, synchronizes nothing, may
// be captured into a CUDA graph. A Plan may be used by many threads and streams at once, each launch in flight with its
// own workspace.
Result<void> launch(const Plan& plan, const LaunchArgs& args);

struct KernelEntry;  // opaque: a row of the registry

// What make_plan chose. An immutable value.
class Plan {
 public:
  const Problem& problem() const { return problem_; }
  const Device& device() const { return device_; }
  const std::string& kernel() const;  // its name, e.g. "sm90_gemm_bf16_g128_t256x128x128_s3_c2k1_o1"
  Numerics numerics() const;          // which sum that kernel computes
  size_t workspace_bytes() const { return workspace_bytes_; }
  const std::string& why() const { return why_; }  // one line: why this kernel
  bool pdl() const { return pdl_; }

 private:
  friend Result<Plan> make_plan(const Problem&, const Device&, const PlanOptions&);
  friend Result<void> launch(const Plan&, const LaunchArgs&);
  Plan() = default;

  Problem problem_;
  Device device_;
  const KernelEntry* entry_ = nullptr;
  size_t workspace_bytes_ = 0;
  std::string why_;
  bool pdl_ = true;
};

std::string to_string(const Plan& plan);

// One row of the registry as it stands to a problem: the list of `nybble kernels --why`.
struct KernelVerdict {
  std::string kernel;
  bool fits = false;
  std::string reason;  // why not, and what would help; empty when it fits
  // When it fits:
  double estimated_us = 0;            // by the cost model; 0 where there is none
  std::optional<double> measured_us;  // by the table, for exactly this problem
  double expected_us = 0;             // measured, or estimated and corrected by the table
  double counted_us = 0;              // what it is chosen by: that, and more where it costs the launches around it more
};

// Every kernel of the library, in the order of the registry, judged for this problem and device. make_plan chooses, of
// the kernels that fit, the one that counts least; where some are measured, only of these. Of the options only the
// table counts here, and one that was not made for the device is left aside.
std::vector<KernelVerdict> explain_kernels(const Problem& problem, const Device& device,
                                           const PlanOptions& options = {});

}  // namespace nybble
#pragma GCC visibility pop
