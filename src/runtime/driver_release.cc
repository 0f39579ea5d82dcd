// Asks the kernel's files: the CUDA runtime only tells which CUDA version a driver supports.
#include "runtime/driver_release.h"

#include <fstream>
#include <regex>

namespace nybble::runtime {

std::optional<std::string> driver_release() {
  for (const char* path : {"/sys/module/nvidia/version", "/proc/driver/nvidia/version"}) {
    std::ifstream file(path);
    std::string line;
    std::smatch found;
    if (std::getline(file, line) && std::regex_search(line, found, std::regex(R"(\b\d{3}\.\d+(\.\d+)?\b)")))
      return found.str();
  }
  return std::nullopt;
}

}  // namespace nybble::runtime
