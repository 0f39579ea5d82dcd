// Checkpoints on disk: one interface to read them, writers for the formats that others can read.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "nybble/weight.h"

#pragma GCC visibility push(default)
namespace nybble {

// A linear layer found in a checkpoint.
struct LayerInfo {
  std::string name;        // module path, without ".weight"
  int64_t n = 0;
  int64_t k = 0;
  bool quantized = false;
  DType dense_dtype = DType::kFp32;  // of a layer that is not quantized
  WeightFormat format;     // of a quantized one
  std::string file;        // the shard that holds it (base name)
};

// An open checkpoint: a safetensors file or a model folder. Reads one layer at a time, so memory is bounded by a layer.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;
  virtual std::string format() const = 0;        // "dense", "compressed-tensors"
  virtual std::string convention() const = 0;    // which convention was found, and why, in one line
  virtual const std::vector<LayerInfo>& layers() const = 0;
  virtual Result<DenseWeight> read_dense(const std::string& layer) const = 0;
  virtual Result<QuantizedWeight> read_quantized(const std::string& layer) const = 0;
  // Reads and checks everything: values that steer indexing, scales, zeros. `progress(done, total)` may be empty.
  virtual Result<void> check(const std::function<void(int64_t, int64_t)>& progress) const = 0;
};

// Opens a .safetensors file or a folder that holds one (model.safetensors or a sharded index) and finds out which
// format it is. Every file is treated as hostile: docs/architecture.md lists what is checked.
Result<std::unique_ptr<Checkpoint>> open_checkpoint(const std::string& path);

struct QuantizeModelOptions {
  std::vector<std::string> include;  // regular expressions over layer names; empty: the default choice
  std::vector<std::string> exclude;
  bool resume = false;               // keep shards that a run before finished
  bool force = false;                // write into a folder that exists and is not empty
};

// Decides for one dense layer: a QuantizedWeight to write, or an error that stops the run.
using LayerQuantizer = std::function<Result<QuantizedWeight>(const DenseWeight&)>;

struct WrittenModel {
  std::vector<std::string> quantized;  // layer names
  std::vector<std::string> ignored;
  uint64_t bytes_in = 0;
  uint64_t bytes_out = 0;
};

// Model folder in, compressed-tensors model folder out, shard by shard: chosen layers through `quantizer`, everything
// else copied byte for byte, config.json with the quantization_config that vLLM and transformers expect. Files are
// replaced atomically; the index comes last. `scheme` describes what the quantizer makes.
struct CompressedTensorsScheme {
  int group_size = 128;
  bool symmetric = true;
};
Result<WrittenModel> write_compressed_tensors(const std::string& in, const std::string& out,
                                              const CompressedTensorsScheme& scheme, const LayerQuantizer& quantizer,
                                              const QuantizeModelOptions& options,
                                              const std::function<void(int64_t, int64_t)>& progress);

// Whether the default choice of `nybble quantize` takes a tensor: 2-D float `*.weight` whose name holds no embed, norm or lm_head.
bool is_default_quantized(const std::string& tensor_name, int rank);

}  // namespace nybble
#pragma GCC visibility pop
