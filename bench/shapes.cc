// Shape presets and the text forms of shapes.h.
#include "bench/shapes.h"

#include <charconv>
#include <fstream>
#include <sstream>
#include <utility>

#include "base/error.h"

namespace nybble::bench {
namespace {

// The linear layers of one decoder block, projections that share their input fused as servers fuse them.
const std::vector<std::pair<std::string, std::vector<Shape>>>& models() {
  static const std::vector<std::pair<std::string, std::vector<Shape>>> table = {
      {"llama2-7b", {{12288, 4096, "qkv"}, {4096, 4096, "o"}, {22016, 4096, "gate_up"}, {4096, 11008, "down"}}},
      {"llama2-13b", {{15360, 5120, "qkv"}, {5120, 5120, "o"}, {27648, 5120, "gate_up"}, {5120, 13824, "down"}}},
      {"llama3-8b", {{6144, 4096, "qkv"}, {4096, 4096, "o"}, {28672, 4096, "gate_up"}, {4096, 14336, "down"}}},
      {"llama3-70b", {{10240, 8192, "qkv"}, {8192, 8192, "o"}, {57344, 8192, "gate_up"}, {8192, 28672, "down"}}},
      {"qwen2.5-7b", {{4608, 3584, "qkv"}, {3584, 3584, "o"}, {37888, 3584, "gate_up"}, {3584, 18944, "down"}}},
      {"qwen2.5-72b", {{10240, 8192, "qkv"}, {8192, 8192, "o"}, {59136, 8192, "gate_up"}, {8192, 29568, "down"}}},
      {"qwen3-8b", {{6144, 4096, "qkv"}, {4096, 4096, "o"}, {24576, 4096, "gate_up"}, {4096, 12288, "down"}}},
      {"mistral-small-24b", {{6144, 5120, "qkv"}, {5120, 4096, "o"}, {65536, 5120, "gate_up"}, {5120, 32768, "down"}}},
  };
  return table;
}

constexpr int64_t kLargest = int64_t{1} << 24;  // of a dimension: far above any layer, far below overflow

Result<int64_t> parse_count(std::string_view text, std::string_view whole) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size() || value < 1 || value > kLargest)
    return invalid_argument("'{}' in '{}' must be a whole number from 1 to {}", text, whole, kLargest);
  return value;
}

Result<Shape> parse_shape(std::string_view text) {
  const size_t cross = text.find('x');
  if (cross == std::string_view::npos)
    return invalid_argument("'{}' is no shape; write output x input features, e.g. 28672x4096", text);
  const Result<int64_t> n = parse_count(text.substr(0, cross), text);
  if (!n) return n.error();
  const Result<int64_t> k = parse_count(text.substr(cross + 1), text);
  if (!k) return k.error();
  return Shape{*n, *k, ""};
}

std::vector<std::string_view> split_at_commas(std::string_view text) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

}  // namespace

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const auto& [name, shapes] : models()) names.push_back(name);
  return names;
}

Result<std::vector<Shape>> model_shapes(std::string_view model) {
  for (const auto& [name, shapes] : models())
    if (name == model) return shapes;
  return invalid_argument("no shapes are known for model '{}'; known are {}, or give --shape NxK", model,
                          fmt::join(model_names(), ", "));
}

Result<std::vector<Shape>> parse_shapes(std::string_view text) {
  std::vector<Shape> shapes;
  for (std::string_view part : split_at_commas(text)) {
    const Result<Shape> shape = parse_shape(part);
    if (!shape) return shape.error();
    shapes.push_back(*shape);
  }
  return shapes;
}

Result<std::vector<int64_t>> parse_ms(std::string_view text) {
  std::vector<int64_t> ms;
  for (std::string_view part : split_at_commas(text)) {
    const Result<int64_t> m = parse_count(part, text);
    if (!m) return m.error();
    ms.push_back(*m);
  }
  return ms;
}

Result<ShapeSet> read_shape_set(const std::string& path) {
  std::ifstream file(path);
  if (!file) return io_error("cannot read the shape set {}: no such file, or no right to read it", path);
  ShapeSet set;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    std::istringstream words(line.substr(0, line.find('#')));
    std::string keyword, word;
    if (!(words >> keyword)) continue;
    if (keyword == "m") {
      while (words >> word) {
        const Result<int64_t> m = parse_count(word, line);
        if (!m) return invalid_argument("{}:{}: {}", path, number, m.error().message);
        set.ms.push_back(*m);
      }
    } else if (keyword == "shape" && words >> word) {
      Result<Shape> shape = parse_shape(word);
      if (!shape) return invalid_argument("{}:{}: {}", path, number, shape.error().message);
      std::getline(words >> std::ws, shape->name);
      set.shapes.push_back(*shape);
    } else {
      return invalid_argument("{}:{}: a line is 'm 1 2 3', 'shape NxK name' or a comment; this is '{}'", path, number,
                              line);
    }
  }
  if (set.shapes.empty() || set.ms.empty())
    return invalid_argument("{} names {} shapes and {} token counts; both are needed", path, set.shapes.size(),
                            set.ms.size());
  return set;
}

}  // namespace nybble::bench
