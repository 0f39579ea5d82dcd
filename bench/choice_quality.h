// How good the choice without tuning is: the time of the kernel that make_plan would choose against the best measured
// one, by the lookup that make_plan itself uses.
#pragma once

#include <string>
#include <vector>

#include "nybble/tuning.h"

namespace nybble::bench {

// One way to choose, over all problems of a format where more than one kernel was measured.
struct ChoiceQuality {
  std::string choice;
  double geomean = 1;  // of chosen / best
  double worst = 1;
  int over_3 = 0, over_10 = 0;  // problems where the chosen kernel takes more than so many per cent longer
  std::string worst_problem, chosen, best;
};

struct FormatQuality {
  std::string format;  // "bf16 g128"
  int problems = 0;
  size_t fewest = 0, most = 0;      // kernels measured on a problem
  size_t foreign = 0;               // kernels that this build lacks: judged by the estimates in the file
  std::vector<ChoiceQuality> ways;  // the cost model alone, the shipped table, this one, this one without ...
};

std::vector<FormatQuality> judge_choices(const TuningTable& table);

}  // namespace nybble::bench
