// The quantization_config of a compressed-tensors model: which 4-bit scheme each layer has.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/name_pattern.h"
#include "nybble/types.h"

namespace nybble::checkpoint {

// How a layer's codes are stored, by the name of its format: "pack-quantized", "nvfp4-pack-quantized",
// "mxfp4-pack-quantized".
enum class LayerPacking : uint8_t { kInt4, kNvfp4, kMxfp4 };

struct LayerScheme {
  LayerPacking packing = LayerPacking::kInt4;
  bool symmetric = true;
  int group_size = 128;     // or kPerColumn for the strategies "channel" and "tensor"
  bool per_tensor = false;  // "tensor": one scale, and one zero point that is not packed, for all output features
  bool act_order = false;   // actorder "group": input features are assigned to groups by weight_g_idx

  friend bool operator==(const LayerScheme&, const LayerScheme&) = default;
};

class CompressedTensorsConfig {
 public:
  // `path` names the model in errors. What this library cannot run is refused here, with the way out.
  // `budget` is what the model's expressions may cost, to compile and then to match.
  static Result<CompressedTensorsConfig> parse(const nlohmann::json& settings, const std::string& path,
                                               base::MatchBudget& budget);

  // What it asks for that is not done, one sentence each.
  const std::vector<std::string>& warnings() const { return warnings_; }

  // The scheme of a layer that is stored packed. An error where the configuration ignores it, matches no group or
  // leaves a choice.
  Result<LayerScheme> scheme_of(const std::string& layer, base::MatchBudget& budget) const;

 private:
  // What a layer can be called by: its name, a regular expression for it ("re:..."), or its class ("Linear").
  struct Targets {
    std::vector<std::string> words;
    std::vector<base::NamePattern> patterns;
    bool has_class = false;

    static Result<Targets> parse(const nlohmann::json& list, const std::string& what, base::MatchBudget& budget);
    bool names(const std::string& layer) const;
    bool matches(const std::string& layer, base::MatchBudget& budget) const;
  };
  struct Group {
    std::string name;
    Targets targets;
    LayerScheme scheme;
  };

  Result<void> add_preset(const std::string& name, const nlohmann::json& targets, const std::string& subject,
                          base::MatchBudget& budget);
  Result<void> check_activations(const nlohmann::json& group, LayerPacking packing, const std::string& subject);
  Result<void> add_group(const std::string& name, const nlohmann::json& group, const std::string& model_format,
                         base::MatchBudget& budget);

  std::string path_;
  std::vector<Group> groups_;
  Targets ignore_;
  std::vector<std::string> warnings_;
};

}  // namespace nybble::checkpoint
