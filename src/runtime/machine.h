// What the operating system tells about this machine.
#pragma once

#include <optional>
#include <string>

namespace nybble::runtime {

// The release of the NVIDIA kernel driver, e.g. "580.159.03"; empty where none is loaded or the system hides it. CUDA
// itself only tells which CUDA version a driver supports.
std::optional<std::string> driver_release();

std::string cpu_model();  // "Intel(R) Xeon(R) Platinum 8480+"

}  // namespace nybble::runtime
