// Reading tables: those that `nybble tune` wrote, and those that ship.
#include "base/error.h"
#include "base/file.h"
#include "base/json_text.h"
#include "dispatch/shipped_tables.h"
#include "dispatch/tuning_data.h"

namespace nybble {
namespace {

using Json = nlohmann::json;

constexpr int kSchema = 1;
constexpr uint64_t kLargestFile = uint64_t{64} << 20;
constexpr int64_t kMostValues = 4'000'000;
constexpr double kLongestUs = 1e9;

// A member of a JSON object that must be there; null: it is not.
const Json* member(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() ? &*found : nullptr;
}

Result<double> microseconds(const Json& time, const char* key) {
  const Json* const value = member(time, key);
  if (value == nullptr) return invalid_data("has no {}", key);
  if (!value->is_number() || !(value->get<double>() > 0) || value->get<double>() > kLongestUs)
    return invalid_data("its {} is {}; it must be a number above 0 and at most {:.0f}", key,
                        base::printable(value->dump()), kLongestUs);
  return value->get<double>();
}

Result<void> read_time(const Json& time, const Problem& problem, TuningData& data) {
  const Json* const kernel = time.is_object() ? member(time, "kernel") : nullptr;
  if (kernel == nullptr || !kernel->is_string()) return invalid_data("a time names no kernel");
  const std::string name = *kernel;
  const Result<double> us = microseconds(time, "us");
  if (!us) return invalid_data("{}: {}", base::printable(name), us.error().message);
  double estimate_us = 0;
  if (const Json* const given = member(time, "estimate_us"); given != nullptr && !given->is_null()) {
    const Result<double> known = microseconds(time, "estimate_us");
    if (!known) return invalid_data("{}: {}", base::printable(name), known.error().message);
    estimate_us = *known;
  }
  if (!data.add(problem, name, *us, estimate_us))
    return invalid_data("{} has a time for this problem already", base::printable(name));
  return {};
}

Result<void> read_row(const Json& row, TuningData& data) {
  const Json* const text = row.is_object() ? member(row, "problem") : nullptr;
  if (text == nullptr || !text->is_string()) return invalid_data("has no problem");
  const Result<Problem> problem = parse_problem(text->get<std::string>());
  if (!problem) return invalid_data("{}", problem.error().message);
  const std::string shown = base::printable(text->get<std::string>());
  if (problem->m == 0 || problem->n == 0 || problem->k == 0)
    return invalid_data("{}: nothing is to be computed there, so nothing can have been measured", shown);
  const Json* const times = member(row, "kernels");
  if (times == nullptr || !times->is_array()) return invalid_data("{}: has no list of kernels", shown);
  for (const Json& time : *times)
    if (const Result<void> done = read_time(time, *problem, data); !done)
      return invalid_data("{}: {}", shown, done.error().message);
  return {};
}

Result<std::string> device_of(const Json& document) {
  for (const char* key : {"gpu", "cpu"})
    if (const Json* const name = member(document, key); name != nullptr && name->is_string()) return std::string(*name);
  return invalid_data("names neither a gpu nor a cpu");
}

}  // namespace

Result<TuningTable> parse_tuning_table(std::string_view text, const std::string& what) {
  const Result<Json> document = base::parse_json(text, what, {.max_values = kMostValues});
  if (!document) return document.error();
  const Json* const kind = document->is_object() ? member(*document, "kind") : nullptr;
  if (kind == nullptr || *kind != "tuning table")
    return invalid_data("{}: is no tuning table; `nybble tune` writes one", what);
  if (const Json* const schema = member(*document, "schema"); schema == nullptr || *schema != kSchema)
    return invalid_data("{}: has schema {}; this library reads schema {}: tune anew", what,
                        schema != nullptr ? base::printable(schema->dump()) : "none", kSchema);
  auto data = std::make_shared<TuningData>();
  const Result<std::string> device = device_of(*document);
  if (!device) return invalid_data("{}: {}", what, device.error().message);
  data->device = *device;
  if (const Json* const threads = member(*document, "threads"); threads != nullptr && !threads->is_null()) {
    if (!threads->is_number_unsigned() || threads->get<uint64_t>() > INT32_MAX)
      return invalid_data("{}: its threads are {}; they are a count", what, base::printable(threads->dump()));
    data->num_threads = threads->get<int>();
  }
  const Json* const rows = member(*document, "rows");
  if (rows == nullptr || !rows->is_array()) return invalid_data("{}: has no list of rows", what);
  for (size_t i = 0; i < rows->size(); ++i)
    if (const Result<void> done = read_row((*rows)[i], *data); !done)
      return invalid_data("{}: row {}: {}", what, i + 1, done.error().message);
  return TuningTable(std::move(data));
}

Result<TuningTable> load_tuning_table(const std::string& path) {
  const Result<base::File> file = base::File::open(path);
  if (!file) return file.error();
  const Result<std::string> text = base::read_file(*file, kLargestFile);
  if (!text) return text.error();
  return parse_tuning_table(*text, path);
}

TuningTable shipped_tuning_table(const Device& device) {
  if (device.kind != DeviceKind::kCuda) return {};
  static const std::vector<TuningTable> tables = read_shipped_tables();
  for (const TuningTable& table : tables)
    if (table.made_for(device)) return table;
  return {};
}

}  // namespace nybble
