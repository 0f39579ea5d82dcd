// Texts to values.
#include "cli/options.h"

#include <charconv>

#include "base/error.h"

namespace nybble::cli {

Result<int> parse_group(const std::string& text) {
  if (text == "col") return kPerColumn;
  int group = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), group);
  if (error != std::errc{} || end != text.data() + text.size() || group <= 0 || group % 16 != 0)
    return invalid_argument(
        "--group is '{}'; it takes a positive multiple of 16, such as 128, 64 or 32, or col for one "
        "scale per output feature",
        text);
  return group;
}

void DeviceOption::add_to(CLI::App& verb, const std::string& default_text) {
  text = default_text;
  verb.add_option("--device", text, "cpu, cuda, or auto: the GPU where one can be used")
      ->check(CLI::IsMember({"cpu", "cuda", "auto"}))
      ->capture_default_str();
  verb.add_option("--threads", threads, "CPU threads; 0: all cores")->check(CLI::Range(0, 4096))->capture_default_str();
}

Result<Device> DeviceOption::open() const {
  if (text == "cpu") return Device::cpu(threads);
  Result<Device> device = Device::cuda();
  if (text == "auto" && (!device || device->sm != kHopperSm)) return Device::cpu(threads);
  return device;
}

Exit DeviceOption::exit_for_open(const Error& error) const {
  return error.code == ErrorCode::kUnsupported ? kWorldFailed : exit_for(error);
}

void TableOption::add_to(CLI::App& verb) {
  verb.add_option("--table", file, "Choose by the times in this file of `nybble tune`; none: by the cost model alone")
      ->type_name("FILE");
}

Result<std::optional<TuningTable>> TableOption::load() const {
  if (file.empty()) return std::optional<TuningTable>();
  if (file == "none") return std::optional(TuningTable());
  Result<TuningTable> table = load_tuning_table(file);
  if (!table) return table.error();
  return std::optional(std::move(*table));
}

}  // namespace nybble::cli
