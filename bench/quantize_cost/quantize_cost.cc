// What GPTQ and AWQ of a layer take on the GPU and on the CPU, and whether both results are the same.
//   quantize_cost [--shape 4096x4096,14336x4096] [--group 128] [--rows 0] [--threads 0] [PART ...]
#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>

#include "base/error.h"
#include "bench/random_data.h"
#include "bench/shapes.h"
#include "nybble/launch.h"
#include "nybble/quantize.h"

namespace nybble::bench {
namespace {

struct Options {
  std::string shapes = "4096x4096,14336x4096";
  std::vector<std::string> parts = {"awq-scales", "awq-ranges", "output-error", "gptq"};
  GridOptions grid;
  AwqOptions awq;
};

constexpr int kClipSteps = 10;  // as AWQ has it

struct Layer {
  DenseWeight dense;
  LayerStatistics statistics;
};

// Gaussian weights; inputs of which any two lean on each other and every 64th is eight times as large.
Layer random_layer(const Shape& shape) {
  const int64_t k = shape.k;
  Layer layer{.dense = {.name = fmt::format("{}x{}", shape.n, k), .n = shape.n, .k = k},
              .statistics = {.layer = "random", .k = k, .tokens = 1}};
  layer.dense.values = random_numbers(shape.n * k, DType::kBf16, 0.02, 1);
  const FloatArray sizes = random_numbers(k, DType::kFp32, 1, 2);
  std::vector<float> root(k);
  for (int64_t i = 0; i < k; ++i) root[i] = std::abs(sizes.at(i)) + (i % 64 == 0 ? 8.0f : 0.1f);
  layer.statistics.hessian.resize(k * k);
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) layer.statistics.hessian[i * k + j] = (i == j ? 1.0f : 0.3f) * (root[i] * root[j]);
    layer.statistics.mean_square.push_back(layer.statistics.hessian[i * k + i]);
  }
  return layer;
}

bool same(const AwqScales& a, const AwqScales& b) {
  return a.scales == b.scales && a.ratio == b.ratio && a.loss == b.loss && a.unscaled_loss == b.unscaled_loss;
}
bool same(const QuantizedWeight& a, const QuantizedWeight& b) { return a == b; }
bool same(const GptqResult& a, const GptqResult& b) { return a.weight == b.weight && a.damping == b.damping; }
bool same(double a, double b) { return a == b; }

template <class Work> auto timed(const Work& work, double& seconds) {
  const auto begin = std::chrono::steady_clock::now();
  auto result = work();
  seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

template <class OnGpu, class OnCpu>
Result<void> compare(const Layer& layer, const std::string& part, const OnGpu& on_gpu, const OnCpu& on_cpu) {
  double gpu = 0, cpu = 0;
  const auto found = timed(on_gpu, gpu);
  if (!found) return found.error();
  const auto expected = timed(on_cpu, cpu);
  if (!expected) return expected.error();
  fmt::print("{:>14} {:>14} {:>9.3f} {:>9.3f}  {}\n", layer.dense.name, part, gpu, cpu,
             same(*found, *expected) ? "yes" : "NO");
  return {};
}

Result<void> measure(const Layer& layer, const std::string& part, const Options& options) {
  const DenseWeight& dense = layer.dense;
  const LayerStatistics& statistics = layer.statistics;
  const GridOptions& grid = options.grid;
  if (part == "awq-scales") {
    const DenseWeight* layers[] = {&dense};
    return compare(
        layer, part, [&] { return search_awq_scales_cuda(layers, grid, options.awq, statistics); },
        [&] { return search_awq_scales(layers, grid, options.awq, statistics); });
  }
  if (part == "awq-ranges")
    return compare(
        layer, part, [&] { return quantize_clipped_cuda(dense, grid, kClipSteps, statistics); },
        [&] { return quantize_clipped(dense, grid, kClipSteps, statistics); });
  if (part == "gptq")
    return compare(
        layer, part, [&] { return quantize_gptq_cuda(dense, grid, {}, statistics); },
        [&] { return quantize_gptq(dense, grid, {}, statistics); });
  const Result<QuantizedWeight> weight = quantize_range(dense, grid, {.rule = RangeRule::kFull});
  if (!weight) return weight.error();
  return compare(
      layer, part, [&] { return relative_output_error_cuda(dense, *weight, statistics); },
      [&] { return relative_output_error(dense, *weight, statistics, grid.num_threads); });
}

Result<void> run(const Options& options) {
  const Result<Device> device = Device::cuda();
  if (!device) return device.error();
  const Result<std::vector<Shape>> shapes = parse_shapes(options.shapes);
  if (!shapes) return shapes.error();
  // The first use of the GPU starts the driver.
  const Layer small = random_layer({.n = 64, .k = 64});
  const auto started = quantize_clipped_cuda(small.dense, options.grid, kClipSteps, small.statistics);
  if (!started) return started.error();
  fmt::print("{}\n{:>14} {:>14} {:>9} {:>9}  {}\n", device->name, "n x k", "part", "GPU s", "CPU s", "equal");
  for (const Shape& shape : *shapes) {
    const Layer layer = random_layer(shape);
    for (const std::string& part : options.parts)
      if (Result<void> done = measure(layer, part, options); !done) return done;
  }
  return {};
}

}  // namespace
}  // namespace nybble::bench

int main(int argc, char** argv) {
  using namespace nybble::bench;
  Options options;
  CLI::App app("GPTQ and AWQ of a layer on the GPU and on the CPU: seconds, and whether both are the same.",
               "quantize_cost");
  app.add_option("part", options.parts, "What to measure")
      ->check(CLI::IsMember({"awq-scales", "awq-ranges", "output-error", "gptq"}))
      ->capture_default_str();
  app.add_option("--shape", options.shapes, "Layers, n x k")->capture_default_str();
  app.add_option("--group", options.grid.group_size, "Input features per scale; 0: one scale per output feature")
      ->capture_default_str();
  app.add_option("--rows", options.awq.rows, "awq-scales: judge by this many rows; 0: all")->capture_default_str();
  app.add_option("--threads", options.grid.num_threads, "CPU threads; 0: all cores")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const auto done = run(options);
  if (done) return 0;
  fmt::print(stderr, "quantize_cost: {}\n", done.error().message);
  return 1;
}
