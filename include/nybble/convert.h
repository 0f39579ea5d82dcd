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
// naming the layer, the reason and the way out. Files are replaced atomically, config.json and the index last.
// Until then the folder holds .nybble-unfinished, and open_checkpoint() refuses it. Memory: one layer, plus the scales
// of one file. `progress(done, total)` counts bytes written and may be empty.
Result<WrittenModel> convert_model(const std::string& in, const std::string& out, const ConvertOptions& options,
                                   const std::function<void(int64_t, int64_t)>& progress);

struct SplitOptions {
  int ranks = 2;
  // Regular expressions searched in layer names, the first list before the next, all before the rules for models built
  // like Llama: q_proj, k_proj, v_proj, gate_proj, up_proj are split by output features ("column"), o_proj and
  // down_proj by input features ("row"), also under GGUF's and Mixtral's names; every other layer is whole on each
  // rank.
  std::vector<std::string> replicate, column, row;
  ConvertOptions convert;  // how each rank's model is written
};

struct SplitModel {
  std::vector<std::string> folders;                  // one for each rank
  std::vector<std::string> column, row, replicated;  // layer names
  std::vector<WrittenModel> written;                 // one for each rank
};

// Any checkpoint in, one model folder for every rank of tensor parallelism out: `out`/rank-R-of-N, written as by
// convert_model(); config.json stays the whole model's, which a rank's engine divides by N. What is split is the
// logical weight, by whole groups. Rank R gets the R-th of N equal parts of every split layer's output or input
// features, and of a column-split layer's bias; a row-split layer's bias is on rank 0 and zero on the others, so that
// the sum over the ranks holds it once. Refused before the first byte is written: layers that do not divide by the
// ranks (output features by 8 on each rank, input features by whole groups), reordered input features in a row-split
// layer, several projections in one layer, attention heads that the ranks do not divide.
Result<SplitModel> split_model(const std::string& in, const std::string& out, const SplitOptions& options,
                               const std::function<void(int64_t, int64_t)>& progress);

}  // namespace nybble
#pragma GCC visibility pop
