// What is measured: layer shapes, by name, by hand or from a file, and token counts.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "nybble/types.h"

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

// What a bench or a tuning goes through: every shape times every m in one format.
struct Work {
  std::vector<Shape> shapes;
  std::vector<int64_t> ms;
  WeightFormat format;
  DType act = DType::kBf16, out = DType::kBf16;

  // As a row names it. The packer decides scales_in_window, so the final problem is known only once a weight is loaded;
  // random scales lie in the window.
  Problem problem(const Shape& shape, int64_t m) const {
    return {.m = m, .n = shape.n, .k = shape.k, .act_dtype = act, .out_dtype = out, .weight = format};
  }
};

std::vector<std::string> model_names();
Result<std::vector<Shape>> model_shapes(std::string_view model);  // "llama3-8b"
Result<std::vector<Shape>> parse_shapes(std::string_view text);   // "28672x4096,8192x8192", n x k
Result<std::vector<int64_t>> parse_ms(std::string_view text);     // "1,16,4096"
Result<ShapeSet> read_shape_set(const std::string& path);         // the form of bench/shapes.txt

}  // namespace nybble::bench
