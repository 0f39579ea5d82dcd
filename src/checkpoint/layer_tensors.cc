#include "checkpoint/layer_tensors.h"

#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "base/json_text.h"

namespace nybble::checkpoint {

TensorSlice::TensorSlice(const TensorRef& tensor, int64_t index) : tensor_(tensor), index_(index) {
  NYBBLE_CHECK(tensor && !tensor->shape.empty() && index >= 0 && index < tensor->shape[0], "an index of the tensor");
  NYBBLE_CHECK(tensor_type_bits(tensor->type) % 8 == 0, "parts of a tensor are whole bytes");
}

std::span<const int64_t> TensorSlice::shape() const { return std::span(tensor_->shape).subspan(index_ ? 1 : 0); }

uint64_t TensorSlice::size_bytes() const {
  return index_ ? tensor_->size_bytes() / static_cast<uint64_t>(tensor_->shape[0]) : tensor_->size_bytes();
}

std::string TensorSlice::where() const {
  return index_ ? fmt::format("{}, index {}", tensor_.where(), *index_) : tensor_.where();
}

Result<void> TensorSlice::read(uint64_t offset, std::span<std::byte> out) const {
  NYBBLE_CHECK(offset <= size_bytes() && out.size() <= size_bytes() - offset, "bytes of this part");
  return tensor_.read((index_ ? static_cast<uint64_t>(*index_) * size_bytes() : 0) + offset, out);
}

Result<std::vector<std::byte>> TensorSlice::read_all() const {
  std::vector<std::byte> bytes(size_bytes());
  if (Result<void> done = read(0, bytes); !done) return done.error();
  return bytes;
}

bool TensorSlice::is(TensorType type, std::span<const int64_t> wanted) const {
  return tensor_->type == type && std::equal(wanted.begin(), wanted.end(), shape().begin(), shape().end());
}

Error wrong_tensor(const TensorSlice& tensor, std::string_view type, std::span<const int64_t> shape,
                   std::string_view why) {
  return invalid_data("{}: is {} {}, but {} needs {} {}", tensor.where(), tensor_type_name(tensor.type()),
                      shape_text(tensor.shape()), why, type, shape_text(shape));
}

Result<void> expect_tensor(const TensorSlice& tensor, TensorType type, std::vector<int64_t> shape,
                           std::string_view why) {
  if (tensor.is(type, shape)) return {};
  return wrong_tensor(tensor, tensor_type_name(type), shape, why);
}

Result<TensorRef> required_tensor(const ModelFiles& model, std::string_view layer, std::string_view suffix,
                                  std::string_view beside) {
  const std::string name = std::string(layer).append(suffix);
  if (const TensorRef tensor = model.find(name)) return tensor;
  return invalid_data("{}: layer {} has {}{}, but no {}", model.path(), base::printable(layer), layer, beside, name);
}

Result<int64_t> read_integer(const TensorRef& tensor) {
  const auto refuse = [&] {
    return invalid_data("{}: is {} {}, but one whole number is wanted (U8, BOOL, I32 or I64)", tensor.where(),
                        tensor_type_name(tensor->type), shape_text(tensor->shape));
  };
  if (!tensor->shape.empty() && tensor->shape != std::vector<int64_t>{1}) return refuse();
  const auto read = [&](auto number) -> Result<int64_t> {
    if (Result<void> done = tensor.read(0, std::as_writable_bytes(std::span(&number, 1))); !done) return done.error();
    return static_cast<int64_t>(number);
  };
  switch (tensor->type) {
    case TensorType::kU8:
    case TensorType::kBool:
      return read(uint8_t{});
    case TensorType::kI32:
      return read(int32_t{});
    case TensorType::kI64:
      return read(int64_t{});
    default:
      return refuse();
  }
}

}  // namespace nybble::checkpoint
