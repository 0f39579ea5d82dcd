// What every Hopper kernel of one GemmFormat refuses, with the reason and the way out.
#pragma once

#include <string>

#include "kernels/gemm_config.h"
#include "nybble/launch.h"

namespace nybble::kernels {

// Empty: an instance of this format can read the weight and the activations. What depends on the tile is the family's.
std::string why_not_hopper_format(const GemmFormat& format, const Problem& problem, const Device& device);

}  // namespace nybble::kernels
