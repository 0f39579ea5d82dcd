#include "fuzz/targets.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "checkpoint/safetensors.h"
#include "dispatch/tuning_data.h"
#include "fuzz/folder_image.h"
#include "fuzz/memory_files.h"
#include "nybble/gguf.h"
#include "nybble/pack.h"
#include "nybble/statistics.h"
#include "support/soundness.h"

namespace nybble::fuzz {
namespace {

using Bytes = std::span<const uint8_t>;

// Ends the process as a sanitizer would: the input that led here is a finding.
void require(bool kept, const std::string& broken) {
  if (kept) return;
  std::fprintf(stderr, "broken promise: %s\n", broken.c_str());
  std::abort();
}

// Every refusal has words that name the file.
template <class T> bool refused(const Result<T>& result) {
  if (result) return false;
  require(result.error().message.find(kFolder) != std::string::npos,
          "an error that names no file: " + result.error().message);
  return true;
}

void require_sound(const Checkpoint& checkpoint) {
  const std::string fault = testing::fault_of(checkpoint);
  require(fault.empty(), fault);
}

void run_model(const Target&, Bytes input) {
  set_memory_files(view_image(input));
  const Result<std::unique_ptr<Checkpoint>> checkpoint = open_checkpoint(kFolder);
  if (!refused(checkpoint)) require_sound(**checkpoint);
}

// Only models of the target's format go on, so that what is learned of it is not diluted by the others.
void run_reader(const Target& target, Bytes input) {
  set_memory_files(view_image(input));
  Result<std::shared_ptr<const checkpoint::ModelFiles>> model = checkpoint::ModelFiles::open(kFolder);
  if (refused(model)) return;
  const Result<const checkpoint::Format*> format = checkpoint::find_format(**model);
  if (refused(format) || *format != target.format) return;
  const Result<std::unique_ptr<Checkpoint>> checkpoint = (*format)->open(std::move(*model));
  if (!refused(checkpoint)) require_sound(**checkpoint);
}

void run_safetensors(const Target&, Bytes input) {
  set_memory_files({{"model.safetensors", input}});
  Result<base::File> opened = base::File::open(memory_path("model.safetensors"));
  require(opened.ok(), "a file in memory opens");
  const Result<checkpoint::SafetensorsFile> file = checkpoint::SafetensorsFile::open(std::move(*opened));
  if (refused(file)) return;
  uint64_t data_bytes = 0;
  for (const checkpoint::TensorInfo& tensor : file->tensors()) {
    require(file->find(tensor.name) == &tensor, "a tensor is found by its name");
    std::vector<std::byte> bytes(tensor.size_bytes());
    require(file->read(tensor, 0, bytes).ok(), "a tensor that was accepted is read");
    data_bytes += bytes.size();
  }
  require(data_bytes <= input.size(), "tensors do not overlap");
}

void run_gguf(const Target&, Bytes input) {
  const std::string path = memory_path("model.gguf");
  set_memory_files({{"model.gguf", input}});
  const Result<std::unique_ptr<Checkpoint>> checkpoint = open_checkpoint(path);
  if (refused(checkpoint)) return;
  require_sound(**checkpoint);
  const Result<GgufMetadata> metadata = GgufMetadata::read(path);
  require(metadata.ok(), "the metadata of an open model is read");
  for (const std::string& key : metadata->keys()) {
    const bool single = metadata->boolean(key).ok() || metadata->number(key).ok() || metadata->text(key).ok();
    const bool array = metadata->numbers(key).ok() || metadata->texts(key).ok();
    require(!single || !array, "a value is no array of one");
    require(!metadata->integer(key).ok() || metadata->number(key).ok(), "an integer is a number");
    require(!metadata->integers(key).ok() || metadata->numbers(key).ok(), "integers are numbers");
  }
}

void run_packed(const Target&, Bytes input) {
  set_memory_files({{"weight.nybble", input}});
  const Result<PackedWeight> packed = load_packed(memory_path("weight.nybble"));
  if (refused(packed)) return;
  require(packed->size_bytes() == input.size(), "a packed weight is its file");
  const Result<QuantizedWeight> weight = unpack(*packed);
  if (!weight) return;  // numbers without a meaning, which the loader leaves to the unpacker
  require(validate(*weight).ok(), "what was unpacked is valid");
  require(dequantize(*weight).size() == static_cast<size_t>(weight->n * weight->k), "what was unpacked has its size");
  const Result<PackedWeight> again = pack(*weight);
  if (!again) return;  // scales that no pack() would have stored
  const Result<QuantizedWeight> twice = unpack(*again);
  require(twice && twice->codes == weight->codes && twice->scales.bytes == weight->scales.bytes &&
              twice->int_zeros == weight->int_zeros && twice->float_zeros.bytes == weight->float_zeros.bytes &&
              twice->k_order == weight->k_order,
          "unpack() is the inverse of pack()");
}

void run_tuning_table(const Target&, Bytes input) {
  const std::string_view text(reinterpret_cast<const char*>(input.data()), input.size());
  const Result<TuningTable> table = parse_tuning_table(text, kFolder);
  if (refused(table)) return;
  require(!table->empty(), "a table that was read is none without measurements");
  for (TunedFormatTimes& format : table->data()->formats)
    for (const TunedKernel& kernel : format.kernels)
      for (const TunedShape& shape : kernel.shapes)
        for (const TunedTime& time : shape.times)
          require(time.us > 0 && std::isfinite(time.us) && time.m > 0, "times are positive");
}

void run_statistics(const Target&, Bytes input) {
  set_memory_files({{"statistics.safetensors", input}});
  const Result<StatisticsFile> file = StatisticsFile::open(memory_path("statistics.safetensors"));
  if (refused(file)) return;
  require(file->content_hash().ok(), "an open file is hashed");
  for (const std::string& layer : file->layers()) {
    require(file->has(layer), "a layer that is listed is there");
    const Result<LayerStatistics> read = file->read(layer);
    if (!refused(read)) require(validate(*read).ok(), "statistics that were read are valid");
  }
}

}  // namespace

const std::vector<Target>& targets() {
  static const std::vector<Target> list = [] {
    std::vector<Target> all = {
        {"safetensors", InputKind::kSafetensors, run_safetensors},
        {"index", InputKind::kFolder, run_model},
        {"config", InputKind::kConfig, run_model},
        {"gguf", InputKind::kGguf, run_gguf},
        {"packed", InputKind::kPacked, run_packed},
        {"tuning_table", InputKind::kJson, run_tuning_table},
        {"statistics", InputKind::kSafetensors, run_statistics},
    };
    for (const checkpoint::Format* format : checkpoint::formats())
      all.push_back({std::string("reader-") + format->name, InputKind::kFolder, run_reader, format});
    return all;
  }();
  return list;
}

const Target* find_target(const std::string& name) {
  for (const Target& target : targets())
    if (target.name == name) return &target;
  return nullptr;
}

}  // namespace nybble::fuzz
