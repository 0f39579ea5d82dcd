// What is measured: layer shapes, by name, by hand or from a file, and token counts.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "nybble/result.h"

namespace nybble::bench {

struct Shape {
  int64_t n = 0;     // output features
  int64_t k = 0;     // input features
  std::string name;  // the layer it stands for; may be empty

  friend bool operator==(const Shape&, const Shape&) = default;
};

struct ShapeSet {
  std::vector<Shape> shapes;
  std::vector<int64_t> ms;
};

std::vector<std::string> model_names();
Result<std::vector<Shape>> model_shapes(std::string_view model);  // "llama3-8b"
Result<std::vector<Shape>> parse_shapes(std::string_view text);   // "28672x4096,8192x8192", n x k
Result<std::vector<int64_t>> parse_ms(std::string_view text);     // "1,16,4096"
Result<ShapeSet> read_shape_set(const std::string& path);         // the form of bench/shapes.txt

}  // namespace nybble::bench
