#include "checkpoint/quantization_settings.h"

#include "base/error.h"
#include "base/json_text.h"

namespace nybble::checkpoint {

std::vector<std::string> QuantizationSettings::keys_in_order(const std::string& member) const {
  std::vector<std::string> whole_path = path;
  whole_path.push_back(member);
  return base::keys_in_order(text, whole_path);
}

Result<QuantizationSettings> find_quantization_settings(const ModelFiles& model, const char* own_file) {
  QuantizationSettings settings;
  settings.subject = model.path();
  if (!model.quantization_config().is_null()) {
    settings.object = model.quantization_config();
    settings.path = model.quantization_config_path();
    settings.subject += ": config.json: " + settings.path.back();
    settings.text = model.config_text();
  } else if (own_file != nullptr && model.folder().has(own_file)) {
    constexpr uint64_t kMaxBytes = 16 << 20;
    constexpr int kMaxDepth = 16;
    const Result<base::File> file = model.folder().open_file(own_file);
    if (!file) return file.error();
    Result<std::string> text = base::read_file(*file, kMaxBytes);
    if (!text) return text.error();
    Result<nlohmann::json> object = base::parse_json(*text, file->path(), {.max_depth = kMaxDepth});
    if (!object) return object.error();
    settings.object = std::move(*object);
    settings.subject = file->path();
    settings.text = std::move(*text);
  } else {
    return settings;
  }
  if (!settings.object.is_object()) return invalid_data("{} must be an object", settings.subject);
  return settings;
}

const nlohmann::json* find_member(const nlohmann::json& object, std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (const auto found = object.find(name); found != object.end() && !found->is_null()) return &*found;
  return nullptr;
}

}  // namespace nybble::checkpoint
