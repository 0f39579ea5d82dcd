// Linear layers as tensors of a model: what the formats share.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/layer_tensors.h"
#include "checkpoint/model_files.h"
#include "nybble/checkpoint.h"

namespace nybble::checkpoint {

// "model.layers.0.mlp.up_proj" of "model.layers.0.mlp.up_proj.weight"; empty if the name does not end in `suffix`.
std::string_view layer_of(std::string_view tensor_name, std::string_view suffix);

// Whether `layer`'s weight tensor is a dense linear layer's: 2-D, fp16, bf16 or fp32, not empty, and its bias, if there
// is one, fits its rows.
bool is_dense_layer(const ModelFiles& model, std::string_view layer);
LayerInfo dense_layer_info(const ModelFiles& model, std::string_view layer);
// Adds the model's dense layers to the quantized ones in `layers`, whose own tensors may look like dense weights.
void add_dense_layers(const ModelFiles& model, std::vector<LayerInfo>& layers);

// A layer of n x k as it is listed, in the file of the tensor that holds its codes.
LayerInfo quantized_layer_info(const ModelFiles& model, std::string_view layer, const TensorRef& codes, int64_t n,
                               int64_t k, const WeightFormat& format);
// That layer's weight, yet without codes, scales and zeros.
QuantizedWeight empty_weight(const LayerInfo& layer);
// Layers of every tensor that ends in `suffix`, as `info_of` tells by their names, and the dense ones. A model without
// any such tensor is an error; `method` is what it says it is.
Result<std::vector<LayerInfo>> list_layers(const ModelFiles& model, std::string_view suffix, std::string_view method,
                                           const std::function<Result<LayerInfo>(const std::string& layer)>& info_of);
// Zero points of 8 alone add nothing to (code - 8) * scale, and cost kernels time and memory. They are dropped where a
// model has no others: of single layers they stay, because runtimes fuse layers into one and want one format of them.
bool are_symmetric(std::span<const uint8_t> zeros);
void list_as_symmetric(std::vector<LayerInfo>& layers);  // those listed with integer zero points
// For the convention of a model in which that was done.
inline constexpr char kAllSymmetric[] =
    "; the zero points that there are say 8, the symmetric one, everywhere, so that all layers are read as symmetric";
// Whether the settings in config.json name this method; without settings, whether any tensor ends in `suffix`.
bool is_of_method(const ModelFiles& model, std::string_view method, std::string_view suffix);

// All numbers of a tensor of a float type that DType knows.
Result<FloatArray> read_floats(const TensorSlice& tensor);
// The same, none of them NaN or infinite.
Result<FloatArray> read_finite_floats(const TensorSlice& tensor);
// [n, groups] of `stored`, where the number of (row, group) stands at row * row_stride + group * group_stride.
FloatArray arranged(const FloatArray& stored, int64_t n, int64_t groups, int64_t row_stride, int64_t group_stride);
// A bias of n output features: [n], of a float type; empty where there is no such tensor.
Result<FloatArray> read_bias(const TensorSlice& bias, int64_t n);
// Refuses NaN and infinity, naming the first.
Result<void> check_finite(const FloatArray& values, const TensorSlice& tensor);

// Experts whose weights stand in one tensor are layers of their own: "experts.gate_up_proj.3" is index 3 of what is
// stored under "experts.gate_up_proj".
struct StoredLayer {
  std::string name;              // what its tensors' names begin with
  std::optional<int64_t> index;  // of their first dimension

  // A tensor of the layer by its suffix, an empty one where there is none. A tensor without that index is an error.
  Result<TensorSlice> find(const ModelFiles& model, std::string_view suffix) const;
  // The same of a tensor that must be there; `beside` is the suffix of one that is.
  Result<TensorSlice> require(const ModelFiles& model, std::string_view suffix, std::string_view beside) const;
};
// How the layer of this name is stored: by itself if it has a tensor with this suffix, else as an expert.
StoredLayer stored_layer(const ModelFiles& model, std::string_view layer, std::string_view suffix);
std::string expert_name(std::string_view stored_name, int64_t index);
// Refuses two layers of one name: an expert in a tensor of several, and one by itself.
Result<void> check_distinct(const ModelFiles& model, const std::vector<LayerInfo>& layers);
// Refuses tensors that end in one of `beside`, but whose layer has neither codes (what ends in `codes`) nor a
// `.weight`: without its codes a layer would vanish from the model without a word.
Result<void> check_no_orphans(const ModelFiles& model, std::string_view codes,
                              std::initializer_list<std::string_view> beside);

// A checkpoint whose layers were listed when it was opened: everything but reading quantized ones.
class LayerCheckpoint : public Checkpoint {
 public:
  // `layers` in any order; they are kept sorted by name.
  LayerCheckpoint(std::shared_ptr<const ModelFiles> model, std::vector<LayerInfo> layers);

  const std::vector<LayerInfo>& layers() const final { return layers_; }
  Result<DenseWeight> read_dense(const std::string& layer) const final;
  Result<QuantizedWeight> read_quantized(const std::string& layer) const final;
  std::vector<OtherTensor> other_tensors() const final;
  Result<std::vector<std::byte>> read_other_tensor(const std::string& name) const final;
  Result<void> check(const std::function<void(int64_t, int64_t)>& progress) const final;

 protected:
  const ModelFiles& model() const { return *model_; }
  size_t quantized_count() const;
  size_t dense_count() const { return layers_.size() - quantized_count(); }
  // What follows a quantized layer's name in the names of the tensors that make up its weight, the bias not among them.
  virtual std::span<const std::string_view> weight_suffixes() const = 0;
  // The layer's bias; empty if it has none.
  virtual Result<TensorSlice> bias_of(const LayerInfo& layer) const;
  // Only called for layers listed as quantized. What it returns is validated by read_quantized().
  virtual Result<QuantizedWeight> read_codes(const LayerInfo& layer) const = 0;

 private:
  const LayerInfo* look_up(std::string_view layer) const;  // nullptr: not among them
  bool is_part_of_weight(const TensorRef& tensor) const;
  Result<const LayerInfo*> find(const std::string& layer, bool quantized) const;
  Result<void> check_layer(const LayerInfo& layer) const;
  int64_t bytes_of(const LayerInfo& layer) const;

  std::shared_ptr<const ModelFiles> model_;
  std::vector<LayerInfo> layers_;
};

}  // namespace nybble::checkpoint
