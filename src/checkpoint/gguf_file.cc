#include "checkpoint/gguf_file.h"

#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/error.h"
#include "base/json_text.h"
#include "checkpoint/safetensors.h"

namespace nybble::checkpoint {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are read as they are");

constexpr int kMaxDims = 4;  // ggml's
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr char kMagic[4] = {'G', 'G', 'U', 'F'};

struct ValueType {
  const char* name;
  const char* plural;
  int bytes;  // 0: no fixed size
};
constexpr ValueType kValueTypes[] = {
    {"u8", "u8", 1},   {"i8", "i8", 1},   {"u16", "u16", 2},    {"i16", "i16", 2},        {"u32", "u32", 4},
    {"i32", "i32", 4}, {"f32", "f32", 4}, {"bool", "bools", 1}, {"string", "strings", 0}, {"array", "arrays", 0},
    {"u64", "u64", 8}, {"i64", "i64", 8}, {"f64", "f64", 8}};
const ValueType& value_type(GgufValueType type) { return kValueTypes[static_cast<uint32_t>(type)]; }

// Every tensor type that files hold; sizes from ggml's ggml-common.h. Q8_1 and Q8_K are only made while multiplying.
constexpr GgmlType kGgmlTypes[] = {
    {ggml::kF32, "F32", 1, 4},
    {ggml::kF16, "F16", 1, 2},
    {ggml::kQ4_0, "Q4_0", 32, 18},
    {ggml::kQ4_1, "Q4_1", 32, 20},
    {6, "Q5_0", 32, 22},
    {7, "Q5_1", 32, 24},
    {ggml::kQ8_0, "Q8_0", 32, 34},
    {10, "Q2_K", 256, 84},
    {11, "Q3_K", 256, 110},
    {12, "Q4_K", 256, 144},
    {13, "Q5_K", 256, 176},
    {14, "Q6_K", 256, 210},
    {16, "IQ2_XXS", 256, 66},
    {17, "IQ2_XS", 256, 74},
    {18, "IQ3_XXS", 256, 98},
    {19, "IQ1_S", 256, 50},
    {20, "IQ4_NL", 32, 18},
    {21, "IQ3_S", 256, 110},
    {22, "IQ2_S", 256, 82},
    {23, "IQ4_XS", 256, 136},
    {24, "I8", 1, 1},
    {25, "I16", 1, 2},
    {26, "I32", 1, 4},
    {27, "I64", 1, 8},
    {28, "F64", 1, 8},
    {29, "IQ1_M", 256, 56},
    {ggml::kBf16, "BF16", 1, 2},
    {34, "TQ1_0", 256, 54},
    {35, "TQ2_0", 256, 66},
    {39, "MXFP4", 32, 17},
    {40, "NVFP4", 64, 36},
};

const GgmlType* find_type(uint32_t id) {
  const auto* at =
      std::find_if(std::begin(kGgmlTypes), std::end(kGgmlTypes), [id](const GgmlType& type) { return type.id == id; });
  return at == std::end(kGgmlTypes) ? nullptr : at;
}

template <class T> T load(const GgufValue& value, uint64_t i) {
  T number;
  std::memcpy(&number, value.bytes.data() + i * sizeof(T), sizeof(T));
  return number;
}

uint64_t align_up(uint64_t at, uint64_t alignment) { return (at + alignment - 1) / alignment * alignment; }

}  // namespace

std::string GgufValue::describe() const {
  if (is_array) return fmt::format("an array of {} {}", count, value_type(type).plural);
  const char* name = value_type(type).name;
  return fmt::format("{} {}", *name == 'i' ? "an" : "a", name);
}

bool GgufValue::is_float() const { return type == GgufValueType::kF32 || type == GgufValueType::kF64; }

bool GgufValue::is_integer() const {
  return !is_float() && type != GgufValueType::kBool && type != GgufValueType::kString;
}

Result<int64_t> GgufValue::integer_at(uint64_t i) const {
  switch (type) {
    case GgufValueType::kU8:
      return load<uint8_t>(*this, i);
    case GgufValueType::kI8:
      return load<int8_t>(*this, i);
    case GgufValueType::kU16:
      return load<uint16_t>(*this, i);
    case GgufValueType::kI16:
      return load<int16_t>(*this, i);
    case GgufValueType::kU32:
      return load<uint32_t>(*this, i);
    case GgufValueType::kI32:
      return load<int32_t>(*this, i);
    case GgufValueType::kI64:
      return load<int64_t>(*this, i);
    case GgufValueType::kU64: {
      const auto number = load<uint64_t>(*this, i);
      if (number > INT64_MAX) return invalid_data("element {} is {}, beyond 2^63", i, number);
      return static_cast<int64_t>(number);
    }
    default:
      break;
  }
  NYBBLE_CHECK(false, "the caller asked is_integer()");
  return int64_t{0};
}

double GgufValue::number_at(uint64_t i) const {
  if (type == GgufValueType::kF32) return load<float>(*this, i);
  if (type == GgufValueType::kF64) return load<double>(*this, i);
  if (type == GgufValueType::kU64) return static_cast<double>(load<uint64_t>(*this, i));
  return static_cast<double>(*integer_at(i));
}

std::string_view GgufValue::text_at(uint64_t i) const {
  const uint64_t begin = i == 0 ? 0 : ends[i - 1];
  return {reinterpret_cast<const char*>(bytes.data()) + begin, ends[i] - begin};
}

// Reads the header from front to back through a window, never past the file's end or kMaxHeaderBytes.
class GgufFile::HeaderReader {
 public:
  explicit HeaderReader(const base::File& file) : file_(file), end_(std::min(file.size(), kMaxHeaderBytes)) {}

  uint64_t at() const { return at_; }
  uint64_t left() const { return end_ - at_; }

  // `what` is what is being read, for the error: "the number of tensors".
  Result<void> read(std::span<std::byte> out, std::string_view what) {
    if (out.size() > left()) return ends_inside(what);
    while (!out.empty()) {
      if (at_ < window_begin_ || at_ >= window_begin_ + window_.size()) {
        window_.resize(std::min<uint64_t>(kWindowBytes, end_ - at_));
        if (Result<void> done = file_.read_at(at_, window_); !done) return done;
        window_begin_ = at_;
      }
      const size_t offset = at_ - window_begin_, count = std::min(out.size(), window_.size() - offset);
      std::memcpy(out.data(), window_.data() + offset, count);
      at_ += count;
      out = out.subspan(count);
    }
    return {};
  }
  template <class T> Result<T> number(std::string_view what) {
    T value;
    if (Result<void> done = read(std::as_writable_bytes(std::span(&value, 1)), what); !done) return done.error();
    return value;
  }
  // A string's bytes are appended to `out`.
  Result<void> string(std::vector<std::byte>& out, std::string_view what) {
    const Result<uint64_t> length = number<uint64_t>(what);
    if (!length) return length.error();
    if (*length > left()) return ends_inside(what);
    const size_t begin = out.size();
    out.resize(begin + *length);
    return read(std::span(out).subspan(begin), what);
  }
  Result<std::string> name(std::string_view what) {
    const uint64_t begin = at_;
    const Result<uint64_t> length = number<uint64_t>(what);
    if (!length) return length.error();
    if (*length == 0 || *length > base::kMaxNameBytes)
      return invalid_data("{}: byte {}: {} has {} bytes; 1 to {} are allowed", file_.path(), begin, what, *length,
                          base::kMaxNameBytes);
    std::string text(*length, '\0');
    if (Result<void> done = read(std::as_writable_bytes(std::span(text)), what); !done) return done.error();
    if (base::has_control_character(text))
      return invalid_data("{}: byte {}: {} {} holds a control character", file_.path(), begin, what,
                          base::printable(text));
    return text;
  }
  Result<GgufValue> value(const std::string& key);
  Result<GgufTensor> tensor(uint64_t index);

 private:
  static constexpr uint64_t kWindowBytes = 1 << 20;

  Error ends_inside(std::string_view what) const {
    if (file_.size() > kMaxHeaderBytes)
      return invalid_data("{}: byte {}: {} would lie past byte {}, the longest header that is read", file_.path(), at_,
                          what, kMaxHeaderBytes);
    return invalid_data("{}: byte {}: the file ends inside {} (it has {} bytes); it was cut short", file_.path(), at_,
                        what, file_.size());
  }

  const base::File& file_;
  uint64_t end_, at_ = 0, window_begin_ = 0;
  std::vector<std::byte> window_;
};

Result<GgufValue> GgufFile::HeaderReader::value(const std::string& key) {
  const std::string what = "the value of " + base::printable(key);
  const auto read_type = [&]() -> Result<GgufValueType> {
    const uint64_t begin = at_;
    const Result<uint32_t> type = number<uint32_t>(what);
    if (!type) return type.error();
    if (*type >= std::size(kValueTypes))
      return invalid_data("{}: byte {}: {} has the unknown type {}", file_.path(), begin, what, *type);
    return static_cast<GgufValueType>(*type);
  };
  GgufValue value;
  Result<GgufValueType> type = read_type();
  if (!type) return type.error();
  if (*type == GgufValueType::kArray) {
    value.is_array = true;
    type = read_type();
    if (!type) return type.error();
    if (*type == GgufValueType::kArray)
      return invalid_data("{}: {} is an array of arrays; ggml itself reads none", file_.path(), what);
    const Result<uint64_t> count = number<uint64_t>(what);
    if (!count) return count.error();
    value.count = *count;
  }
  value.type = *type;
  const int bytes = value_type(*type).bytes;
  if (value.count > left() / (bytes > 0 ? bytes : sizeof(uint64_t)))  // a string has at least its length
    return invalid_data("{}: byte {}: {} claims {} elements, more than the rest of the header can hold", file_.path(),
                        at_, what, value.count);
  if (bytes > 0) {
    const uint64_t begin = at_;
    value.bytes.resize(value.count * bytes);
    if (Result<void> done = read(value.bytes, what); !done) return done.error();
    if (*type == GgufValueType::kBool)
      for (uint64_t i = 0; i < value.count; ++i)
        if (static_cast<int>(value.bytes[i]) > 1)
          return invalid_data("{}: byte {}: {} is a bool of {}; 0 and 1 are allowed", file_.path(), begin + i, what,
                              static_cast<int>(value.bytes[i]));
    return value;
  }
  value.ends.reserve(value.count);
  for (uint64_t i = 0; i < value.count; ++i) {
    if (Result<void> done = string(value.bytes, what); !done) return done.error();
    value.ends.push_back(value.bytes.size());
  }
  value.bytes.shrink_to_fit();
  return value;
}

Result<GgufTensor> GgufFile::HeaderReader::tensor(uint64_t index) {
  GgufTensor tensor;
  tensor.header_byte = at_;
  Result<std::string> name = this->name(fmt::format("the name of tensor {}", index));
  if (!name) return name.error();
  tensor.name = std::move(*name);
  const std::string what = "the table's row of tensor " + base::printable(tensor.name);
  const auto fault = [&](const std::string& words) {
    return invalid_data("{}: byte {}: tensor {} {}", file_.path(), tensor.header_byte, base::printable(tensor.name),
                        words);
  };
  const Result<uint32_t> rank = number<uint32_t>(what);
  if (!rank) return rank.error();
  if (*rank < 1 || *rank > kMaxDims)
    return fault(fmt::format("has {} dimensions; 1 to {} are allowed", *rank, kMaxDims));
  uint64_t elements = 1;
  for (uint32_t i = 0; i < *rank; ++i) {
    const Result<uint64_t> dim = number<uint64_t>(what);
    if (!dim) return dim.error();
    if (*dim == 0) return fault(fmt::format("has a dimension of 0 (number {})", i));
    if (*dim > static_cast<uint64_t>(base::kMaxExactInteger) / elements)
      return fault(fmt::format("has more than 2^53 elements (dimension {} is {})", i, *dim));
    elements *= *dim;
    tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(*dim));
  }
  const Result<uint32_t> type = number<uint32_t>(what);
  if (!type) return type.error();
  tensor.type = find_type(*type);
  if (tensor.type == nullptr) return fault(fmt::format("has the unknown ggml type {}, so its size is unknown", *type));
  if (tensor.shape.back() % tensor.type->block != 0)
    return fault(fmt::format("has rows of {} elements, but {} comes in blocks of {}", tensor.shape.back(),
                             tensor.type->name, tensor.type->block));
  tensor.size_bytes = elements / tensor.type->block * tensor.type->bytes;
  const Result<uint64_t> offset = number<uint64_t>(what);
  if (!offset) return offset.error();
  tensor.begin = *offset;
  return tensor;
}

Result<std::shared_ptr<const GgufFile>> GgufFile::open(base::File file) {
  const auto gguf = std::make_shared<GgufFile>();
  gguf->file_ = std::move(file);
  if (Result<void> read = gguf->read_header(); !read) return read.error();
  return std::shared_ptr<const GgufFile>(gguf);
}

Result<void> GgufFile::read_header() {
  HeaderReader header(file_);
  char magic[4];
  if (Result<void> done = header.read(std::as_writable_bytes(std::span(magic)), "the magic"); !done) return done;
  if (std::memcmp(magic, kMagic, sizeof magic) != 0)
    return invalid_data("{}: begins with {} instead of 'GGUF': it is no GGUF file", file_.path(),
                        base::printable({magic, sizeof magic}));
  const Result<uint32_t> version = header.number<uint32_t>("the version");
  if (!version) return version.error();
  version_ = *version;
  if (version_ != 2 && version_ != 3) {
    if ((version_ & 0xFFFFu) == 0)
      return unsupported(
          "{}: is a big-endian GGUF file; only little-endian ones are read. Convert it with gguf-py's "
          "gguf_convert_endian.py",
          file_.path());
    return unsupported("{}: is GGUF version {}; versions 2 and 3 are read. Write it anew with a current llama.cpp",
                       file_.path(), version_);
  }
  const Result<uint64_t> tensor_count = header.number<uint64_t>("the number of tensors");
  if (!tensor_count) return tensor_count.error();
  const Result<uint64_t> key_count = header.number<uint64_t>("the number of keys");
  if (!key_count) return key_count.error();
  constexpr uint64_t kLeastKeyBytes = 8 + 1 + 4 + 1, kLeastTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;
  if (*key_count > kMaxKeys || *key_count > header.left() / kLeastKeyBytes)
    return invalid_data("{}: byte 16: claims {} keys; at most {} are read, and the file is long enough for {}",
                        file_.path(), *key_count, kMaxKeys, header.left() / kLeastKeyBytes);
  if (*tensor_count > kMaxTensors || *tensor_count > header.left() / kLeastTensorBytes)
    return invalid_data("{}: byte 8: claims {} tensors; at most {} are read, and the file is long enough for {}",
                        file_.path(), *tensor_count, kMaxTensors, header.left() / kLeastTensorBytes);

  for (uint64_t i = 0; i < *key_count; ++i) {
    const uint64_t begin = header.at();
    Result<std::string> key = header.name(fmt::format("the name of key {}", i));
    if (!key) return key.error();
    Result<GgufValue> value = header.value(*key);
    if (!value) return value.error();
    if (!metadata_.emplace(*key, std::move(*value)).second)
      return invalid_data("{}: byte {}: the key {} is there twice", file_.path(), begin, base::printable(*key));
  }
  for (uint64_t i = 0; i < *tensor_count; ++i) {
    Result<GgufTensor> tensor = header.tensor(i);
    if (!tensor) return tensor.error();
    tensors_.push_back(std::move(*tensor));
  }
  uint64_t alignment = kDefaultAlignment;
  if (const GgufValue* value = find_value("general.alignment"); value != nullptr) {
    if (value->is_array || value->type != GgufValueType::kU32)
      return invalid_data("{}: general.alignment is {}; a u32 is demanded", file_.path(), value->describe());
    alignment = static_cast<uint64_t>(*value->integer_at(0));
    if (!std::has_single_bit(alignment) || alignment > kMaxAlignment)
      return invalid_data("{}: general.alignment is {}; powers of two up to {} are allowed", file_.path(), alignment,
                          kMaxAlignment);
  }
  data_begin_ = align_up(header.at(), alignment);
  if (Result<void> checked = check_layout(alignment); !checked) return checked;
  std::sort(tensors_.begin(), tensors_.end(), [](const GgufTensor& a, const GgufTensor& b) { return a.name < b.name; });
  const auto twice = std::adjacent_find(tensors_.begin(), tensors_.end(),
                                        [](const GgufTensor& a, const GgufTensor& b) { return a.name == b.name; });
  if (twice != tensors_.end())
    return invalid_data("{}: bytes {} and {}: the tensor {} is there twice", file_.path(),
                        std::min(twice->header_byte, twice[1].header_byte),
                        std::max(twice->header_byte, twice[1].header_byte), base::printable(twice->name));
  return {};
}

Result<void> GgufFile::check_layout(uint64_t alignment) const {
  std::vector<const GgufTensor*> order;
  for (const GgufTensor& tensor : tensors_) order.push_back(&tensor);
  std::stable_sort(order.begin(), order.end(),
                   [](const GgufTensor* a, const GgufTensor* b) { return a->begin < b->begin; });
  const uint64_t data_bytes = file_.size() - std::min(data_begin_, file_.size());
  uint64_t expected = 0;
  const GgufTensor* before = nullptr;
  for (const GgufTensor* tensor : order) {
    const auto fault = [&](const std::string& words) {
      return invalid_data("{}: byte {}: tensor {} {}", file_.path(), tensor->header_byte, base::printable(tensor->name),
                          words);
    };
    if (tensor->begin % alignment != 0)
      return fault(fmt::format("begins at offset {}, no multiple of the alignment {}", tensor->begin, alignment));
    if (tensor->begin > data_bytes || tensor->size_bytes > data_bytes - tensor->begin)
      return fault(
          fmt::format("needs {} bytes from offset {} on, but the file holds {} bytes of data: it was cut short or "
                      "the table lies",
                      tensor->size_bytes, tensor->begin, data_bytes));
    if (tensor->begin < expected)
      return fault(fmt::format("begins at offset {}, inside tensor {}", tensor->begin, base::printable(before->name)));
    if (tensor->begin > expected)
      return fault(fmt::format("begins at offset {}, but what is before it ends at {}: bytes that belong to no tensor",
                               tensor->begin, expected));
    expected = align_up(tensor->begin + tensor->size_bytes, alignment);
    before = tensor;
  }
  if (data_bytes > expected)
    return invalid_data("{}: {} bytes follow the last tensor's; the table does not say what they are", file_.path(),
                        data_bytes - expected);
  return {};
}

std::string GgufFile::base_name() const {
  const size_t slash = file_.path().rfind('/');
  return slash == std::string::npos ? file_.path() : file_.path().substr(slash + 1);
}

const GgufValue* GgufFile::find_value(std::string_view key) const {
  const auto at = metadata_.find(key);
  return at == metadata_.end() ? nullptr : &at->second;
}

const GgufTensor* GgufFile::find(std::string_view name) const {
  const auto at =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const GgufTensor& tensor, std::string_view wanted) { return tensor.name < wanted; });
  return at == tensors_.end() || at->name != name ? nullptr : &*at;
}

std::string GgufFile::where(const GgufTensor& tensor) const {
  return fmt::format("{}: tensor {}", file_.path(), base::printable(tensor.name));
}

Result<void> GgufFile::read(const GgufTensor& tensor, uint64_t offset, std::span<std::byte> out) const {
  NYBBLE_CHECK(offset <= tensor.size_bytes && out.size() <= tensor.size_bytes - offset, "a read inside the tensor");
  return file_.read_at(file_offset(tensor) + offset, out);
}

Result<std::vector<std::byte>> GgufFile::read_all(const GgufTensor& tensor) const {
  std::vector<std::byte> bytes(tensor.size_bytes);
  if (Result<void> done = read(tensor, 0, bytes); !done) return done.error();
  return bytes;
}

namespace {

// The names of a folder's files that end in `suffix`; empty where it cannot be listed.
std::vector<std::string> names_ending(const base::Directory& folder, std::string_view suffix) {
  std::vector<std::string> names;
  if (const Result<std::vector<base::DirectoryEntry>> entries = folder.list(); entries)
    for (const base::DirectoryEntry& entry : *entries)
      if (entry.name.ends_with(suffix)) names.push_back(entry.name);
  return names;
}

bool is_folder(const std::string& path) {
  struct stat status;
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

}  // namespace

bool is_gguf_path(const std::string& path) {
  if (!is_folder(path)) return path.ends_with(".gguf");
  const Result<base::Directory> folder = base::Directory::open(path);
  return folder && !names_ending(*folder, ".gguf").empty() && names_ending(*folder, ".safetensors").empty();
}

Result<std::shared_ptr<const GgufFile>> GgufFile::open(const std::string& path) {
  if (!is_folder(path)) {
    Result<base::File> file = base::File::open(path);
    if (!file) return file.error();
    return open(std::move(*file));
  }
  const Result<base::Directory> folder = base::Directory::open(path);
  if (!folder) return folder.error();
  const std::vector<std::string> names = names_ending(*folder, ".gguf");
  if (names.size() != 1)
    return invalid_data("{}: holds {} .gguf files{}; open the one that is meant by its name", path, names.size(),
                        names.empty() ? "" : ", " + base::printable(names[0]) + " among them");
  Result<base::File> file = folder->open_file(names[0]);
  if (!file) return file.error();
  return open(std::move(*file));
}

}  // namespace nybble::checkpoint
