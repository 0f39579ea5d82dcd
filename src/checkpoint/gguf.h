// GGUF models as checkpoints. They do not come in safetensors, so they are no Format of format.h: open_checkpoint()
// asks is_gguf_path() first.
#pragma once

#include <memory>
#include <string>

#include "nybble/checkpoint.h"

namespace nybble::checkpoint {

Result<std::unique_ptr<Checkpoint>> open_gguf(const std::string& path);

}  // namespace nybble::checkpoint
