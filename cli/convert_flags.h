// The options of the verbs that write a model in another format.
#pragma once

#include <string>
#include <vector>

#include "cli/output.h"
#include "nybble/convert.h"

namespace nybble::cli {

struct ConvertFlags {
  std::string to = "compressed-tensors";
  std::string dtype = "fp32", scale_dtype;
  ConvertOptions options;

  // `more`: what `to` may be beside the formats of convert_model().
  void add_to(CLI::App& verb, const std::vector<std::string>& more = {});
  // Options for convert_model(); of another `to`, the target means nothing.
  Result<ConvertOptions> parse() const;
};

}  // namespace nybble::cli
