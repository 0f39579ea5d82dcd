// The release of the NVIDIA kernel driver.
#pragma once

#include <optional>
#include <string>

namespace nybble::runtime {

// "580.159.03"; empty where no driver is loaded or the system hides it. Needs no CUDA call.
std::optional<std::string> driver_release();

}  // namespace nybble::runtime
