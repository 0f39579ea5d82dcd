// The public view of a GGUF file's metadata.
#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/gguf_file.h"
#include "nybble/gguf.h"

namespace nybble {
namespace {

using checkpoint::GgufFile;
using checkpoint::GgufValue;
using checkpoint::GgufValueType;

// `fits` says whether a value's type is what `wanted` (in words) means.
Result<const GgufValue*> find(const GgufFile& file, const std::string& key, const char* wanted, bool array,
                              bool (*fits)(const GgufValue&)) {
  const GgufValue* value = file.find_value(key);
  if (value == nullptr)
    return invalid_data("{}: has no key {}; {} is needed there", file.file().path(), base::printable(key), wanted);
  if (value->is_array != array || !fits(*value))
    return invalid_data("{}: {} is {}; {} is needed there", file.file().path(), base::printable(key), value->describe(),
                        wanted);
  return value;
}

bool is_number(const GgufValue& value) { return value.is_integer() || value.is_float(); }
bool is_integer(const GgufValue& value) { return value.is_integer(); }
bool is_text(const GgufValue& value) { return value.type == GgufValueType::kString; }
bool is_boolean(const GgufValue& value) { return value.type == GgufValueType::kBool; }

Result<int64_t> integer_of(const GgufFile& file, const std::string& key, const GgufValue& value, uint64_t i) {
  Result<int64_t> number = value.integer_at(i);
  if (!number) return invalid_data("{}: {}: {}", file.file().path(), base::printable(key), number.error().message);
  return number;
}

}  // namespace

Result<GgufMetadata> GgufMetadata::read(const std::string& path) {
  Result<std::shared_ptr<const GgufFile>> file = GgufFile::open(path);
  if (!file) return file.error();
  return GgufMetadata(std::move(*file));
}

const std::string& GgufMetadata::path() const { return file_->file().path(); }

std::vector<std::string> GgufMetadata::keys() const {
  std::vector<std::string> keys;
  for (const auto& [key, value] : file_->metadata()) keys.push_back(key);
  return keys;
}

bool GgufMetadata::has(const std::string& key) const { return file_->find_value(key) != nullptr; }

Result<bool> GgufMetadata::boolean(const std::string& key) const {
  const Result<const GgufValue*> value = find(*file_, key, "a bool", false, is_boolean);
  if (!value) return value.error();
  return (*value)->boolean_at(0);
}

Result<int64_t> GgufMetadata::integer(const std::string& key) const {
  const Result<const GgufValue*> value = find(*file_, key, "an integer", false, is_integer);
  if (!value) return value.error();
  return integer_of(*file_, key, **value, 0);
}

Result<double> GgufMetadata::number(const std::string& key) const {
  const Result<const GgufValue*> value = find(*file_, key, "a number", false, is_number);
  if (!value) return value.error();
  return (*value)->number_at(0);
}

Result<std::string> GgufMetadata::text(const std::string& key) const {
  const Result<const GgufValue*> value = find(*file_, key, "a string", false, is_text);
  if (!value) return value.error();
  return std::string((*value)->text_at(0));
}

Result<std::vector<int64_t>> GgufMetadata::integers(const std::string& key) const {
  const Result<const GgufValue*> value = find(*file_, key, "an array of integers", true, is_integer);
  if (!value) return value.error();
  std::vector<int64_t> numbers((*value)->count);
  for (uint64_t i = 0; i < numbers.size(); ++i) {
    const Result<int64_t> number = integer_of(*file_, key, **value, i);
    if (!number) return number.error();
    numbers[i] = *number;
  }
  return numbers;
}

Result<std::vector<double>> GgufMetadata::numbers(const std::string& key) const {
  const Result<const GgufValue*> value = find(*file_, key, "an array of numbers", true, is_number);
  if (!value) return value.error();
  std::vector<double> numbers((*value)->count);
  for (uint64_t i = 0; i < numbers.size(); ++i) numbers[i] = (*value)->number_at(i);
  return numbers;
}

Result<std::vector<std::string>> GgufMetadata::texts(const std::string& key) const {
  const Result<const GgufValue*> value = find(*file_, key, "an array of strings", true, is_text);
  if (!value) return value.error();
  std::vector<std::string> texts((*value)->count);
  for (uint64_t i = 0; i < texts.size(); ++i) texts[i] = (*value)->text_at(i);
  return texts;
}

}  // namespace nybble
