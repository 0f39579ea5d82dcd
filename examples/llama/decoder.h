// What runs a model: tokens in, logits out, with the keys and values of all tokens so far kept.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model.h"

namespace llama {

enum class LogitsOf { kNone, kLast, kAll };

// Sees what goes into linear layers: act[m, k], row-major, and the names of all layers that take it.
using ActObserver = std::function<void(const std::vector<std::string>& layers, const float* act, int64_t m, int64_t k)>;

class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual const Config& config() const = 0;
  virtual int64_t vocabulary() const = 0;
  virtual bool has_own_head() const = 0;     // whether the LM head is a layer of its own, not the embedding
  virtual int64_t length() const = 0;        // tokens so far
  virtual std::string describe() const = 0;  // one line: how many layers run how
  // Forgets all tokens from `length` on; 0 begins anew.
  virtual void truncate(int64_t length) = 0;
  // Appends `tokens` and returns the logits asked for, [rows, vocabulary] row-major. Fails if the context is full or a
  // token is none of the vocabulary.
  virtual Result<std::vector<float>> append(std::span<const int32_t> tokens, LogitsOf which) = 0;
};

struct DecoderOptions {
  std::optional<std::string> weights;  // another checkpoint whose weights come before the model's
  bool dense = false;                  // 4-bit layers dequantized to fp32
  int num_threads = 0;                 // 0: as many as the machine has
  ActObserver observer;
};

Result<std::unique_ptr<Decoder>> make_cpu_decoder(const std::string& model, const DecoderOptions& options);
// On the first GPU, a Hopper. Neither `dense` nor `observer`: these are the CPU's.
Result<std::unique_ptr<Decoder>> make_cuda_decoder(const std::string& model, const DecoderOptions& options);

}  // namespace llama
