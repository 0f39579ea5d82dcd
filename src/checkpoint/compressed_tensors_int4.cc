// compressed-tensors "pack-quantized" with 4-bit integers (compressed_tensors.h): symmetric or with zero points, in
// groups, per output feature or per layer, with or without act-order.
#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/compressed_tensors.h"
#include "checkpoint/compressed_tensors_layers.h"
#include "checkpoint/int4_words.h"
#include "checkpoint/layers.h"

namespace nybble::checkpoint {
namespace {

// The tensors of one packed layer, their shapes checked against each other and the scheme.
struct PackedLayer {
  TensorSlice packed, scale, zero_point, group_index;  // the last two may be absent
  LayerScheme scheme;
  int64_t n = 0, k = 0, groups = 0;
};

// weight_shape: n and k, for experts behind their number, which weight_packed must agree with.
Result<void> read_shape(const ModelFiles& model, const StoredLayer& stored, PackedLayer& found) {
  const Result<TensorRef> shape = required_tensor(model, stored.name, kWeightShape, kWeightPacked);
  if (!shape) return shape.error();
  const bool wide = (*shape)->type == TensorType::kI64;
  const size_t rank = stored.index ? 3 : 2;
  if ((!wide && (*shape)->type != TensorType::kI32) || (*shape)->shape != std::vector{static_cast<int64_t>(rank)})
    return wrong_tensor(*shape, "I64", std::vector{static_cast<int64_t>(rank)}, "the shape of a layer");
  int64_t stored_dims[3] = {};
  const std::span<int64_t> dims = std::span(stored_dims).first(rank);
  if (wide) {
    if (Result<void> read = shape->read(0, std::as_writable_bytes(dims)); !read) return read;
  } else {
    int32_t narrow[3] = {};
    if (Result<void> read = shape->read(0, std::as_writable_bytes(std::span(narrow).first(rank))); !read) return read;
    std::copy_n(narrow, rank, dims.begin());
  }
  const int64_t n = dims[rank - 2], k = dims[rank - 1];
  const std::vector<int64_t>& words = model.find(stored.name + kWeightPacked)->shape;
  if (n < 1 || k < 1 || n != words[rank - 2] || k > INT32_MAX || words_for(k) != words[rank - 1] || dims[0] != words[0])
    return invalid_data("{}: holds {}, which does not fit weight_packed's shape {} ([n, ceil(k / 8)])", shape->where(),
                        shape_text(dims), shape_text(words));
  found.n = n;
  found.k = k;
  return {};
}

Result<PackedLayer> find_layer(const ModelFiles& model, const StoredLayer& stored, const LayerScheme& scheme) {
  PackedLayer found;
  found.scheme = scheme;
  const Result<TensorSlice> packed = stored.find(model, kWeightPacked);
  if (!packed) return packed.error();
  found.packed = *packed;
  if (found.packed.type() != TensorType::kI32 || found.packed.shape().size() != 2)
    return invalid_data("{}: is {} {}, but 4-bit integers are packed as I32 [n, ceil(k / 8)]", found.packed.where(),
                        tensor_type_name(found.packed.type()), shape_text(found.packed.shape()));
  if (Result<void> read = read_shape(model, stored, found); !read) return read.error();

  const int group_size = found.scheme.group_size;
  if (group_size != kPerColumn && found.k % group_size != 0)
    return invalid_data("{}: layer {} has k = {}, which is no multiple of config.json's group_size {}", model.path(),
                        base::printable(stored.name), found.k, group_size);
  found.groups = group_size == kPerColumn ? 1 : found.k / group_size;
  const bool per_tensor = found.scheme.per_tensor;
  const std::string why = per_tensor                 ? "the strategy 'tensor' (config.json)"
                          : group_size == kPerColumn ? fmt::format("n = {} per channel", found.n)
                                                     : fmt::format("n = {}, k = {} in groups of {} (config.json)",
                                                                   found.n, found.k, group_size);
  const std::vector<int64_t> scale_shape = per_tensor ? std::vector<int64_t>{1} : std::vector{found.n, found.groups};
  const Result<TensorSlice> scale = stored.require(model, kWeightScale, kWeightPacked);
  if (!scale) return scale.error();
  found.scale = *scale;
  if (!float_type(found.scale.type()) || !found.scale.is(found.scale.type(), scale_shape))
    return wrong_tensor(found.scale, "BF16, F16 or F32", scale_shape, why);

  if (!found.scheme.symmetric || model.find(stored.name + kWeightZeroPoint)) {
    const Result<TensorSlice> zero_point = stored.require(model, kWeightZeroPoint, kWeightPacked);
    if (!zero_point) return zero_point.error();
    found.zero_point = *zero_point;
    const Result<void> fits =
        per_tensor ? expect_tensor(found.zero_point, TensorType::kI8, scale_shape, why)
                   : expect_tensor(found.zero_point, TensorType::kI32, {words_for(found.n), found.groups}, why);
    if (!fits) return fits.error();
  }
  if (found.scheme.act_order || model.find(stored.name + kWeightGroupIndex)) {
    const Result<TensorSlice> group_index = stored.require(model, kWeightGroupIndex, kWeightPacked);
    if (!group_index) return group_index.error();
    found.group_index = *group_index;
    if (Result<void> fits = expect_tensor(found.group_index, TensorType::kI32, {found.k}, why); !fits)
      return fits.error();
  }
  return found;
}

// weight_g_idx as the canonical k_order; empty where the features stand in order. The groups must be a permutation of
// equal groups: kernels index by it.
Result<std::vector<int32_t>> read_order(const PackedLayer& layer) {
  if (!layer.group_index) return std::vector<int32_t>();
  std::vector<int32_t> group_of(static_cast<size_t>(layer.k));
  if (Result<void> read = layer.group_index.read(0, std::as_writable_bytes(std::span(group_of))); !read)
    return read.error();
  // Writers that never filled the tensor left -1 in it, and their readers take the features in order then.
  if (std::find(group_of.begin(), group_of.end(), -1) != group_of.end()) return std::vector<int32_t>();
  for (size_t i = 0; i < group_of.size(); ++i)
    if (group_of[i] < 0 || group_of[i] >= layer.groups)
      return invalid_data("{}: element {} is {}; the layer has groups 0 to {}", layer.group_index.where(), i,
                          group_of[i], layer.groups - 1);
  std::vector<int32_t> order(group_of.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return group_of[a] < group_of[b]; });
  const int64_t group_size = layer.k / layer.groups;
  for (size_t p = 0; p < order.size(); ++p)
    if (group_of[order[p]] != static_cast<int64_t>(p) / group_size)
      return invalid_data("{}: its groups are not equal: the group of element {} has another number of members than {}",
                          layer.group_index.where(), order[p], group_size);
  if (std::is_sorted(order.begin(), order.end())) return std::vector<int32_t>();
  if (!layer.scheme.act_order)
    return invalid_data("{}: reorders the input features, but config.json names no actorder \"group\"",
                        layer.group_index.where());
  return order;
}

Result<std::vector<uint8_t>> read_codes_of(const PackedLayer& layer) {
  constexpr int64_t kPieceBytes = 4 << 20;
  const int64_t row_words = words_for(layer.k), row_bytes = row_words * 4;
  const int64_t rows_per_piece = std::clamp<int64_t>(kPieceBytes / row_bytes, 1, layer.n);
  std::vector<uint32_t> words(static_cast<size_t>(rows_per_piece * row_words));
  std::vector<uint8_t> codes(static_cast<size_t>(layer.n * layer.k));
  for (int64_t row = 0; row < layer.n; row += rows_per_piece) {
    const int64_t rows = std::min(rows_per_piece, layer.n - row);
    const auto piece = std::span(words).first(static_cast<size_t>(rows * row_words));
    if (Result<void> read = layer.packed.read(static_cast<uint64_t>(row * row_bytes), std::as_writable_bytes(piece));
        !read)
      return read.error();
    for (int64_t r = 0; r < rows; ++r)
      unpack_words(piece.subspan(static_cast<size_t>(r * row_words), static_cast<size_t>(row_words)),
                   std::span(codes).subspan(static_cast<size_t>((row + r) * layer.k), static_cast<size_t>(layer.k)));
  }
  return codes;
}

Result<std::vector<uint8_t>> read_zeros(const PackedLayer& layer) {
  if (layer.scheme.per_tensor) {
    int8_t zero = 0;
    if (Result<void> read = layer.zero_point.read(0, std::as_writable_bytes(std::span(&zero, 1))); !read)
      return read.error();
    if (zero < -8 || zero > 7)
      return invalid_data("{}: is {}; a zero point of 4-bit integers is -8 to 7", layer.zero_point.where(), zero);
    return std::vector<uint8_t>(static_cast<size_t>(layer.n), static_cast<uint8_t>(zero + 8));
  }
  std::vector<uint32_t> words(static_cast<size_t>(words_for(layer.n) * layer.groups));
  if (Result<void> read = layer.zero_point.read(0, std::as_writable_bytes(std::span(words))); !read)
    return read.error();
  std::vector<uint8_t> zeros(static_cast<size_t>(layer.n * layer.groups));
  for (int64_t n = 0; n < layer.n; ++n)
    for (int64_t group = 0; group < layer.groups; ++group)
      zeros[static_cast<size_t>(n * layer.groups + group)] =
          nibble_of(words[static_cast<size_t>(n / kNibblesPerWord * layer.groups + group)], n % kNibblesPerWord);
  return zeros;
}

// One number, `count` times.
FloatArray repeated(const FloatArray& one, int64_t count) {
  FloatArray all{.dtype = one.dtype, .bytes = {}};
  all.bytes.reserve(static_cast<size_t>(count) * one.bytes.size());
  for (int64_t i = 0; i < count; ++i) all.bytes.insert(all.bytes.end(), one.bytes.begin(), one.bytes.end());
  return all;
}

}  // namespace

Result<LayerInfo> int4_layer_info(const ModelFiles& model, const StoredLayer& stored, const LayerScheme& scheme) {
  const Result<PackedLayer> layer = find_layer(model, stored, scheme);
  if (!layer) return layer.error();
  const Result<std::vector<int32_t>> order = read_order(*layer);
  if (!order) return order.error();
  LayerInfo info;
  info.n = layer->n;
  info.k = layer->k;
  info.format.scale_dtype = *float_type(layer->scale.type());
  info.format.zero_kind = layer->scheme.symmetric ? ZeroKind::kNone : ZeroKind::kInt;
  info.format.group_size = layer->scheme.group_size;
  info.format.k_order = !order->empty();
  return info;
}

Result<QuantizedWeight> read_int4_layer(const ModelFiles& model, const StoredLayer& stored, const LayerScheme& scheme) {
  const Result<PackedLayer> layer = find_layer(model, stored, scheme);
  if (!layer) return layer.error();
  QuantizedWeight weight;
  weight.n = layer->n;
  weight.k = layer->k;
  weight.group_size = layer->scheme.group_size;
  Result<std::vector<int32_t>> order = read_order(*layer);
  if (!order) return order.error();
  weight.k_order = std::move(*order);
  Result<std::vector<uint8_t>> codes = read_codes_of(*layer);
  if (!codes) return codes.error();
  weight.codes = std::move(*codes);
  Result<FloatArray> scales = read_finite_floats(layer->scale);
  if (!scales) return scales.error();
  weight.scales = layer->scheme.per_tensor ? repeated(*scales, layer->n) : std::move(*scales);
  if (!layer->zero_point) return weight;

  Result<std::vector<uint8_t>> zeros = read_zeros(*layer);
  if (!zeros) return zeros.error();
  if (!layer->scheme.symmetric) {
    weight.zero_kind = ZeroKind::kInt;
    weight.int_zeros = std::move(*zeros);
  } else if (const auto odd = std::find_if(zeros->begin(), zeros->end(), [](uint8_t zero) { return zero != 8; });
             odd != zeros->end()) {
    return invalid_data(
        "{}: row {}, group {} is {}, but config.json calls the layer symmetric (every zero 0); one of the "
        "two is wrong",
        layer->zero_point.where(), (odd - zeros->begin()) / layer->groups, (odd - zeros->begin()) % layer->groups,
        static_cast<int>(*odd) - 8);
  }
  return weight;
}

}  // namespace nybble::checkpoint
