#include "checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/json_text.h"

namespace nybble::checkpoint {
namespace {

struct TypeRow {
  TensorType type;
  const char* name;
  int bits;
};
constexpr TypeRow kTypes[] = {
    {TensorType::kBool, "BOOL", 8},
    {TensorType::kU8, "U8", 8},
    {TensorType::kI8, "I8", 8},
    {TensorType::kI16, "I16", 16},
    {TensorType::kU16, "U16", 16},
    {TensorType::kI32, "I32", 32},
    {TensorType::kU32, "U32", 32},
    {TensorType::kI64, "I64", 64},
    {TensorType::kU64, "U64", 64},
    {TensorType::kF16, "F16", 16},
    {TensorType::kBf16, "BF16", 16},
    {TensorType::kF32, "F32", 32},
    {TensorType::kF64, "F64", 64},
    {TensorType::kC64, "C64", 64},
    {TensorType::kF8E4M3, "F8_E4M3", 8},
    {TensorType::kF8E5M2, "F8_E5M2", 8},
    {TensorType::kF8E8M0, "F8_E8M0", 8},
    {TensorType::kF8E4M3Fnuz, "F8_E4M3FNUZ", 8},
    {TensorType::kF8E5M2Fnuz, "F8_E5M2FNUZ", 8},
    {TensorType::kF6E2M3, "F6_E2M3", 6},
    {TensorType::kF6E3M2, "F6_E3M2", 6},
    {TensorType::kF4, "F4", 4},
};

constexpr bool types_in_order() {
  for (size_t i = 0; i < std::size(kTypes); ++i)
    if (static_cast<size_t>(kTypes[i].type) != i) return false;
  return true;
}
static_assert(types_in_order(), "kTypes is indexed by TensorType");

const TypeRow& row_of(TensorType type) { return kTypes[static_cast<size_t>(type)]; }

// Counts what the parser has taken, so that errors can name a byte. The library copies iterators: the count is outside.
class CountingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CountingIterator(const char* at, const char** taken) : at_(at), taken_(taken) {}
  reference operator*() const { return *at_; }
  CountingIterator& operator++() {
    *taken_ = ++at_;
    return *this;
  }
  CountingIterator operator++(int) {
    CountingIterator before = *this;
    ++*this;
    return before;
  }
  friend bool operator==(const CountingIterator& a, const CountingIterator& b) { return a.at_ == b.at_; }
  friend bool operator!=(const CountingIterator& a, const CountingIterator& b) { return !(a == b); }

 private:
  const char* at_;
  const char** taken_;
};

// The header as events: nothing is stored that is not needed, whatever a hostile header holds. Each way to lie has its
// own words.
class HeaderReader {
 public:
  HeaderReader(const std::string& path, std::string_view text, std::vector<TensorInfo>& tensors,
               std::map<std::string, std::string>& metadata)
      : path_(path), begin_(text.data()), taken_(text.data()), tensors_(tensors), metadata_(metadata) {}

  const char** taken() { return &taken_; }
  std::optional<Error> error() && { return std::move(error_); }

  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("a truth value"); }
  bool number_integer(int64_t) { return number_expected() && fail("{} is negative", field_words()); }
  bool number_float(double, const std::string& text) {
    return number_expected() &&
           fail("{} holds {}; only whole numbers up to 2^53 have a meaning", field_words(), base::printable(text));
  }
  bool number_unsigned(uint64_t value) {
    if (!number_expected()) return false;
    if (value > static_cast<uint64_t>(base::kMaxExactInteger))
      return fail("{} holds {}, more than 2^53", field_words(), value);
    if (place_ == Place::kShape) {
      if (tensor_.shape.size() == kMaxRank) return fail("shape has more than {} dimensions", kMaxRank);
      tensor_.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (num_offsets_ == 2) return fail("data_offsets has more than two numbers");
    (num_offsets_++ == 0 ? tensor_.begin : tensor_.end) = value;
    return true;
  }
  bool string(std::string& value) {
    if (place_ == Place::kMetadata) {
      if (!metadata_.emplace(std::move(key_), std::move(value)).second) return fail("__metadata__ has one key twice");
      return true;
    }
    if (place_ == Place::kTensor && key_ == "dtype") {
      for (const TypeRow& row : kTypes) {
        if (value != row.name) continue;
        tensor_.type = row.type;
        return true;
      }
      return fail("dtype {} is unknown", base::printable(value));
    }
    return unexpected("a string");
  }
  bool binary(nlohmann::json::binary_t&) { return unexpected("binary data"); }

  bool start_object(size_t) {
    switch (place_) {
      case Place::kOutside:
        place_ = Place::kTop;
        return true;
      case Place::kTop:
        place_ = key_ == "__metadata__" ? Place::kMetadata : Place::kTensor;
        if (place_ == Place::kMetadata) {
          if (std::exchange(metadata_seen_, true)) return fail("__metadata__ stands twice in the header");
          return true;
        }
        if (tensors_.size() == kMaxTensors) return fail("the header lists more than {} tensors", kMaxTensors);
        tensor_ = TensorInfo{};
        tensor_.name = std::move(key_);
        tensor_.header_byte = name_byte_;
        seen_dtype_ = seen_shape_ = seen_offsets_ = false;
        return true;
      default:
        return unexpected("an object");
    }
  }
  bool key(std::string& name) {
    key_ = std::move(name);
    if (place_ == Place::kTensor) {
      bool* seen = key_ == "dtype"          ? &seen_dtype_
                   : key_ == "shape"        ? &seen_shape_
                   : key_ == "data_offsets" ? &seen_offsets_
                                            : nullptr;
      if (seen == nullptr)
        return fail("has the unknown key {}; known are dtype, shape and data_offsets", base::printable(key_));
      if (std::exchange(*seen, true)) return fail("has {} twice", key_);
      return true;
    }
    if (place_ == Place::kTop) name_byte_ = position();
    const char* kind = place_ == Place::kTop ? "a tensor's name" : "a key of __metadata__";
    if (key_.size() > base::kMaxNameBytes)
      return fail("{} has {} bytes; at most {} are allowed", kind, key_.size(), base::kMaxNameBytes);
    if (base::has_control_character(key_)) return fail("{} holds a control character: {}", kind, base::printable(key_));
    if (place_ == Place::kTop && key_.empty()) return fail("a tensor's name is empty");
    return true;
  }
  bool end_object() {
    if (place_ == Place::kTop) {
      place_ = Place::kOutside;
      return true;
    }
    if (place_ == Place::kTensor) {
      if (!seen_dtype_) return fail("has no dtype");
      if (!seen_shape_) return fail("has no shape");
      if (!seen_offsets_) return fail("has no data_offsets");
      if (num_offsets_ != 2) return fail("data_offsets has {} numbers; there must be two", num_offsets_);
      tensor_.shape.shrink_to_fit();
      tensors_.push_back(std::move(tensor_));
    }
    place_ = Place::kTop;
    return true;
  }
  bool start_array(size_t) {
    if (place_ != Place::kTensor || key_ == "dtype") return unexpected("an array");
    place_ = key_ == "shape" ? Place::kShape : Place::kOffsets;
    if (place_ == Place::kOffsets) num_offsets_ = 0;
    return true;
  }
  bool end_array() {
    place_ = Place::kTensor;
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& error) {
    return fail("is not valid JSON: {}", base::parse_error_words(error));
  }

 private:
  enum class Place : uint8_t { kOutside, kTop, kMetadata, kTensor, kShape, kOffsets };

  uint32_t position() const { return static_cast<uint32_t>(8 + (taken_ - begin_)); }
  const char* field_words() const { return place_ == Place::kShape ? "shape" : "data_offsets"; }

  bool number_expected() { return place_ == Place::kShape || place_ == Place::kOffsets || unexpected("a number"); }
  bool unexpected(const char* found) {
    switch (place_) {
      case Place::kOutside:
        return fail("must be one object, not {}", found);
      case Place::kTop:
        return fail("the entry {} is {}; it must be an object", base::printable(key_), found);
      case Place::kMetadata:
        return fail("the value of {} in __metadata__ is {}; it must be a string", base::printable(key_), found);
      case Place::kTensor:
        return fail("{} is {}; it must be {}", key_, found, key_ == "dtype" ? "a string" : "an array of whole numbers");
      case Place::kShape:
      case Place::kOffsets:
        return fail("{} holds {}; it must be an array of whole numbers", field_words(), found);
    }
    return false;
  }
  template <class... Args> bool fail(fmt::format_string<Args...> text, Args&&... args) {
    const bool in_tensor = place_ == Place::kTensor || place_ == Place::kShape || place_ == Place::kOffsets;
    const std::string subject = in_tensor ? "tensor " + base::printable(tensor_.name) + ": " : "";
    error_ = invalid_data("{}: header, byte {}: {}{}", path_, position(), subject,
                          fmt::format(text, std::forward<Args>(args)...));
    return false;
  }

  const std::string& path_;
  const char* begin_;
  const char* taken_;
  std::vector<TensorInfo>& tensors_;
  std::map<std::string, std::string>& metadata_;
  Place place_ = Place::kOutside;
  std::string key_;
  uint32_t name_byte_ = 0;
  bool metadata_seen_ = false;
  TensorInfo tensor_;  // the one whose entry is open
  bool seen_dtype_ = false, seen_shape_ = false, seen_offsets_ = false;
  int num_offsets_ = 0;
  std::optional<Error> error_;
};

Result<uint64_t> checked_size_bytes(const TensorInfo& tensor, const std::string& path) {
  uint64_t bits = static_cast<uint64_t>(tensor_type_bits(tensor.type));
  for (const int64_t dim : tensor.shape)
    if (__builtin_mul_overflow(bits, static_cast<uint64_t>(dim), &bits))
      return invalid_data("{}: header, byte {}: tensor {}: the size of shape {} in {} overflows 64 bits", path,
                          tensor.header_byte, base::printable(tensor.name), shape_text(tensor.shape),
                          tensor_type_name(tensor.type));
  if (bits % 8 != 0)
    return invalid_data("{}: header, byte {}: tensor {}: shape {} in {} is no whole number of bytes", path,
                        tensor.header_byte, base::printable(tensor.name), shape_text(tensor.shape),
                        tensor_type_name(tensor.type));
  return bits / 8;
}

}  // namespace

const char* tensor_type_name(TensorType type) { return row_of(type).name; }
int tensor_type_bits(TensorType type) { return row_of(type).bits; }

Result<DType> float_type(TensorType type) {
  switch (type) {
    case TensorType::kBf16:
      return DType::kBf16;
    case TensorType::kF16:
      return DType::kFp16;
    case TensorType::kF32:
      return DType::kFp32;
    default:
      return invalid_argument("{} is none of BF16, F16 and F32", tensor_type_name(type));
  }
}

TensorType tensor_type(DType dtype) {
  return dtype == DType::kBf16 ? TensorType::kBf16 : dtype == DType::kFp16 ? TensorType::kF16 : TensorType::kF32;
}

std::string shape_text(std::span<const int64_t> shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

Result<SafetensorsFile> SafetensorsFile::open(base::File file) {
  SafetensorsFile opened;
  opened.file_ = std::move(file);
  const base::File& f = opened.file_;

  uint64_t header_bytes = 0;
  if (f.size() < sizeof header_bytes)
    return invalid_data("{}: has {} bytes; a safetensors file begins with 8 bytes that give the header's length",
                        f.path(), f.size());
  if (Result<void> read = f.read_at(0, std::as_writable_bytes(std::span(&header_bytes, 1))); !read) return read.error();
  if (header_bytes > kMaxHeaderBytes)
    return invalid_data("{}: byte 0 gives the header {} bytes; at most {} are allowed (or this is no safetensors file)",
                        f.path(), header_bytes, kMaxHeaderBytes);
  if (header_bytes > f.size() - sizeof header_bytes)
    return invalid_data("{}: byte 0 gives the header {} bytes, but only {} follow: the file is cut off", f.path(),
                        header_bytes, f.size() - sizeof header_bytes);
  opened.data_begin_ = sizeof header_bytes + header_bytes;

  std::string header(header_bytes, '\0');
  if (Result<void> read = f.read_at(8, std::as_writable_bytes(std::span(header.data(), header.size()))); !read)
    return read.error();
  if (!header.starts_with('{')) return invalid_data("{}: header, byte 8: does not begin with '{{'", f.path());

  // The JSON library takes a NUL for the end of the text and would let anything follow it.
  if (const size_t nul = header.find('\0'); nul != std::string::npos)
    return invalid_data("{}: header, byte {}: is not valid JSON: a NUL byte", f.path(), 8 + nul);

  const Result<std::string_view> text = base::bounded_json(header, f.path() + ": header", sizeof header_bytes);
  if (!text) return text.error();
  HeaderReader reader(f.path(), header, opened.tensors_, opened.metadata_);
  const bool parsed = nlohmann::json::sax_parse(CountingIterator(text->data(), reader.taken()),
                                                CountingIterator(text->data() + text->size(), reader.taken()), &reader);
  if (std::optional<Error> error = std::move(reader).error()) return *std::move(error);
  NYBBLE_CHECK(parsed, "the header reader gives a reason when it stops");

  base::ContentHash hash;
  hash.update(std::as_bytes(std::span(header.data(), header.size())));
  opened.header_hash_ = hash.digest();
  std::sort(opened.tensors_.begin(), opened.tensors_.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  for (size_t i = 1; i < opened.tensors_.size(); ++i)
    if (opened.tensors_[i - 1].name == opened.tensors_[i].name)
      return invalid_data("{}: header, byte {}: tensor {} stands twice in the header", f.path(),
                          std::max(opened.tensors_[i - 1].header_byte, opened.tensors_[i].header_byte),
                          base::printable(opened.tensors_[i].name));
  if (Result<void> checked = opened.check_layout(); !checked) return checked.error();
  return opened;
}

// The tensors, sorted by place, must follow each other without hole or overlap from the data's first byte to the file's
// last.
Result<void> SafetensorsFile::check_layout() const {
  const std::string& path = file_.path();
  const uint64_t data_bytes = file_.size() - data_begin_;
  std::vector<uint32_t> order(tensors_.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return std::pair(tensors_[a].begin, tensors_[a].end) < std::pair(tensors_[b].begin, tensors_[b].end);
  });
  uint64_t filled = 0;
  const TensorInfo* before = nullptr;
  for (const uint32_t i : order) {
    const TensorInfo& tensor = tensors_[i];
    const std::string subject =
        fmt::format("{}: header, byte {}: tensor {}", path, tensor.header_byte, base::printable(tensor.name));
    if (tensor.end < tensor.begin)
      return invalid_data("{}: data_offsets run backwards, from {} to {}", subject, tensor.begin, tensor.end);
    const Result<uint64_t> size = checked_size_bytes(tensor, path);
    if (!size) return size.error();
    if (*size != tensor.size_bytes())
      return invalid_data("{}: shape {} in {} needs {} bytes, but data_offsets span {}", subject,
                          shape_text(tensor.shape), tensor_type_name(tensor.type), *size, tensor.size_bytes());
    if (tensor.begin > filled)
      return invalid_data("{}: begins at data byte {}, which leaves a hole from byte {}", subject, tensor.begin,
                          filled);
    if (tensor.begin < filled)
      return invalid_data("{}: begins at data byte {}, inside tensor {}, which ends at {}", subject, tensor.begin,
                          base::printable(before->name), filled);
    if (tensor.end > data_bytes)
      return invalid_data("{}: ends at data byte {} (file byte {}), but the file ends at byte {}: it is cut off",
                          subject, tensor.end, data_begin_ + tensor.end, file_.size());
    filled = tensor.end;
    before = &tensor;
  }
  if (filled != data_bytes)
    return invalid_data(
        "{}: the tensors end at byte {}, but the file goes on to byte {}: trailing bytes belong to nothing", path,
        data_begin_ + filled, file_.size());
  return {};
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto at =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const TensorInfo& tensor, std::string_view wanted) { return tensor.name < wanted; });
  return at != tensors_.end() && at->name == name ? &*at : nullptr;
}

Result<void> SafetensorsFile::read(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> out) const {
  NYBBLE_CHECK(offset <= tensor.size_bytes() && out.size() <= tensor.size_bytes() - offset,
               "a read stays within its tensor");
  return file_.read_at(data_begin_ + tensor.begin + offset, out);
}

}  // namespace nybble::checkpoint
