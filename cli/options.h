// Options that several verbs take, from text to value.
#pragma once

#include <optional>
#include <string>

#include "cli/output.h"
#include "nybble/launch.h"
#include "nybble/tuning.h"
#include "nybble/types.h"

namespace nybble::cli {

// Compute capability 9.0: the only one that the GPU kernels are built for.
inline constexpr int kHopperSm = 90;

// "128", "64", ... or "col".
Result<int> parse_group(const std::string& text);

struct DeviceOption {
  std::string text;  // "cpu", "cuda", or "auto": the GPU where there is one that can run the kernels
  int threads = 0;   // of the CPU; 0: all cores

  void add_to(CLI::App& verb, const std::string& default_text);
  // kUnsupported or kInvalidArgument where the device cannot be had.
  Result<Device> open() const;
  // The exit code for an error of open(): a GPU that is not there is the world's fault, not the request's.
  Exit exit_for_open(const Error& error) const;
};

// --table: measured times to choose kernels by, instead of those that ship.
struct TableOption {
  std::string file;  // a file of `nybble tune`, "none" for the cost model alone, or empty: what ships

  void add_to(CLI::App& verb);
  Result<std::optional<TuningTable>> load() const;
};

}  // namespace nybble::cli
