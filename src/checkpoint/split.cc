#include "checkpoint/split.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>

#include "base/check.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/json_text.h"
#include "base/name_pattern.h"

namespace nybble::checkpoint {
namespace {

constexpr int64_t kZerosPerWord = 8;  // packed formats hold the zero points of eight output features in a word

constexpr std::string_view kColumn[] = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "attn_q",
                                        "attn_k", "attn_v", "ffn_up", "ffn_gate",  "w1",      "w3"};
constexpr std::string_view kRow[] = {"o_proj", "down_proj", "attn_output", "ffn_down", "w2"};
// Several projections one behind the other: an equal part of all is no part of each.
constexpr std::string_view kFused[] = {"qkv_proj", "gate_up_proj", "query_key_value", "Wqkv", "c_attn", "attn_qkv"};

template <size_t N> bool is_one_of(const std::string_view (&names)[N], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool is_fused(std::string_view layer) {
  while (!layer.empty()) {
    const size_t dot = layer.find('.');
    if (is_one_of(kFused, layer.substr(0, dot))) return true;
    layer = dot == std::string_view::npos ? std::string_view() : layer.substr(dot + 1);
  }
  return false;
}

Result<void> check_column(const LayerInfo& layer, int ranks) {
  const int64_t step = ranks * (layer.quantized ? kZerosPerWord : 1);
  if (layer.n % step == 0) return {};
  return unsupported(
      "layer {}: its {} output features do not split among {} ranks, which takes a multiple of {} of them; take fewer "
      "ranks, or replicate the layer",
      base::printable(layer.name), layer.n, ranks, step);
}

Result<void> check_row(const LayerInfo& layer, int ranks) {
  const std::string name = base::printable(layer.name);
  if (layer.quantized && layer.format.k_order)
    return unsupported(
        "layer {}: its input features are reordered (act-order), so the groups of one rank's features are spread over "
        "all; quantize without act-order, or replicate the layer",
        name);
  const bool grouped = layer.quantized && layer.format.group_size != kPerColumn;
  const int64_t step = ranks * (grouped ? layer.format.group_size : layer.quantized ? kZerosPerWord : 1);
  if (layer.k % step == 0) return {};
  return unsupported(
      "layer {}: its {} input features do not split among {} ranks, which takes a multiple of {} of them{}; take fewer "
      "ranks or smaller groups, or replicate the layer",
      name, layer.k, ranks, step, grouped ? " (whole groups)" : "");
}

Result<void> check_heads(const nlohmann::json& config, int ranks) {
  for (const nlohmann::json* object : {&config, config.contains("text_config") ? &config["text_config"] : nullptr}) {
    if (object == nullptr || !object->is_object()) continue;
    for (const char* key : {"num_attention_heads", "num_key_value_heads"}) {
      const auto heads = object->find(key);
      if (heads == object->end() || !heads->is_number_integer() || heads->get<int64_t>() % ranks == 0) continue;
      return unsupported("config.json has {} = {}, which {} ranks do not divide; take a number of ranks that does", key,
                         heads->get<int64_t>(), ranks);
    }
  }
  return {};
}

// Columns [begin, end) of rows of `row_length` elements; below, rows [begin, end).
template <class T>
std::vector<T> columns(const std::vector<T>& values, int64_t row_length, int64_t begin, int64_t end) {
  std::vector<T> part;
  const int64_t rows = row_length == 0 ? 0 : static_cast<int64_t>(values.size()) / row_length;
  part.reserve(static_cast<size_t>(rows * (end - begin)));
  for (int64_t row = 0; row < rows; ++row)
    part.insert(part.end(), values.begin() + row * row_length + begin, values.begin() + row * row_length + end);
  return part;
}

template <class T> std::vector<T> rows(const std::vector<T>& values, int64_t row_length, int64_t begin, int64_t end) {
  if (values.empty()) return {};
  return {values.begin() + begin * row_length, values.begin() + end * row_length};
}

FloatArray columns(const FloatArray& values, int64_t row_length, int64_t begin, int64_t end) {
  const auto size = static_cast<int64_t>(dtype_bytes(values.dtype));
  return {values.dtype, columns(values.bytes, row_length * size, begin * size, end * size)};
}

FloatArray rows(const FloatArray& values, int64_t row_length, int64_t begin, int64_t end) {
  return {values.dtype, rows(values.bytes, row_length * static_cast<int64_t>(dtype_bytes(values.dtype)), begin, end)};
}

class RankCheckpoint final : public Checkpoint {
 public:
  RankCheckpoint(const Checkpoint& model, const SplitPlan& plan, int rank) : model_(model), plan_(plan), rank_(rank) {
    for (LayerInfo layer : model.layers()) {
      const Split split = plan_.layers.at(layer.name);
      if (split == Split::kColumn) layer.n /= plan_.ranks;
      if (split == Split::kRow) layer.k /= plan_.ranks;
      layers_.push_back(std::move(layer));
    }
    for (OtherTensor& tensor : model.other_tensors()) others_.emplace(tensor.name, std::move(tensor));
  }

  std::string format() const override { return model_.format(); }
  std::string convention() const override {
    return fmt::format("rank {} of {}: {}", rank_, plan_.ranks, model_.convention());
  }
  std::vector<std::string> warnings() const override { return model_.warnings(); }
  const std::vector<LayerInfo>& layers() const override { return layers_; }

  Result<DenseWeight> read_dense(const std::string& layer) const override {
    Result<DenseWeight> weight = model_.read_dense(layer);
    if (!weight) return weight;
    const Split split = plan_.layers.at(layer);
    if (split == Split::kColumn) {
      const auto [begin, end] = part_of(weight->n);
      weight->values = rows(weight->values, weight->k, begin, end);
      weight->n = end - begin;
    } else if (split == Split::kRow) {
      const auto [begin, end] = part_of(weight->k);
      weight->values = columns(weight->values, weight->k, begin, end);
      weight->k = end - begin;
    }
    weight->bias = bias_part(std::move(weight->bias), split);
    return weight;
  }

  Result<QuantizedWeight> read_quantized(const std::string& layer) const override {
    Result<QuantizedWeight> weight = model_.read_quantized(layer);
    if (!weight) return weight;
    const Split split = plan_.layers.at(layer);
    const int64_t groups = weight->groups();
    if (split == Split::kColumn) {
      const auto [begin, end] = part_of(weight->n);
      weight->codes = rows(weight->codes, weight->k, begin, end);
      weight->scales = rows(weight->scales, groups, begin, end);
      weight->int_zeros = rows(weight->int_zeros, groups, begin, end);
      weight->float_zeros = rows(weight->float_zeros, groups, begin, end);
      weight->n = end - begin;
    } else if (split == Split::kRow) {
      const auto [begin, end] = part_of(weight->k);
      weight->codes = columns(weight->codes, weight->k, begin, end);
      if (weight->group_size != kPerColumn) {
        const int64_t first = begin / weight->group_size, last = end / weight->group_size;
        weight->scales = columns(weight->scales, groups, first, last);
        weight->int_zeros = columns(weight->int_zeros, groups, first, last);
        weight->float_zeros = columns(weight->float_zeros, groups, first, last);
      }
      weight->k = end - begin;
    }
    weight->bias = bias_part(std::move(weight->bias), split);
    return weight;
  }

  std::vector<OtherTensor> other_tensors() const override {
    std::vector<OtherTensor> tensors;
    for (const auto& [name, tensor] : others_) {
      tensors.push_back(tensor);
      if (const std::optional<size_t> dim = split_dim(tensor)) tensors.back().shape[*dim] /= plan_.ranks;
    }
    return tensors;
  }

  Result<std::vector<std::byte>> read_other_tensor(const std::string& name) const override {
    Result<std::vector<std::byte>> bytes = model_.read_other_tensor(name);
    if (!bytes) return bytes;
    if (rank_ > 0 && is_bias_of(name, Split::kRow)) {
      std::fill(bytes->begin(), bytes->end(), std::byte{0});
      return bytes;
    }
    const OtherTensor& tensor = others_.at(name);
    const std::optional<size_t> dim = split_dim(tensor);
    if (!dim) return bytes;
    const auto [begin, end] = part_of(tensor.shape[*dim]);
    const auto dim_bytes = static_cast<int64_t>(bytes->size()) / tensor.shape[0];
    if (*dim == 0) return rows(*bytes, dim_bytes, begin, end);
    const int64_t size = dim_bytes / tensor.shape[1];
    return columns(*bytes, dim_bytes, begin * size, end * size);
  }

  Result<void> check(const std::function<void(int64_t, int64_t)>& progress) const override {
    return model_.check(progress);
  }

 private:
  // The rank's part of `count` features.
  std::pair<int64_t, int64_t> part_of(int64_t count) const {
    return {count / plan_.ranks * rank_, count / plan_.ranks * (rank_ + 1)};
  }

  // Only biases of floats have a bit pattern of zeros that is zero, and all of them do.
  FloatArray bias_part(FloatArray bias, Split split) const {
    if (bias.empty() || split == Split::kNone) return bias;
    if (split == Split::kColumn) {
      const auto [begin, end] = part_of(static_cast<int64_t>(bias.size()));
      return rows(bias, 1, begin, end);
    }
    if (rank_ > 0) std::fill(bias.bytes.begin(), bias.bytes.end(), std::byte{0});
    return bias;
  }

  Split split_of(std::string_view tensor, std::string_view suffix) const {
    if (!tensor.ends_with(suffix)) return Split::kNone;
    const auto layer = plan_.layers.find(tensor.substr(0, tensor.size() - suffix.size()));
    return layer == plan_.layers.end() ? Split::kNone : layer->second;
  }
  bool is_bias_of(std::string_view tensor, Split split) const { return split_of(tensor, ".bias") == split; }

  // The dimension in which the ranks' parts of a tensor differ: of a dense layer's weight or a column-split bias.
  std::optional<size_t> split_dim(const OtherTensor& tensor) const {
    if (tensor.shape.size() == 1 && is_bias_of(tensor.name, Split::kColumn)) return 0;
    if (tensor.shape.size() != 2) return std::nullopt;
    const Split split = split_of(tensor.name, ".weight");
    if (split == Split::kNone) return std::nullopt;
    return split == Split::kColumn ? 0 : 1;
  }

  const Checkpoint& model_;
  const SplitPlan& plan_;
  int rank_;
  std::vector<LayerInfo> layers_;
  std::map<std::string, OtherTensor> others_;  // of the whole model
};

}  // namespace

std::vector<std::string> SplitPlan::names(Split split) const {
  std::vector<std::string> found;
  for (const auto& [name, how] : layers)
    if (how == split) found.push_back(name);
  return found;
}

std::string SplitPlan::recipe(int rank) const {
  base::ContentHash hash;
  for (const auto& [name, how] : layers) {
    hash.update(std::as_bytes(std::span(name.data(), name.size() + 1)));
    hash.update(std::as_bytes(std::span(&how, 1)));
  }
  return fmt::format("; rank {} of {}, split {:016x}", rank, ranks, hash.digest());
}

Result<SplitPlan> plan_split(const Checkpoint& model, const nlohmann::json& config, const SplitOptions& options) {
  constexpr int kMaxRanks = 1024;
  if (options.ranks < 2 || options.ranks > kMaxRanks)
    return invalid_argument("a model is split among 2 to {} ranks, not {}", kMaxRanks, options.ranks);
  base::MatchBudget budget;
  const auto replicate = base::NamePattern::compile_all(options.replicate, budget),
             column = base::NamePattern::compile_all(options.column, budget),
             row = base::NamePattern::compile_all(options.row, budget);
  for (const auto* patterns : {&replicate, &column, &row})
    if (!*patterns) return patterns->error();
  SplitPlan plan{.ranks = options.ranks};
  for (const LayerInfo& layer : model.layers()) {
    const std::string_view last = std::string_view(layer.name).substr(layer.name.rfind('.') + 1);
    Split split = Split::kNone;
    if (base::any_found_in(*replicate, layer.name, budget))
      split = Split::kNone;
    else if (base::any_found_in(*column, layer.name, budget))
      split = Split::kColumn;
    else if (base::any_found_in(*row, layer.name, budget))
      split = Split::kRow;
    else if (is_fused(layer.name))
      return unsupported(
          "layer {}: its name says that it holds several projections, whose parts belong to every rank; replicate it, "
          "name how to split it, or separate the projections first",
          base::printable(layer.name));
    else if (is_one_of(kColumn, last))
      split = Split::kColumn;
    else if (is_one_of(kRow, last))
      split = Split::kRow;
    if (split == Split::kColumn)
      if (Result<void> fits = check_column(layer, options.ranks); !fits) return fits.error();
    if (split == Split::kRow)
      if (Result<void> fits = check_row(layer, options.ranks); !fits) return fits.error();
    plan.layers[layer.name] = split;
  }
  if (Result<void> fine = budget.check("the rules for names of layers"); !fine) return fine.error();
  if (plan.names(Split::kColumn).empty() || plan.names(Split::kRow).empty())
    return invalid_argument(
        "the rules split {} layers by output and {} by input features of {}, and a part of a model needs both kinds; "
        "name the layers (--column, --row)",
        plan.names(Split::kColumn).size(), plan.names(Split::kRow).size(), model.layers().size());
  if (Result<void> heads = check_heads(config, options.ranks); !heads) return heads.error();
  return plan;
}

std::unique_ptr<Checkpoint> rank_of(const Checkpoint& model, const SplitPlan& plan, int rank) {
  NYBBLE_CHECK(rank >= 0 && rank < plan.ranks, "a rank of the plan");
  return std::make_unique<RankCheckpoint>(model, plan, rank);
}

Result<Ranks> open_ranks(const std::string& in, const std::string& out, const SplitOptions& options) {
  Result<OpenModel> model = open_model(in);
  if (!model) return model.error();
  Ranks ranks{.model = std::move(*model), .plan = {}, .parts = {}, .jobs = {}};
  const OpenModel& whole = ranks.model;
  Result<SplitPlan> plan =
      plan_split(*whole.checkpoint, whole.files ? whole.files->config() : nlohmann::json::object(), options);
  if (!plan) return plan.error();
  ranks.plan = std::make_unique<const SplitPlan>(std::move(*plan));
  for (int rank = 0; rank < options.ranks; ++rank) {
    ranks.parts.push_back(rank_of(*whole.checkpoint, *ranks.plan, rank));
    ranks.jobs.push_back({{ranks.parts.back().get(), whole.files, ranks.plan->recipe(rank)},
                          fmt::format("{}/rank-{}-of-{}", out, rank, options.ranks)});
  }
  return ranks;
}

SplitModel outline(const Ranks& ranks) {
  SplitModel split{.folders = {},
                   .column = ranks.plan->names(Split::kColumn),
                   .row = ranks.plan->names(Split::kRow),
                   .replicated = ranks.plan->names(Split::kNone),
                   .written = {}};
  for (const ModelJob& job : ranks.jobs) split.folders.push_back(job.out);
  return split;
}

}  // namespace nybble::checkpoint
