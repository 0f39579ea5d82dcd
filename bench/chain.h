// A chain of layers as a model's decoder runs them: each layer reads what the one before it wrote, every weight is
// another one, and all launches stand in one CUDA graph. Shows what launches cost each other, which a bench of single
// layers hides.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bench/bench.h"
#include "bench/shapes.h"

namespace nybble::bench {

struct ChainSpec {
  std::string name;           // of the model, or its shapes
  std::vector<Shape> layers;  // of one block. Each reads the first k features of what the one before it writes
  int blocks = 32;
  WeightFormat format;
  DType act_dtype = DType::kBf16;
};

// Whether these layers can follow each other; the error says which cannot, and why.
Result<void> check_chain(const ChainSpec& spec);

// One line, the same in results and messages: "chain llama3-8b x32 m1 bf16 g128".
std::string chain_text(const ChainSpec& spec, int64_t m);

struct ChainOptions {
  std::vector<std::string> kernels;  // launch i runs kernels[i % size]; empty: what make_plan chooses
  std::optional<TuningTable> table;  // as in PlanOptions
  Duty duty = Duty::kIdle10;
  int replays = 0;  // 0: by duty
};

// What a run without overlap and runs with it made of the same input.
struct ChainCheck {
  std::string wrong;  // how the bits differ, or what became of the numbers; empty: all is well
  double rms = 0;     // of the last layer's outputs
};

struct ChainMeasurement {
  ChainSpec spec;
  int64_t m = 0;
  std::vector<std::string> kernels;  // of the first block's launches
  double floor_us = 0;               // sum of the layers'
  ChainCheck check;                  // nothing was timed where it says that something is wrong
  Timing overlapped, plain;          // one replay of the graph, with programmatic dependent launch and without
  std::vector<Timing> layers;        // one launch of each layer with overlap, among its own kind in all blocks
};

// One GPU with one chain's buffers. Not thread-safe.
class Chain {
 public:
  virtual ~Chain() = default;
  // Makes and packs all weights, and activations for up to max_m tokens.
  virtual Result<void> load(const ChainSpec& spec, int64_t max_m) = 0;
  virtual Result<ChainCheck> check(int64_t m, const ChainOptions& options) = 0;
  virtual Result<ChainMeasurement> measure(int64_t m, const ChainOptions& options) = 0;
};

Result<std::unique_ptr<Chain>> open_chain(const Device& device);

}  // namespace nybble::bench
