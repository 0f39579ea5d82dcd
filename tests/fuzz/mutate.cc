#include "fuzz/mutate.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "checkpoint/model_parts.h"
#include "fuzz/folder_image.h"
#include "weight/packed_blob.h"

namespace nybble::fuzz {
namespace {

using nlohmann::json;
using testing::TestTensor;

// Words that formats ask for, as keys or as values.
constexpr const char* kWords[] = {"quant_method",
                                  "bits",
                                  "group_size",
                                  "sym",
                                  "desc_act",
                                  "zero_point",
                                  "version",
                                  "gemm",
                                  "gemv",
                                  "gemv_fast",
                                  "checkpoint_format",
                                  "gptq",
                                  "gptq_v2",
                                  "awq",
                                  "compressed-tensors",
                                  "config_groups",
                                  "group_0",
                                  "targets",
                                  "Linear",
                                  "weights",
                                  "num_bits",
                                  "type",
                                  "int",
                                  "float",
                                  "symmetric",
                                  "strategy",
                                  "group",
                                  "channel",
                                  "tensor",
                                  "tensor_group",
                                  "actorder",
                                  "static",
                                  "weight",
                                  "dynamic",
                                  "format",
                                  "pack-quantized",
                                  "nvfp4-pack-quantized",
                                  "mxfp4-pack-quantized",
                                  "mixed-precision",
                                  "int-quantized",
                                  "ignore",
                                  "lm_head",
                                  "re:.*q_proj",
                                  "quantization_status",
                                  "compressed",
                                  "kv_cache_scheme",
                                  "input_activations",
                                  "output_activations",
                                  "scale_dtype",
                                  "zp_dtype",
                                  "torch.int8",
                                  "quantization_config",
                                  "compression_config",
                                  "text_config",
                                  "bitsandbytes",
                                  "load_in_4bit",
                                  "bnb_4bit_quant_type",
                                  "nf4",
                                  "fp4",
                                  "bnb_4bit_use_double_quant",
                                  "hqq",
                                  "torchao",
                                  "quant_type",
                                  "default",
                                  "Int4WeightOnlyConfig",
                                  "_type",
                                  "_data",
                                  "modelopt",
                                  "quantization",
                                  "quant_algo",
                                  "NVFP4",
                                  "mxfp4",
                                  "modules_to_not_convert",
                                  "meta",
                                  "quantizer",
                                  "gptqmodel:1.0",
                                  "autoround_version",
                                  "pack_dtype",
                                  "is_marlin_format",
                                  "-:.*",
                                  "+:.*",
                                  "metadata",
                                  "total_size",
                                  "weight_map",
                                  "model.safetensors",
                                  "a.safetensors",
                                  "b.safetensors",
                                  "__metadata__",
                                  "dtype",
                                  "shape",
                                  "data_offsets",
                                  "BF16",
                                  "F16",
                                  "F32",
                                  "I32",
                                  "U8",
                                  "kind",
                                  "schema",
                                  "gpu",
                                  "cpu",
                                  "threads",
                                  "rows",
                                  "problem",
                                  "kernels",
                                  "kernel",
                                  "us",
                                  "estimate_us",
                                  "m1 n64 k64 bf16 g64",
                                  "nybble.statistics",
                                  "tokens.",
                                  "same_input."};
constexpr int64_t kNumbers[] = {0,
                                1,
                                2,
                                3,
                                4,
                                7,
                                8,
                                15,
                                16,
                                17,
                                31,
                                32,
                                33,
                                63,
                                64,
                                65,
                                127,
                                128,
                                129,
                                255,
                                256,
                                257,
                                1024,
                                4096,
                                65535,
                                65536,
                                -1,
                                -2,
                                -8,
                                -128,
                                INT32_MAX,
                                int64_t{INT32_MAX} + 1,
                                int64_t{1} << 32,
                                int64_t{1} << 40,
                                (int64_t{1} << 53) - 1,
                                int64_t{1} << 53,
                                (int64_t{1} << 53) + 1,
                                int64_t{1} << 61,
                                INT64_MAX,
                                INT64_MIN};
// What regular expressions are made of: what stands alone, what begins a group, and what follows one.
constexpr const char* kAtoms[] = {"a",
                                  "proj",
                                  ".",
                                  ".*",
                                  "\\d",
                                  "\\W",
                                  "\\b",
                                  "\\K",
                                  "^",
                                  "$",
                                  "|",
                                  "[a-z]",
                                  "[^.]",
                                  "[[:alpha:]]",
                                  "\\.",
                                  "\\1",
                                  "\\g{-1}",
                                  "\\k<n>",
                                  "(?1)",
                                  "(?R)",
                                  "(?&n)",
                                  "\\Q",
                                  "\\E",
                                  "\\A",
                                  "\\z",
                                  "\\G",
                                  "\\R",
                                  "\\X",
                                  "(?i)",
                                  "(?x)",
                                  "(?s)",
                                  "(?C9)",
                                  "(*ACCEPT)",
                                  "(*COMMIT)",
                                  "(*SKIP)",
                                  "(*F)",
                                  "(*NO_START_OPT)",
                                  "(*LIMIT_MATCH=9)",
                                  "(*ANYCRLF)"};
constexpr const char* kOpenings[] = {"(",   "(?:",   "(?=",    "(?!", "(?<=",  "(?<!",    "(?>",
                                     "(?|", "(?<n>", "(?P<n>", "(?*", "(?(1)", "(?(<n>)", "(?(?=a)"};
constexpr const char* kEndings[] = {")", ")*", ")+", ")?", ")*?", ")++", "){2}", "){1,9}", "){99,}", "){0}"};
// Infinities, NaN, the least number, the negative zero.
constexpr uint32_t kOddFloats[] = {0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF, 1, 0x80000000};
constexpr uint16_t kOddHalves[] = {0x7F80, 0x7C00, 0xFC00, 0xFFFF, 0x7FC0, 0x7BFF, 0x8000, 1};

uint64_t header_length(const std::string& file) {
  uint64_t length = 0;
  if (file.size() >= sizeof length) std::memcpy(&length, file.data(), sizeof length);
  return length;
}

std::string suffix_of(const std::string& name) {
  const size_t dot = name.rfind('.');
  return dot == std::string::npos ? "" : name.substr(dot);
}

}  // namespace

void Mutator::apply(InputKind kind, std::string& input, size_t max_bytes) {
  if (below(32) == 0) return blind_(input, max_bytes);
  switch (kind) {
    case InputKind::kFolder:
    case InputKind::kConfig:
      return change_folder(input, kind == InputKind::kConfig, max_bytes);
    case InputKind::kSafetensors:
      return change_safetensors(input, max_bytes);
    case InputKind::kJson:
      return change_json(input, max_bytes);
    case InputKind::kGguf:
      return change_gguf(input, max_bytes);
    case InputKind::kPacked:
      return change_packed(input, max_bytes);
    case InputKind::kExpressions:
      return change_expressions(input, max_bytes);
  }
}

void Mutator::change_folder(std::string& image, bool config_only, size_t max_bytes) {
  std::vector<ImageFile> files = read_image({reinterpret_cast<const uint8_t*>(image.data()), image.size()});
  if (files.empty()) return blind_(image, max_bytes);
  ImageFile* file = &any(files);
  for (ImageFile& each : files)
    if (each.name == "config.json" && (config_only || below(4) == 0)) file = &each;
  if (!config_only && below(64) == 0) {  // a file less, or under another name
    if (below(2) == 0)
      files.erase(files.begin() + (file - files.data()));
    else
      file->name = std::string(any(kWords)) + (below(2) == 0 ? ".safetensors" : "");
  } else if (file->name.ends_with(".json")) {
    change_json(file->bytes, max_bytes);
  } else {
    change_safetensors(file->bytes, max_bytes);
  }
  image = write_image(files);
}

void Mutator::change_json(std::string& text, size_t max_bytes) {
  if (below(4) == 0) return blind_(text, max_bytes);
  json root = json::parse(text, nullptr, false);
  if (!root.is_structured()) return blind_(text, max_bytes);
  const auto value = [&]() -> json {
    switch (below(8)) {
      case 0:
        return nullptr;
      case 1:
        return below(2) == 0;
      case 2:
        return static_cast<double>(any(kNumbers)) / 2;
      case 3:
        return json::array({any(kWords)});
      case 4:
        return json::object({{any(kWords), any(kNumbers)}});
      case 5:
        return any(kWords);
      default:
        return any(kNumbers);
    }
  };
  for (int count = 1 + below(2); count > 0; --count) {
    json *at = &root, *parent = nullptr;
    while (at->is_structured() && !at->empty() && (at == &root || below(5) != 0)) {
      auto member = at->begin();
      std::advance(member, below(static_cast<int>(at->size())));
      parent = at;
      at = &*member;
    }
    switch (below(6)) {
      case 0:  // gone
        if (parent != nullptr && parent->is_object()) {
          auto member = parent->begin();
          std::advance(member, below(static_cast<int>(parent->size())));
          parent->erase(member);
        }
        break;
      case 1:  // one more
        if (parent != nullptr && parent->is_object())
          (*parent)[any(kWords)] = value();
        else if (parent != nullptr && parent->is_array())
          parent->push_back(value());
        break;
      case 2:  // a neighbour of a number
        if (at->is_number_integer()) {
          *at = static_cast<int64_t>(static_cast<uint64_t>(at->get<int64_t>()) + static_cast<uint64_t>(below(5)) - 2);
          break;
        }
        [[fallthrough]];
      case 3:  // another word
        if (at->is_string()) {
          *at = any(kWords);
          break;
        }
        [[fallthrough]];
      default:
        if (at != &root) *at = value();
    }
  }
  text = root.dump(-1, ' ', false, json::error_handler_t::replace);
}

void Mutator::change_safetensors(std::string& file, size_t max_bytes) {
  if (const int choice = below(8); choice < 3) {
    const uint64_t length = header_length(file);
    if (file.size() < 8 || length > file.size() - 8) return blind_(file, max_bytes);
    if (choice == 0) {  // the header's text; the length follows it
      std::string header = file.substr(8, length);
      blind_(header, max_bytes);
      file = testing::container(header, file.substr(8 + length));
    } else if (choice == 1) {  // a few numbers among the data
      for (int count = 1 + below(4); count > 0; --count) overwrite_number(file, 8 + length, file.size());
    } else {
      overwrite_number(file, 0, file.size());
    }
    return;
  }
  std::optional<testing::ModelParts> parts = testing::take_apart(file);
  if (!parts || parts->tensors.empty()) return blind_(file, max_bytes);
  for (int count = 1 + below(2); count > 0; --count) {
    const size_t index = random_() % parts->tensors.size();
    TestTensor& tensor = parts->tensors[index];
    switch (below(9)) {
      case 0:
        if (parts->tensors.size() > 1)
          parts->tensors.erase(parts->tensors.begin() + static_cast<std::ptrdiff_t>(index));
        break;
      case 1:  // a dimension more, or two that trade places
        if (tensor.shape.empty() || below(2) == 0)
          tensor.shape.insert(tensor.shape.begin() + below(static_cast<int>(tensor.shape.size()) + 1), 1);
        else
          std::swap(any(tensor.shape), any(tensor.shape));
        break;
      case 2: {  // another type of the same width
        const std::vector<std::vector<const char*>> kAlike = {{"U8", "I8", "F8_E4M3", "F8_E8M0", "BOOL", "F8_E5M2"},
                                                              {"F16", "BF16", "I16", "U16"},
                                                              {"F32", "I32", "U32"},
                                                              {"F64", "I64", "U64"}};
        for (const auto& alike : kAlike)
          if (std::find(alike.begin(), alike.end(), tensor.dtype) != alike.end()) {
            tensor.dtype = any(alike);
            break;
          }
        break;
      }
      case 3:  // fewer or more of one dimension
      case 4: {
        if (tensor.shape.empty()) break;
        int64_t& dim = any(tensor.shape);
        if (dim <= 0) break;
        const size_t each = tensor.bytes.size() / static_cast<size_t>(dim);
        dim = below(4) == 0 ? 2 * dim : below(3) == 0 ? (dim + 1) / 2 : dim + below(3) - 1;
        if (each * static_cast<size_t>(dim) <= max_bytes) tensor.bytes.resize(each * static_cast<size_t>(dim), '\1');
        break;
      }
      case 5: {  // another tensor's bytes under this name
        const TestTensor& other = any(parts->tensors);
        tensor.dtype = other.dtype;
        tensor.shape = other.shape;
        tensor.bytes = std::string(other.bytes);
        break;
      }
      case 6: {  // a layer's tensor under another layer's name, or a second one
        TestTensor copy = tensor;
        const std::string stem = tensor.name.substr(0, tensor.name.size() - suffix_of(tensor.name).size());
        copy.name = below(2) == 0 ? "b" + suffix_of(tensor.name) : stem + suffix_of(any(parts->tensors).name);
        if (below(2) == 0)
          parts->tensors.push_back(std::move(copy));
        else
          tensor.name = copy.name;
        break;
      }
      case 7:  // text among the tensors: a state in JSON
        if (tensor.bytes.starts_with('{')) {
          change_json(tensor.bytes, max_bytes);
          tensor.shape = {static_cast<int64_t>(tensor.bytes.size())};
          break;
        }
        [[fallthrough]];
      default:
        for (int numbers = 1 + below(4); numbers > 0; --numbers) overwrite_number(tensor.bytes, 0, tensor.bytes.size());
    }
  }
  if (!parts->metadata.empty() && below(4) == 0) change_json(parts->metadata, max_bytes);
  file = parts->file();
}

void Mutator::overwrite_number(std::string& bytes, size_t begin, size_t end) {
  if (begin >= end || end > bytes.size()) return;
  constexpr size_t kWidths[] = {1, 2, 4, 8};
  const size_t width = any(kWidths);
  if (end - begin < width) return;
  const size_t at = begin + random_() % ((end - begin) / width) * width;
  uint64_t number = 0;
  switch (below(4)) {
    case 0:  // floats: infinity, NaN and the like, in the upper bytes
      number = width == 4 ? any(kOddFloats) : any(kOddHalves);
      break;
    case 1:
      number = static_cast<uint64_t>(any(kNumbers));
      break;
    case 2:
      std::memcpy(&number, bytes.data() + at, width);
      number += static_cast<uint64_t>(below(5)) - 2;
      break;
    default:
      number = random_() * 0x9E3779B97F4A7C15u;
      number ^= number >> 29;
  }
  std::memcpy(bytes.data() + at, &number, width);
}

void Mutator::change_gguf(std::string& file, size_t max_bytes) {
  if (below(4) == 0) return blind_(file, max_bytes);
  // Keys and the table of tensors stand in front and hold what is worth changing; nothing moves, so that all else
  // stays where it is.
  const size_t front = below(3) == 0 ? file.size() : std::min<size_t>(file.size(), 1024);
  for (int count = 1 + below(3); count > 0; --count) {
    if (below(2) == 0 && front > 0)
      file[random_() % front] = static_cast<char>(random_() >> 8);
    else
      overwrite_number(file, random_() % std::min<size_t>(8, front + 1), front);
  }
}

void Mutator::change_packed(std::string& file, size_t max_bytes) {
  if (below(8) == 0)
    blind_(file, max_bytes);
  else if (below(2) == 0)
    overwrite_number(file, 0, std::min<size_t>(file.size(), 64));
  else
    overwrite_number(file, 0, file.size());
  if (file.size() < sizeof(layout::PackedHeader) || below(8) == 0) return;
  if (below(2) == 0) {  // the size that is there
    const uint64_t total = file.size();
    std::memcpy(file.data() + offsetof(layout::PackedHeader, total_bytes), &total, sizeof total);
  }
  const uint64_t checksum = packed_checksum(std::as_bytes(std::span(file)));
  std::memcpy(file.data() + offsetof(layout::PackedHeader, checksum), &checksum, sizeof checksum);
}

void Mutator::change_expressions(std::string& image, size_t max_bytes) {
  std::vector<ImageFile> files = read_image({reinterpret_cast<const uint8_t*>(image.data()), image.size()});
  if (files.empty()) return blind_(image, max_bytes);
  for (int count = 1 + below(3); count > 0; --count) {
    const size_t index = random_() % files.size();
    std::string& text = files[index].bytes;
    const size_t begin = random_() % (text.size() + 1), end = begin + random_() % (text.size() + 1 - begin);
    switch (below(10)) {
      case 0:  // one more, or one less
        if (below(2) == 0 || files.size() == 1)
          files.push_back(ImageFile(files[index]));
        else
          files.erase(files.begin() + static_cast<std::ptrdiff_t>(index));
        break;
      case 1:  // a name as an expression, an expression as a name
        files[index].name = below(2) == 0 ? kExpression : "";
        break;
      case 2:  // a part twice
        text.insert(end, text.substr(begin, end - begin));
        break;
      case 3:  // gone
        text.erase(begin, end - begin);
        break;
      case 4:
        blind_(text, max_bytes);
        break;
      case 5:  // a part as a group
      case 6:
        text.insert(end, any(kEndings));
        text.insert(begin, any(kOpenings));
        break;
      default:
        text.insert(begin, any(kAtoms));
    }
  }
  image = write_image(files);
}

}  // namespace nybble::fuzz
