// The list of formats, most particular first, and the door to all of them.
#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/format.h"
#include "checkpoint/gguf.h"
#include "checkpoint/gguf_file.h"

namespace nybble::checkpoint {
namespace {

constexpr const Format* kFormats[] = {
    &kCompressedTensorsFormat, &kAutoRoundFormat, &kAwqFormat,   &kGptqFormat,  &kBitsAndBytesFormat, &kHqqFormat,
    &kTorchaoFormat,           &kModelOptFormat,  &kMxfp4Format, &kDenseFormat,
};

}  // namespace

std::span<const Format* const> formats() { return kFormats; }

Result<const Format*> find_format(const ModelFiles& model) {
  std::string known;
  for (const Format* format : kFormats) {
    if (format->recognizes(model)) return format;
    known += known.empty() ? format->name : std::string(", ") + format->name;
  }
  const nlohmann::json& settings = model.quantization_config();
  const std::string method = string_member(settings, "quant_method");
  if (!settings.is_null())
    return unsupported(
        "{}: config.json says that it is quantized with {}; known formats are {}. Start from the model's "
        "unquantized weights instead",
        model.path(), method.empty() ? "an unnamed method" : base::printable(method), known);
  return unsupported("{}: its tensors belong to a quantization format that no config.json names; known formats are {}",
                     model.path(), known);
}

}  // namespace nybble::checkpoint

namespace nybble {

Result<std::unique_ptr<Checkpoint>> open_checkpoint(const std::string& path) {
  if (checkpoint::is_gguf_path(path)) return checkpoint::open_gguf(path);
  Result<std::shared_ptr<const checkpoint::ModelFiles>> model = checkpoint::ModelFiles::open(path);
  if (!model) return model.error();
  const Result<const checkpoint::Format*> format = checkpoint::find_format(**model);
  if (!format) return format.error();
  return (*format)->open(std::move(*model));
}

}  // namespace nybble
