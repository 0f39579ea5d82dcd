// Measured times of kernels, as `nybble tune` writes them: make_plan's choice rests on them where there are any.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "nybble/launch.h"

#pragma GCC visibility push(default)
namespace nybble {

struct TuningData;  // opaque

// An immutable value; copies share their measurements. One without any lets the cost model decide alone.
class TuningTable {
 public:
  TuningTable() = default;
  explicit TuningTable(std::shared_ptr<TuningData> data) : data_(std::move(data)) {}

  bool empty() const { return data_ == nullptr; }
  // What it was measured on: the GPU's name, or the CPU's model.
  std::string device() const;
  // Whether it was measured on such a device; on the CPU with as many threads. make_plan refuses it elsewhere.
  bool made_for(const Device& device) const;
  // Problems with measurements.
  size_t num_problems() const;
  // Kernels it names and this library lacks, because it is of another version; their times are ignored.
  std::vector<std::string> unknown_kernels() const;

  TuningData* data() const { return data_.get(); }

 private:
  std::shared_ptr<TuningData> data_;
};

// Reads what `nybble tune` wrote.
Result<TuningTable> load_tuning_table(const std::string& path);

// What the library itself knows of this device; empty where it was not measured. make_plan takes it unless told
// otherwise.
TuningTable shipped_tuning_table(const Device& device);

}  // namespace nybble
#pragma GCC visibility pop
