// Regular expressions over names of layers and kernels. They may come from a hostile config.json, so no pattern can
// blow up: matching takes polynomial time and a pattern's size is bounded.
#pragma once

#include <regex>
#include <string>

#include "nybble/result.h"

namespace nybble::base {

class NamePattern {
 public:
  static Result<NamePattern> compile(const std::string& text);

  const std::string& text() const { return text_; }
  bool found_in(const std::string& name) const;       // anywhere
  bool matches_start(const std::string& name) const;  // Python's re.match: from the beginning, not to the end

 private:
  std::string text_;
  std::regex regex_;
};

}  // namespace nybble::base
