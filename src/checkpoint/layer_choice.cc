#include "checkpoint/layer_choice.h"

#include <algorithm>
#include <cctype>

#include "base/error.h"
#include "base/json_text.h"
#include "base/name_pattern.h"
#include "checkpoint/layers.h"

namespace nybble {

bool is_default_quantized(const std::string& tensor_name, int rank) {
  if (rank != 2 || !tensor_name.ends_with(".weight")) return false;
  std::string lower = tensor_name;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  return lower.find("embed") == std::string::npos && lower.find("norm") == std::string::npos &&
         lower.find("lm_head") == std::string::npos;
}

namespace checkpoint {
namespace {

// Some models (GPT-2's Conv1D) store a linear layer's weight transposed. Their bias gives them away where n is not k.
bool looks_transposed(const ModelFiles& model, const TensorRef& weight, const std::string& layer) {
  const TensorRef bias = model.find(layer + ".bias");
  return bias && weight->shape.size() == 2 && bias->shape == std::vector{weight->shape[1]} &&
         weight->shape[0] != weight->shape[1];
}

// "16, 32, 64": multiples of 16 that divide k, as far as kernels in the field know them.
std::string fitting_groups(int64_t k) {
  constexpr int kStep = 16, kLargest = 1024;
  std::string fitting;
  for (int group = kStep; group <= std::min<int64_t>(k, kLargest); group += kStep)
    if (k % group == 0) fitting += fmt::format("{}{}", fitting.empty() ? "" : ", ", group);
  return fitting;
}

}  // namespace

Result<LayerChoice> choose_layers(const ModelFiles& model, const QuantizeModelOptions& options) {
  base::MatchBudget budget;
  const Result<std::vector<base::NamePattern>> include = base::NamePattern::compile_all(options.include, budget);
  if (!include) return include.error();
  const Result<std::vector<base::NamePattern>> exclude = base::NamePattern::compile_all(options.exclude, budget);
  if (!exclude) return exclude.error();
  LayerChoice choice;
  for (const TensorRef& tensor : model.tensors()) {
    const std::string layer(layer_of(tensor->name, ".weight"));
    if (layer.empty()) continue;
    const bool wanted = (include->empty() ? is_default_quantized(tensor->name, static_cast<int>(tensor->shape.size()))
                                          : base::any_found_in(*include, layer, budget)) &&
                        !base::any_found_in(*exclude, layer, budget);
    if (is_dense_layer(model, layer)) {
      if (wanted)
        choice.chosen.push_back(dense_layer_info(model, layer));
      else
        choice.ignored.push_back(layer);
    } else if (wanted && looks_transposed(model, tensor, layer)) {
      return unsupported(
          "{}: has shape {}, but its bias has {} elements: the model stores its weights transposed (Conv1D), "
          "which compressed-tensors has no form for. Exclude such layers, or convert them to Linear first",
          tensor.where(), shape_text(tensor->shape), tensor->shape[1]);
    }
  }
  if (Result<void> fine = budget.check("the include and exclude expressions"); !fine) return fine.error();
  if (choice.chosen.empty())
    return invalid_argument(
        "{}: none of its {} 2-D float weights is chosen; the default leaves out names with embed, norm or "
        "lm_head, and the include and exclude expressions are searched in layer names",
        model.path(), choice.ignored.size());
  return choice;
}

Result<void> check_group_fits(const std::vector<LayerInfo>& layers, int group_size) {
  if (group_size == kPerColumn) return {};
  if (group_size < 0) return invalid_argument("a group has a positive number of input features, not {}", group_size);
  constexpr size_t kShown = 5;
  std::string misfits;
  size_t count = 0;
  for (const LayerInfo& layer : layers) {
    if (layer.k % group_size == 0 || ++count > kShown) continue;
    const std::string fitting = fitting_groups(layer.k);
    misfits += fmt::format("; {} has k = {}: {} or per column", base::printable(layer.name), layer.k,
                           fitting.empty() ? "no multiple of 16" : fitting);
  }
  if (count == 0) return {};
  return unsupported(
      "compressed-tensors has no partial groups, and groups of {} do not divide the input features of {} of {} "
      "layers. Group sizes that fit{}{}. Take one that fits all, or exclude these layers",
      group_size, count, layers.size(), misfits, count > kShown ? "; and so on" : "");
}

}  // namespace checkpoint
}  // namespace nybble
