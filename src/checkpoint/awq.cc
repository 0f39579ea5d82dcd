// AWQ: 4-bit codes with a scale and a zero point for each group, in four versions. For a layer of n x k with G groups
// along k (AutoAWQ, awq/modules/linear; GPTQModel, gptqmodel/nn_modules/qlinear, the classes of the same names):
// "gemm"
//   qweight  I32 [k, n / 8]       eight codes along n in a word, in the order of kAwqNibbleOf
//   qzeros   I32 [G, n / 8]       true zero points in the same order; absent without zero_point: all are 8
//   scales   float [G, n]         w = (code - zero) * scale
// "gemv", with a width W of at least G / 8 (zeros_width)
//   qweight  I32 [n, k / 8]       eight codes along k in a word, the first in the lowest bits
//   qzeros   I32 [n, W]           eight zero points along k in a word
//   scales   float [n, 8 W]       w = (code - zero) * scale
// "gemv_fast", and "llm-awq", whose qzeros are called scaled_zeros
//   qweight  I16 [n / 4, k]       four codes along n in a word, their columns in the order of fast_column
//   qzeros   float [8 W, n]       -zero * scale, as a number of the scales' type
//   scales   float [8 W, n]       w = code * scale + qzeros
#include "checkpoint/awq.h"

#include <algorithm>

#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/format.h"
#include "checkpoint/int4_words.h"
#include "checkpoint/layers.h"

namespace nybble::checkpoint {
namespace {

constexpr char kCodes[] = ".qweight";
constexpr char kZeros[] = ".qzeros";
constexpr char kScaledZeros[] = ".scaled_zeros";
constexpr char kScales[] = ".scales";
constexpr char kOwnConfigFile[] = "quant_config.json";  // of models older than config.json's settings
constexpr char kWayOut[] = "Quantize the unquantized model again with 4 bits and version gemm";
constexpr int64_t kFastRows = 4, kFastColumns = 64;  // of the blocks that gemv_fast's words make up

constexpr std::pair<const char*, AwqVersion> kVersions[] = {{"gemm", AwqVersion::kGemm},
                                                            {"gemv", AwqVersion::kGemv},
                                                            {"gemv_fast", AwqVersion::kGemvFast},
                                                            {"llm-awq", AwqVersion::kLlmAwq}};

const char* version_words(AwqVersion version) {
  switch (version) {
    case AwqVersion::kGemm:
      return "gemm: words interleaved along n, zero points as they are stored, 8 where there are none";
    case AwqVersion::kGemv:
      return "gemv: words along k, zero points as they are stored, 8 where there are none";
    case AwqVersion::kGemvFast:
      return "gemv_fast: blocks of 4 x 64 codes in 16-bit words, offsets (-zero * scale) in qzeros";
    case AwqVersion::kLlmAwq:
      return "llm-awq: blocks of 4 x 64 codes in 16-bit words, offsets (-zero * scale) in scaled_zeros";
  }
  return "";
}

struct AwqLayer {
  TensorRef codes, scales, zeros;  // zeros may be absent
  int64_t n = 0, k = 0, groups = 0;
  int group_size = kPerColumn;
  bool has_offsets = false;  // zeros are floats
  bool said_symmetric = false;
  // Where the number of (row, group) stands in scales, and in zeros that are floats.
  int64_t row_stride = 0, group_stride = 0;
};

// How many words of eight zero points a row of gemv has, padding included: whole 128-bit loads of its kernel.
Result<int64_t> zeros_width(int64_t k, int64_t group, const std::string& where) {
  const int64_t multiple = group >= 128 ? 1 : group == 64 ? 2 : group == 32 ? 4 : group == 16 ? 8 : 0;
  if (multiple == 0 || k % group != 0)
    return invalid_data("{}: k = {} in groups of {}, but its version has whole groups of 16, 32, 64 or 128 and more",
                        where, k, group);
  const int64_t words = words_for(k / group);
  return (words + multiple - 1) / multiple * multiple;
}

// The layer's n and k by the shape of its codes.
Result<void> read_shape(AwqVersion version, AwqLayer& layer) {
  const bool fast = version == AwqVersion::kGemvFast || version == AwqVersion::kLlmAwq;
  const std::vector<int64_t>& shape = layer.codes->shape;
  constexpr int64_t kMaxDim = INT32_MAX / kNibblesPerWord;
  const auto refuse = [&](const char* packing) {
    return invalid_data("{}: is {} {}, but the version packs 4-bit codes as {} ({})", layer.codes.where(),
                        tensor_type_name(layer.codes->type), shape_text(shape), packing, version_words(version));
  };
  const bool fits = layer.codes->type == (fast ? TensorType::kI16 : TensorType::kI32) && shape.size() == 2 &&
                    shape[0] >= 1 && shape[1] >= 1 && shape[0] <= kMaxDim && shape[1] <= kMaxDim;
  if (fast) {
    if (!fits || shape[1] % kFastColumns != 0) return refuse("I16 [n / 4, k], k a multiple of 64");
    layer.n = shape[0] * kFastRows;
    layer.k = shape[1];
  } else if (version == AwqVersion::kGemv) {
    if (!fits) return refuse("I32 [n, k / 8]");
    layer.n = shape[0];
    layer.k = shape[1] * kNibblesPerWord;
  } else {
    if (!fits) return refuse("I32 [k, n / 8]");
    layer.n = shape[1] * kNibblesPerWord;
    layer.k = shape[0];
  }
  return {};
}

Result<AwqLayer> find_layer(const ModelFiles& model, const AwqSettings& settings, const std::string& name,
                            base::MatchBudget& budget) {
  const Result<LayerSettings> own = settings.layers.of(name, budget);
  if (!own) return own.error();
  AwqLayer layer;
  layer.codes = model.find(name + kCodes);
  if (Result<void> read = read_shape(settings.version, layer); !read) return read.error();
  const int64_t stated = own->group_size.value_or(-1), group = stated == -1 ? layer.k : stated;
  layer.group_size = stated == -1 ? kPerColumn : static_cast<int>(stated);
  layer.groups = (layer.k - 1) / group + 1;
  int64_t width = 0;
  if (settings.version != AwqVersion::kGemm) {
    const Result<int64_t> words = zeros_width(layer.k, group, layer.codes.where());
    if (!words) return words.error();
    width = *words;
  }

  const std::string why =
      fmt::format("n = {}, k = {} in groups of {} ({})", layer.n, layer.k, stated, settings.layers.subject);
  const int64_t columns = width * kNibblesPerWord;
  std::vector<int64_t> scales_shape, zeros_shape;
  switch (settings.version) {
    case AwqVersion::kGemm:
      scales_shape = {layer.groups, layer.n};
      zeros_shape = {layer.groups, layer.n / kNibblesPerWord};
      break;
    case AwqVersion::kGemv:
      scales_shape = {layer.n, columns};
      zeros_shape = {layer.n, width};
      break;
    case AwqVersion::kGemvFast:
    case AwqVersion::kLlmAwq:
      scales_shape = zeros_shape = {columns, layer.n};
      layer.has_offsets = true;
      break;
  }
  layer.row_stride = settings.version == AwqVersion::kGemv ? columns : 1;
  layer.group_stride = settings.version == AwqVersion::kGemv ? 1 : layer.n;
  const char* zeros_suffix = settings.version == AwqVersion::kLlmAwq ? kScaledZeros : kZeros;
  const Result<TensorRef> scales = required_tensor(model, name, kScales, kCodes);
  if (!scales) return scales.error();
  layer.scales = *scales;
  if (!float_type((*scales)->type) || (*scales)->shape != scales_shape)
    return wrong_tensor(*scales, "BF16, F16 or F32", scales_shape, why);
  layer.said_symmetric = own->symmetric.value_or(false);
  if (layer.said_symmetric && !layer.has_offsets && !model.find(name + zeros_suffix)) return layer;
  const Result<TensorRef> zeros = required_tensor(model, name, zeros_suffix, kCodes);
  if (!zeros) return zeros.error();
  layer.zeros = *zeros;
  const TensorType type = layer.has_offsets ? (*scales)->type : TensorType::kI32;
  if (Result<void> fits = expect_tensor(*zeros, type, zeros_shape, why); !fits) return fits.error();
  return layer;
}

// Numbers of gemm's words [rows, n / 8] as [n, rows].
Result<std::vector<uint8_t>> unpack_interleaved(const TensorRef& tensor, int64_t n, int64_t rows) {
  std::vector<uint32_t> words(static_cast<size_t>(n / kNibblesPerWord));
  std::vector<uint8_t> values(static_cast<size_t>(n * rows));
  for (int64_t row = 0; row < rows; ++row) {
    if (Result<void> read =
            tensor.read(static_cast<uint64_t>(row) * words.size() * 4, std::as_writable_bytes(std::span(words)));
        !read)
      return read.error();
    for (int64_t i = 0; i < n; ++i)
      values[static_cast<size_t>(i * rows + row)] =
          nibble_of(words[static_cast<size_t>(i / kNibblesPerWord)], kAwqNibbleOf[i % kNibblesPerWord]);
  }
  return values;
}

// The first `count` numbers of each row of gemv's words.
Result<std::vector<uint8_t>> unpack_rows(const TensorRef& tensor, int64_t count) {
  const int64_t rows = tensor->shape[0];
  std::vector<uint32_t> words(static_cast<size_t>(tensor->shape[1]));
  std::vector<uint8_t> values(static_cast<size_t>(rows * count));
  for (int64_t row = 0; row < rows; ++row) {
    if (Result<void> read =
            tensor.read(static_cast<uint64_t>(row) * words.size() * 4, std::as_writable_bytes(std::span(words)));
        !read)
      return read.error();
    unpack_words(words, std::span(values).subspan(static_cast<size_t>(row * count), static_cast<size_t>(count)));
  }
  return values;
}

// gemv_fast packs blocks of 4 rows and 64 columns: the words 16 r to 16 r + 15 of a block hold row r.
constexpr int64_t fast_row(int64_t word) { return word % kFastColumns / 16; }
constexpr int64_t fast_column(int64_t word, int64_t nibble) {
  const int64_t within = word % 16;
  return word / kFastColumns * kFastColumns + within / 8 * 32 + nibble * 8 + within % 8;
}

Result<std::vector<uint8_t>> unpack_fast(const AwqLayer& layer) {
  std::vector<uint16_t> words(static_cast<size_t>(layer.k));
  std::vector<uint8_t> codes(static_cast<size_t>(layer.n * layer.k));
  for (int64_t block = 0; block < layer.n / kFastRows; ++block) {
    if (Result<void> read =
            layer.codes.read(static_cast<uint64_t>(block) * words.size() * 2, std::as_writable_bytes(std::span(words)));
        !read)
      return read.error();
    for (int64_t word = 0; word < layer.k; ++word)
      for (int64_t nibble = 0; nibble < 4; ++nibble)
        codes[static_cast<size_t>((block * kFastRows + fast_row(word)) * layer.k + fast_column(word, nibble))] =
            nibble_of(words[static_cast<size_t>(word)], nibble);
  }
  return codes;
}

// Integer zero points [n, groups].
Result<std::vector<uint8_t>> read_zeros(const AwqLayer& layer, AwqVersion version) {
  return version == AwqVersion::kGemm ? unpack_interleaved(layer.zeros, layer.n, layer.groups)
                                      : unpack_rows(layer.zeros, layer.groups);
}

class AwqCheckpoint final : public LayerCheckpoint {
 public:
  // `all_symmetric`: zero points are stored, but all of them are the symmetric one.
  AwqCheckpoint(std::shared_ptr<const ModelFiles> model, std::vector<LayerInfo> layers, AwqSettings settings,
                bool all_symmetric, std::vector<std::string> warnings)
      : LayerCheckpoint(std::move(model), std::move(layers)),
        settings_(std::move(settings)),
        all_symmetric_(all_symmetric),
        warnings_(std::move(warnings)) {}

  std::string format() const override { return settings_.format; }
  std::string convention() const override {
    return fmt::format("AWQ's tensors, as the configuration says in version {}; {} layers, {} dense ones{}",
                       version_words(settings_.version), quantized_count(), dense_count(),
                       all_symmetric_ ? kAllSymmetric : "");
  }
  std::vector<std::string> warnings() const override { return warnings_; }

 protected:
  std::span<const std::string_view> weight_suffixes() const override {
    static constexpr std::string_view kSuffixes[] = {kCodes, kZeros, kScaledZeros, kScales};
    return kSuffixes;
  }
  Result<QuantizedWeight> read_codes(const LayerInfo& info) const override {
    base::MatchBudget budget;  // which this layer did not spend when all were found
    const Result<AwqLayer> layer = find_layer(model(), settings_, info.name, budget);
    if (!layer) return layer.error();
    QuantizedWeight weight = empty_weight(info);
    const bool gemm = settings_.version == AwqVersion::kGemm;
    Result<std::vector<uint8_t>> codes = layer->has_offsets ? unpack_fast(*layer)
                                         : gemm             ? unpack_interleaved(layer->codes, layer->n, layer->k)
                                                            : unpack_rows(layer->codes, layer->k);
    if (!codes) return codes.error();
    weight.codes = std::move(*codes);
    const Result<FloatArray> scales = read_finite_floats(layer->scales);
    if (!scales) return scales.error();
    weight.scales = arranged(*scales, layer->n, layer->groups, layer->row_stride, layer->group_stride);
    if (!layer->zeros) return weight;
    if (layer->has_offsets) {
      const Result<FloatArray> offsets = read_finite_floats(layer->zeros);
      if (!offsets) return offsets.error();
      weight.float_zeros = arranged(*offsets, layer->n, layer->groups, layer->row_stride, layer->group_stride);
      return weight;
    }
    Result<std::vector<uint8_t>> zeros = read_zeros(*layer, settings_.version);
    if (!zeros) return zeros.error();
    if (info.format.zero_kind == ZeroKind::kInt || !are_symmetric(*zeros)) weight.int_zeros = std::move(*zeros);
    return weight;
  }

 private:
  AwqSettings settings_;
  bool all_symmetric_;
  std::vector<std::string> warnings_;
};

Result<AwqSettings> parse_settings(const QuantizationSettings& from) {
  AwqSettings settings;
  settings.format = kAwqFormat.name;
  settings.layers.subject = from.subject;
  settings.layers.way_out = kWayOut;
  const nlohmann::json& object = from.object;
  const std::string& subject = from.subject;
  if (Result<void> read = read_layer_settings(object, subject, settings.layers.common); !read) return read.error();
  if (!settings.layers.common.bits) return invalid_data("{}: has no bits", subject);
  if (!settings.layers.common.group_size) return invalid_data("{}: has no group_size", subject);

  std::string version = string_member(object, "version");
  if (version.empty()) version = string_member(object, "format");
  if (string_member(object, "backend") == "llm-awq") version = "llm-awq";  // of transformers' older releases
  if (version.empty()) version = "gemm";
  for (char& c : version) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  const auto known = std::find_if(std::begin(kVersions), std::end(kVersions),
                                  [&](const auto& entry) { return version == entry.first; });
  if (known == std::end(kVersions))
    return unsupported("{}: version {} is not read, only gemm, gemv, gemv_fast and llm-awq. {}", subject,
                       base::printable(version), kWayOut);
  settings.version = known->second;

  if (const nlohmann::json* dense = find_member(object, {"modules_to_not_convert"})) {
    const bool names = dense->is_array() && std::all_of(dense->begin(), dense->end(),
                                                        [](const nlohmann::json& entry) { return entry.is_string(); });
    if (!names) return invalid_data("{}: modules_to_not_convert must be an array of strings", subject);
    settings.not_converted = dense->get<std::vector<std::string>>();
  }
  return settings;
}

// Where the settings and what is stored contradict each other: the first layer, and how many.
class Contradictions {
 public:
  void see(const std::string& layer) {
    if (count_++ == 0) first_ = layer;
  }
  void warn(const AwqSettings& settings, const char* words, std::vector<std::string>& warnings) const {
    if (count_ > 0)
      warnings.push_back(fmt::format("{}: {}: {} layer{}, {} the first", settings.layers.subject, words, count_,
                                     count_ == 1 ? "" : "s", base::printable(first_)));
  }

 private:
  std::string first_;
  int64_t count_ = 0;
};

// Without settings in config.json by the file of its own: its tensors' names are others' too.
bool recognizes_awq(const ModelFiles& model) {
  const bool has_settings = !model.quantization_config().is_null() || model.folder().has(kOwnConfigFile);
  return has_settings && is_of_method(model, "awq", kCodes);
}

Result<std::unique_ptr<Checkpoint>> open_awq(std::shared_ptr<const ModelFiles> model) {
  const Result<QuantizationSettings> found = find_quantization_settings(*model, kOwnConfigFile);
  if (!found) return found.error();
  Result<AwqSettings> settings = parse_settings(*found);
  if (!settings) return settings.error();
  base::MatchBudget budget;
  return open_awq_tensors(std::move(model), std::move(*settings), budget);
}

}  // namespace

Result<std::unique_ptr<Checkpoint>> open_awq_tensors(std::shared_ptr<const ModelFiles> model, AwqSettings settings,
                                                     base::MatchBudget& budget) {
  if (Result<void> whole = check_no_orphans(*model, kCodes, {kZeros, kScaledZeros, kScales}); !whole)
    return whole.error();
  Contradictions zeros, dense;
  bool has_zeros = false, asymmetric = false;
  Result<std::vector<LayerInfo>> layers =
      list_layers(*model, kCodes, settings.format, [&](const std::string& name) -> Result<LayerInfo> {
        const Result<AwqLayer> layer = find_layer(*model, settings, name, budget);
        if (!layer) return layer.error();
        has_zeros |= static_cast<bool>(layer->zeros);
        asymmetric |= layer->has_offsets;
        if (layer->zeros && !asymmetric) {
          const Result<std::vector<uint8_t>> stored = read_zeros(*layer, settings.version);
          if (!stored) return stored.error();
          asymmetric = !are_symmetric(*stored);
        }
        if (layer->zeros && layer->said_symmetric) zeros.see(name);
        const bool said_dense =
            std::any_of(settings.not_converted.begin(), settings.not_converted.end(), [&](const std::string& part) {
              return budget.spend(1 + static_cast<int64_t>(name.size() / 32)) && name.find(part) != std::string::npos;
            });
        if (Result<void> fine = budget.check(settings.layers.subject + ": modules_to_not_convert"); !fine)
          return fine.error();
        if (said_dense) dense.see(name);
        const ZeroKind kind = layer->has_offsets ? ZeroKind::kOffset : layer->zeros ? ZeroKind::kInt : ZeroKind::kNone;
        return quantized_layer_info(
            *model, name, layer->codes, layer->n, layer->k,
            {.scale_dtype = *float_type(layer->scales->type), .zero_kind = kind, .group_size = layer->group_size});
      });
  if (!layers) return layers.error();
  std::vector<std::string> warnings = std::move(settings.warnings);
  if (!asymmetric) list_as_symmetric(*layers);
  if (asymmetric) zeros.warn(settings, "zero_point is false, but zero points are stored and used", warnings);
  dense.warn(settings, "modules_to_not_convert names layers that are stored in 4 bits and read so", warnings);
  return std::unique_ptr<Checkpoint>(std::make_unique<AwqCheckpoint>(
      std::move(model), std::move(*layers), std::move(settings), has_zeros && !asymmetric, std::move(warnings)));
}

const Format kAwqFormat = {"awq", recognizes_awq, open_awq};

}  // namespace nybble::checkpoint
