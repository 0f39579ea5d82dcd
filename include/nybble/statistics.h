// The statistics file: what calibration text did to the inputs of a model's linear layers. docs/quantizers.md gives the
// format; a collector writes it once, quantizers read one layer at a time.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nybble/quantize.h"

#pragma GCC visibility push(default)
namespace nybble {

enum class StatisticsKind : uint8_t {
  kMeanSquare,  // k numbers a layer: enough for weighted ranges and AWQ's diagonal loss
  kHessian,     // k x k: what GPTQ needs
};

// An open file. Treated as hostile: names, types, shapes and counts are checked when it is opened, a layer's numbers
// when it is read.
class StatisticsFile {
 public:
  static Result<StatisticsFile> open(const std::string& path);

  const std::string& path() const;
  std::vector<std::string> layers() const;  // sorted; those that share another one's input are among them
  bool has(const std::string& layer) const;
  // kInvalidArgument where the file has no such layer. Memory: the layer's numbers.
  Result<LayerStatistics> read(const std::string& layer) const;
  // XXH3 of the whole file: what names it where results are to be repeated.
  Result<uint64_t> content_hash() const;

 private:
  struct Content;
  explicit StatisticsFile(std::shared_ptr<const Content> content);
  std::shared_ptr<const Content> content_;
};

// Adds up what runs through a model and writes the file.
class StatisticsCollector {
 public:
  // `k`: input features of a layer that add() will be called for.
  Result<void> declare(const std::string& layer, int64_t k, StatisticsKind kind);
  // `layer` has the same input as `declared`: q, k and v, or gate and up. add() is called for `declared` only.
  Result<void> share(const std::string& layer, const std::string& declared);

  // act[m, k], row-major: the inputs of m tokens. Products are summed in double per call and in fp32 over the calls, so
  // calls of some hundred tokens are both quick and exact enough. A NaN or infinity is an error; nothing is added then.
  // num_threads 0: all cores. The sums depend on how tokens are split into calls, not on the number of threads.
  Result<void> add(const std::string& layer, std::span<const float> act, int num_threads);

  // Writes means over the tokens, atomically. A layer without tokens is an error.
  Result<void> write(const std::string& path) const;

 private:
  struct Sums {
    int64_t k = 0, tokens = 0;
    StatisticsKind kind = StatisticsKind::kHessian;
    std::vector<float> values;  // [k], or [k, k] of which the lower triangle is summed
  };
  std::map<std::string, Sums> sums_;
  std::map<std::string, std::string> shared_;
};

}  // namespace nybble
#pragma GCC visibility pop
