// Runs single layers from host data to host data on either device: what verify and demo check with.
#pragma once

#include <memory>

#include "nybble/gemm.h"
#include "nybble/pack.h"

namespace nybble::cli {

// The activation type a layer is run with: its scales' own where that has 16 bits, else bf16.
DType act_dtype_for(const WeightFormat& format);

struct LayerRun {
  Plan plan;
  FloatArray out;  // [m, n], of the activations' type
};

class LayerRunner {
 public:
  static Result<std::unique_ptr<LayerRunner>> open(const Device& device);
  virtual ~LayerRunner() = default;

  // Packs the layer and keeps it for run().
  virtual Result<void> load(const QuantizedWeight& weight) = 0;
  virtual const PackedWeight& packed() const = 0;
  // Plans and launches out[m, n] = act[m, k] x weight^T + bias, the bias of the layer rounded to act's type; into
  // memory that held NaNs.
  virtual Result<LayerRun> run(const FloatArray& act, int64_t m) = 0;
};

// How far outputs are from a reference.
struct ErrorStats {
  double max_abs = 0;
  double relative = 0;  // |out - reference| / |reference|, lengths over all outputs
  double cosine = 1;

  class Sum;
};

class ErrorStats::Sum {
 public:
  void add(double out, double reference);
  ErrorStats stats() const;

 private:
  double max_abs_ = 0, error_ = 0, out_ = 0, reference_ = 0, product_ = 0;
};

}  // namespace nybble::cli
