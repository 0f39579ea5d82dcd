// The decoder on a Hopper GPU: 4-bit layers through nybble in fp16 with fp32 sums, the residual stream, attention and
// norms in fp32. A step of one token is captured into a CUDA graph once and replayed.
#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "cuda_kernels.h"
#include "decoder.h"
#include "linear.h"
#include "rope.h"

namespace llama {
namespace {

Result<void> checked(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return {};
  return Error{ErrorCode::kCuda,
               fmt::format("{} failed: {} ({})", call, cudaGetErrorString(status), cudaGetErrorName(status))};
}

// Device memory that frees itself.
template <class T> class DeviceArray {
 public:
  DeviceArray() = default;
  DeviceArray(DeviceArray&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceArray() { cudaFree(data_); }

  T* data() const { return data_; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

  // What was in it is lost.
  Result<void> resize(size_t size) {
    *this = DeviceArray();
    if (size == 0) return {};
    if (Result<void> done = checked(cudaMalloc(reinterpret_cast<void**>(&data_), size * sizeof(T)), "cudaMalloc");
        !done)
      return done;
    size_ = size;
    return {};
  }
  Result<void> upload(const T* values, size_t size) {
    if (Result<void> done = resize(size); !done || size == 0) return done;
    return checked(cudaMemcpy(data_, values, size * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  Result<void> upload(const std::vector<T>& values) { return upload(values.data(), values.size()); }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

struct GpuLinear {
  int64_t n = 0, k = 0;
  nybble::PackedWeight description;       // 4-bit: the packed form on the host; problem_for() reads its header
  DeviceArray<std::byte> packed;          // the same bytes on the GPU
  DeviceArray<float> dense;               // else
  DeviceArray<__half> bias_fp16;          // of a 4-bit layer
  DeviceArray<float> bias;                // of a dense one
  std::map<int64_t, nybble::Plan> plans;  // by m
};

struct GpuBlock {
  DeviceArray<float> attention_norm, ffn_norm, keys, values;
  GpuLinear query, key, value, attention_out, gate, up, down;
};

class CudaDecoder final : public Decoder {
 public:
  CudaDecoder() = default;
  ~CudaDecoder() override {
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  Result<void> load(const std::string& model, const DecoderOptions& options);

  const Config& config() const override { return config_; }
  int64_t vocabulary() const override { return embedding_.n; }
  bool has_own_head() const override { return head_.has_value(); }
  int64_t length() const override { return length_; }
  std::string describe() const override { return description_; }
  void truncate(int64_t length) override { length_ = std::min(length, length_); }
  Result<std::vector<float>> append(std::span<const int32_t> tokens, LogitsOf which) override;

 private:
  static constexpr int kPiece = 256;             // tokens at a time
  static constexpr int64_t kMostContext = 8192;  // tokens that the cache has room for

  Result<GpuLinear> upload(const LayerWeight& weight, bool dense);
  Result<void> prepare(int64_t m);  // plans, and the workspace that they need
  Result<void> run(GpuLinear& layer, const __half* act, int m, float* out);
  Result<void> enqueue(int m, LogitsOf which);
  Result<void> step();
  std::vector<GpuLinear*> layers();

  Config config_;
  nybble::Device device_;
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t graph_ = nullptr;
  GpuLinear embedding_;
  std::optional<GpuLinear> head_;
  DeviceArray<float> output_norm_;
  DeviceArray<double> frequencies_;
  std::vector<GpuBlock> blocks_;
  std::string description_;
  int64_t length_ = 0, capacity_ = 0;
  DeviceArray<int32_t> tokens_, device_length_;
  DeviceArray<float> x_, query_, key_, value_, gate_, up_, delta_, head_in_, logits_;
  DeviceArray<__half> normed_, mixed_;
  DeviceArray<std::byte> workspace_;
};

Result<GpuLinear> CudaDecoder::upload(const LayerWeight& weight, bool dense) {
  GpuLinear layer;
  nybble::FloatArray bias;
  std::visit([&](const auto& any) { layer.n = any.n, layer.k = any.k, bias = any.bias; }, weight);
  std::vector<float> bias_fp32(bias.size());
  for (size_t i = 0; i < bias_fp32.size(); ++i) bias_fp32[i] = bias.at(i);
  const auto* quantized = std::get_if<nybble::QuantizedWeight>(&weight);
  if (quantized == nullptr || dense) {
    if (Result<void> done = layer.dense.upload(to_floats(weight)); !done) return done.error();
    if (Result<void> done = layer.bias.upload(bias_fp32); !done) return done.error();
    return layer;
  }
  Result<nybble::PackedWeight> packed = nybble::pack(*quantized);
  if (!packed) return packed.error();
  layer.description = std::move(*packed);
  if (Result<void> done = layer.packed.upload(layer.description.data(), layer.description.size_bytes()); !done)
    return done.error();
  const nybble::FloatArray fp16 = nybble::FloatArray::from_floats(nybble::DType::kFp16, bias_fp32);
  if (Result<void> done = layer.bias_fp16.upload(reinterpret_cast<const __half*>(fp16.bytes.data()), fp16.size());
      !done)
    return done.error();
  return layer;
}

Result<void> CudaDecoder::load(const std::string& model, const DecoderOptions& options) {
  if (options.dense || options.observer)
    return Error{ErrorCode::kUnsupported,
                 "the dense reference and the collector run on the CPU; leave out --device cuda"};
  Result<nybble::Device> device = nybble::Device::cuda();
  if (!device) return device.error();
  device_ = std::move(*device);
  const Result<Config> config = read_config(model);
  if (!config) return config.error();
  config_ = *config;
  if (config_.head_dim > gpu::kMostHeadDim)
    return Error{ErrorCode::kUnsupported,
                 fmt::format("heads of {} are run on the CPU only; the GPU's kernel takes up to {}", config_.head_dim,
                             gpu::kMostHeadDim)};
  capacity_ = std::min(config_.context, kMostContext);
  const Result<WeightSource> source = WeightSource::open(model, options.weights);
  if (!source) return source.error();
  if (Result<void> done = checked(cudaStreamCreate(&stream_), "cudaStreamCreate"); !done) return done;

  int in_4bit = 0, in_fp32 = 0;
  std::optional<Error> error;
  const auto keep = [&](const Result<void>& result) {
    if (!result && !error) error = result.error();
  };
  const auto linear = [&](const std::string& name, int64_t n, int64_t k, bool dense) {
    if (error) return GpuLinear();
    const Result<LayerWeight> weight = source->layer(name, n, k);
    if (!weight) return error = weight.error(), GpuLinear();
    Result<GpuLinear> layer = upload(*weight, dense);
    if (!layer) return error = layer.error(), GpuLinear();
    ++(layer->packed.empty() ? in_fp32 : in_4bit);
    return std::move(*layer);
  };
  const auto vector = [&](const std::string& name, int64_t count) {
    DeviceArray<float> array;
    if (error) return array;
    const Result<std::vector<float>> values = source->vector(name, count);
    if (!values)
      error = values.error();
    else
      keep(array.upload(*values));
    return array;
  };

  const Result<int64_t> vocabulary = source->layer_rows("token_embd");
  if (!vocabulary) return vocabulary.error();
  const int64_t width = config_.embedding, query = config_.heads * config_.head_dim,
                key = config_.kv_heads * config_.head_dim;
  embedding_ = linear("token_embd", *vocabulary, width, true);  // rows are looked up in it
  if (source->has_layer("output")) head_ = linear("output", *vocabulary, width, true);
  output_norm_ = vector("output_norm.weight", width);
  std::vector<float> factors;
  if (source->has_vector("rope_freqs.weight")) {
    Result<std::vector<float>> read = source->vector("rope_freqs.weight", config_.rope_dim / 2);
    if (!read) return read.error();
    factors = std::move(*read);
  }
  keep(frequencies_.upload(rope_frequencies(config_, factors)));
  for (int64_t i = 0; i < config_.blocks && !error; ++i) {
    const std::string at = fmt::format("blk.{}.", i);
    GpuBlock block;
    block.attention_norm = vector(at + "attn_norm.weight", width);
    block.query = linear(at + "attn_q", query, width, false);
    block.key = linear(at + "attn_k", key, width, false);
    block.value = linear(at + "attn_v", key, width, false);
    block.attention_out = linear(at + "attn_output", width, query, false);
    block.ffn_norm = vector(at + "ffn_norm.weight", width);
    block.gate = linear(at + "ffn_gate", config_.feed_forward, width, false);
    block.up = linear(at + "ffn_up", config_.feed_forward, width, false);
    block.down = linear(at + "ffn_down", width, config_.feed_forward, false);
    keep(block.keys.resize(static_cast<size_t>(capacity_ * key)));
    keep(block.values.resize(static_cast<size_t>(capacity_ * key)));
    blocks_.push_back(std::move(block));
  }
  if (error) return *error;
  if (options.weights && source->layers_from_weights() == 0)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("{}: holds none of the model's layers; they are named as in the model, e.g. {}",
                             *options.weights, source->stored_name("blk.0.attn_q"))};

  const int64_t m = kPiece;
  for (const auto& [array, count] :
       std::initializer_list<std::pair<DeviceArray<float>*, int64_t>>{{&x_, m * width},
                                                                      {&query_, m * query},
                                                                      {&key_, m * key},
                                                                      {&value_, m * key},
                                                                      {&gate_, m * config_.feed_forward},
                                                                      {&up_, m * config_.feed_forward},
                                                                      {&delta_, m * width},
                                                                      {&head_in_, m * width},
                                                                      {&logits_, m * *vocabulary}})
    keep(array->resize(static_cast<size_t>(count)));
  keep(normed_.resize(static_cast<size_t>(m * width)));
  keep(mixed_.resize(static_cast<size_t>(m * std::max(query, config_.feed_forward))));
  keep(tokens_.resize(kPiece));
  keep(device_length_.resize(1));
  if (error) return *error;
  if (Result<void> done = prepare(1); !done) return done;
  const std::vector<GpuLinear*> all = layers();
  const auto first =
      std::find_if(all.begin(), all.end(), [](const GpuLinear* layer) { return !layer->packed.empty(); });
  description_ =
      fmt::format("{}: {} layers in 4 bits through nybble (fp16, fp32 sums{}), {} in fp32", device_.name, in_4bit,
                  first == all.end() ? "" : "; " + (*first)->plans.at(1).kernel() + " for one token", in_fp32);
  return {};
}

std::vector<GpuLinear*> CudaDecoder::layers() {
  std::vector<GpuLinear*> all;
  for (GpuBlock& block : blocks_)
    all.insert(all.end(),
               {&block.query, &block.key, &block.value, &block.attention_out, &block.gate, &block.up, &block.down});
  return all;
}

Result<void> CudaDecoder::prepare(int64_t m) {
  size_t needed = workspace_.size();
  for (GpuLinear* layer : layers()) {
    if (layer->packed.empty() || layer->plans.contains(m)) continue;
    nybble::Problem problem = nybble::problem_for(layer->description, m, nybble::DType::kFp16);
    problem.out_dtype = nybble::DType::kFp32;
    problem.epilogue.bias = !layer->bias_fp16.empty();
    problem.aligned = layer->k % 8 == 0 && layer->n % 4 == 0;  // rows of 16-byte multiples in memory of cudaMalloc
    Result<nybble::Plan> plan = nybble::make_plan(problem, device_);
    if (!plan) return plan.error();
    needed = std::max(needed, plan->workspace_bytes());
    layer->plans.emplace(m, std::move(*plan));
  }
  if (needed <= workspace_.size()) return {};
  if (graph_ != nullptr) {  // it has the old workspace's address
    if (Result<void> done = checked(cudaGraphExecDestroy(std::exchange(graph_, nullptr)), "cudaGraphExecDestroy");
        !done)
      return done;
  }
  if (Result<void> done = checked(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); !done) return done;
  return workspace_.resize(needed);
}

Result<void> CudaDecoder::run(GpuLinear& layer, const __half* act, int m, float* out) {
  if (layer.packed.empty()) {
    gpu::dense_multiply(act, m, layer.k, layer.dense.data(), layer.n, layer.bias.data(), out, stream_);
    return {};
  }
  nybble::LaunchArgs args;
  args.act = act;
  args.weight = layer.packed.data();
  args.out = out;
  args.bias = layer.bias_fp16.data();
  args.workspace = workspace_.data();
  args.workspace_bytes = workspace_.size();
  args.stream = stream_;
  return nybble::launch(layer.plans.at(m), args);
}

// Enqueues the whole pass over the `m` tokens in tokens_; logits go to logits_.
Result<void> CudaDecoder::enqueue(int m, LogitsOf which) {
  const int width = static_cast<int>(config_.embedding);
  const gpu::Heads heads = {static_cast<int>(config_.heads), static_cast<int>(config_.kv_heads),
                            static_cast<int>(config_.head_dim), static_cast<int>(config_.rope_dim),
                            config_.rotates_halves};
  std::optional<Error> error;
  const auto multiply = [&](GpuLinear& layer, const DeviceArray<__half>& act, DeviceArray<float>& out) {
    if (error) return;
    if (Result<void> done = run(layer, act.data(), m, out.data()); !done) error = done.error();
  };
  gpu::embed(embedding_.dense.data(), tokens_.data(), m, width, x_.data(), stream_);
  const float* delta = nullptr;  // what the part before adds to the residual stream
  for (GpuBlock& block : blocks_) {
    gpu::add_and_normalize(x_.data(), delta, block.attention_norm.data(), config_.rms_epsilon, m, width, normed_.data(),
                           nullptr, stream_);
    multiply(block.query, normed_, query_);
    multiply(block.key, normed_, key_);
    multiply(block.value, normed_, value_);
    gpu::rotate_and_store(query_.data(), key_.data(), value_.data(), frequencies_.data(), device_length_.data(), m,
                          heads, block.keys.data(), block.values.data(), stream_);
    gpu::attend(query_.data(), block.keys.data(), block.values.data(), device_length_.data(), m, heads, mixed_.data(),
                stream_);
    multiply(block.attention_out, mixed_, delta_);
    delta = delta_.data();
    gpu::add_and_normalize(x_.data(), delta, block.ffn_norm.data(), config_.rms_epsilon, m, width, normed_.data(),
                           nullptr, stream_);
    multiply(block.gate, normed_, gate_);
    multiply(block.up, normed_, up_);
    gpu::silu_and_multiply(gate_.data(), up_.data(), m * config_.feed_forward, mixed_.data(), stream_);
    multiply(block.down, mixed_, delta_);
  }
  gpu::add_and_normalize(x_.data(), delta, output_norm_.data(), config_.rms_epsilon, m, width, nullptr, head_in_.data(),
                         stream_);
  if (which != LogitsOf::kNone) {
    const GpuLinear& head = head_ ? *head_ : embedding_;
    const int rows = which == LogitsOf::kAll ? m : 1;
    gpu::dense_multiply(head_in_.data() + int64_t{m - rows} * width, rows, width, head.dense.data(), head.n,
                        head.bias.data(), logits_.data(), stream_);
  }
  if (error) return *error;
  return checked(cudaGetLastError(), "a kernel launch");
}

// One token, by the graph, which is captured when it is first wanted. Its logits are cheap beside it, so it always
// computes them.
Result<void> CudaDecoder::step() {
  if (graph_ == nullptr) {
    if (Result<void> done =
            checked(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
        !done)
      return done;
    const Result<void> enqueued = enqueue(1, LogitsOf::kLast);
    cudaGraph_t graph = nullptr;
    const Result<void> ended = checked(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
    if (!enqueued) return enqueued;
    if (!ended) return ended;
    const Result<void> made = checked(cudaGraphInstantiate(&graph_, graph, 0), "cudaGraphInstantiate");
    cudaGraphDestroy(graph);
    if (!made) return made;
  }
  return checked(cudaGraphLaunch(graph_, stream_), "cudaGraphLaunch");
}

Result<std::vector<float>> CudaDecoder::append(std::span<const int32_t> tokens, LogitsOf which) {
  if (length_ + static_cast<int64_t>(tokens.size()) > capacity_)
    return Error{ErrorCode::kInvalidArgument, fmt::format("{} tokens and {} more do not fit into a context of {}",
                                                          length_, tokens.size(), capacity_)};
  for (const int32_t token : tokens)
    if (token < 0 || token >= vocabulary())
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("token {} is none of the vocabulary's {}", token, vocabulary())};
  std::vector<float> logits;
  for (size_t begin = 0; begin < tokens.size(); begin += kPiece) {
    const int m = static_cast<int>(std::min<size_t>(kPiece, tokens.size() - begin));
    const bool last = begin + static_cast<size_t>(m) == tokens.size();
    const LogitsOf of_piece = which == LogitsOf::kLast && !last ? LogitsOf::kNone : which;
    if (Result<void> done = prepare(m); !done) return done.error();
    const auto position = static_cast<int32_t>(length_);
    if (Result<void> done = checked(cudaMemcpyAsync(tokens_.data(), tokens.data() + begin, m * sizeof(int32_t),
                                                    cudaMemcpyHostToDevice, stream_),
                                    "cudaMemcpyAsync");
        !done)
      return done.error();
    if (Result<void> done =
            checked(cudaMemcpyAsync(device_length_.data(), &position, sizeof position, cudaMemcpyHostToDevice, stream_),
                    "cudaMemcpyAsync");
        !done)
      return done.error();
    if (Result<void> done = m == 1 ? step() : enqueue(m, of_piece); !done) return done.error();
    length_ += m;
    const int64_t rows = of_piece == LogitsOf::kNone ? 0 : of_piece == LogitsOf::kAll ? m : 1;
    const size_t before = logits.size();
    logits.resize(before + static_cast<size_t>(rows * vocabulary()));
    if (rows > 0)
      if (Result<void> done = checked(cudaMemcpyAsync(logits.data() + before, logits_.data(),
                                                      static_cast<size_t>(rows * vocabulary()) * sizeof(float),
                                                      cudaMemcpyDeviceToHost, stream_),
                                      "cudaMemcpyAsync");
          !done)
        return done.error();
    if (Result<void> done = checked(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); !done)
      return done.error();
  }
  return logits;
}

}  // namespace

Result<std::unique_ptr<Decoder>> make_cuda_decoder(const std::string& model, const DecoderOptions& options) {
  auto decoder = std::make_unique<CudaDecoder>();
  if (Result<void> loaded = decoder->load(model, options); !loaded) return loaded.error();
  return std::unique_ptr<Decoder>(std::move(decoder));
}

}  // namespace llama
