// compressed-tensors "nvfp4-pack-quantized" and "mxfp4-pack-quantized" (compressed_tensors.h) as weights with a table.
#include <cmath>

#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/compressed_tensors.h"
#include "checkpoint/compressed_tensors_layers.h"
#include "checkpoint/fp4.h"

namespace nybble::checkpoint {
namespace {

// The tensors of one layer, their shapes checked against each other.
struct Fp4Layer {
  TensorSlice packed, scale, global_scale;  // the last for NVFP4 only
  int64_t n = 0, k = 0;
};

Result<Fp4Layer> find_layer(const ModelFiles& model, const StoredLayer& stored, const LayerScheme& scheme) {
  const bool nvfp4 = scheme.packing == LayerPacking::kNvfp4;
  Fp4Layer found;
  const Result<TensorSlice> packed = stored.find(model, kWeightPacked);
  if (!packed) return packed.error();
  found.packed = *packed;
  const auto shape = found.packed.shape();
  if (found.packed.type() != TensorType::kU8 || shape.size() != 2 || found.packed.size_bytes() == 0 ||
      shape[1] > INT32_MAX / 2)
    return invalid_data("{}: is {} {}, but 4-bit floats are packed as U8 [n, k / 2]", found.packed.where(),
                        tensor_type_name(found.packed.type()), shape_text(shape));
  found.n = shape[0];
  found.k = 2 * shape[1];
  if (found.k % scheme.group_size != 0)
    return invalid_data("{}: layer {} has k = {}, which is no multiple of its format's groups of {}", model.path(),
                        base::printable(stored.name), found.k, scheme.group_size);
  if (const TensorRef zeros = model.find(stored.name + kWeightZeroPoint))
    return unsupported("{}: 4-bit floats with zero points are not read. Quantize the unquantized model again",
                       zeros.where());

  const Result<TensorSlice> scale = stored.require(model, kWeightScale, kWeightPacked);
  if (!scale) return scale.error();
  found.scale = *scale;
  const std::vector<int64_t> scales{found.n, found.k / scheme.group_size};
  const bool typed = nvfp4 ? found.scale.type() == TensorType::kF8E4M3
                           : found.scale.type() == TensorType::kU8 || found.scale.type() == TensorType::kF8E8M0;
  if (!typed || !found.scale.is(found.scale.type(), scales))
    return wrong_tensor(found.scale, nvfp4 ? "F8_E4M3" : "U8", scales,
                        fmt::format("n = {}, k = {} in groups of {}", found.n, found.k, scheme.group_size));
  if (!nvfp4) return found;

  const Result<TensorSlice> global_scale = stored.require(model, kWeightGlobalScale, kWeightPacked);
  if (!global_scale) return global_scale.error();
  found.global_scale = *global_scale;
  if (found.global_scale.type() != TensorType::kF32 || found.global_scale.size_bytes() != sizeof(float))
    return wrong_tensor(found.global_scale, "F32", std::vector<int64_t>{1}, "the scale of a tensor");
  return found;
}

}  // namespace

Result<LayerInfo> fp4_layer_info(const ModelFiles& model, const StoredLayer& stored, const LayerScheme& scheme) {
  const Result<Fp4Layer> layer = find_layer(model, stored, scheme);
  if (!layer) return layer.error();
  LayerInfo info;
  info.n = layer->n;
  info.k = layer->k;
  info.format = {.scale_dtype = scheme.packing == LayerPacking::kNvfp4 ? DType::kFp32 : DType::kBf16,
                 .zero_kind = ZeroKind::kTable,
                 .group_size = scheme.group_size};
  return info;
}

Result<QuantizedWeight> read_fp4_layer(const ModelFiles& model, const StoredLayer& stored, const LayerScheme& scheme) {
  const Result<Fp4Layer> layer = find_layer(model, stored, scheme);
  if (!layer) return layer.error();
  QuantizedWeight weight;
  weight.n = layer->n;
  weight.k = layer->k;
  weight.group_size = scheme.group_size;
  weight.zero_kind = ZeroKind::kTable;
  weight.table = e2m1_table();
  const Result<std::vector<std::byte>> packed = layer->packed.read_all();
  if (!packed) return packed.error();
  weight.codes = unpack_low_first(*packed);
  if (!layer->global_scale) {
    Result<FloatArray> scales = read_e8m0_scales(layer->scale);
    if (!scales) return scales.error();
    weight.scales = std::move(*scales);
    return weight;
  }
  float global_scale = 0;
  if (Result<void> read = layer->global_scale.read(0, std::as_writable_bytes(std::span(&global_scale, 1))); !read)
    return read.error();
  if (!std::isfinite(global_scale) || global_scale == 0)
    return invalid_data("{}: is {}; scales are divided by it", layer->global_scale.where(), global_scale);
  Result<FloatArray> scales = read_e4m3_scales(layer->scale, [&](float scale) { return scale / global_scale; });
  if (!scales) return scales.error();
  weight.scales = std::move(*scales);
  return weight;
}

}  // namespace nybble::checkpoint
