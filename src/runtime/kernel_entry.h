// What every kernel, on the CPU or the GPU, tells about itself: a row of the registry.
#pragma once

#include <functional>
#include <string>

#include "nybble/launch.h"
#include "nybble/types.h"

namespace nybble {

struct KernelEntry {
  std::string name;
  DeviceKind device = DeviceKind::kCpu;
  Numerics numerics = Numerics::kExactWeight;

  // Why this kernel cannot do the problem on the device, and what would help; empty: it can. The one place where that
  // is decided: make_plan, explain_kernels, tests and the CLI all ask here.
  std::function<std::string(const Problem&, const Device&)> why_not;
  // The cost model's microseconds; only asked where why_not is empty.
  std::function<double(const Problem&, const Device&)> estimate_us;
  // What a microsecond among its own kind counts in the choice, where it costs the launches around it more than such a
  // time shows; empty: 1.
  std::function<double(const Problem&)> chain_factor;
  std::function<size_t(const Problem&, const Device&)> workspace_bytes;
  // Runs or enqueues. Pointers, leading dimensions and workspace were checked against the problem before.
  std::function<Result<void>(const Problem&, const Device&, const LaunchArgs&, bool pdl)> launch;
};

}  // namespace nybble
