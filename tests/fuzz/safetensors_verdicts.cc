// Reads names of files, one a line, and says of each what the safetensors reader says: "accept", or "refuse" and why.
// tests/fuzz/differential.py compares that with the reference library.
#include <iostream>
#include <string>

#include "checkpoint/safetensors.h"

int main() {
  for (std::string path; std::getline(std::cin, path);) {
    nybble::Result<nybble::base::File> file = nybble::base::File::open(path);
    if (!file) {
      std::cout << "refuse " << file.error().message << '\n';
      continue;
    }
    const auto opened = nybble::checkpoint::SafetensorsFile::open(std::move(*file));
    std::cout << (opened ? "accept" : "refuse " + opened.error().message) << '\n';
  }
}
