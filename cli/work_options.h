// The options that say what to measure; `bench` and `tune` share them.
#pragma once

#include <string>

#include "bench/bench.h"
#include "bench/shapes.h"
#include "cli/output.h"

namespace nybble::cli {

struct WorkOptions {
  std::string model, shape, set, m, group = "128", act = "bf16", zero_point = "none", duty = "auto";
  int replays = 0;
  bool no_pdl = false;
  double time_limit = 0;  // seconds; 0: none

  void add_to(CLI::App& verb);
  std::string shapes_name() const;  // the model, or the shapes as they were given
  Result<bench::Work> work(DeviceKind device) const;
  bench::Duty duty_for(int64_t m) const;
};

}  // namespace nybble::cli
