#include "nybble/scale_folds.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>

#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/layer_choice.h"
#include "checkpoint/layers.h"
#include "checkpoint/model_files.h"

namespace nybble {
namespace {

using checkpoint::ModelFiles;
using checkpoint::TensorRef;

// The parts of a decoder block, as they follow the block's name ("model.layers.0", "blk.0").
struct BlockNames {
  const char* attention_norm;
  const char* q;
  const char* k;
  const char* v;
  const char* o;
  const char* mlp_norm;
  const char* gate;
  const char* up;
  const char* down;

  std::array<const char*, 7> layers() const { return {q, k, v, o, gate, up, down}; }
};
constexpr BlockNames kNames[] = {
    {"input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
     "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
    {"attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"},
};

// Architectures whose norms multiply by their weight and feed nothing but the layers above. Others have the same names
// with another meaning: Gemma's norms add one, OLMo 2's and Gemma 2's second norm comes after attention, not before the
// feed-forward part.
constexpr const char* kKnownModels[] = {"llama", "mistral", "qwen2", "qwen3", "smollm3"};

Result<void> check_architecture(const ModelFiles& model) {
  const std::string type = checkpoint::string_member(model.config(), "model_type");
  if (type.empty() || std::find(std::begin(kKnownModels), std::end(kKnownModels), type) != std::end(kKnownModels))
    return {};
  std::string known;
  for (const char* name : kKnownModels) known += (known.empty() ? "" : ", ") + std::string(name);
  return unsupported(
      "{}: model_type is {}, and AWQ knows where scales can be folded into norms for {} only; take range search or "
      "GPTQ",
      model.path(), base::printable(type), known);
}

// "model.layers.0" of every block that has one of the first layers.
std::vector<std::pair<std::string, const BlockNames*>> find_blocks(const ModelFiles& model) {
  std::map<std::string, const BlockNames*> blocks;
  for (const TensorRef& tensor : model.tensors())
    for (const BlockNames& names : kNames)
      for (const char* layer : names.layers()) {
        const std::string suffix = fmt::format(".{}.weight", layer);
        if (tensor->name.ends_with(suffix))
          blocks.emplace(tensor->name.substr(0, tensor->name.size() - suffix.size()), &names);
      }
  return {blocks.begin(), blocks.end()};
}

// `floats` in the type of `values`.
Result<void> set_values(FloatArray& values, const std::vector<float>& floats, const std::string& name) {
  values = FloatArray::from_floats(values.dtype, floats);
  for (size_t i = 0; i < floats.size(); ++i)
    if (!std::isfinite(values.at(i)))
      return invalid_data("tensor {}: element {} is {} once it is scaled, which {} cannot hold", base::printable(name),
                          i, floats[i], dtype_name(values.dtype));
  return {};
}

}  // namespace

struct ScaleFolds::Content {
  std::vector<ScaleFold> folds;
  std::vector<std::string> warnings;
  std::map<std::string, size_t, std::less<>> input;   // of a layer: which fold's scales its columns take
  std::map<std::string, size_t, std::less<>> output;  // of a layer or norm: which its rows are divided by
  std::set<std::string, std::less<>> layers;          // that are 2-D weights

  const std::vector<float>* scales(const std::map<std::string, size_t, std::less<>>& of, std::string_view name) const {
    const auto found = of.find(name);
    return found == of.end() ? nullptr : &folds[found->second].found.scales;
  }

  // values[n, k] of a layer's weight, or values[n] of a norm or a bias.
  Result<std::vector<float>> changed(std::string_view module, bool is_matrix, const FloatArray& values) const {
    const std::vector<float>* columns = is_matrix ? scales(input, module) : nullptr;
    const std::vector<float>* rows = scales(output, module);
    const size_t k = columns != nullptr ? columns->size() : rows == nullptr ? 1 : values.size() / rows->size();
    if ((columns != nullptr && (k == 0 || values.size() % k != 0)) ||
        (rows != nullptr && (k == 0 || values.size() != rows->size() * k)))
      return invalid_data("tensor of {}: {} elements do not fit its scales", base::printable(module), values.size());
    std::vector<float> result(values.size());
    for (size_t i = 0; i < result.size(); ++i)
      result[i] = static_cast<float>(values.at(i) * (columns == nullptr ? 1.0 : double{(*columns)[i % k]}) /
                                     (rows == nullptr ? 1.0 : double{(*rows)[i / k]}));
    return result;
  }
};

namespace {

// A place where scales could go, before any are searched.
struct Place {
  std::string from;  // a layer or a norm
  bool from_norm = false;
  std::vector<std::string> layers;
};

// Looks through a model for places and searches each one's scales.
class Searcher {
 public:
  Searcher(const ModelFiles& model, const Checkpoint& dense, const StatisticsFile& statistics, const GridOptions& grid,
           const AwqOptions& options, DeviceKind device)
      : model_(model), dense_(dense), statistics_(statistics), grid_(grid), options_(options), device_(device) {}

  std::vector<std::string> warnings;

  std::vector<Place> places(const std::set<std::string>& chosen) {
    std::vector<Place> found;
    for (const auto& [block, names] : find_blocks(model_)) {
      const auto full = [&block = block](const char* part) { return fmt::format("{}.{}", block, part); };
      std::vector<Place> candidates;
      if (const std::string why = why_unknown(block, *names); !why.empty()) {
        warnings.push_back(fmt::format("{}: {}; its layers' inputs keep their scales", base::printable(block), why));
        continue;
      }
      candidates.push_back({full(names->attention_norm), true, {full(names->q), full(names->k), full(names->v)}});
      candidates.push_back({full(names->v), false, {full(names->o)}});
      candidates.push_back({full(names->mlp_norm), true, {full(names->gate), full(names->up)}});
      candidates.push_back({full(names->up), false, {full(names->down)}});
      for (Place& place : candidates)
        if (is_usable(place, chosen)) found.push_back(std::move(place));
    }
    return found;
  }

  Result<AwqScales> search(const Place& place, const std::set<std::string>& chosen) {
    Result<LayerStatistics> statistics = statistics_.read(place.layers.front());
    if (!statistics) return statistics.error();
    std::vector<DenseWeight> weights;
    for (const std::string& layer : place.layers) {
      if (!chosen.contains(layer)) continue;  // its input is scaled, but nothing of it is rounded
      Result<DenseWeight> weight = dense_.read_dense(layer);
      if (!weight) return weight.error();
      weights.push_back(std::move(*weight));
    }
    std::vector<const DenseWeight*> layers;
    for (const DenseWeight& weight : weights) layers.push_back(&weight);
    return device_ == DeviceKind::kCuda ? search_awq_scales_cuda(layers, grid_, options_, *statistics)
                                        : search_awq_scales(layers, grid_, options_, *statistics);
  }

 private:
  TensorRef weight(const std::string& module) const { return model_.find(module + ".weight"); }

  // Why a block may not compute what Llama's does, so that scales might not cancel; empty: it does.
  std::string why_unknown(const std::string& block, const BlockNames& names) const {
    std::set<std::string> matrices, norms;
    for (const char* layer : names.layers()) {
      matrices.insert(fmt::format("{}.{}.weight", block, layer));
      if (!weight(fmt::format("{}.{}", block, layer))) return fmt::format("has no {}.weight", layer);
    }
    for (const char* norm : {names.attention_norm, names.mlp_norm}) {
      norms.insert(fmt::format("{}.{}.weight", block, norm));
      if (const TensorRef found = weight(fmt::format("{}.{}", block, norm)); !found || found->shape.size() != 1)
        return fmt::format("has no vector {}.weight", norm);
    }
    for (const TensorRef& tensor : model_.tensors()) {
      if (!tensor->name.starts_with(block + '.')) continue;
      if (tensor->shape.size() > 1 && !matrices.contains(tensor->name))
        return fmt::format("holds {}, which this mapping does not know", base::printable(tensor->name));
      // Norms of queries and keys come after their layers and touch no value.
      const bool of_heads = tensor->name.ends_with("q_norm.weight") || tensor->name.ends_with("k_norm.weight");
      if (tensor->name.ends_with("norm.weight") && !of_heads && !norms.contains(tensor->name))
        return fmt::format("holds {}, a norm in another place", base::printable(tensor->name));
    }
    return {};
  }

  bool is_usable(const Place& place, const std::set<std::string>& chosen) {
    const auto skip = [&](std::string_view why) {
      warnings.push_back(fmt::format("{} -> {}: {}; its input keeps its scales", base::printable(place.from),
                                     base::printable(place.layers.front()), why));
      return false;
    };
    bool any_chosen = false;
    for (const std::string& layer : place.layers) {
      any_chosen |= chosen.contains(layer);
      if (!checkpoint::is_dense_layer(model_, layer)) return skip("a layer is missing or is no dense one");
    }
    if (!any_chosen) return false;  // nothing is rounded here, so nothing is lost
    const int64_t k = weight(place.layers.front())->shape[1];
    for (const std::string& layer : place.layers)
      if (weight(layer)->shape[1] != k) return skip("its layers have inputs of different sizes");
    const TensorRef from = weight(place.from);
    if (!from || (!place.from_norm && !checkpoint::is_dense_layer(model_, place.from)))
      return skip("what comes before is missing or is no dense layer");
    if (from->shape[0] != k)
      return skip(fmt::format("{} features come in and {} were before (grouped queries)", k, from->shape[0]));
    for (const std::string& layer : place.layers)
      if (!statistics_.has(layer)) return skip("the statistics file lacks a layer");
    return true;
  }

  const ModelFiles& model_;
  const Checkpoint& dense_;
  const StatisticsFile& statistics_;
  const GridOptions& grid_;
  const AwqOptions& options_;
  const DeviceKind device_;
};

}  // namespace

ScaleFolds::ScaleFolds(std::shared_ptr<const Content> content) : content_(std::move(content)) {}
const std::vector<ScaleFold>& ScaleFolds::folds() const { return content_->folds; }
const std::vector<std::string>& ScaleFolds::warnings() const { return content_->warnings; }

Result<ScaleFolds> ScaleFolds::search(const std::string& model, const QuantizeModelOptions& choice,
                                      const StatisticsFile& statistics, const GridOptions& grid,
                                      const AwqOptions& options, const std::function<void(int64_t, int64_t)>& progress,
                                      DeviceKind device) {
  const Result<std::shared_ptr<const ModelFiles>> files = ModelFiles::open(model);
  if (!files) return files.error();
  if (Result<void> known = check_architecture(**files); !known) return known.error();
  const Result<std::unique_ptr<Checkpoint>> dense = open_checkpoint(model);
  if (!dense) return dense.error();
  const Result<checkpoint::LayerChoice> layers = checkpoint::choose_layers(**files, choice);
  if (!layers) return layers.error();
  std::set<std::string> chosen;
  for (const LayerInfo& layer : layers->chosen) chosen.insert(layer.name);

  auto content = std::make_shared<Content>();
  Searcher searcher(**files, **dense, statistics, grid, options, device);
  const std::vector<Place> places = searcher.places(chosen);
  std::vector<int64_t> sizes;
  int64_t total = 0, done = 0;
  for (const Place& place : places) {
    sizes.push_back(0);
    for (const std::string& layer : place.layers)
      sizes.back() += static_cast<int64_t>((*files)->find(layer + ".weight")->size_bytes());
    total += sizes.back();
  }
  for (size_t i = 0; i < places.size(); ++i) {
    Result<AwqScales> found = searcher.search(places[i], chosen);
    if (!found) return found.error();
    done += sizes[i];
    if (progress) progress(done, total);
    if (found->ratio < 0) continue;
    for (const std::string& layer : places[i].layers) content->input.emplace(layer, content->folds.size());
    content->output.emplace(places[i].from, content->folds.size());
    content->folds.push_back({places[i].from, places[i].layers, std::move(*found)});
  }
  for (const LayerInfo& layer : (*dense)->layers()) content->layers.insert(layer.name);
  content->warnings = std::move(searcher.warnings);
  return ScaleFolds(std::move(content));
}

Result<DenseWeight> ScaleFolds::apply(const DenseWeight& dense, int num_threads) const {
  const std::vector<float>* columns = content_->scales(content_->input, dense.name);
  const std::vector<float>* rows = content_->scales(content_->output, dense.name);
  if (columns == nullptr && rows == nullptr) return dense;
  if (rows == nullptr) return scale_columns(dense, *columns, num_threads);
  const Result<std::vector<float>> values = content_->changed(dense.name, true, dense.values);
  if (!values) return values.error();
  DenseWeight result{.name = dense.name, .n = dense.n, .k = dense.k, .bias = dense.bias};
  result.values.dtype = DType::kFp32;
  if (Result<void> set = set_values(result.values, *values, dense.name + ".weight"); !set) return set.error();
  return result;
}

Result<LayerStatistics> ScaleFolds::apply(const LayerStatistics& statistics) const {
  const std::vector<float>* columns = content_->scales(content_->input, statistics.layer);
  if (columns == nullptr) return statistics;
  return scale_input(statistics, *columns);
}

TensorEdits ScaleFolds::edits() const {
  TensorEdits edits;
  for (const auto& [layer, fold] : content_->input) edits.names.push_back(layer + ".weight");
  for (const auto& [module, fold] : content_->output) {
    if (!content_->input.contains(module)) edits.names.push_back(module + ".weight");
    edits.names.push_back(module + ".bias");
  }
  edits.apply = [content = content_](const std::string& name, FloatArray& values) -> Result<void> {
    const std::string module = name.substr(0, name.rfind('.'));
    const bool is_matrix = name.ends_with(".weight") && content->layers.contains(module);
    const Result<std::vector<float>> changed = content->changed(module, is_matrix, values);
    if (!changed) return changed.error();
    return set_values(values, *changed, name);
  };
  return edits;
}

}  // namespace nybble
