#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "base/hash.h"
#include "base/json_text.h"
#include "calibration/statistics_names.h"
#include "checkpoint/safetensors.h"
#include "nybble/statistics.h"

namespace nybble {

using namespace calibration;

struct StatisticsFile::Content {
  struct Layer {
    const checkpoint::TensorInfo* tensor = nullptr;
    bool hessian = false;
    int64_t k = 0, tokens = 0;
  };
  checkpoint::SafetensorsFile file;
  std::map<std::string, Layer, std::less<>> layers;  // those with a tensor
  std::map<std::string, std::string, std::less<>> same_input;

  const Layer* find(std::string_view layer) const {
    if (const auto other = same_input.find(layer); other != same_input.end()) layer = other->second;
    const auto found = layers.find(layer);
    return found == layers.end() ? nullptr : &found->second;
  }
  Result<void> add_tensor(const checkpoint::TensorInfo& tensor);
  Result<void> add_metadata(const std::string& key, const std::string& value);
  Result<void> check() const;
};

Result<void> StatisticsFile::Content::add_tensor(const checkpoint::TensorInfo& tensor) {
  const std::string& path = file.file().path();
  const bool hessian = tensor.name.ends_with(kHessian), mean_square = tensor.name.ends_with(kMeanSquare);
  const std::string name = tensor.name.substr(0, tensor.name.rfind('.'));
  if ((!hessian && !mean_square) || name.empty())
    return invalid_data("{}: tensor {}: its name ends in neither {} nor {}, as a statistics file's tensors do", path,
                        base::printable(tensor.name), kHessian, kMeanSquare);
  if (tensor.type != checkpoint::TensorType::kF32)
    return invalid_data("{}: tensor {}: has type {}, but statistics are F32", path, base::printable(tensor.name),
                        checkpoint::tensor_type_name(tensor.type));
  const bool fits = hessian ? tensor.shape.size() == 2 && tensor.shape[0] == tensor.shape[1] : tensor.shape.size() == 1;
  constexpr int64_t kMaxFeatures = int64_t{1} << 31;
  if (!fits || tensor.shape[0] < 1 || tensor.shape[0] >= kMaxFeatures)
    return invalid_data("{}: tensor {}: has shape {}, but must have {}", path, base::printable(tensor.name),
                        checkpoint::shape_text(tensor.shape), hessian ? "[k, k]" : "[k]");
  if (!layers.try_emplace(name, Layer{&tensor, hessian, tensor.shape[0], 0}).second)
    return invalid_data("{}: layer {}: has both a Hessian and mean squares; one of them is too many", path,
                        base::printable(name));
  return {};
}

Result<void> StatisticsFile::Content::add_metadata(const std::string& key, const std::string& value) {
  const std::string& path = file.file().path();
  if (key.starts_with(kTokensPrefix)) {
    const auto layer = layers.find(key.substr(std::string_view(kTokensPrefix).size()));
    if (layer == layers.end())
      return invalid_data("{}: metadata {}: the file has no statistics of that layer", path, base::printable(key));
    int64_t tokens = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), tokens);
    if (error != std::errc() || end != value.data() + value.size() || tokens < 1 || tokens > base::kMaxExactInteger)
      return invalid_data("{}: metadata {}: is {}, but must be a number of tokens, 1 to 2^53", path,
                          base::printable(key), base::printable(value));
    layer->second.tokens = tokens;
  } else if (key.starts_with(kSameInputPrefix)) {
    same_input.emplace(key.substr(std::string_view(kSameInputPrefix).size()), value);
  }
  return {};
}

Result<void> StatisticsFile::Content::check() const {
  const std::string& path = file.file().path();
  for (const auto& [name, layer] : layers)
    if (layer.tokens == 0)
      return invalid_data("{}: layer {}: the metadata has no {}{}", path, base::printable(name), kTokensPrefix,
                          base::printable(name));
  for (const auto& [name, other] : same_input) {
    if (layers.contains(name))
      return invalid_data("{}: layer {}: has statistics of its own and those of {}; one of them is too many", path,
                          base::printable(name), base::printable(other));
    if (!layers.contains(other))
      return invalid_data("{}: layer {}: is said to share the input of {}, which the file has no statistics of", path,
                          base::printable(name), base::printable(other));
  }
  if (layers.empty()) return invalid_data("{}: holds no layer's statistics", path);
  return {};
}

StatisticsFile::StatisticsFile(std::shared_ptr<const Content> content) : content_(std::move(content)) {}

Result<StatisticsFile> StatisticsFile::open(const std::string& path) {
  Result<base::File> opened = base::File::open(path);
  if (!opened) return opened.error();
  Result<checkpoint::SafetensorsFile> file = checkpoint::SafetensorsFile::open(std::move(*opened));
  if (!file) return file.error();
  auto content = std::make_shared<Content>(Content{.file = std::move(*file)});
  const auto& metadata = content->file.metadata();
  const auto format = metadata.find(kFormatKey);
  if (format == metadata.end())
    return invalid_data("{}: is no statistics file: its metadata has no {}; write one with a collector", path,
                        kFormatKey);
  if (format->second != kFormatValue)
    return unsupported("{}: is a statistics file of format {}; this library reads {}", path,
                       base::printable(format->second), kFormatValue);
  for (const checkpoint::TensorInfo& tensor : content->file.tensors())
    if (Result<void> added = content->add_tensor(tensor); !added) return added.error();
  for (const auto& [key, value] : metadata)
    if (Result<void> added = content->add_metadata(key, value); !added) return added.error();
  if (Result<void> checked = content->check(); !checked) return checked.error();
  return StatisticsFile(std::move(content));
}

const std::string& StatisticsFile::path() const { return content_->file.file().path(); }

std::vector<std::string> StatisticsFile::layers() const {
  std::vector<std::string> names;
  for (const auto& [name, layer] : content_->layers) names.push_back(name);
  for (const auto& [name, other] : content_->same_input) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

bool StatisticsFile::has(const std::string& layer) const { return content_->find(layer) != nullptr; }

Result<LayerStatistics> StatisticsFile::read(const std::string& layer) const {
  const Content::Layer* found = content_->find(layer);
  if (found == nullptr) return invalid_argument("{}: has no statistics of layer {}", path(), base::printable(layer));
  LayerStatistics statistics{.layer = layer, .k = found->k, .tokens = found->tokens};
  std::vector<float>& values = found->hessian ? statistics.hessian : statistics.mean_square;
  values.resize(found->tensor->size_bytes() / sizeof(float));
  if (Result<void> read = content_->file.read(*found->tensor, 0, std::as_writable_bytes(std::span(values))); !read)
    return read.error();
  if (found->hessian)
    for (int64_t i = 0; i < found->k; ++i) statistics.mean_square.push_back(values[i * found->k + i]);
  if (Result<void> valid = validate(statistics); !valid) return invalid_data("{}: {}", path(), valid.error().message);
  return statistics;
}

Result<uint64_t> StatisticsFile::content_hash() const {
  constexpr uint64_t kPieceBytes = 4 << 20;
  const base::File& file = content_->file.file();
  std::vector<std::byte> buffer(std::min(kPieceBytes, file.size()));
  base::ContentHash hash;
  for (uint64_t at = 0; at < file.size();) {
    const auto piece = std::span(buffer).first(std::min<uint64_t>(buffer.size(), file.size() - at));
    if (Result<void> read = file.read_at(at, piece); !read) return read.error();
    hash.update(piece);
    at += piece.size();
  }
  return hash.digest();
}

}  // namespace nybble
