// What a checkpoint format is to the rest of the room. A new format is one file that defines one of these, its
// declaration below, and one line in formats.cc.
#pragma once

#include <memory>
#include <span>

#include "checkpoint/model_files.h"
#include "nybble/checkpoint.h"

namespace nybble::checkpoint {

struct Format {
  const char* name;
  // Whether the model speaks this format, by its configuration or its tensors' names. It need not be whole: what is
  // wrong with it, open() says.
  bool (*recognizes)(const ModelFiles& model);
  Result<std::unique_ptr<Checkpoint>> (*open)(std::shared_ptr<const ModelFiles> model);
};

extern const Format kCompressedTensorsFormat;
extern const Format kBitsAndBytesFormat;
extern const Format kAutoRoundFormat;
extern const Format kAwqFormat;
extern const Format kGptqFormat;
extern const Format kHqqFormat;
extern const Format kModelOptFormat;
extern const Format kMxfp4Format;
extern const Format kTorchaoFormat;
extern const Format kDenseFormat;

// All of them, most particular first.
std::span<const Format* const> formats();

// The first format of the list that recognizes the model; an error that names what was found and what is known.
Result<const Format*> find_format(const ModelFiles& model);

}  // namespace nybble::checkpoint
