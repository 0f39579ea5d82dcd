// The tensors that make up one layer: a whole tensor, or one expert's part of a tensor that holds several.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/model_files.h"

namespace nybble::checkpoint {

// A tensor, or what one index of its first dimension leaves of it.
class TensorSlice {
 public:
  TensorSlice() = default;
  TensorSlice(const TensorRef& tensor) : tensor_(tensor) {}  // a whole tensor is the usual case, so not explicit
  TensorSlice(const TensorRef& tensor, int64_t index);       // 0 <= index < the first dimension

  explicit operator bool() const { return static_cast<bool>(tensor_); }
  TensorType type() const { return tensor_->type; }
  std::span<const int64_t> shape() const;
  uint64_t size_bytes() const;
  // "model.safetensors: tensor 'a.weight', index 3", to begin an error with.
  std::string where() const;
  Result<void> read(uint64_t offset, std::span<std::byte> out) const;
  Result<std::vector<std::byte>> read_all() const;

  // Whether it has this type and shape.
  bool is(TensorType type, std::span<const int64_t> shape) const;

 private:
  TensorRef tensor_;
  std::optional<int64_t> index_;
};

// A tensor that must be there and be of one type and shape. `why` says in words where the shape comes from.
Error wrong_tensor(const TensorSlice& tensor, std::string_view type, std::span<const int64_t> shape,
                   std::string_view why);
Result<void> expect_tensor(const TensorSlice& tensor, TensorType type, std::vector<int64_t> shape,
                           std::string_view why);

// layer + suffix; an error that names both it and `beside`, the suffix of a tensor that the layer has, where it is
// missing.
Result<TensorRef> required_tensor(const ModelFiles& model, std::string_view layer, std::string_view suffix,
                                  std::string_view beside);

// A whole number stored as a tensor of rank 0 or one element: U8, BOOL, I32 or I64.
Result<int64_t> read_integer(const TensorRef& tensor);

}  // namespace nybble::checkpoint
