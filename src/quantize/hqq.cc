// HQQ (Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023), group by group.
//
// With the scale s fixed, min over z of sum |w - (u - z) s|^p is split by an error e that may keep what the grid
// misses:
//   e <- shrink(w - w^)        w^ = (u - z) s;  shrink(x) = sign(x) max(0, |x| - |x|^(p - 1) / beta)
//   z <- mean(u - (w - e) / s) beta <- beta * kappa
#include <atomic>
#include <cmath>
#include <optional>

#include "base/error.h"
#include "base/parallel.h"
#include "quantize/group_fit.h"
#include "quantize/rows.h"

namespace nybble {

using namespace quantize;

namespace {

constexpr int kMaxRangeSteps = 20;  // of a twentieth

// A grid with a zero point that need not be whole.
struct Fit {
  uint32_t scale_bits = 0, zero_bits = 0;  // in the scale's type; zero_bits is a whole number with round_zeros
  double scale = 0, zero = 0;
  double objective = 0;  // sum |error|^p
};

double narrowed(double value, DType dtype, uint32_t& bits) {
  switch (dtype) {
    case DType::kBf16:
      bits = base::float_to_bf16(static_cast<float>(value));
      return base::bf16_to_float(static_cast<uint16_t>(bits));
    case DType::kFp16:
      bits = base::float_to_fp16(static_cast<float>(value));
      return base::fp16_to_float(static_cast<uint16_t>(bits));
    default:
      bits = rtn::bits_of(static_cast<float>(value));
      return rtn::float_of(bits);
  }
}

// u of a weight. A level near the end of fp32's range moves towards zero until the weight it stands for is finite.
int code_of(double weight, const Fit& fit) {
  if (fit.scale == 0) return static_cast<int>(std::clamp(std::nearbyint(fit.zero), 0.0, 15.0));
  int code = static_cast<int>(std::clamp(std::nearbyint(weight / fit.scale + fit.zero), 0.0, 15.0));
  const auto value = [&] { return (code - fit.zero) * fit.scale; };
  while (std::abs(value()) > FLT_MAX && code > 0 && value() > 0) --code;
  while (std::abs(value()) > FLT_MAX && code < 15 && value() < 0) ++code;
  return code;
}

class GroupSearch {
 public:
  GroupSearch(std::span<const float> weights, const GridOptions& grid, const HqqOptions& options)
      : weights_(weights), grid_(grid), options_(options), codes_(weights.size()) {}

  // nullopt: the scale overflows its type.
  std::optional<Fit> run() {
    const rtn::GroupScale plain = scale_for(range_of(weights_), 1.0f, {false, grid_.scale_dtype});
    if (plain.overflows) return std::nullopt;
    // Round to nearest on min <= 0 <= max is where the search must not fall behind.
    Fit best = judged(plain.bits, plain.scale, plain.zero, options_.round_zeros);
    if (plain.scale == 0) return best;
    const rtn::Range range = range_of(weights_);
    const auto [low, high] = std::minmax_element(weights_.begin(), weights_.end());
    for (int step = 0; step < options_.range_steps; ++step) {
      const float shrink = static_cast<float>(kMaxRangeSteps - step) / kMaxRangeSteps;
      const rtn::GroupScale whole = scale_for(range, shrink, {false, grid_.scale_dtype});
      improve(best, whole.bits, whole.scale, whole.zero);
      if (options_.round_zeros) continue;
      // A float zero point need not be whole, and the range need not hold 0.
      uint32_t bits = 0;
      const double scale = narrowed((static_cast<double>(*high) - *low) * shrink / 15, grid_.scale_dtype, bits);
      if (scale > 0 && std::isfinite(scale)) improve(best, bits, scale, -*low * shrink / scale);
    }
    return best;
  }

 private:
  // Sets codes_.
  Fit judged(uint32_t scale_bits, double scale, double zero, bool round) {
    Fit fit{.scale_bits = scale_bits, .scale = scale};
    if (round) {
      fit.zero = std::clamp(std::nearbyint(zero), 0.0, 15.0);
      fit.zero_bits = static_cast<uint32_t>(fit.zero);
    } else {
      fit.zero = narrowed(zero, grid_.scale_dtype, fit.zero_bits);
    }
    for (size_t i = 0; i < weights_.size(); ++i) {
      codes_[i] = code_of(weights_[i], fit);
      fit.objective += std::pow(std::abs(weights_[i] - (codes_[i] - fit.zero) * fit.scale), options_.lp_norm);
    }
    return fit;
  }

  void keep_if_better(Fit& best, const Fit& fit) {
    const Fit storable = options_.round_zeros ? judged(fit.scale_bits, fit.scale, fit.zero, true) : fit;
    if (storable.objective < best.objective) best = storable;
  }

  // Iterates from `zero` and keeps what is better than `best`; stops early where a step gains nothing.
  void improve(Fit& best, uint32_t scale_bits, double scale, double zero) {
    double beta = options_.beta, least = 0;
    for (int i = 0; i <= options_.iterations && std::abs(zero) <= kLargestZero; ++i, beta *= options_.kappa) {
      const Fit fit = judged(scale_bits, scale, zero, false);
      if (i > 0 && !(fit.objective < least)) return;
      least = fit.objective;
      double sum = 0;
      for (size_t j = 0; j < weights_.size(); ++j) {
        const double error = weights_[j] - (codes_[j] - fit.zero) * scale, size = std::abs(error);
        const double kept =
            size == 0 ? 0 : std::copysign(std::max(0.0, size - std::pow(size, options_.lp_norm - 1) / beta), error);
        sum += codes_[j] - (weights_[j] - kept) / scale;
      }
      zero = sum / static_cast<double>(weights_.size());
      keep_if_better(best, fit);
    }
  }

  // Beyond, neighbouring codes are one number in bf16.
  static constexpr double kLargestZero = 256;

  std::span<const float> weights_;
  const GridOptions& grid_;
  const HqqOptions& options_;
  std::vector<int> codes_;
};

Result<void> check(const GridOptions& grid, const HqqOptions& options) {
  if (grid.symmetric)
    return invalid_argument(
        "HQQ searches zero points, so it needs an asymmetric grid (GridOptions::symmetric = false)");
  if (!(options.lp_norm > 0 && options.lp_norm <= 1))
    return invalid_argument("HqqOptions::lp_norm is {}; it may be above 0, up to 1", options.lp_norm);
  if (!(options.beta > 0 && options.beta <= 1e6 && options.kappa >= 1 && options.kappa <= 10))
    return invalid_argument("HqqOptions: beta {} must be above 0, up to 1e6, and kappa {} from 1 to 10", options.beta,
                            options.kappa);
  if (options.iterations < 0 || options.iterations > 1000)
    return invalid_argument("HqqOptions::iterations is {}; it may be 0 to 1000", options.iterations);
  if (options.range_steps < 1 || options.range_steps > kMaxRangeSteps)
    return invalid_argument("HqqOptions::range_steps is {}; it may be 1 to {}", options.range_steps, kMaxRangeSteps);
  return {};
}

}  // namespace

Result<QuantizedWeight> quantize_hqq(const DenseWeight& dense, const GridOptions& grid, const HqqOptions& options) {
  if (Result<void> fine = check(grid, options); !fine) return fine.error();
  Result<QuantizedWeight> prepared = quantize::prepare(dense, grid);
  if (!prepared) return prepared;
  QuantizedWeight weight = std::move(*prepared);
  const int64_t k = weight.k, groups = weight.groups();
  if (!options.round_zeros) {
    weight.zero_kind = ZeroKind::kFloat;
    weight.int_zeros.clear();
    weight.float_zeros.dtype = grid.scale_dtype;
    weight.float_zeros.resize(weight.n * groups);
  }
  std::atomic<int64_t> bad_group{rtn::kNoFault};
  base::parallel_for((weight.n + kRowsPerItem - 1) / kRowsPerItem, grid.num_threads, [&](int64_t item) {
    std::vector<float> row(k);
    for (int64_t n = item * kRowsPerItem; n < std::min(weight.n, (item + 1) * kRowsPerItem); ++n) {
      read_row(dense, n, row.data());
      for (int64_t group = 0; group < groups; ++group) {
        const GroupSpan span = group_span(group, grid.group_size, k);
        const auto part = std::span<const float>(row).subspan(span.begin, span.size());
        const std::optional<Fit> fit = GroupSearch(part, grid, options).run();
        const int64_t index = n * groups + group;
        if (!fit) {
          lower(bad_group, index);
          continue;
        }
        for (int64_t i = 0; i < span.size(); ++i)
          weight.codes[n * k + span.begin + i] = static_cast<uint8_t>(code_of(part[i], *fit));
        weight.scales.set_bits(index, fit->scale_bits);
        if (options.round_zeros)
          weight.int_zeros[index] = static_cast<uint8_t>(fit->zero_bits);
        else
          weight.float_zeros.set_bits(index, fit->zero_bits);
      }
    }
  });
  if (bad_group != rtn::kNoFault) return scale_overflow(dense, grid, bad_group);
  return weight;
}

}  // namespace nybble
