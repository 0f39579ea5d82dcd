// The inputs that fuzzing starts from: the fixtures of tests/data, and small ones made here for what has none.
#pragma once

#include <string>
#include <vector>

namespace nybble::fuzz {

struct Seed {
  std::string target, name, bytes;
};

// `data` is the folder tests/data.
std::vector<Seed> seeds(const std::string& data);

// Writes them as FOLDER/TARGET/NAME and returns how many.
int write_seeds(const std::string& data, const std::string& folder);

}  // namespace nybble::fuzz
