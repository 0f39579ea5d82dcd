// The options of the verbs that write a model in another format.
#pragma once

#include <string>

#include "cli/output.h"
#include "nybble/convert.h"

namespace nybble::cli {

struct ConvertFlags {
  std::string to;
  std::string dtype = "fp32", scale_dtype;
  ConvertOptions options;

  void add_to(CLI::App& verb);
  Result<ConvertOptions> parse() const;
};

}  // namespace nybble::cli
