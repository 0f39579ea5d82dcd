// A Llama-family model: hyperparameters from a GGUF file or a Hugging Face folder, weights from it or from another
// checkpoint.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "nybble/checkpoint.h"
#include "nybble/gguf.h"

namespace llama {

using nybble::Error;
using nybble::ErrorCode;
using nybble::Result;

// How Llama 3.1 and later slow the rotation down for longer contexts; rope.cc has the rule.
struct Llama3Rope {
  double factor = 1;
  double low_frequency = 1, high_frequency = 4;  // turns within the original context
  double original_context = 8192;
};

struct Config {
  int64_t blocks = 0;
  int64_t embedding = 0;     // width of the residual stream
  int64_t feed_forward = 0;  // width inside SwiGLU
  int64_t heads = 0;         // query heads
  int64_t kv_heads = 0;      // key and value heads; heads / kv_heads queries share one
  int64_t head_dim = 0;
  int64_t rope_dim = 0;  // of a head's head_dim, those that are rotated
  int64_t context = 0;   // tokens that the model was trained on
  double rope_base = 10000;
  double rope_scale = 1;  // positions are divided by it
  std::optional<Llama3Rope> llama3_rope;
  // Of a head, which two numbers are rotated together: i and i + rope_dim / 2, or, in GGUF files, whose rows of attn_q
  // and attn_k are permuted for it, 2i and 2i + 1.
  bool rotates_halves = false;
  float rms_epsilon = 1e-5f;
};

// `model`: what WeightSource::open() takes.
Result<Config> read_config(const std::string& model);
Result<Config> read_config(const nybble::GgufMetadata& metadata);
// config.json of a Hugging Face folder.
Result<Config> read_folder_config(const std::string& folder);
// A folder with a config.json; else a model is a GGUF file or a folder with one.
bool is_hugging_face_folder(const std::string& model);

// One linear layer as its checkpoint holds it.
using LayerWeight = std::variant<nybble::QuantizedWeight, nybble::DenseWeight>;

// Where weights come from: `model`, except what `weights` (another checkpoint) has under the same name. Layers and
// tensors are asked for by GGUF's names; where the model is a Hugging Face folder, its own stand for them.
class WeightSource {
 public:
  static Result<WeightSource> open(const std::string& model, const std::optional<std::string>& weights);

  // What the model calls the layer or tensor.
  std::string stored_name(const std::string& name) const;
  bool has_layer(const std::string& name) const;
  // Refuses a layer that is not [n, k].
  Result<LayerWeight> layer(const std::string& name, int64_t n, int64_t k) const;
  // Rows of a layer that stands in both files alike, e.g. the vocabulary's size.
  Result<int64_t> layer_rows(const std::string& name) const;
  bool has_vector(const std::string& name) const;
  Result<std::vector<float>> vector(const std::string& name, int64_t count) const;
  // How many of the layers that were asked for came from `weights`.
  int layers_from_weights() const { return *from_weights_; }

 private:
  WeightSource() = default;
  std::vector<const nybble::Checkpoint*> in_order() const;

  bool hugging_face_ = false;
  std::shared_ptr<const nybble::Checkpoint> model_, weights_;
  std::shared_ptr<int> from_weights_ = std::make_shared<int>(0);
};

}  // namespace llama
