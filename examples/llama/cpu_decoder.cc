// The decoder on the CPU, all in fp32: x += attention(norm(x)), x += swiglu(norm(x)), block by block.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "decoder.h"
#include "linear.h"
#include "rope.h"

namespace llama {
namespace {

struct Block {
  std::vector<float> attention_norm, ffn_norm;
  Linear query, key, value, attention_out, gate, up, down;
  std::vector<float> keys, values;  // [tokens, kv_heads * head_dim]
};

class CpuDecoder final : public Decoder {
 public:
  explicit CpuDecoder(const DecoderOptions& options) : workers_(options.num_threads), observer_(options.observer) {}

  Result<void> load(const std::string& model, const DecoderOptions& options);

  const Config& config() const override { return config_; }
  int64_t vocabulary() const override { return embedding_.n(); }
  bool has_own_head() const override { return head_.has_value(); }
  int64_t length() const override { return length_; }
  std::string describe() const override { return description_; }
  void truncate(int64_t length) override;
  Result<std::vector<float>> append(std::span<const int32_t> tokens, LogitsOf which) override;

 private:
  Result<void> append_piece(std::span<const int32_t> tokens, LogitsOf which, std::vector<float>& logits);
  // Multiplies `act` with each layer, into the `out` of the same place.
  Result<void> run(std::initializer_list<Linear*> layers, const std::vector<float>& act, int64_t m,
                   std::initializer_list<std::vector<float>*> out);
  Result<void> attend(Block& block, int64_t m);
  Result<void> feed_forward(Block& block, int64_t m);
  void normalize(const std::vector<float>& weight, int64_t m);
  void rotate(float* vectors, int64_t heads, int64_t m) const;
  void prepare_rotation(int64_t m);

  Config config_;
  Workers workers_;
  ActObserver observer_;
  Linear embedding_;
  std::optional<Linear> head_;  // absent: the embedding is the head, too
  std::vector<float> output_norm_;
  std::vector<double> frequencies_;  // radians a position of each pair that is rotated
  std::vector<Block> blocks_;
  std::string description_;
  int64_t length_ = 0;
  // One piece's activations, [m, ...].
  std::vector<float> x_, normed_, query_, key_, value_, mixed_, gate_, up_, delta_, cosines_, sines_;
};

Result<void> CpuDecoder::load(const std::string& model, const DecoderOptions& options) {
  const Result<Config> config = read_config(model);
  if (!config) return config.error();
  config_ = *config;
  const Result<WeightSource> source = WeightSource::open(model, options.weights);
  if (!source) return source.error();

  int in_4bit = 0, in_fp32 = 0;
  std::optional<Error> error;
  const auto linear = [&](const std::string& name, int64_t n, int64_t k, bool dense) {
    if (error) return Linear();
    const Result<LayerWeight> weight = source->layer(name, n, k);
    if (!weight) return error = weight.error(), Linear();
    Result<Linear> made = Linear::make(source->stored_name(name), *weight, dense);
    if (!made) return error = made.error(), Linear();
    ++(made->is_4bit() ? in_4bit : in_fp32);
    return std::move(*made);
  };
  const auto vector = [&](const std::string& name, int64_t count) {
    if (error) return std::vector<float>();
    Result<std::vector<float>> values = source->vector(name, count);
    if (!values) return error = values.error(), std::vector<float>();
    return std::move(*values);
  };

  const Result<int64_t> vocabulary = source->layer_rows("token_embd");
  if (!vocabulary) return vocabulary.error();
  const int64_t width = config_.embedding, query = config_.heads * config_.head_dim,
                key = config_.kv_heads * config_.head_dim;
  embedding_ = linear("token_embd", *vocabulary, width, true);  // rows are looked up in it
  if (source->has_layer("output")) head_ = linear("output", *vocabulary, width, options.dense);
  output_norm_ = vector("output_norm.weight", width);
  std::vector<float> factors;
  if (source->has_vector("rope_freqs.weight")) factors = vector("rope_freqs.weight", config_.rope_dim / 2);
  if (error) return *error;
  frequencies_ = rope_frequencies(config_, factors);
  for (int64_t i = 0; i < config_.blocks && !error; ++i) {
    const std::string at = fmt::format("blk.{}.", i);
    Block block;
    block.attention_norm = vector(at + "attn_norm.weight", width);
    block.query = linear(at + "attn_q", query, width, options.dense);
    block.key = linear(at + "attn_k", key, width, options.dense);
    block.value = linear(at + "attn_v", key, width, options.dense);
    block.attention_out = linear(at + "attn_output", width, query, options.dense);
    block.ffn_norm = vector(at + "ffn_norm.weight", width);
    block.gate = linear(at + "ffn_gate", config_.feed_forward, width, options.dense);
    block.up = linear(at + "ffn_up", config_.feed_forward, width, options.dense);
    block.down = linear(at + "ffn_down", width, config_.feed_forward, options.dense);
    blocks_.push_back(std::move(block));
  }
  if (error) return *error;
  if (options.weights && source->layers_from_weights() == 0)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("{}: holds none of the model's layers; they are named as in the model, e.g. {}",
                             *options.weights, source->stored_name("blk.0.attn_q"))};
  description_ = fmt::format(
      "cpu, {} threads: {} layers in 4 bits through nybble, {} in fp32{}", workers_.count(), in_4bit, in_fp32,
      options.weights ? fmt::format("; {} of them from {}", source->layers_from_weights(), *options.weights) : "");
  return {};
}

void CpuDecoder::truncate(int64_t length) {
  length_ = std::min(length, length_);
  const size_t kept = static_cast<size_t>(length_ * config_.kv_heads * config_.head_dim);
  for (Block& block : blocks_) {
    block.keys.resize(kept);
    block.values.resize(kept);
  }
}

Result<std::vector<float>> CpuDecoder::append(std::span<const int32_t> tokens, LogitsOf which) {
  if (length_ + static_cast<int64_t>(tokens.size()) > config_.context)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("{} tokens and {} more do not fit into the model's context of {}", length_, tokens.size(),
                             config_.context)};
  for (const int32_t token : tokens)
    if (token < 0 || token >= vocabulary())
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("token {} is none of the vocabulary's {}", token, vocabulary())};
  constexpr size_t kPiece = 256;
  std::vector<float> logits;
  for (size_t begin = 0; begin < tokens.size(); begin += kPiece) {
    const size_t count = std::min(kPiece, tokens.size() - begin);
    const bool last = begin + count == tokens.size();
    const LogitsOf of_piece = which == LogitsOf::kLast && !last ? LogitsOf::kNone : which;
    if (Result<void> done = append_piece(tokens.subspan(begin, count), of_piece, logits); !done) return done.error();
  }
  return logits;
}

Result<void> CpuDecoder::append_piece(std::span<const int32_t> tokens, LogitsOf which, std::vector<float>& logits) {
  const auto m = static_cast<int64_t>(tokens.size());
  const int64_t width = config_.embedding;
  x_.resize(static_cast<size_t>(m * width));
  for (int64_t i = 0; i < m; ++i) std::copy_n(embedding_.row(tokens[i]), width, x_.data() + i * width);
  prepare_rotation(m);
  for (Block& block : blocks_) {
    if (Result<void> done = attend(block, m); !done) return done;
    if (Result<void> done = feed_forward(block, m); !done) return done;
  }
  length_ += m;
  if (which == LogitsOf::kNone) return {};
  int64_t rows = m;
  if (which == LogitsOf::kLast) {
    std::copy_n(x_.data() + (m - 1) * width, width, x_.data());
    rows = 1;
  }
  normalize(output_norm_, rows);
  const size_t before = logits.size();
  logits.resize(before + static_cast<size_t>(rows * vocabulary()));
  Linear& head = head_ ? *head_ : embedding_;
  if (observer_ && head_) observer_({head.name()}, normed_.data(), rows, width);
  return head.run(workers_, normed_.data(), rows, logits.data() + before);
}

Result<void> CpuDecoder::run(std::initializer_list<Linear*> layers, const std::vector<float>& act, int64_t m,
                             std::initializer_list<std::vector<float>*> out) {
  if (observer_) {
    std::vector<std::string> names;
    for (const Linear* layer : layers) names.push_back(layer->name());
    observer_(names, act.data(), m, (*layers.begin())->k());
  }
  auto result = out.begin();
  for (Linear* layer : layers) {
    (*result)->resize(static_cast<size_t>(m * layer->n()));
    if (Result<void> done = layer->run(workers_, act.data(), m, (*result++)->data()); !done) return done;
  }
  return {};
}

// normed_ = weight * x / sqrt(mean(x^2) + epsilon), row by row.
void CpuDecoder::normalize(const std::vector<float>& weight, int64_t m) {
  const int64_t width = config_.embedding;
  normed_.resize(static_cast<size_t>(m * width));
  for (int64_t row = 0; row < m; ++row) {
    const float* x = x_.data() + row * width;
    float* out = normed_.data() + row * width;
    const float factor = 1 / std::sqrt(dot(x, x, width) / static_cast<float>(width) + config_.rms_epsilon);
    for (int64_t i = 0; i < width; ++i) out[i] = x[i] * factor * weight[i];
  }
}

void CpuDecoder::prepare_rotation(int64_t m) {
  const int64_t pairs = config_.rope_dim / 2;
  cosines_.resize(static_cast<size_t>(m * pairs));
  sines_.resize(cosines_.size());
  for (int64_t pair = 0; pair < pairs; ++pair) {
    for (int64_t i = 0; i < m; ++i) {
      const double angle = static_cast<double>(length_ + i) * frequencies_[pair];
      cosines_[i * pairs + pair] = static_cast<float>(std::cos(angle));
      sines_[i * pairs + pair] = static_cast<float>(std::sin(angle));
    }
  }
}

void CpuDecoder::rotate(float* vectors, int64_t heads, int64_t m) const {
  const int64_t pairs = config_.rope_dim / 2;
  const int64_t step = config_.rotates_halves ? 1 : 2, apart = config_.rotates_halves ? pairs : 1;
  for (int64_t row = 0; row < m; ++row) {
    for (int64_t head = 0; head < heads; ++head) {
      float* vector = vectors + (row * heads + head) * config_.head_dim;
      for (int64_t pair = 0; pair < pairs; ++pair) {
        const float c = cosines_[row * pairs + pair], s = sines_[row * pairs + pair];
        float* first = vector + step * pair;
        const float a = first[0], b = first[apart];
        first[0] = a * c - b * s;
        first[apart] = a * s + b * c;
      }
    }
  }
}

Result<void> CpuDecoder::attend(Block& block, int64_t m) {
  normalize(block.attention_norm, m);
  if (Result<void> done = run({&block.query, &block.key, &block.value}, normed_, m, {&query_, &key_, &value_}); !done)
    return done;
  rotate(query_.data(), config_.heads, m);
  rotate(key_.data(), config_.kv_heads, m);
  block.keys.insert(block.keys.end(), key_.begin(), key_.end());
  block.values.insert(block.values.end(), value_.begin(), value_.end());

  const int64_t dim = config_.head_dim, stride = config_.kv_heads * dim;
  const int64_t sharing = config_.heads / config_.kv_heads;
  const float factor = 1 / std::sqrt(static_cast<float>(dim));
  mixed_.resize(query_.size());
  workers_.run(m * config_.kv_heads, [&](int64_t item) {
    const int64_t row = item / config_.kv_heads, kv_head = item % config_.kv_heads;
    const int64_t seen = length_ + row + 1;
    std::vector<float> weights(static_cast<size_t>(seen));
    for (int64_t head = kv_head * sharing; head < (kv_head + 1) * sharing; ++head) {
      const float* query = query_.data() + (row * config_.heads + head) * dim;
      float most = -INFINITY, sum = 0;
      for (int64_t t = 0; t < seen; ++t) {
        weights[t] = factor * dot(query, block.keys.data() + t * stride + kv_head * dim, dim);
        most = std::max(most, weights[t]);
      }
      for (float& weight : weights) sum += weight = std::exp(weight - most);
      float* out = mixed_.data() + (row * config_.heads + head) * dim;
      std::fill_n(out, dim, 0.0f);
      for (int64_t t = 0; t < seen; ++t)
        add_scaled(out, weights[t] / sum, block.values.data() + t * stride + kv_head * dim, dim);
    }
  });
  if (Result<void> done = run({&block.attention_out}, mixed_, m, {&delta_}); !done) return done;
  add_scaled(x_.data(), 1, delta_.data(), m * config_.embedding);
  return {};
}

Result<void> CpuDecoder::feed_forward(Block& block, int64_t m) {
  normalize(block.ffn_norm, m);
  if (Result<void> done = run({&block.gate, &block.up}, normed_, m, {&gate_, &up_}); !done) return done;
  for (size_t i = 0; i < gate_.size(); ++i) gate_[i] = gate_[i] / (1 + std::exp(-gate_[i])) * up_[i];
  if (Result<void> done = run({&block.down}, gate_, m, {&delta_}); !done) return done;
  add_scaled(x_.data(), 1, delta_.data(), m * config_.embedding);
  return {};
}

}  // namespace

Result<std::unique_ptr<Decoder>> make_cpu_decoder(const std::string& model, const DecoderOptions& options) {
  auto decoder = std::make_unique<CpuDecoder>(options);
  if (Result<void> loaded = decoder->load(model, options); !loaded) return loaded.error();
  return std::unique_ptr<Decoder>(std::move(decoder));
}

}  // namespace llama
