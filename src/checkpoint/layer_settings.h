// What the settings of GPTQ, AWQ and AutoRound say of one layer: their common words, and exceptions by name.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/name_pattern.h"
#include "checkpoint/quantization_settings.h"

namespace nybble::checkpoint {

struct LayerSettings {
  std::optional<int64_t> bits;
  std::optional<int64_t> group_size;  // -1: one for each output feature
  std::optional<bool> symmetric, act_order;
};

// Reads these out of an object under the names that any of the methods uses; what it does not name stays as it is.
Result<void> read_layer_settings(const nlohmann::json& object, const std::string& subject, LayerSettings& to);

// Layers with settings of their own, or that are not quantized.
struct LayerException {
  std::string key;  // as the settings have it, for errors
  bool excluded = false;
  LayerSettings settings;
};

// The same of all layers that an expression matches.
struct PatternException {
  base::NamePattern pattern;
  bool anywhere = false;  // it may match within the name, not only from its beginning
  LayerException exception;
};

struct ModelSettings {
  std::string subject;  // to begin an error with
  std::string member;   // that lists the exceptions
  std::string way_out;  // what to do with a model that is not in 4 bits: a whole sentence
  LayerSettings common;
  std::map<std::string, LayerException> by_name;  // whole names of layers, which come before every pattern
  std::vector<PatternException> by_pattern;       // the first that matches decides

  // nullptr where there is none, or where the budget is spent.
  const LayerException* exception_of(const std::string& layer, base::MatchBudget& budget) const;
  // Of a layer that is stored in 4 bits. Refuses other bits, and a layer that is not to be quantized. `budget` is
  // common to all layers of a model.
  Result<LayerSettings> of(const std::string& layer, base::MatchBudget& budget) const;
};

}  // namespace nybble::checkpoint
