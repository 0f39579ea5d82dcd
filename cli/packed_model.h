// A model as packed weights: a folder of files that load_packed() reads, and what is not packed as a plain model.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "checkpoint/model_writer.h"
#include "nybble/convert.h"

namespace nybble::cli {

// What the option --to calls it.
inline constexpr char kPackedTarget[] = "nybble";

struct PackedModel {
  std::vector<std::string> packed;  // layer names
  WrittenModel rest;                // what was written beside them, under model/
  int kept_layers = 0;              // by resume
  uint64_t bytes_out = 0;           // of the packed files
};

struct PackedLayer {
  std::string name, file;  // the file below the model's folder
  int64_t n = 0, k = 0;
  std::string format;  // to_string() of its WeightFormat
  uint64_t bytes = 0;
};

// What manifest.json says.
struct PackedManifest {
  std::string converted_from;
  std::string rest;  // the folder of what is not packed, below the model's; empty: there is none
  std::vector<PackedLayer> layers;
};

// True for a folder whose manifest.json calls itself one of a packed model.
bool is_packed_model(const std::string& path);

// Files are named by nothing that leads out of the folder.
Result<PackedManifest> read_packed_manifest(const std::string& path);

// Whether the layer's file is sound and holds what the manifest says.
Result<void> check_packed_layer(const std::string& path, const PackedLayer& layer);

// Writes for every job `out`/layers/NUMBER-NAME.nybble for every chosen layer; under `out`/model a plain model folder
// with all else: biases, norms, embeddings, layers left out (dense), config.json, tokenizer; and last
// `out`/manifest.json, which names layers and files. Of the options, target and shard_bytes are not looked at. resume
// packs again and keeps the files that hold these bytes: the source must be read whatever it is compared by, and
// packing costs less than a hash of it. Three layers of 4096 x 11008 in groups of 128 on two processors that had other
// work, 2026-11-25, seconds of processor time: `convert --to nybble` 0.40, the same with --resume 0.44; `--to gptq`,
// whose --resume hashes, 1.79 and 1.06. What has no packed form is refused before the first byte of the first job is
// written.
Result<std::vector<PackedModel>> write_packed_models(const std::vector<checkpoint::ModelJob>& jobs,
                                                     const ConvertOptions& options,
                                                     const std::function<void(int64_t, int64_t)>& progress);

}  // namespace nybble::cli
