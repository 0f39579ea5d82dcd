// A linear layer on the CPU: 4-bit through nybble, or dense fp32.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "dense_multiply.h"
#include "model.h"
#include "nybble/gemm.h"
#include "nybble/pack.h"

namespace llama {

class Linear {
 public:
  // With `dense`, a 4-bit weight is dequantized once and multiplied in fp32.
  static Result<Linear> make(const std::string& name, const LayerWeight& weight, bool dense);

  const std::string& name() const { return name_; }
  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  bool is_4bit() const { return packed_.size_bytes() > 0; }
  // Row `index` as fp32, for an embedding; only of a dense one.
  const float* row(int64_t index) const { return dense_.data() + index * k_; }

  // out[m, n] = act[m, k] x weight^T + bias, fp32.
  Result<void> run(Workers& workers, const float* act, int64_t m, float* out);

 private:
  std::string name_;
  int64_t n_ = 0, k_ = 0;
  nybble::PackedWeight packed_;
  std::vector<float> dense_;               // [n, k]
  std::vector<float> bias_;                // [n] or empty
  std::map<int64_t, nybble::Plan> plans_;  // by m
  std::vector<std::byte> workspace_;
};

// The [n, k] numbers of a weight in fp32, each 4-bit one rounded once.
std::vector<float> to_floats(const LayerWeight& weight);

}  // namespace llama
