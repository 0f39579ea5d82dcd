// Reads what the kernel shows in files.
#include "runtime/machine.h"

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

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(std::min(line.find(": ") + 2, line.size()));
  return "unknown CPU";
}

}  // namespace nybble::runtime
