// A safetensors file in pieces, to be changed and put together again with model_building.h.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/model_building.h"

namespace nybble::testing {

struct ModelParts {
  std::vector<TestTensor> tensors;
  std::string metadata;  // JSON; empty: none

  std::string file() const { return safetensors(tensors, metadata); }
};

// None where the file is not sound enough to be taken apart.
inline std::optional<ModelParts> take_apart(const std::string& file) {
  uint64_t length = 0;
  if (file.size() < sizeof length) return {};
  std::memcpy(&length, file.data(), sizeof length);
  if (length > file.size() - 8) return {};
  const auto begin = file.begin() + 8;
  const nlohmann::json header =
      nlohmann::json::parse(begin, begin + static_cast<std::ptrdiff_t>(length), nullptr, false);
  if (!header.is_object()) return {};
  const std::string_view data = std::string_view(file).substr(8 + length);
  ModelParts parts;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      parts.metadata = entry.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
      continue;
    }
    if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape") || !entry.contains("data_offsets"))
      return {};
    const nlohmann::json &dtype = entry["dtype"], &shape = entry["shape"], &offsets = entry["data_offsets"];
    if (!dtype.is_string() || !shape.is_array() || !offsets.is_array() || offsets.size() != 2 ||
        !offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned() ||
        name.find_first_of("\"\\") != std::string::npos)
      return {};
    const uint64_t from = offsets[0], to = offsets[1];
    if (from > to || to > data.size()) return {};
    TestTensor tensor{name, dtype, {}, std::string(data.substr(from, to - from))};
    for (const nlohmann::json& dim : shape) {
      if (!dim.is_number_integer()) return {};
      tensor.shape.push_back(dim);
    }
    parts.tensors.push_back(std::move(tensor));
  }
  return parts;
}

}  // namespace nybble::testing
