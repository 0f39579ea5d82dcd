// Problem (asked) -> Plan (chosen) -> launch (nothing left to decide).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "nybble/launch.h"
#include "nybble/weight.h"

#pragma GCC visibility push(default)
namespace nybble {

class Plan;

struct PlanOptions {
  std::string kernel;  // force this kernel by name; empty: choose
  bool pdl = true;     // launch so that it may overlap its predecessor's end (programmatic dependent launch)
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
  const std::string& kernel() const;  // its name, e.g. "sm90_gemm_bf16_g128_t128x256x128_s4_c2k1_o1"
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
  std::string reason;       // why not, and what would help; empty when it fits
  double estimated_us = 0;  // the cost model's figure when it fits; 0 where there is none
};

// Every kernel of the library, in the order of the registry, judged for this problem and device.
std::vector<KernelVerdict> explain_kernels(const Problem& problem, const Device& device);

}  // namespace nybble
#pragma GCC visibility pop
