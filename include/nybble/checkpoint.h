// Checkpoints on disk: one interface to read them, writers for the formats that others can read.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "nybble/weight.h"

#pragma GCC visibility push(default)
namespace nybble {

// A linear layer found in a checkpoint.
struct LayerInfo {
  std::string name;  // module path, without ".weight"
  int64_t n = 0;
  int64_t k = 0;
  bool quantized = false;
  DType dense_dtype = DType::kFp32;  // of a layer that is not quantized
  WeightFormat format;               // of a quantized one
  std::string file;                  // the shard that holds it (base name)
};

// A tensor that is no part of a quantized weight: norms, embeddings, dense weights, biases.
struct OtherTensor {
  std::string name;
  std::string dtype;  // as safetensors spells it: "BF16", "I64"
  std::vector<int64_t> shape;
  std::string file;  // the shard that holds it (base name)
};

// An open checkpoint: a safetensors or GGUF file or a model folder. Reads one layer at a time, so memory is bounded by
// a layer.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;
  virtual std::string format() const = 0;      // "dense", "compressed-tensors"
  virtual std::string convention() const = 0;  // which convention was found, and why, in one line
  // What in it contradicts itself or is read by a rule that not every reader shares, one sentence each.
  virtual std::vector<std::string> warnings() const { return {}; }
  virtual const std::vector<LayerInfo>& layers() const = 0;
  virtual Result<DenseWeight> read_dense(const std::string& layer) const = 0;
  virtual Result<QuantizedWeight> read_quantized(const std::string& layer) const = 0;
  virtual std::vector<OtherTensor> other_tensors() const = 0;
  // The bytes of one of them, row-major and little-endian.
  virtual Result<std::vector<std::byte>> read_other_tensor(const std::string& name) const = 0;
  // Reads and checks everything: values that steer indexing, scales, zeros, and that dense weights are finite. The
  // error is that of the first broken layer. `progress(done, total)` counts bytes and may be empty.
  virtual Result<void> check(const std::function<void(int64_t, int64_t)>& progress) const = 0;
};

// Opens a .safetensors file or a folder that holds one (model.safetensors or a sharded index) and finds out which
// format it is, with the help of the config.json beside it; or a .gguf file, or a folder that holds one of these and no
// .safetensors file. Every file is treated as hostile:
// docs/architecture.md lists what is checked.
Result<std::unique_ptr<Checkpoint>> open_checkpoint(const std::string& path);

// The linear layers of a model that write_compressed_tensors() quantizes, and what to do with an output folder in use.
struct QuantizeModelOptions {
  std::vector<std::string> include;  // regular expressions searched in layer names; empty: the default choice
  std::vector<std::string> exclude;  // applied after `include`
  bool resume = false;               // keep the shards that an earlier run finished from the same input in the same way
  bool force = false;                // write into a folder that is not empty; files of the same name are replaced
};

// Changes to tensors that are copied beside the quantized layers: norms that take the inverse of AWQ's scales.
struct TensorEdits {
  std::vector<std::string> names;  // of tensors of a float type; one that the model lacks or quantizes is passed over
  // Changes the values in place: their type and number stay.
  std::function<Result<void>(const std::string& name, FloatArray& values)> apply;
};

// What the quantizer makes of every chosen layer.
struct CompressedTensorsScheme {
  int group_size = 128;   // a divisor of every chosen layer's k, or kPerColumn
  bool symmetric = true;  // false: integer zero points
  // How the numbers are found, in words ("rtn, least squares, bf16 scales"). `resume` keeps a shard only if it was
  // written under the same recipe, so it must name everything that the result depends on, `edits` included.
  std::string recipe;
  TensorEdits edits;
};

// Makes the 4-bit form of one dense layer, or an error that stops the run. Any scale type; n, k, group size and zero
// kind (kNone or kInt with zeros up to 15) as the scheme says; no k_order.
using LayerQuantizer = std::function<Result<QuantizedWeight>(const DenseWeight&)>;

struct WrittenModel {
  std::vector<std::string> quantized;  // layer names
  std::vector<std::string> ignored;    // 2-D weights left as they are: the configuration's ignore list
  std::vector<std::string> left_out;   // files of the input folder that were not copied, each with the reason
  int kept_shards = 0;                 // by resume
  uint64_t bytes_in = 0;               // of the safetensors files
  uint64_t bytes_out = 0;
};

// Model folder in, compressed-tensors model folder out, shard by shard: chosen layers through `quantizer`, everything
// else copied byte for byte, config.json with the quantization_config that vLLM and transformers expect. Whatever can
// be refused is refused before the first byte is written. Files are replaced atomically, config.json and the index
// last; until then the folder holds .nybble-unfinished, and open_checkpoint() refuses it. Memory: the layer that is
// quantized, the next one, which is read meanwhile, the packed codes of the last, and the scales of one shard.
// `progress(done, total)` counts bytes of input tensors and may be empty.
Result<WrittenModel> write_compressed_tensors(const std::string& in, const std::string& out,
                                              const CompressedTensorsScheme& scheme, const LayerQuantizer& quantizer,
                                              const QuantizeModelOptions& options,
                                              const std::function<void(int64_t, int64_t)>& progress);

// Whether the default choice of `nybble quantize` takes a tensor: a 2-D `*.weight` whose name holds no embed, norm or
// lm_head, in whatever case.
bool is_default_quantized(const std::string& tensor_name, int rank);

}  // namespace nybble
#pragma GCC visibility pop
