// Models in AWQ's tensors (awq.cc draws them), whatever method's settings say how to read them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "checkpoint/int4_words.h"
#include "checkpoint/layer_settings.h"
#include "nybble/checkpoint.h"

namespace nybble::checkpoint {

// In which nibble of gemm's words column n % 8 stands.
inline constexpr int64_t kAwqNibbleOf[kNibblesPerWord] = {0, 4, 1, 5, 2, 6, 3, 7};

enum class AwqVersion { kGemm, kGemv, kGemvFast, kLlmAwq };

struct AwqSettings {
  const char* format = nullptr;  // the method's name
  AwqVersion version = AwqVersion::kGemm;
  ModelSettings layers;
  std::vector<std::string> not_converted;  // parts of the names of layers that should be dense
  std::vector<std::string> warnings;       // to begin the checkpoint's with
};

// `budget` is what matching names may cost yet.
Result<std::unique_ptr<Checkpoint>> open_awq_tensors(std::shared_ptr<const ModelFiles> model, AwqSettings settings,
                                                     base::MatchBudget& budget);

}  // namespace nybble::checkpoint
