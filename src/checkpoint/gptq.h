// Models in GPTQ's tensors (gptq.cc draws them), whatever method's settings say how to read them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "checkpoint/layer_settings.h"
#include "nybble/checkpoint.h"

namespace nybble::checkpoint {

// How a stored zero point of an asymmetric layer becomes the true one. Writers of the first version differ where a zero
// point is 0 or 16, so who wrote the file decides.
enum class ZeroRule {
  kTrue,       // the second version
  kWholeWord,  // GPTQModel: 0x11111111 is added to the word, the inverse of its packer's subtraction
  kNibble,     // AutoGPTQ: (z + 1) mod 16
  kUnmasked,   // AutoRound: z + 1, up to 16
};

struct GptqSettings {
  const char* format = nullptr;  // the method's name
  std::string stated;            // what the settings call the format: "gptq_v2"; empty: there are none
  ModelSettings layers;
  ZeroRule rule = ZeroRule::kNibble;
  std::vector<std::string> warnings;  // to begin the checkpoint's with
};

// `budget` is what matching names may cost yet.
Result<std::unique_ptr<Checkpoint>> open_gptq_tensors(std::shared_ptr<const ModelFiles> model, GptqSettings settings,
                                                      base::MatchBudget& budget);

}  // namespace nybble::checkpoint
