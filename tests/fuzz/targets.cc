#include "fuzz/targets.h"

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <bit>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "base/json_text.h"
#include "base/name_pattern.h"
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

// ---- Regular expressions -------------------------------------------------------------------------------------------

using base::MatchBudget;
using base::NamePattern;

// PCRE2 is not instrumented, so its branches lead the fuzzer nowhere: these counters, which libFuzzer counts among its
// own, tell it what an answer cost instead.
[[gnu::section("__libfuzzer_extra_counters"), gnu::used]] uint8_t costs[256];

void note(int64_t steps, unsigned kind) {
  ++costs[4 * static_cast<unsigned>(std::bit_width(static_cast<uint64_t>(steps))) + kind];
}

double processor_seconds() {
  timespec now{};
  require(::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0, "the processor's time is told");
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// An expression without any character that means something.
bool is_plain(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isalnum(c) != 0 || c == '_'; });
}

// One name and one expression: the same answer at the same cost again, and the right one where it is easily told.
void compare(const NamePattern& pattern, const std::string& name, MatchBudget& budget) {
  MatchBudget again = budget;
  const int64_t before = budget.spent();
  const bool found = pattern.found_in(name, budget), start = pattern.matches_start(name, budget);
  note(budget.spent() - before, 2 * found + start);
  require(pattern.found_in(name, again) == found && pattern.matches_start(name, again) == start &&
              again.spent() == budget.spent(),
          "the same question has the same answer and the same cost");
  if (budget.is_spent()) {
    require(!start, "a budget that is spent says no");
    require(!pattern.found_in(name, budget) && budget.is_spent(), "a budget that is spent stays so");
    require(!budget.check("it").ok(), "a budget that is spent has an error");
    return;
  }
  require(!start || found, "what matches from the beginning is found");
  if (!is_plain(pattern.text())) return;
  require(found == (name.find(pattern.text()) != std::string::npos), "plain text is found where it is");
  require(start == name.starts_with(pattern.text()), "plain text matches where it is");
}

// Every name is found by the expression that spells it out.
void spell_out(const std::string& name) {
  constexpr size_t kLongest = 500;  // an expression has its own bound
  if (name.size() > kLongest) return;
  std::string spelled;
  for (const char c : name) spelled += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  MatchBudget budget;
  const Result<NamePattern> pattern = NamePattern::compile(spelled, budget);
  require(pattern.ok(), "escaped characters are an expression");
  require(pattern->found_in(name, budget) && pattern->matches_start(name, budget), "a name is found by its characters");
}

void run_expressions(const Target&, Bytes input) {
  // Few steps, so that many inputs are tried in the time that one may cost; all of them together may take no more
  // than that time's part, or steps are counted wrongly.
  constexpr int64_t kSteps = MatchBudget::kSteps / 250;
  constexpr double kSeconds = 0.5;
  std::vector<std::string> names;
  std::vector<NamePattern> patterns;
  MatchBudget budget;
  budget.spend(MatchBudget::kSteps - kSteps);
  const double begin = processor_seconds();
  bool compiles = true;  // whoever has a list ends at its first fault
  for (const ImageFile& file : read_image(input)) {
    if (file.name != kExpression) {
      names.push_back(file.bytes);
    } else if (compiles) {
      const int64_t before = budget.spent();
      Result<NamePattern> pattern = NamePattern::compile(file.bytes, budget);
      compiles = pattern.ok();
      note(budget.spent() - before, 0);
      if (compiles) {
        require(pattern->text() == file.bytes, "an expression keeps its text");
        patterns.push_back(std::move(*pattern));
        continue;
      }
      const std::string& words = pattern.error().message;
      require(words.find("regular expression") != std::string::npos, "an error that names no expression: " + words);
      require(!base::has_control_character(words), "an error that deceives: " + words);
    }
  }
  for (const std::string& name : names) {
    for (const NamePattern& pattern : patterns) compare(pattern, name, budget);
    MatchBudget one = budget, all = budget;
    const bool found = std::any_of(patterns.begin(), patterns.end(),
                                   [&](const NamePattern& pattern) { return pattern.found_in(name, one); });
    require(any_found_in(patterns, name, all) == found, "any is one of them");
  }
  require(processor_seconds() - begin < kSeconds, "what takes long costs many steps");
  for (const std::string& name : names) spell_out(name);
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
        {"expressions", InputKind::kExpressions, run_expressions},
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
