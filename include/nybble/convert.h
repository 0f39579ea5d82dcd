// Models of one 4-bit format rewritten in another, and split among the ranks of tensor parallelism.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "nybble/checkpoint.h"

#pragma GCC visibility push(default)
namespace nybble {

// What a quantized layer is written as. docs/formats.md draws the tensors of each.
enum class ModelTarget : uint8_t {
  kDense,              // <layer>.weight, dequantize()d
  kCompressedTensors,  // "pack-quantized"
  kGptq,               // "gptq_v2": true zero points, g_idx always there
  kAwq,                // version "gemm"
};

struct ConvertOptions {
  ModelTarget target = ModelTarget::kDense;
  DType dense_dtype = DType::kFp32;  // of layers that become dense; rounded to nearest from dequantize()'s fp32
  // Type of the written scales, rounded to nearest. Absent: as they were read for compressed-tensors, fp16 for GPTQ and
  // AWQ, which must then hold every scale exactly.
  std::optional<DType> scale_dtype;
  // Regular expressions searched in the names of quantized layers; empty `include`: all. The others become dense.
  std::vector<std::string> include, exclude;
  uint64_t shard_bytes = 0;  // begin a new file before this many bytes of tensors; 0: the input's files
  bool resume = false;       // keep the files that an earlier run finished from the same input in the same way
  bool force = false;        // write into a folder that is not empty; files of the same name are replaced
};

// Any checkpoint that open_checkpoint() opens in, a model folder out: its quantized layers in the target's form,
// everything else copied byte for byte, the input's config.json with the target's quantization_config, and tokenizer
// and the like where `in` is a folder. Whatever the target cannot hold is refused before the first byte is written,
// naming the layer, the reason and the way out. Files are replaced atomically, config.json and the index last: a
// folder without them is unfinished. Memory: one layer, plus the scales of one file. `progress(done, total)` counts
// bytes written and may be empty.
Result<WrittenModel> convert_model(const std::string& in, const std::string& out, const ConvertOptions& options,
                                   const std::function<void(int64_t, int64_t)>& progress);

}  // namespace nybble
#pragma GCC visibility pop
