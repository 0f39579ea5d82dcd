// MXFP4 as gpt-oss stores it: all experts of a projection in one tensor, here a layer for each (StoredLayer). For E
// experts of n x k (transformers, integrations/mxfp4.py):
//   <projection>_blocks  U8 [E, n, k / 32, 16]   E2M1 codes, two a byte, the low four bits first
//   <projection>_scales  U8 [E, n, k / 32]       E8M0
//   <projection>_bias    float [E, n]            optional
#include <algorithm>

#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/format.h"
#include "checkpoint/fp4.h"
#include "checkpoint/layers.h"

namespace nybble::checkpoint {
namespace {

constexpr char kBlocks[] = "_blocks";
constexpr char kScales[] = "_scales";
constexpr int kGroup = 32, kGroupBytes = kGroup / 2;

struct Expert {
  TensorSlice blocks, scales;
  int64_t n = 0, k = 0;
};

Result<Expert> find_expert(const ModelFiles& model, const StoredLayer& stored) {
  const Result<TensorSlice> blocks = stored.find(model, kBlocks), scales = stored.require(model, kScales, kBlocks);
  if (!blocks) return blocks.error();
  if (!scales) return scales.error();
  Expert expert;
  expert.blocks = *blocks;
  expert.scales = *scales;
  const auto shape = expert.blocks.shape();  // with the groups' bytes as a dimension of their own, or not
  const bool split = shape.size() == 3;
  if (expert.blocks.type() != TensorType::kU8 || shape.size() < 2 || shape.size() > 3 ||
      expert.blocks.size_bytes() == 0 || (split ? shape[2] != kGroupBytes : shape[1] % kGroupBytes != 0))
    return invalid_data("{}: is {} {}, but experts are packed as U8 [n, k / 32, 16]", expert.blocks.where(),
                        tensor_type_name(expert.blocks.type()), shape_text(shape));
  const int64_t groups = split ? shape[1] : shape[1] / kGroupBytes;
  if (shape[0] > INT32_MAX || groups > INT32_MAX / kGroup)
    return invalid_data("{}: has shape {}; n and k are below 2^31", expert.blocks.where(), shape_text(shape));
  expert.n = shape[0];
  expert.k = groups * kGroup;
  const std::string why = fmt::format("n = {}, k = {} in groups of {}", expert.n, expert.k, kGroup);
  if (Result<void> fits = expect_tensor(expert.scales, TensorType::kU8, {expert.n, groups}, why); !fits)
    return fits.error();
  return expert;
}

class Mxfp4Checkpoint final : public LayerCheckpoint {
 public:
  using LayerCheckpoint::LayerCheckpoint;

  std::string format() const override { return kMxfp4Format.name; }
  std::string convention() const override {
    return fmt::format(
        "MXFP4 as gpt-oss stores it, by its tensors *{} and *{}: {} experts and projections, each a layer, of E2M1 "
        "codes "
        "in groups of 32 with E8M0 scales; the rows of a gate_up projection alternate gate, up; {} dense layers",
        kBlocks, kScales, quantized_count(), dense_count());
  }

 protected:
  std::span<const std::string_view> weight_suffixes() const override {
    static constexpr std::string_view kSuffixes[] = {kBlocks, kScales};
    return kSuffixes;
  }
  Result<TensorSlice> bias_of(const LayerInfo& info) const override {
    if (!info.quantized) return LayerCheckpoint::bias_of(info);
    return stored_layer(model(), info.name, kBlocks).find(model(), "_bias");
  }
  Result<QuantizedWeight> read_codes(const LayerInfo& info) const override {
    const Result<Expert> expert = find_expert(model(), stored_layer(model(), info.name, kBlocks));
    if (!expert) return expert.error();
    QuantizedWeight weight = empty_weight(info);
    weight.table = e2m1_table();
    const Result<std::vector<std::byte>> packed = expert->blocks.read_all();
    if (!packed) return packed.error();
    weight.codes = unpack_low_first(*packed);
    Result<FloatArray> scales = read_e8m0_scales(expert->scales);
    if (!scales) return scales.error();
    weight.scales = std::move(*scales);
    return weight;
  }
};

bool recognizes_mxfp4(const ModelFiles& model) {
  const nlohmann::json& settings = model.quantization_config();
  if (!settings.is_null()) return string_member(settings, "quant_method") == "mxfp4";
  return std::any_of(model.tensors().begin(), model.tensors().end(), [&](const TensorRef& tensor) {
    const std::string_view stored = layer_of(tensor->name, kBlocks);
    return !stored.empty() && tensor->type == TensorType::kU8 && model.find(std::string(stored) + kScales);
  });
}

Result<void> add_experts(const ModelFiles& model, const TensorRef& blocks, std::vector<LayerInfo>& layers) {
  if (blocks->shape.empty() || blocks->size_bytes() == 0)
    return invalid_data("{}: has shape {}, which holds no expert", blocks.where(), shape_text(blocks->shape));
  const std::string name(layer_of(blocks->name, kBlocks));
  for (int64_t index = 0; index < blocks->shape[0]; ++index) {
    const Result<Expert> expert = find_expert(model, {name, index});
    if (!expert) return expert.error();
    layers.push_back(
        quantized_layer_info(model, expert_name(name, index), blocks, expert->n, expert->k,
                             {.scale_dtype = DType::kBf16, .zero_kind = ZeroKind::kTable, .group_size = kGroup}));
  }
  return {};
}

Result<std::unique_ptr<Checkpoint>> open_mxfp4(std::shared_ptr<const ModelFiles> model) {
  std::vector<LayerInfo> layers;
  for (const TensorRef& tensor : model->tensors())
    if (!layer_of(tensor->name, kBlocks).empty())
      if (Result<void> added = add_experts(*model, tensor, layers); !added) return added.error();
  if (Result<void> whole = check_no_orphans(*model, kBlocks, {kScales}); !whole) return whole.error();
  if (layers.empty())
    return invalid_data("{}: config.json says mxfp4, but no tensor is named *{}", model->path(), kBlocks);
  add_dense_layers(*model, layers);
  if (Result<void> distinct = check_distinct(*model, layers); !distinct) return distinct.error();
  return std::unique_ptr<Checkpoint>(std::make_unique<Mxfp4Checkpoint>(std::move(model), std::move(layers)));
}

}  // namespace

const Format kMxfp4Format = {"mxfp4", recognizes_mxfp4, open_mxfp4};

}  // namespace nybble::checkpoint
