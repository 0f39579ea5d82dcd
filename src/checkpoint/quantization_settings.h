// Where a model says how it is quantized: config.json, or a file of the method's own in models older than its member.
#pragma once

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/model_files.h"

namespace nybble::checkpoint {

struct QuantizationSettings {
  nlohmann::json object;          // null where the model has none
  std::string subject;            // "model: config.json: quantization_config", to begin an error with
  std::string text;               // of the file they stand in
  std::vector<std::string> path;  // the members of that file that lead to them; empty: they are the whole file

  // The keys of a member that is an object, in the order of the file.
  std::vector<std::string> keys_in_order(const std::string& member) const;
};

// config.json's settings, else the whole of `own_file` beside it, where the method has one. Settings that are no object
// are an error.
Result<QuantizationSettings> find_quantization_settings(const ModelFiles& model, const char* own_file = nullptr);

// The first member of these names that is there and not null; nullptr where there is none.
const nlohmann::json* find_member(const nlohmann::json& object, std::initializer_list<const char*> names);

}  // namespace nybble::checkpoint
